package fields_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/fields"
)

type budget struct {
	Clock string `json:"clock"`
	Runs  int    `json:"runs"`
}

func (*budget) ShortFor() string { return "Clock" }

type words []string

func (w *words) SetLine(text string) { *w = strings.Fields(text) }

type interval string

func (r *interval) SetRange(text string) { *r = interval(text) }

type spec struct {
	Name   string              `json:"name"`
	Budget budget              `json:"budget"`
	Run    words               `json:"run"`
	Space  map[string]interval `json:"space"`
	Share  *float64            `json:"share"`
	Parts  []budget            `json:"parts"`
}

func TestDecode(t *testing.T) {
	for _, in := range []string{
		"name: a\nbudget: 3m\nrun: go test ./...\nspace: {lr: [1, 2], dim: 3}\nshare: 0.5\nparts:\n  - 1m\n  - {runs: 2}\n",
		"// a comment\n{\"name\": \"a\", \"budget\": {\"clock\": \"3m\"}, \"run\": [\"go\", \"test\", \"./...\"],\n \"space\": {\"lr\": [1, 2], \"dim\": 3}, \"share\": 0.5, \"parts\": [\"1m\", {\"runs\": 2},],}",
	} {
		var s spec
		lines, err := fields.Decode([]byte(in), "f", &s)
		if err != nil || s.Share == nil {
			t.Fatalf("%s: %+v, %v", in, s, err)
		}
		if got := fmt.Sprintf("%s %v %v %v %g %v", s.Name, s.Budget, s.Run, s.Space, *s.Share, s.Parts); got != "a {3m 0} [go test ./...] map[dim:3 lr:categorical([1, 2])] 0.5 [{1m 0} { 2}]" {
			t.Error(got)
		}
		if lines.Of("parts[1].runs") == 0 || lines.Of("parts[1].nothing") != lines.Of("parts[1]") || lines.Of("nothing") != 0 {
			t.Errorf("%v", lines)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "f: is empty",
		"nmae: a":                  `f:1: nmae: unknown field (did you mean "name"?)`,
		"name: a\nname: b":         "f:2: name: stands twice",
		"name: 3":                  "f:1: name: must be text, is 3",
		"budget:\n  runs: many":    `f:2: budget.runs: must be a whole number, is "many"`,
		"name:":                    "f:1: name: has no value",
		"name: &x a\nrun: *x":      "f:2: run: is an alias",
		"- 1":                      "f:1: must be a set of fields, is a list",
		"{\"name\": \"a\"":         "is not JSON",
		"space: {lr: {a: b}}":      "f:1: space.lr: must be a range",
		"parts: [{clock: {a: 1}}]": "f:1: parts[0].clock: must be text, is a set of fields",
	} {
		var s spec
		_, err := fields.Decode([]byte(in), "f", &s)
		var bad *fields.Error
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
}
