package rest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
)

// decided is a server of the models tiny and other with a policy.
func decided(t *testing.T, text string) *fixture {
	t.Helper()
	p, err := policy.Parse([]byte(text), "policy.yaml")
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, false, func(c *Config, _ *serve.SchedulerConfig) { c.Policy = func() *policy.Policy { return p } })
	if err := f.hub.Load("other", "other"); err != nil {
		t.Fatal(err)
	}
	return f
}

type decidedAnswer struct {
	Model   string
	Choices []struct {
		Index   int
		Text    string
		Message struct {
			Content string
			Refusal *string
		}
		Delta struct {
			Content string
			Refusal *string
		}
		Logprobs json.RawMessage
		Finish   string `json:"finish_reason"`
		Verdict  *policy.Verdict
	}
	Usage usage
}

func parseDecided(t *testing.T, body string) decidedAnswer {
	t.Helper()
	var a decidedAnswer
	d := json.NewDecoder(strings.NewReader(strings.ReplaceAll(body, `"autoglm":`, `"verdict":`)))
	if err := d.Decode(&a); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return a
}

// streamedDecided joins a stream's choices: their texts, the last verdict of each.
func streamedDecided(t *testing.T, body string) map[int]decidedAnswer {
	t.Helper()
	out := map[int]decidedAnswer{}
	for line := range strings.Lines(body) {
		data, ok := strings.CutPrefix(strings.TrimSpace(line), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		a := parseDecided(t, data)
		for _, c := range a.Choices {
			old, known := out[c.Index]
			if known {
				c.Text, c.Message.Content = old.Choices[0].Text+c.Text, old.Choices[0].Message.Content+c.Delta.Content
			} else {
				c.Message.Content = c.Delta.Content
			}
			c.Message.Refusal = c.Delta.Refusal
			a.Choices = a.Choices[:0:0]
			out[c.Index] = decidedAnswer{Model: a.Model, Choices: append(a.Choices, c)}
		}
	}
	return out
}

const twoPrompts = `"prompt":["Call me","Some years"],"n":2,"max_tokens":6,"seed":1,"logprobs":1`

// Every way to ask goes through the policy, and says why.
func TestPolicy(t *testing.T) {
	f := decided(t, `models:
  tiny:
    rules:
      - {name: never, when: 'prompt.contains("never")', then: reject, reason: it is forbidden}
      - {name: loud, when: 'prompt.contains("LOUD")', then: {rewrite: '"<" + answer + ">"'}}
      - {name: fixed, when: 'prompt.contains("fixed")', then: {answer: as it is written}}
      - {name: other, when: 'prompt.contains("other") && model == "tiny"', then: {model: other}}
    gate: {confidence: 0.000001, below: abstain}
  panel: {vote: {over: [other, tiny], kind: weighted, weights: [2, 1]}}
`)
	said := func(model, prompt string) string {
		m, release, err := f.hub.Get(model, "")
		if err != nil {
			t.Fatal(err)
		}
		defer release()
		req := serve.Request{Context: 256, MaxTokens: 6, EOS: m.Bundle.Generation.EOS}
		if req.IDs, err = serve.ChatIDs(m.Bundle, []serve.Message{{Role: "user", Content: prompt}}); err != nil {
			t.Fatal(err)
		}
		res, err := m.Generate(t.Context(), req, nil)
		if err != nil {
			t.Fatal(err)
		}
		return res.Text
	}
	for _, tc := range []struct{ model, prompt, want, outcome, by, from, finish string }{
		{"tiny", "hello", said("tiny", "hello"), "accepted", "", "tiny", "length"},
		{"tiny", "never", "", "rejected", "never", "tiny", "content_filter"},
		{"tiny", "LOUD", "<" + said("tiny", "LOUD") + ">", "rewritten", "loud", "tiny", "length"},
		{"tiny", "fixed", "as it is written", "replaced", "fixed", "tiny", "stop"},
		{"tiny", "other", said("other", "other"), "accepted", "", "other", "length"},
		{"panel", "hello", said("other", "hello"), "accepted", "", "other", "length"},
	} {
		for _, stream := range []bool{false, true} {
			name := fmt.Sprintf("%s, %s, streamed %v", tc.model, tc.prompt, stream)
			body := fmt.Sprintf(`{"model":%q,"messages":[{"role":"user","content":%q}],"max_tokens":6,"temperature":0,"logprobs":true,"stream":%v}`, tc.model, tc.prompt, stream)
			status, text, _ := f.do(t, "POST", "/v1/chat/completions", body)
			if status != http.StatusOK {
				t.Fatalf("%s: %d %s", name, status, text)
			}
			var a decidedAnswer
			if stream {
				a = streamedDecided(t, text)[0]
			} else {
				a = parseDecided(t, text)
			}
			c := a.Choices[0]
			if a.Model != tc.model || c.Message.Content != tc.want || c.Finish != tc.finish || c.Verdict == nil {
				t.Errorf("%s: %+v, want %q", name, c, tc.want)
				continue
			}
			if v := c.Verdict; v.Outcome != tc.outcome || v.By != tc.by || v.Model != tc.from || v.Confidence == nil {
				t.Errorf("%s: %+v", name, v)
			}
			if refused := c.Message.Refusal != nil; refused != (tc.outcome == "rejected") || refused && *c.Message.Refusal != "it is forbidden" {
				t.Errorf("%s: refusal %v", name, c.Message.Refusal)
			}
			if has := string(c.Logprobs) != "null" && len(c.Logprobs) > 0; !stream && has != (tc.outcome == "accepted") {
				t.Errorf("%s: logprobs %s", name, c.Logprobs)
			}
			if !stream && tc.want != said(tc.from, tc.prompt) && strings.Contains(text, said("tiny", tc.prompt)) && tc.outcome != "rewritten" {
				t.Errorf("%s: what was withheld is in the answer: %s", name, text)
			}
		}
	}
	// Several prompts and choices, each decided by itself.
	status, text, _ := f.do(t, "POST", "/v1/completions", `{"model":"tiny",`+strings.Replace(twoPrompts, "Some years", "never", 1)+`}`)
	a := parseDecided(t, text)
	var outcomes []string
	for _, c := range a.Choices {
		outcomes = append(outcomes, c.Verdict.Outcome)
	}
	if status != http.StatusOK || !slices.Equal(outcomes, []string{"accepted", "accepted", "rejected", "rejected"}) || a.Usage.Completion != 24 {
		t.Errorf("%d %v %+v", status, outcomes, a.Usage)
	}
	// The Open Inference Protocol.
	for _, tc := range []struct{ path, prompt, outcome, finish string }{
		{"tiny/infer", "hello", "accepted", "length"},
		{"tiny/infer", "never", "rejected", "content_filter"},
		{"panel/infer", "hello", "accepted", "length"},
		{"tiny/versions/1/infer", "fixed", "replaced", "stop"},
	} {
		_, text, _ := f.do(t, "POST", "/v2/models/"+tc.path, fmt.Sprintf(`{"inputs":[{"name":"text_input","datatype":"BYTES","shape":[1],"data":[%q]},{"name":"max_tokens","datatype":"INT32","shape":[1],"data":[6]}]}`, tc.prompt))
		var got struct {
			Parameters map[string]any
			Outputs    []struct {
				Name string
				Data []any
			}
		}
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		var whole policy.Verdict
		if err := json.Unmarshal([]byte(got.Parameters["autoglm"].(string)), &whole); err != nil || whole.Outcome != tc.outcome {
			t.Errorf("%s: %v, %+v", tc.path, err, whole)
		}
		if got.Parameters["autoglm_outcome"] != tc.outcome || got.Outputs[2].Data[0] != tc.finish || tc.outcome == "rejected" && len(got.Outputs[1].Data) != 0 {
			t.Errorf("%s, %s: %s", tc.path, tc.prompt, text)
		}
	}
	for _, path := range []string{"generate", "generate_stream"} {
		_, text, _ := f.do(t, "POST", "/v2/models/tiny/"+path, `{"text_input":"never","parameters":{"max_tokens":6}}`)
		if !strings.Contains(text, `"autoglm":{"outcome":"rejected","model":"tiny","by":"never","reason":"it is forbidden"`) || !strings.Contains(text, `"finish_reason":"content_filter"`) {
			t.Errorf("%s: %s", path, text)
		}
	}
	// Its names and its counters.
	_, text, _ = f.do(t, "GET", "/v1/models", "")
	if !strings.Contains(text, `"id":"panel"`) {
		t.Error(text)
	}
	if status, text, _ = f.do(t, "GET", "/v2/models/panel/ready", ""); status != http.StatusOK {
		t.Errorf("%d %s", status, text)
	}
	if status, text, _ = f.do(t, "POST", "/v1/embeddings", `{"model":"panel","input":"x"}`); status != http.StatusBadRequest || !strings.Contains(text, "which has no embeddings; ask other") {
		t.Errorf("%d %s", status, text)
	}
	if status, text, _ = f.do(t, "POST", "/v1/embeddings", `{"model":"tiny","input":"x"}`); status != http.StatusOK {
		t.Errorf("%d %s", status, text)
	}
	_, text, _ = f.do(t, "GET", "/metrics", "")
	for _, want := range []string{
		`autoglm_policy_rule_total{did="reject",model_name="tiny",rule="never"} 7`, `autoglm_policy_gate_total{model_name="tiny",outcome="passed"}`,
		`autoglm_policy_vote_total{model_name="panel",outcome="majority"} 3`, `autoglm_policy_answer_total{model_name="tiny",outcome="rejected"} 7`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in /metrics", want)
		}
	}
}

// A model that a policy speaks of answers with the same bits where the policy lets it.
func TestPolicyLeavesSeedsAlone(t *testing.T) {
	f := decided(t, "models: {tiny: {rules: [{when: 'attempt > 5', then: reject}]}}")
	plain := start(t, false, nil)
	body := `{"model":"tiny",` + twoPrompts + `}`
	_, want, _ := plain.do(t, "POST", "/v1/completions", body)
	_, got, _ := f.do(t, "POST", "/v1/completions", body)
	w, g := parseDecided(t, want), parseDecided(t, got)
	for i := range w.Choices {
		if w.Choices[i].Text != g.Choices[i].Text || !bytes.Equal(w.Choices[i].Logprobs, g.Choices[i].Logprobs) {
			t.Errorf("choice %d: %+v, want %+v", i, g.Choices[i], w.Choices[i])
		}
	}
}

// Who goes away while a policy decides leaves nothing behind.
func TestPolicyCancelled(t *testing.T) {
	f := decided(t, "models: {panel: {vote: {over: [tiny, other], kind: majority}}}")
	req, err := http.NewRequest(http.MethodPost, f.URL+"/v1/completions", strings.NewReader(`{"model":"panel","prompt":"x","max_tokens":200,"ignore_eos":true,"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	res, err := f.Client().Do(req.WithContext(ctx))
	if err == nil {
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	wait(t, func() bool { return f.busy.Load() == 0 })
}
