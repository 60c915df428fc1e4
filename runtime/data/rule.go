package data

// Rule names a cleaning rule in reports and in dropped.jsonl.
type Rule string

// The rules. Each either drops a row or repairs it; RuleEncoding and
// RuleWrongType do both, as the row allows.
const (
	RuleBlank         Rule = "blank_line"        // dropped: a line without a row
	RuleUnparsable    Rule = "unparsable"        // dropped: not JSON, or an unclosed quote
	RuleRagged        Rule = "ragged_row"        // dropped: CSV row of another width
	RuleEncoding      Rule = "broken_encoding"   // dropped, or repaired when the line's encoding is clear
	RuleMissing       Rule = "missing_field"     // dropped: a field that the task needs is absent or null
	RuleWrongType     Rule = "wrong_type"        // dropped, or repaired: a number or list where text should be
	RuleAlias         Rule = "field_alias"       // repaired: the field has another known name in this row
	RuleEmpty         Rule = "empty"             // dropped: nothing but white space
	RuleTooShort      Rule = "too_short"         // dropped: fewer characters than MinLength
	RuleTooLong       Rule = "too_long"          // dropped, or repaired: split into several documents
	RuleGibberish     Rule = "gibberish"         // dropped: encoded bytes or line noise
	RuleRepetition    Rule = "repetition"        // dropped: the same words over and over
	RuleControl       Rule = "control_character" // repaired: control, zero-width and direction marks removed
	RuleHTML          Rule = "html"              // repaired: tags, comments, scripts and entities removed
	RuleMojibake      Rule = "mojibake"          // repaired: UTF-8 once read as Windows-1252
	RuleExact         Rule = "exact_duplicate"   // dropped: equal but for case, white space and width
	RuleNear          Rule = "near_duplicate"    // dropped: most word triples shared with an earlier row
	RuleAnswerRepeats Rule = "answer_repeats_question"
	RulePlugin        Rule = "plugin" // dropped or changed by a cleaning step of the user
)

// RuleCount is what a rule did.
type RuleCount struct {
	Dropped  int64 `json:"dropped"`
	Repaired int64 `json:"repaired"`
}

// PII counts rows in which personal data was seen; it is left as it is.
type PII struct {
	Email int64 `json:"email"`
	Phone int64 `json:"phone"`
	Card  int64 `json:"card"` // payment card numbers that pass the Luhn check
	IP    int64 `json:"ip"`
}
