package policy

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cel.dev/cel-go/cel"

	"github.com/open-autoglm/autoglm/runtime/fields"
)

// one is a policy of the name m.
func one(t testing.TB, text string) *Served {
	t.Helper()
	p, err := Parse([]byte("models:\n  m:\n    "+strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n    ")+"\n"), "p.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return p.Find("m")
}

// Every mistake is named with its file, line and field.
func TestParseRefuses(t *testing.T) {
	rules := func(s string) string { return "models:\n  m:\n    rules:\n      - " + s }
	for _, tc := range []struct{ in, want string }{
		{"", "p.yaml: is empty"},
		{"models: {}", "p.yaml:1: models: are 0 served names"},
		{"modles: {}", `p.yaml:1: modles: unknown field (did you mean "models"?)`},
		{"models:\n  m: {}", "p.yaml:2: models.m: says nothing"},
		{"models:\n  m:\n    gaet: {}", `p.yaml:3: models.m.gaet: unknown field (did you mean "gate"?)`},
		{"models:\n  m:\n    gate: {confidence: high}", "p.yaml:3: models.m.gate.confidence: must be a number"},
		{"models:\n  m:\n    gate: {confidence: 2, below: abstain}", "p.yaml:3: models.m.gate.confidence: is 2, must be above 0"},
		{"models:\n  m:\n    gate: {confidence: 0.5}", "models.m.gate.below: must be one of abstain, next"},
		{"models:\n  m:\n    gate: {confidence: 0.5, below: reject}", `models.m.gate.below: "reject" is not one of abstain, next`},
		{"models:\n  m:\n    gate: {confidence: 0.5, below: {retry: 2}}", "models.m.gate.below: must be one of"},
		{"models:\n  m:\n    gate: {confidence: 0.5, below: next}", "models.m.gate.below: there is no model to fall to"},
		{"models:\n  m:\n    gate: {confidence: 0.5, below: abstain, of: vots}", `models.m.gate.of: "vots" is not one of mean, geometric, product, least, votes (did you mean "votes"?)`},
		{"models:\n  m:\n    gate: {confidence: 0.5, below: abstain, of: votes}", "models.m.gate.of: votes are of a vote"},
		{"models:\n  m:\n    gate: {confidence: 0.5, below: abstain, temperature: -1}", "models.m.gate.temperature: is -1"},
		{rules("{when: 'true'}"), "p.yaml:4: models.m.rules[0].then: must be one of reject, next"},
		{rules("{when: true, then: reject}"), "models.m.rules[0].when: must be text"},
		{rules("{when: answer, then: reject}"), "p.yaml:4: models.m.rules[0].when: is of type string, must be bool"},
		{rules("{when: 'answer ==', then: reject}"), "p.yaml:4: models.m.rules[0].when: ERROR: 1:10: Syntax error"},
		{rules("{when: 'answr == \"\"', then: reject}"), "undeclared reference to 'answr'"},
		{rules("{when: 'answer.matches(\"(\")', then: reject}"), "models.m.rules[0].when: "},
		{rules("{when: 'prompt.matches(answer)', then: reject}"), "models.m.rules[0].when: the pattern of matches must be written out"},
		{rules("{when: 'answer.matches(\"(abc){99}\")', then: reject}"), "steps a byte, at most 256 are taken"},
		{rules("{when: 'tokens > 3', then: {rewrite: tokens}}"), "models.m.rules[0].then.rewrite: is of type int, must be string"},
		{rules("{when: 'tokens > 3', then: {retry: 99}}"), "models.m.rules[0].then.retry: is 99"},
		{rules("{when: 'tokens > 3', then: {retry: 2, else: {retry: 3}}}"), "models.m.rules[0].then.else: is another retry"},
		{rules("{when: 'tokens > 3', then: {retry: 2, answer: x}}"), "models.m.rules[0].then: must be one of"},
		{rules("{when: 'tokens > 3', then: {answer: x, temperature: 1}}"), "temperature and else go with retry"},
		{rules("{when: 'tokens > 3', then: next}"), "models.m.rules[0].then: there is no model to fall to"},
		{rules("{then: reject}"), "models.m.rules[0].when: is missing"},
		{rules("{name: a, when: 'true', then: reject}\n      - {name: a, when: 'true', then: reject}"), `p.yaml:5: models.m.rules[1].name: "a" stands twice`},
		{rules("{name: gate, when: 'true', then: reject}"), "is too long, or what the gate"},
		{rules("{when: '" + strings.Repeat("true || ", 600) + "true', then: reject}"), "is longer than 4096 bytes"},
		{rules("{when: '" + strings.Repeat("(", 100) + "true" + strings.Repeat(")", 100) + "', then: reject}"), "models.m.rules[0].when: "},
		{"models:\n  m:\n    errors: ignore\n    rules: [{when: 'true', then: reject}]", `p.yaml:3: models.m.errors: "ignore" is not one of reject, pass`},
		{"models:\n  m:\n    vote: {over: [a], kind: majority}", "models.m.vote.over: are 1 models; 2 to 16 vote"},
		{"models:\n  m:\n    vote: {over: [a, a], kind: majority}", `models.m.vote.over[1]: "a" is empty, or stands twice`},
		{"models:\n  m:\n    vote: {over: [a, m], kind: majority}", "models.m.vote.over: names m itself"},
		{"models:\n  m:\n    vote: {over: [a, b], kind: most}", `models.m.vote.kind: "most" is not one of majority, weighted, soft`},
		{"models:\n  m:\n    vote: {over: [a, b], kind: weighted}", "models.m.vote.weights: are missing"},
		{"models:\n  m:\n    vote: {over: [a, b], kind: weighted, weights: [1]}", "models.m.vote.weights: are 1, of 2 models"},
		{"models:\n  m:\n    vote: {over: [a, b], kind: weighted, weights: [1, -1]}", "models.m.vote.weights[1]: is -1"},
		{"models:\n  m:\n    vote: {over: [a, b], kind: majority, weights: [1, 2]}", "models.m.vote.weights: are for weighted"},
		{"models:\n  m:\n    vote: {over: [a, b], kind: soft, agree: 0.5}", "models.m.vote.agree: is for votes on whole answers"},
		{"models:\n  m:\n    vote: {over: [a, b], kind: majority, mean: geometric}", "models.m.vote.mean: is for soft votes"},
		{rules("{when: 'true', then: reject}\n    tests: [{want: accept}]"), "models.m.tests[0]: give answer"},
		{rules("{when: 'true', then: reject}\n    tests: [{answer: x}]"), "models.m.tests[0].want: is missing"},
		{rules("{when: 'true', then: reject}\n    tests: [{answer: x, want: rejct}]"), `models.m.tests[0].want: "rejct" is not one of`},
		{rules("{when: 'true', then: reject}\n    tests: [{answers: {a: x}, want: reject}]"), "models.m.tests[0].answers: are of a vote"},
		{"models:\n  m:\n    vote: {over: [a, b], kind: majority}\n    tests: [{answers: {a: x}, want: accept}]", "models.m.tests[0].answers: are 1, and 2 models vote"},
		{"models: &a\n  m: *a", "is an alias"},
	} {
		_, err := Parse([]byte(tc.in), "p.yaml")
		var bad *fields.Error
		if !errors.As(err, &bad) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s\n got %v\nwant %s", tc.in, err, tc.want)
		}
	}
	if _, err := Parse(make([]byte, MaxFile+1), "p.yaml"); err == nil || !strings.Contains(err.Error(), "is larger than") {
		t.Error(err)
	}
}

func TestDecide(t *testing.T) {
	s := one(t, `
rules:
  - {name: empty, when: 'answer.trim() == ""', then: {retry: 2, else: next}}
  - {name: age, when: 'json != null && has(json.age) && json.age > 150', then: reject, reason: nobody is that old}
  - {name: long, when: 'tokens > 100 || finish == "length"', then: {model: large}}
  - {name: shout, when: 'answer.matches("^[A-Z !]+$")', then: {rewrite: 'answer.lowerAscii().replace("!", "")'}}
  - {name: fixed, when: 'prompt.contains("who are you")', then: {answer: a model}}
  - {name: after, when: 'answer == "hello there"', then: {rewrite: '"hi"'}}
gate: {confidence: 0.6, below: abstain}
next: [b]`)
	for _, tc := range []struct {
		name    string
		in      Input
		retried map[string]int
		want    Decision
	}{
		{"passes", Input{Answer: "yes", Confidence: 0.6}, nil, Decision{Act: Accept, Text: "yes"}},
		{"gate", Input{Answer: "yes", Confidence: 0.59}, nil, Decision{Act: Abstain, By: "gate"}},
		{"retry", Input{Answer: " \n", Confidence: 1}, nil, Decision{Act: Retry, By: "empty"}},
		{"retried", Input{Answer: "", Confidence: 1}, map[string]int{"empty": 2}, Decision{Act: Next, By: "empty"}},
		{"json", Input{Answer: `{"age": 200}`, Confidence: 1}, nil, Decision{Act: Reject, By: "age"}},
		{"json in bounds", Input{Answer: `{"age": 20}`, Confidence: 1}, nil, Decision{Act: Accept, Text: `{"age": 20}`}},
		{"no field", Input{Answer: `{"name": "x"}`, Confidence: 1}, nil, Decision{Act: Accept, Text: `{"name": "x"}`}},
		{"no number: the rule can't be evaluated", Input{Answer: `{"age": "old"}`, Confidence: 1}, nil, Decision{Act: Reject, By: "age"}},
		{"length", Input{Answer: "yes", Finish: "length", Confidence: 1}, nil, Decision{Act: Next, Model: "large", By: "long"}},
		{"rewritten, and on", Input{Answer: "HELLO THERE!", Confidence: 1}, nil, Decision{Act: Accept, Text: "hi", Rewritten: true, By: "after"}},
		{"replaced", Input{Answer: "x", Prompt: "who are you?", Confidence: 0}, nil, Decision{Act: Accept, Text: "a model", Replaced: true, By: "fixed"}},
	} {
		d := s.Decide(t.Context(), tc.in, tc.retried)
		if d.Act != tc.want.Act || d.By != tc.want.By || d.Model != tc.want.Model || d.Replaced != tc.want.Replaced || d.Rewritten != tc.want.Rewritten ||
			d.Act == Accept && d.Text != tc.want.Text {
			t.Errorf("%s: %+v, want %+v", tc.name, d, tc.want)
		}
		if d.By != "" && d.Reason == "" {
			t.Errorf("%s: no reason", tc.name)
		}
	}
	if d := s.Decide(t.Context(), Input{Answer: `{"age": 200}`}, nil); d.Reason != "nobody is that old" {
		t.Error(d.Reason)
	}
	pass := one(t, "errors: pass\nrules: [{when: 'json.age > 1', then: reject}]")
	if d := pass.Decide(t.Context(), Input{Answer: "no JSON"}, nil); d.Act != Accept || len(d.Fired) != 1 || d.Fired[0].Did != "error" {
		t.Errorf("%+v", d)
	}
}

func TestExpressions(t *testing.T) {
	for text, want := range map[string]string{
		`answer.trim()`:                                                "Ünï CODE",
		`answer.trim().lowerAscii()`:                                   "Ünï code",
		`answer.trim().upperAscii()`:                                   "ÜNï CODE",
		`answer.words().join("|")`:                                     "ünï|code",
		`answer.trim().split(" ")[1]`:                                  "CODE",
		`answer.trim().substring(1, 3)`:                                "nï",
		`string(answer.trim().indexOf("CODE"))`:                        "4",
		`string(answer.indexOf("nowhere"))`:                            "-1",
		`answer.trim().replace("CODE", "x")`:                           "Ünï x",
		`json == null ? model + finish : "json"`:                       "mstop",
		`string(attempt) + string(tokens)`:                             "12",
		`string(confidence > 0.5)`:                                     "true",
		`[1, 2, 3].map(x, string(x * 2)).join("")`:                     "246",
		`prompt.size() == 0 ? "none" : prompt`:                         "none",
		`answer.trim().split(" ").filter(w, w.matches("^[A-Z]+$"))[0]`: "CODE",
	} {
		e, err := newExpr("x", text, cel.StringType)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		got, err := e.eval(t.Context(), newScope(Input{Answer: " Ünï CODE\n", Model: "m", Finish: "stop", Attempt: 1, Tokens: 2, Confidence: 0.75}))
		if err != nil || got != want {
			t.Errorf("%s is %v, want %s: %v", text, got, want, err)
		}
	}
}

// No expression hangs, panics, or makes much.
func TestExpressionsAreBounded(t *testing.T) {
	big := strings.Repeat("ab ", 80_000)
	double := "answer" + strings.Repeat(".replace(\"a\", \"aa\")", 25)
	for name, text := range map[string]string{
		"nested loops":   `string(answer.split("").all(a, answer.split("").all(b, answer.split("").all(c, a == b || b == c || true))))`,
		"doubling":       double,
		"concatenation":  strings.Repeat("(", 20) + "answer + answer" + strings.Repeat(")", 20),
		"replace":        `answer.replace("", answer)`,
		"join":           `answer.split("").map(x, answer).join(answer)`,
		"a text a word":  `answer.words().map(x, answer + x).join("")`,
		"patterns":       `string(answer.split(" ").all(w, answer.matches("(x+x+)+(a{50})?y") || true))`,
		"error":          `string(1 / (attempt - attempt))`,
		"no such field":  `json.a.b.c`,
		"no such index":  `answer.split(",")[99]`,
		"substring":      `answer.substring(5, 2)`,
		"wrong type":     `json + "x"`,
		"overflow":       `string(9223372036854775807 + attempt)`,
		"a long regex":   `string(answer.matches("(a|b)*(a|b)*(a|b)*(a|b)*c$"))`,
		"a loop of them": `string(answer.words().all(w, answer.contains(w + "c") || true))`,
	} {
		e, err := newExpr("x", text, cel.StringType)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		begin := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), evalTime)
		v, err := e.eval(ctx, newScope(Input{Answer: big, Attempt: 1}))
		cancel()
		if s, ok := v.(string); err == nil && (!ok || len(s) > 2*len(big)) {
			t.Errorf("%s made %d bytes", name, len(s))
		}
		if took := time.Since(begin); took > 5*evalTime { // a machine may be busy
			t.Errorf("%s took %s: %v", name, took, err)
		}
	}
	e, err := newExpr("x", "answer", cel.StringType)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.eval(t.Context(), newScope(Input{Answer: strings.Repeat("a", maxText+1)})); err == nil || !strings.Contains(err.Error(), "too long for rules") {
		t.Error(err)
	}
	deep := strings.Repeat("[", 5000) + strings.Repeat("]", 5000)
	if e, err = newExpr("x", "string(json == null)", cel.StringType); err != nil {
		t.Fatal(err)
	}
	if v, err := e.eval(t.Context(), newScope(Input{Answer: deep})); err != nil || v != "false" {
		t.Error(v, err)
	}
}

func TestTally(t *testing.T) {
	for _, tc := range []struct {
		vote    string
		answers []string
		want    string
		counted string
	}{
		{"over: [a, b, c], kind: majority", []string{"Yes.", "no", "yes"}, "Yes. 0.67 [a c]; no 0.33 [b]", "majority"},
		{"over: [a, b, c], kind: majority", []string{"x", "y", "z"}, "x 0.33 [a]; y 0.33 [b]; z 0.33 [c]", "tie"},
		{"over: [a, b, c], kind: majority", []string{"x", "X", "x."}, "x 1.00 [a b c]", "unanimous"},
		{"over: [a, b, c], kind: weighted, weights: [3, 1, 1]", []string{"x", "y", "y"}, "x 0.60 [a]; y 0.40 [b c]", "majority"},
		{"over: [a, b, c], kind: weighted, weights: [0.2, 0.1, 0.1]", []string{"x", "y", "y"}, "x 0.50 [a]; y 0.50 [b c]", "tie"},
		{"over: [a, b, c, d], kind: weighted, weights: [3, 2, 1, 1]", []string{"x", "y", "z", "w"}, "x 0.43 [a]; y 0.29 [b]; z 0.14 [c]; w 0.14 [d]", "plurality"},
	} {
		s := one(t, "vote: {"+tc.vote+"}")
		var got []string
		ballots := s.Tally(tc.answers)
		for _, b := range ballots {
			got = append(got, fmt.Sprintf("%s %.2f %v", b.Answer, b.Share, b.Models))
		}
		if g := strings.Join(got, "; "); g != tc.want {
			t.Errorf("%s of %q: %s, want %s", tc.vote, tc.answers, g, tc.want)
		}
		if c := counted(ballots, false); c != tc.counted {
			t.Errorf("%s of %q: %s, want %s", tc.vote, tc.answers, c, tc.counted)
		}
	}
	s := one(t, "vote: {over: [a, b, c], kind: majority, agree: 0.6}")
	if _, ok := s.agreed(Ballot{Share: 2.0 / 3}); !ok {
		t.Error("two of three are less than 0.6")
	}
	if d, ok := s.agreed(Ballot{Share: 1.0 / 3}); ok || d.Act != Abstain || d.By != "vote" {
		t.Errorf("%+v", d)
	}
}

func TestConfidence(t *testing.T) {
	probs := []float64{0.5, 0.25, 1}
	for of, want := range map[string]float64{Mean: 1.75 / 3, Geometric: 0.5, Product: 0.125, Least: 0.25} {
		if got := confidence(of, probs); math.Abs(got-want) > 1e-12 {
			t.Errorf("%s is %g, want %g", of, got, want)
		}
		if confidence(of, nil) != 0 {
			t.Errorf("%s of nothing is not 0", of)
		}
	}
}

// A file's tests run when it is loaded, and one that fails refuses it.
func TestLoadRunsTests(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	write := func(want string) {
		text := `models:
  m:
    rules: [{name: no, when: 'answer == "no"', then: reject}]
    tests:
      - {answer: "yes", want: accept}
      - {name: second, answer: "no", want: ` + want + `}
  panel:
    vote: {over: [m, b], kind: weighted, weights: [1, 2]}
    gate: {confidence: 0.5, below: abstain}
    tests:
      - {answers: {m: "x", b: "y"}, want: {answer: "y"}}
`
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("{do: reject, by: no}")
	p, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.Names(), p.Find("m").Voters(), p.Find("panel").Voters(), p.Find("x").Decides(), p.Find("m").Decides()); got != "[m panel] [] [m b] false true" {
		t.Error(got)
	}
	write("accept")
	if _, err = Load(path); err == nil || err.Error() != path+":6: models.m.tests[1]: test second: accept is wanted, and there is reject, by no" {
		t.Error(err)
	}
	if _, err = Load(path + ".none"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"models:\n  m:\n    rules: [{when: 'answer == \"\"', then: {retry: 2, else: {answer: x}}}]\n    tests: [{answer: '', want: retry}]",
		"models:\n  m:\n    vote: {over: [a, b], kind: weighted, weights: [1, 2], agree: 0.5}\n    gate: {confidence: 0.5, below: abstain}\n    tests: [{answers: {a: x, b: y}, want: accept}]",
		"models:\n  m:\n    errors: pass\n    next: [b]\n    rules: [{when: 'json.a[0] > 1', then: next}, {when: 'true', then: {rewrite: 'answer.words().join(\" \")'}}]\n    tests: [{answer: '{\"a\": [2]}', want: next}]",
		`{"models": {"m": {"gate": {"confidence": 0.5, "of": "least", "temperature": 2, "below": {"answer": ""}}}}} // JSON`,
		"models: [", "models:\n  m: *x", "models:\n  m:\n    rules: [{when: '((((((', then: reject}]",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b, "p")
		if err != nil {
			if p != nil {
				t.Error("a policy beside an error")
			}
			return
		}
		ran := 0
		for _, n := range p.Names() {
			ran += len(p.Find(n).entry.Tests)
			for _, answer := range []string{"", "x", `{"a": [1]}`} { // whatever it decides, it decides
				d := p.Find(n).Decide(context.Background(), Input{Answer: answer, Prompt: "p", Model: "m", Finish: "stop", Attempt: 1}, nil)
				if d.Act == "" {
					t.Errorf("%+v", d)
				}
			}
		}
		if got := len(p.Test()); got != ran {
			t.Errorf("%d tests ran of %d", got, ran)
		}
	})
}

// The cost of a policy for an answer, without the models'.
func BenchmarkDecide(b *testing.B) {
	answer := `{"name": "Ishmael", "age": 30, "text": "` + strings.Repeat("Call me Ishmael. ", 30) + `"}`
	for _, bc := range []struct{ name, text string }{
		{"gate", "gate: {confidence: 0.5, below: abstain}"},
		{"one rule", "rules: [{when: 'answer.trim() == \"\"', then: reject}]"},
		{"regex", "rules: [{when: 'answer.matches(\"(?i)password|secret\")', then: reject}]"},
		{"json", "rules: [{when: 'json == null || json.age > 150', then: reject}]"},
		{"ten rules", "rules:" + strings.Repeat("\n  - {when: 'answer.contains(\"nowhere\") || tokens > 1000', then: reject}", 10)},
		{"rewrite", "rules: [{when: 'true', then: {rewrite: 'answer.replace(\"Ishmael\", \"me\")'}}]"},
	} {
		text := strings.ReplaceAll(bc.text, "when: 'true'", "when: 'attempt > 0'")
		s := one(b, text)
		b.Run(bc.name, func(b *testing.B) {
			for b.Loop() {
				if d := s.Decide(b.Context(), Input{Answer: answer, Confidence: 1, Tokens: 100, Finish: "stop", Attempt: 1}, nil); d.Act != Accept {
					b.Fatal(d)
				}
			}
		})
	}
}

// The cost of a token of a soft vote, without the models'.
func BenchmarkMix(b *testing.B) {
	for _, vocab := range []int{4096, 32768} {
		for _, geometric := range []bool{false, true} {
			b.Run(fmt.Sprintf("V%d geometric %v", vocab, geometric), func(b *testing.B) {
				m := Mixture{mix: Mix{Weights: []float64{0.5, 0.5}, Geometric: geometric}, vocab: vocab}
				logits, out, sum := make([]float32, vocab), make([]float32, vocab), make([]float64, vocab)
				for i := range logits {
					logits[i] = float32(i%17) - 8
				}
				for b.Loop() {
					clear(sum)
					for _, w := range m.mix.Weights {
						m.add(sum, logits, w)
					}
					m.finish(out, sum)
				}
			})
		}
	}
}
