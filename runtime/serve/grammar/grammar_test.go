package grammar

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
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

var rewrite = flag.Bool("rewrite", false, "write testdata/suite.txt anew")

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
		{`{"allOf":[{"type":"object","properties":{"a":{"type":"integer","minimum":3}},"required":["a"]},{"properties":{"a":{"maximum":5},"b":{"type":"null"}}}]}`, []string{`{"a":4}`, `{"a":5,"b":null}`}, []string{`{}`, `{"a":6}`, `{"a":4,"b":1}`}},
		{`{"allOf":[{"properties":{"a":true},"additionalProperties":false},{"properties":{"b":true}}],"type":"object"}`, []string{`{}`, `{"a":1}`}, []string{`{"b":1}`, `{"a":1,"b":1}`}},
		{`{"$ref":"#/$defs/n","minimum":3,"$defs":{"n":{"type":"integer","maximum":4}}}`, []string{`3`, `4`}, []string{`2`, `5`}},
		{
			`{"type":"object","properties":{"kind":{"enum":["card","cash"]},"number":{"type":"string"}},"required":["kind"],"if":{"properties":{"kind":{"const":"card"}}},"then":{"required":["number"]},"else":{"properties":{"number":false}}}`,
			[]string{`{"kind":"cash"}`, `{"kind":"card","number":"1"}`},
			[]string{`{"kind":"card"}`, `{"kind":"cash","number":"1"}`, `{"kind":"x"}`},
		},
		{`{"type":"object","properties":{"a":{},"b":{}},"dependentRequired":{"a":["b"]}}`, []string{`{}`, `{"b":1}`, `{"a":1,"b":1}`}, []string{`{"a":1}`}},
		{`{"type":"object","properties":{"a":{},"b":{"type":"integer"}},"dependentSchemas":{"a":{"properties":{"b":{"minimum":5}}}}}`, []string{`{"b":1}`, `{"a":1,"b":5}`, `{"a":1}`}, []string{`{"a":1,"b":1}`}},
		{`{"type":"object","properties":{"a":{},"b":{},"c":{}},"minProperties":2,"maxProperties":2}`, []string{`{"a":1,"b":2}`, `{"a":1,"c":2}`, `{"b":1,"c":2}`}, []string{`{}`, `{"a":1}`, `{"a":1,"b":1,"c":1}`}},
		{`{"type":"object","maxProperties":1,"minProperties":1}`, []string{`{"x":1}`}, []string{`{}`, `{"x":1,"y":2}`}},
		{`{"type":"object","propertyNames":{"maxLength":2}}`, []string{`{}`, `{"ab":1}`}, []string{`{"abc":1}`}},
		{`{"type":"object","properties":{"abc":{},"a":{}},"propertyNames":{"maxLength":2}}`, []string{`{}`, `{"a":1}`}, []string{`{"abc":1}`}},
		{`{"type":"object","patternProperties":{"^x-[a-z]+$":{"type":"integer"}},"additionalProperties":false}`, []string{`{}`, `{"x-a":1}`, `{"x-a":1,"x-b":2}`}, []string{`{"a":1}`, `{"x-a":"b"}`}},
		{`{"type":"object","properties":{"x-a":{"minimum":3}},"patternProperties":{"^x-":{"type":"integer"}}}`, []string{`{}`, `{"x-a":3}`}, []string{`{"x-a":2}`, `{"x-a":"b"}`}},
		{`{"type":"array","items":{"enum":["a","b",3]},"uniqueItems":true,"minItems":2}`, []string{`["a","b"]`, `["b", "a",3]`}, []string{`["a"]`, `["a","a"]`, `["a","b",3,"a"]`}},
		{`{"type":"array","items":{"type":"boolean"},"uniqueItems":true}`, []string{`[]`, `[true]`, `[false,true]`}, []string{`[true,true]`}},
		{`{"type":"integer","multipleOf":7}`, []string{`0`, `7`, `-14`, `700000000000007`}, []string{`1`, `-13`, `700000000000008`, `07`}},
		{`{"type":"integer","multipleOf":5,"minimum":12}`, []string{`15`, `95`, `100`, `123455`}, []string{`10`, `5`, `0`, `16`, `101`, `-15`}},
		{`{"type":"integer","multipleOf":10,"minimum":-20,"maximum":30}`, []string{`-20`, `0`, `30`}, []string{`-30`, `40`, `5`}},
		{`{"type":"number","multipleOf":0.01,"minimum":0}`, []string{`0`, `1.5`, `2.25`}, []string{`1.255`, `-1.5`}},
		{`{"type":"string","not":{"enum":["no","never",""]}}`, []string{`"n"`, `"yes"`, `"nor"`, `"neve"`, `"nevers"`, `"xno"`}, []string{`"no"`, `"never"`, `""`, `"\u006eo"`, `1`}},
		{`{"type":"integer","minimum":1,"maximum":9,"not":{"enum":[1,5,7.0]}}`, []string{`2`, `4`, `6`, `8`, `9`}, []string{`1`, `5`, `7`, `0`}},
		{`{"not":{"type":["string","object"]}}`, []string{`1`, `null`, `[1]`, `true`}, []string{`"a"`, `{}`}},
		{`{"type":"object","properties":{"a":{},"b":{}},"not":{"required":["a","b"]}}`, []string{`{}`, `{"a":1}`, `{"b":1}`}, []string{`{"a":1,"b":1}`}},
		{`{"oneOf":[{"type":"integer","minimum":3},{"type":"integer","maximum":5}]}`, []string{`2`, `6`}, []string{`3`, `5`}},
		{`{"type":"integer","anyOf":[{"maximum":2},{"minimum":8}]}`, []string{`1`, `9`}, []string{`5`, `"x"`}},
		{`{"enum":[1,2,3,"x"],"minimum":2}`, []string{`2`, `3`, `"x"`}, []string{`1`}},
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
		`{"not":{}}`: "",
		`{"not":{"type":"string","pattern":"x"}}`:                      "not",
		`{"not":{"multipleOf":2}}`:                                     "not",
		`{"type":"string","not":{"const":"a"},"maxLength":3}`:          "not",
		`{"type":"object","minProperties":2}`:                          "minProperties",
		`{"properties":{"a":{}},"minProperties":2}`:                    "minProperties",
		`{"type":"object","patternProperties":{"^a":{},"b$":{}}}`:      "patternProperties",
		`{"type":"object","patternProperties":{"(":{}}}`:               "patternProperties",
		`{"propertyNames":1}`:                                          "propertyNames",
		`{"type":"number","multipleOf":0.3}`:                           "multipleOf",
		`{"type":"number","multipleOf":7,"minimum":3,"maximum":90000}`: "multipleOf",
		`{"type":"number","multipleOf":777}`:                           "multipleOf",
		`{"enum":[1],"minimum":3}`:                                     "enum",
		`{"oneOf":[{"type":"integer"},{"pattern":"x"}]}`:               "oneOf",
		`{"allOf":[{"pattern":"x"},{"pattern":"y"}]}`:                  "pattern",
		`{"allOf":[{"type":"string"},{"type":"null"}]}`:                "",
		`{"if":{"pattern":"x"},"then":{"type":"string"}}`:              "if",
		`{"dependentRequired":{"a":"b"}}`:                              "dependentRequired",
		`{"unevaluatedProperties":false}`:                              "unevaluatedProperties",
		`{"dependencies":{}}`:                                          "dependencies",
		`{"type":"object","allOf":[{"$ref":"#"}]}`:                     "$ref",
		`{"type":"string","pattern":"(?=x)"}`:                          "pattern",
		`{"type":"string","pattern":"a^b"}`:                            "pattern",
		`{"type":"string","pattern":"[à-é]"}`:                          "pattern",
		`{"type":"string","pattern":"(?i)a"}`:                          "pattern",
		`{"type":"string","pattern":"a","maxLength":3}`:                "pattern",
		`{"type":"string","pattern":1}`:                                "pattern",
		`{"type":"string","format":"email"}`:                           "format",
		`{"type":"array","uniqueItems":true}`:                          "uniqueItems",
		`{"type":"array","contains":{}}`:                               "contains",
		`{"type":"number","minimum":0.2,"maximum":0.8}`:                "minimum",
		`{"type":"integer","minimum":"x"}`:                             "minimum",
		`{"type":"text"}`:                                              "type",
		`{"type":[]}`:                                                  "type",
		`{"type":null}`:                                                "type",
		`{"enum":[]}`:                                                  "enum",
		`{"type":"string","const":1}`:                                  "const",
		`{"anyOf":{}}`:                                                 "anyOf",
		`{"$ref":"#/$defs/none"}`:                                      "$ref",
		`{"$ref":"http://example.com/x"}`:                              "$ref",
		`{"$ref":"#"}`:                                                 "$ref",
		`{"$defs":{"a":{"$ref":"#/$defs/b"},"b":{"anyOf":[{"$ref":"#/$defs/a"},{"type":"null"}]}},"$ref":"#/$defs/a"}`: "$ref",
		`{"properties":{"a":{"$id":"x"}}}`:                                "$id",
		`{"type":"string","minLength":5,"maxLength":2}`:                   "maxLength",
		`{"type":"string","minLength":-1}`:                                "minLength",
		`{"type":"string","minLength":1.5}`:                               "minLength",
		`{"type":"array","minItems":3,"items":false}`:                     "minItems",
		`{"type":"object","required":["a"],"additionalProperties":false}`: "required",
		`{"type":"object","required":"a"}`:                                "required",
		`{"type":"object","properties":[]}`:                               "properties",
		`{"type":"array","items":[{}]}`:                                   "",
		`false`:                                                           "",
		`1`:                                                               "",
		`{"a":`:                                                           "",
		`{} {}`:                                                           "",
		`{"type":"string","type":"string"}`:                               "",
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
// so is what is generated, as another implementation judges. The golden file says of each
// group how many of its valid instances are accepted, or the keyword that it is refused for.
func TestSuite(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(suite(t), "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatal("no test suite", err)
	}
	tok := servetest.Bundle(t, 1).Tokenizer
	v := NewVocabulary(tok)
	r := rand.New(rand.NewPCG(1, 2))
	supported, all, accepted, valid, made := 0, 0, 0, 0, 0
	var golden strings.Builder
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
			where := filepath.Base(file) + ": " + g.Description
			s, err := Compile(g.Schema)
			if err != nil {
				var e *Error
				errors.As(err, &e)
				fmt.Fprintf(&golden, "%s: refused for %s\n", where, cmp.Or(e.Keyword, e.Reason))
				continue
			}
			supported++
			came, of := accepted, valid
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
			fmt.Fprintf(&golden, "%s: %d of %d\n", where, accepted-came, valid-of)
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
	if supported < 180 || accepted < 280 || made < 1000 {
		t.Error("too few to show anything")
	}
	const path = "testdata/suite.txt"
	if *rewrite {
		if err := os.WriteFile(path, []byte(golden.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	was, is := strings.Split(string(want), "\n"), strings.Split(golden.String(), "\n")
	for i := range min(len(was), len(is)) {
		if was[i] != is[i] {
			t.Errorf("%s, line %d:\nwas %s\nis  %s\nwhere that is meant: go test -run Suite -rewrite", path, i+1, was[i], is[i])
		}
	}
	if len(was) != len(is) {
		t.Errorf("%s has %d lines, not %d", path, len(was), len(is))
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
	for _, s := range []string{
		`{}`, `{"type":"object","properties":{"a":{"$ref":"#"}}}`, `{"anyOf":[{"type":"integer","minimum":-5,"maximum":700},{"enum":["a"]}]}`, `{"type":"array","items":{"type":"string","maxLength":3}}`, `{"$defs":{"a":{"$ref":"#/$defs/a"}},"$ref":"#/$defs/a"}`,
		`{"allOf":[{"properties":{"a":{"minimum":3}}},{"patternProperties":{"a":{"maximum":4}},"additionalProperties":false}]}`, `{"if":{"properties":{"k":{"const":"x"}}},"then":{"required":["k"]},"else":{"minProperties":2}}`,
		`{"type":"array","items":{"enum":[1,2]},"uniqueItems":true}`, `{"multipleOf":7,"minimum":12}`, `{"oneOf":[{"not":{"enum":["a",5]}},{"dependentRequired":{"a":["b"]}}]}`,
	} {
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
