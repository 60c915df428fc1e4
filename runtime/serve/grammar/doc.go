// Package grammar confines a text to the JSON that a schema allows, token by token.
//
//	s, err := grammar.Compile(schema)   // *Error names the keyword that is not supported
//	v := grammar.NewVocabulary(tok)     // once for a tokenizer
//	m := s.Match(v)                     // for each text
//	ids, end := m.Allowed()             // a bit for each token; whether the text may end
//	m.Take(id)
//
// A schema becomes a pushdown automaton over bytes, made deterministic where it is
// walked. Which tokens may come follows from walking the automaton down the trie of the
// vocabulary, and is kept for each of its states.
//
// Invariants: a text that ends where it may is valid against its schema. The other way
// round not every valid JSON can come: members stand in the order of properties, there is
// at most one blank after a comma or a colon, numbers have up to 15 digits, and members
// that the schema does not name come only where it names none, texts that a pattern names
// match it as a whole. Values of enum come without blanks. A keyword that is not supported
// is an error, never passed over.
//
// What other schemas say ($ref beside other keywords, allOf, anyOf, oneOf, not, if, what
// depends on a member) is unfolded into plain schemas of which one holds, as far as it can
// be denied where that is asked. Not supported are contains, unevaluatedItems and
// unevaluatedProperties, references out of the schema and to anchors, the denial of
// patterns, formats and multiples, two patterns for one text, and what testdata/suite.txt
// names. Every byte is a token of its own, so that no
// text ends up where nothing may follow.
package grammar
