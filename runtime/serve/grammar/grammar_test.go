package grammar

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/open-autoglm/autoglm/runtime/serve/servetest"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// accepts tells whether a text may come and end.
func accepts(s *Schema, text string) bool {
	m, at := newMachine(&s.p)
	for i := range len(text) {
		at = m.step(at, text[i])
	}
	return at.end
}

func TestAccepts(t *testing.T) {
	for _, c := range []struct {
		schema   string
		yes, not []string
	}{
		{`{}`, []string{`null`, `{}`, `[]`, `[1, {"a":[true,"x"]}]`, `"é\n\u00e9😀"`, `-0.5e-10`, `{"a": 1, "b":2}`}, []string{``, `nul`, `01`, `1.`, `"\ud800"`, "\"\xff\"", "\"\n\"", `[1,]`, `{"a"}`, `{a:1}`, ` 1`, `[1,  2]`, "\"\xed\xa0\x80\"", "\"\xc0\x80\""}},
		{`true`, []string{`1`}, nil},
		{`{"type":"object","properties":{"a":{"type":"integer"},"b":{"type":"boolean"},"c":{}},"required":["b"]}`, []string{`{"b":true}`, `{"a":1,"b":false}`, `{"a": 1, "b": false, "c": null}`}, []string{`{}`, `{"a":1}`, `{"b":true,"a":1}`, `{"b":true,"x":1}`, `{"a":1.5,"b":true}`, `{,"b":true}`}},
		{`{"type":"object","additionalProperties":{"type":"integer"}}`, []string{`{}`, `{"x":1}`, `{"x":1,"y": 2}`}, []string{`{"x":"1"}`, `{"x":1,}`}},
		{`{"type":"object","required":["a"]}`, []string{`{"a":[]}`}, []string{`{}`, `{"b":1}`}},
		{`{"type":"array","items":{"type":"null"},"minItems":1,"maxItems":3}`, []string{`[null]`, `[null, null,null]`}, []string{`[]`, `[null,null,null,null]`, `[1]`}},
		{`{"type":"array","minItems":2}`, []string{`[1,2]`, `[1,"x",{}]`}, []string{`[]`, `[1]`}},
		{`{"type":"array","maxItems":0}`, []string{`[]`}, []string{`[1]`}},
		{`{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false}`, []string{`[]`, `[1]`, `[1,"x"]`}, []string{`["x"]`, `[1,"x",2]`}},
		{`{"type":"array","prefixItems":[{"type":"integer"}],"items":{"type":"null"},"minItems":2}`, []string{`[1,null]`, `[1,null,null]`}, []string{`[1]`, `[null,null]`}},
		{`{"type":"string","minLength":2,"maxLength":3}`, []string{`"ab"`, `"é😀x"`, `"\n\u0041"`}, []string{`"a"`, `"abcd"`}},
		{`{"type":"integer","minimum":-3,"exclusiveMaximum":120}`, []string{`-3`, `0`, `9`, `10`, `99`, `100`, `119`}, []string{`-4`, `120`, `1.5`, `-0.5`, `007`, `1e3`}},
		{`{"type":"integer","minimum":17,"maximum":1234}`, []string{`17`, `99`, `100`, `999`, `1000`, `1234`, `1199`}, []string{`16`, `9`, `1235`, `2000`, `10000`, `-17`}},
		{`{"type":"number","minimum":0,"maximum":2}`, []string{`0`, `2`, `1.5`, `0.001`, `1.25`}, []string{`2.5`, `-0.5`, `2.0001`, `3`}},
		{`{"type":"number","exclusiveMinimum":-1.5,"exclusiveMaximum":1}`, []string{`-1`, `0`, `0.5`, `-0.25`}, []string{`1`, `-2`, `1.5`, `-1.5`}},
		{`{"enum":["a b",1,{"x":[1,2]},null]}`, []string{`"a b"`, `1`, `{"x":[1,2]}`, `null`}, []string{`"a"`, `12`}},
		{`{"type":"string","enum":["a",1]}`, []string{`"a"`}, []string{`1`}},
		{`{"const":"<é>"}`, []string{`"<é>"`}, []string{`"x"`}},
		{`{"anyOf":[{"type":"integer"},{"const":"auto"}]}`, []string{`1`, `"auto"`}, []string{`"x"`}},
		{`{"oneOf":[{"type":"integer"},{"const":"auto"},{"type":"null"}]}`, []string{`1`, `"auto"`, `null`}, nil},
		{`{"$defs":{"tree":{"type":"object","properties":{"v":{"type":"integer"},"kids":{"type":"array","items":{"$ref":"#/$defs/tree"}}},"required":["v"]}},"$ref":"#/$defs/tree"}`, []string{`{"v":1}`, `{"v":1,"kids":[{"v":2},{"v":3,"kids":[]}]}`}, []string{`{"v":1,"kids":[{}]}`}},
		{`{"type":"array","items":{"$ref":"#"}}`, []string{`[]`, `[[],[[]]]`}, []string{`[1]`}},
		{`{"type":["string","null"],"maxLength":1}`, []string{`"x"`, `null`}, []string{`"xy"`, `1`}},
		{`{"type":"string","format":"date-time"}`, []string{`"2024-02-28T23:59:59Z"`}, []string{`"2024-02-30T23:59:59Z"`, `"2024-02-28T24:00:00Z"`, `"x"`}},
		{`{"type":"string","pattern":"^[A-Z]{2,3}-\\d+(x|yé)?$"}`, []string{`"AB-1"`, `"ABC-123x"`, `"AB-9yé"`}, []string{`"A-1"`, `"ABCD-1"`, `"AB-"`, `"AB-1y"`, `" AB-1"`}},
		{`{"type":"string","pattern":"^a.*\"[\\\\]$"}`, []string{`"a\"\\"`, `"axy z\"\\"`}, []string{`"a\"\"`, `"a"\\"`}},
		{`{"type":"string","pattern":"^$|b"}`, []string{`""`, `"b"`}, []string{`"c"`}},
		{`{"type":"string","format":"uuid"}`, []string{`"01234567-89ab-cdef-0123-456789abcdef"`}, []string{`"01234567-89ab-cdef-0123-456789abcde"`}},
	} {
		s, err := Compile([]byte(c.schema))
		if err != nil {
			t.Errorf("%s: %v", c.schema, err)
			continue
		}
		for _, y := range c.yes {
			if !accepts(s, y) {
				t.Errorf("%s does not accept %s", c.schema, y)
			}
		}
		for _, n := range c.not {
			if accepts(s, n) {
				t.Errorf("%s accepts %s", c.schema, n)
			}
		}
	}
}

func TestRefuses(t *testing.T) {
	for schema, keyword := range map[string]string{
		`{"type":"string","pattern":"(?=x)"}`:              "pattern",
		`{"type":"string","pattern":"a^b"}`:                "pattern",
		`{"type":"string","pattern":"[à-é]"}`:              "pattern",
		`{"type":"string","pattern":"(?i)a"}`:              "pattern",
		`{"type":"string","pattern":"a","maxLength":3}`:    "pattern",
		`{"type":"string","pattern":1}`:                    "pattern",
		`{"type":"string","format":"email"}`:               "format",
		`{"not":{}}`:                                       "not",
		`{"type":"object","patternProperties":{}}`:         "patternProperties",
		`{"type":"object","minProperties":1}`:              "minProperties",
		`{"type":"array","uniqueItems":true}`:              "uniqueItems",
		`{"type":"array","contains":{}}`:                   "contains",
		`{"type":"number","multipleOf":2}`:                 "multipleOf",
		`{"type":"number","minimum":0.2,"maximum":0.8}`:    "minimum",
		`{"type":"integer","minimum":"x"}`:                 "minimum",
		`{"type":"text"}`:                                  "type",
		`{"type":[]}`:                                      "type",
		`{"type":null}`:                                    "type",
		`{"enum":[]}`:                                      "enum",
		`{"enum":[1],"minimum":3}`:                         "minimum",
		`{"type":"string","const":1}`:                      "const",
		`{"allOf":[{},{}]}`:                                "allOf",
		`{"oneOf":[{"type":"integer"},{"type":"number"}]}`: "oneOf",
		`{"anyOf":{}}`:                                     "anyOf",
		`{"anyOf":[{}],"type":"string"}`:                   "type",
		`{"$ref":"#/$defs/none"}`:                          "$ref",
		`{"$ref":"http://example.com/x"}`:                  "$ref",
		`{"$ref":"#"}`:                                     "$ref",
		`{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"anyOf":[{"$ref":"#/$defs/a"},{"type":"null"}]}},"$ref":"#/$defs/a"}`: "$ref",
		`{"$ref":"#/$defs/a","type":"string","$defs":{"a":{}}}`:                                                        "type",
		`{"properties":{"a":{"$id":"x"}}}`:                                                                             "$id",
		`{"type":"string","minLength":5,"maxLength":2}`:                                                                "maxLength",
		`{"type":"string","minLength":-1}`:                                                                             "minLength",
		`{"type":"string","minLength":1.5}`:                                                                            "minLength",
		`{"type":"array","minItems":3,"items":false}`:                                                                  "minItems",
		`{"type":"object","required":["a"],"additionalProperties":false}`:                                              "required",
		`{"type":"object","required":"a"}`:                                                                             "required",
		`{"type":"object","properties":[]}`:                                                                            "properties",
		`{"type":"object","properties":{"a":{"if":{}}}}`:                                                               "if",
		`{"type":"array","items":[{}]}`:                                                                                "",
		`false`:                                                                                                        "",
		`1`:                                                                                                            "",
		`{"a":`:                                                                                                        "",
		`{} {}`:                                                                                                        "",
		`{"type":"string","type":"string"}`:                                                                            "",
		`{"type":"array","minItems":150000,"items":{"type":"string","minLength":1000}}`: "",
		strings.Repeat(`{"items":`, 99) + `{}` + strings.Repeat(`}`, 99):                "",
	} {
		_, err := Compile([]byte(schema))
		var e *Error
		if !errors.As(err, &e) || e.Keyword != keyword || e.Error() == "" {
			t.Errorf("%.99s: %v, want %q named", schema, err, keyword)
		}
	}
}

// suite is the folder of the JSON Schema test suite's draft 2020-12 in the module that
// checks what is generated.
func suite(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/google/jsonschema-go").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "jsonschema", "testdata", "draft2020-12")
}

// generate walks a schema at random, by tokens, as a model does, and says whether it
// came to an end.
func generate(s *Schema, v *Vocabulary, tok *token.Tokenizer, r *rand.Rand, most int) (string, bool) {
	m := s.Match(v)
	var out []byte
	for range most {
		ids, end := m.Allowed()
		var all []int32
		for id := range int32(tok.VocabSize()) {
			if ids[id/64]>>(id%64)&1 == 1 {
				all = append(all, id)
			}
		}
		if end && (len(all) == 0 || r.IntN(3) == 0) {
			return string(out), true
		}
		if len(all) == 0 {
			return string(out) + " (nothing may follow)", true
		}
		id := all[r.IntN(len(all))]
		if i := slices.IndexFunc(all, func(id int32) bool { return strings.ContainsAny(tok.Symbol(id), "\"]}") }); i >= 0 && r.IntN(3) == 0 {
			id = all[i] // texts and lists should end
		}
		out = append(out, tok.Symbol(id)...)
		m.Take(id)
	}
	return string(out), false
}

// The JSON Schema test suite, as far as it is supported: what is accepted is valid, and
// so is what is generated, as another implementation judges.
func TestSuite(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(suite(t), "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatal("no test suite", err)
	}
	tok := servetest.Bundle(t, 1).Tokenizer
	v := NewVocabulary(tok)
	r := rand.New(rand.NewPCG(1, 2))
	supported, all, accepted, valid, made := 0, 0, 0, 0, 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var groups []struct {
			Description string
			Schema      json.RawMessage
			Tests       []struct {
				Description string
				Data        json.RawMessage
				Valid       bool
			}
		}
		if err := json.Unmarshal(b, &groups); err != nil {
			t.Fatal(err)
		}
		for _, g := range groups {
			all++
			s, err := Compile(g.Schema)
			if err != nil {
				continue
			}
			supported++
			where := filepath.Base(file) + ": " + g.Description
			for _, c := range g.Tests {
				data, err := parse(c.Data)
				if err != nil {
					t.Fatal(err)
				}
				if c.Valid {
					valid++
				}
				if accepts(s, text(data)) {
					accepted++
					if !c.Valid {
						t.Errorf("%s: %s: accepts %s", where, c.Description, text(data))
					}
				}
			}
			var judge jsonschema.Schema
			if err := json.Unmarshal(g.Schema, &judge); err != nil {
				continue
			}
			resolved, err := judge.Resolve(nil)
			if err != nil {
				continue
			}
			for range 10 {
				out, ended := generate(s, v, tok, r, 300)
				if !ended {
					continue
				}
				var value any
				if err := json.Unmarshal([]byte(out), &value); err != nil {
					t.Errorf("%s: %q is no JSON: %v", where, out, err)
				} else if err := resolved.Validate(value); err != nil {
					t.Errorf("%s: %s: %v", where, out, err)
				}
				made++
			}
		}
	}
	t.Logf("%d of %d schemas are supported; %d of their %d valid instances are accepted in the order in which they are written; %d texts were made", supported, all, accepted, valid, made)
	if supported < 80 || accepted < 100 || made < 500 {
		t.Error("too few to show anything")
	}
}

func TestMatcherKeepsWithin(t *testing.T) {
	const n = maxNodes + 500
	s, err := Compile(fmt.Appendf(nil, `{"type":"string","minLength":%d}`, n))
	if err != nil {
		t.Fatal(err)
	}
	m := s.Match(NewVocabulary(servetest.Bundle(t, 1).Tokenizer))
	m.write(`"`)
	for i := range n {
		if i%500 == 0 {
			if _, end := m.Allowed(); end {
				t.Fatal("a text ends too early")
			}
		}
		m.write("x")
	}
	m.write(`"`)
	if ids, end := m.Allowed(); !end || slices.ContainsFunc(ids, func(w uint64) bool { return w != 0 }) {
		t.Error("the text does not end")
	}
	if len(m.m.nodes) > maxNodes {
		t.Errorf("%d nodes are kept", len(m.m.nodes))
	}
}

func FuzzCompile(f *testing.F) {
	for _, s := range []string{`{}`, `{"type":"object","properties":{"a":{"$ref":"#"}}}`, `{"anyOf":[{"type":"integer","minimum":-5,"maximum":700},{"enum":["a"]}]}`, `{"type":"array","items":{"type":"string","maxLength":3}}`, `{"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}`} {
		f.Add(s)
	}
	tok := servetest.Bundle(f, 1).Tokenizer
	v := NewVocabulary(tok)
	f.Fuzz(func(t *testing.T, schema string) {
		s, err := Compile([]byte(schema))
		if err != nil {
			return
		}
		if out, ended := generate(s, v, tok, rand.New(rand.NewPCG(1, 1)), 40); ended && !json.Valid([]byte(out)) {
			t.Errorf("%q is no JSON", out)
		}
	})
}

func BenchmarkAllowed(b *testing.B) {
	s, err := Compile([]byte(`{"type":"object","additionalProperties":{"type":"string"}}`))
	if err != nil {
		b.Fatal(err)
	}
	v := NewVocabulary(servetest.Bundle(b, 1).Tokenizer)
	for b.Loop() {
		m := s.Match(v)
		for _, c := range `{"name": "x` {
			m.Allowed()
			m.write(string(c))
		}
	}
}
