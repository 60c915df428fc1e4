package template

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func files(t testing.TB) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.jinja")
	if err != nil || len(paths) == 0 {
		t.Fatal("no templates", err)
	}
	out := map[string]string{}
	for _, p := range paths {
		raw, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		out[filepath.Base(p)] = string(raw)
	}
	return out
}

var conversations = [][]Message{
	{{"user", "Hello"}},
	{{"system", " Be brief.\n"}, {"user", "Who are you? <|im_end|> é'\"<&>"}},
	{{"user", "1"}, {"assistant", "<think>\nhm\n</think>\n\n a "}, {"user", "!so"}},
	{{"system", "s"}, {"user", "a\n\nb"}, {"assistant", "c"}, {"user", "!  d"}},
	{{"assistant", "I begin"}, {"user", "no"}},
	{{"user", "a"}, {"user", "b"}},
}

// The peer renders every template with every conversation.
const peer = `
import json, sys
from transformers.utils.chat_template_utils import render_jinja_template
out = {}
for name, template in json.load(sys.stdin)["templates"].items():
    out[name] = []
    for messages in json.loads(sys.argv[1]):
        for generate in (False, True):
            try:
                text = render_jinja_template(conversations=[messages], chat_template=template, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>")
                out[name].append(text[0][0])
            except Exception as e:
                out[name].append("!! " + str(e))
print(json.dumps(out))
`

func TestParity(t *testing.T) {
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		const why = "AUTOGLM_PYTHON is unset: no Python with transformers to compare with"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	templates := files(t)
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	var asked [][]message
	for _, c := range conversations {
		var one []message
		for _, m := range c {
			one = append(one, message(m))
		}
		asked = append(asked, one)
	}
	in, err := json.Marshal(map[string]any{"templates": templates})
	if err != nil {
		t.Fatal(err)
	}
	arg, err := json.Marshal(asked)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), python, "-c", peer, string(arg))
	var stderr bytes.Buffer
	c.Stdin, c.Stderr = bytes.NewReader(in), &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var want map[string][]string
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatal(err)
	}
	for name, source := range templates {
		tpl, err := Parse(source)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i, messages := range conversations {
			for j, generate := range []bool{false, true} {
				got, err := tpl.Render(Input{Messages: messages, BOS: "<s>", EOS: "</s>", Generate: generate, Now: time.Now()})
				var e *Error
				if errors.As(err, &e) && e.Raised && e.Line > 0 {
					got = "!! " + e.Reason
				} else if err != nil {
					got = "?? " + err.Error()
				}
				if w := want[name][2*i+j]; got != w {
					t.Errorf("%s, conversation %d, %t:\n%q, not\n%q", name, i, generate, got, w)
				}
			}
		}
	}
}

// One template renders for several at once, and says the same to all.
func TestConcurrent(t *testing.T) {
	for name, source := range files(t) {
		tpl, err := Parse(source)
		if err != nil {
			t.Fatal(err)
		}
		want, err := tpl.Render(Input{Messages: conversations[2], Generate: true})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i := range conversations {
					_, _ = tpl.Render(Input{Messages: conversations[i]})
				}
				if got, err := tpl.Render(Input{Messages: conversations[2], Generate: true}); err != nil || got != want {
					t.Errorf("%s: %q, %v", name, got, err)
				}
			})
		}
		wg.Wait()
	}
}

func TestErrors(t *testing.T) {
	for _, c := range []struct {
		source, want string
		line         int
	}{
		{"a\n{% if %}", "expected", 0}, // the library doesn't say where
		{"a\n{{ (1 + }}", "", 2},
		{"\n\n{% for m in messages %}", "", 0},
		{"\n{{ raise_exception('no') }}", "no", 2},
		{"{{ 'x' }}\n\n{{ messages | nothing }}", "nothing", 3},
		{"{% include '/etc/passwd' %}", "may read nothing", 0},
		{"{% import '/etc/passwd' as x %}", "may read nothing", 0},
		{"{% for i in range(1000000000) %}{% endfor %}", "ranges", 1},
		{"{% for i in range(3) %}{{ 'x' * 9000000 }}{% endfor %}", "more than", 1},
		{"{{ strftime_now('%Q') }}", "strftime_now", 1},
		{strings.Repeat("x", maxSource+1), "more than", 0},
	} {
		tpl, err := Parse(c.source)
		if err == nil {
			_, err = tpl.Render(Input{Messages: conversations[0]})
		}
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.Reason, c.want) || c.line > 0 && e.Line != c.line || len(e.Reason) > 400 {
			t.Errorf("%.40q: %.600v, want %q at line %d", c.source, err, c.want, c.line)
		}
	}
}

func TestNestedIf(t *testing.T) {
	for source, want := range map[string]string{
		`{{ ('a' if x else 'b') + 'c' }}`:                                               "bc",
		`{{ ("a if b" if messages else 'b') }}`:                                         "a if b",
		`{{ (1 if x else 2 if messages else 3) }}`:                                      "2",
		`{% for a in [1 if x else 'y', (2 if messages else 'z')] %}{{ a }}{% endfor %}`: "y2",
		`{% set ns = namespace(v=5 if messages else 6) %}{{ ns.v }}`:                    "5",
		`{{ ({'k': 1 if x else 7})['k'] }}{# (a if b else c #}`:                         "7",
		`{{ (0 if messages else 4) }}{{ ('' if messages) }}`:                            "0",
		"{{ ('a'\n if\nx\nelse 'b') }} { (a if b else c) }":                             "b { (a if b else c) }",
		`{{ (x.y.z if x else 'safe') }}`:                                                "safe",
	} {
		tpl, err := Parse(source)
		if err != nil {
			t.Errorf("%s: %s: %v", source, nestedIf(source), err)
			continue
		}
		if got, err := tpl.Render(Input{Messages: conversations[0]}); err != nil || got != want {
			t.Errorf("%s: %q, %v, want %q", source, got, err, want)
		}
	}
}

func TestNow(t *testing.T) {
	tpl, err := Parse(`{{ strftime_now("%d %B %Y, %H:%M %%") }}`)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := tpl.Render(Input{Now: time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)}); err != nil || s != "04 March 2026, 05:06 %" {
		t.Errorf("%q, %v", s, err)
	}
}

func FuzzTemplate(f *testing.F) {
	for _, s := range files(f) {
		f.Add(s)
	}
	f.Fuzz(func(_ *testing.T, source string) {
		if t, err := Parse(source); err == nil && !strings.Contains(source, "*") {
			_, _ = t.Render(Input{Messages: conversations[2]})
		}
	})
}
