package policy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
	"github.com/open-autoglm/autoglm/runtime/serve/servetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open makes the model that a folder's name is the seed of; cal… is calibrated.
func open(t testing.TB) serve.Opener {
	return func(dir string, seqs int) (*bundle.Bundle, engine.Decoder, error) {
		if dir == "broken" {
			return nil, nil, errors.New("there is no bundle in broken")
		}
		b := servetest.Bundle(t, uint64(len(dir)))
		if strings.HasPrefix(dir, "cal") {
			b.Eval = json.RawMessage(`{"calibration": {"temperature": 2}}`)
		}
		dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{MaxSeqs: seqs})
		return b, dec, err
	}
}

// served is a hub with the models a, b and c, and a policy.
type served struct {
	*serve.Hub
	keeper *policy.Keeper
	path   string
	events []string
}

func start(t testing.TB, text string) *served {
	t.Helper()
	s := &served{path: filepath.Join(t.TempDir(), "policy.yaml")}
	s.write(t, text)
	folders := map[string]string{"a": "a", "b": "cal", "c": "fourth"}
	s.keeper = policy.NewKeeper(s.path, folders)
	s.Hub = serve.NewHub(s.keeper.Opener(open(t)), serve.DefaultSchedulerConfig(), nil)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Drain(ctx)
	})
	for _, name := range []string{"a", "b", "c"} {
		if err := s.Hub.Load(name, folders[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.keeper.Load(s.Hub); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *served) write(t testing.TB, text string) {
	t.Helper()
	if err := os.WriteFile(s.path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ask answers a prompt greedily, by the policy where it decides.
func (s *served) ask(t testing.TB, name string, temperature float64) policy.Answer {
	t.Helper()
	p := s.keeper.Policy().Find(name)
	lead := name
	if v := p.Voters(); v != nil {
		lead = v[0]
	}
	m, release, err := s.Get(lead, "")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	s.events = nil
	tell := func(kind string) func(string, string) {
		return func(served, outcome string) { s.events = append(s.events, kind+" "+served+" "+outcome) }
	}
	a, err := p.Answer(t.Context(), policy.Question{
		Models: s.Hub, Lead: m, Prompt: "Call me",
		Ask: func(m *serve.Model) (serve.Request, error) {
			req := serve.Request{Prompt: "Call me", Context: m.Bundle.Arch.Context, MaxTokens: 8, Logprobs: true}
			req.Sampling = serve.Sampling{Temperature: temperature, Seed: 5}
			return req, nil
		},
		Events: policy.Events{
			Rule: func(served, rule, did string) { s.events = append(s.events, "rule "+served+" "+rule+" "+did) },
			Gate: tell("gate"), Vote: tell("vote"), Outcome: tell("outcome"),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// plain is what a model says by itself.
func (s *served) plain(t testing.TB, name string) serve.Result {
	t.Helper()
	m, release, err := s.Get(name, "")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	res, err := m.Generate(t.Context(), serve.Request{Prompt: "Call me", Context: m.Bundle.Arch.Context, MaxTokens: 8}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestAnswer(t *testing.T) {
	s := start(t, `models:
  a:
    next: [b, c]
    rules:
      - {name: not a, when: model == "a", then: next}
      - {name: again, when: model == "b" && attempt < 4, then: {retry: 3}}
`)
	a := s.ask(t, "a", 0)
	v := a.Verdict
	var steps []string
	for _, e := range v.Earlier {
		steps = append(steps, e.Model+" "+e.By+" "+e.Did)
	}
	if v.Outcome != policy.Accepted || v.Model != "b" || v.Attempts != 4 || strings.Join(steps, ", ") != "a not a next, b again retry, b again retry" {
		t.Errorf("%+v, %v", v, steps)
	}
	if a.Computed != 4*8 || len(a.IDs) != 8 || len(a.Tokens) != 8 || a.Text == "" {
		t.Errorf("%d computed, %d ids, %d tokens, %q", a.Computed, len(a.IDs), len(a.Tokens), a.Text)
	}
	if got := strings.Join(s.events, "; "); got != "rule a not a next; rule a again retry; rule a again retry; outcome a accepted" {
		t.Error(got)
	}
	if first := s.plain(t, "b").Text; a.Text == first {
		t.Errorf("a greedy retry says the same: %q", first)
	}
}

// What is withheld is in no part of the answer.
func TestWithheld(t *testing.T) {
	for name, text := range map[string]string{
		"reject":             `rules: [{name: never, when: 'size(answer) > 0', then: reject, reason: so it is}]`,
		"retries run out":    `rules: [{name: never, when: 'size(answer) > 0', then: {retry: 2}}]`,
		"no model is left":   `{next: [b], rules: [{name: never, when: 'size(answer) > 0', then: next}]}`,
		"asked already":      `rules: [{name: never, when: 'size(answer) > 0', then: {model: a}}]`,
		"gate":               `gate: {confidence: 1, of: product, below: abstain}`,
		"gate without next":  `{next: [b], gate: {confidence: 1, of: product, below: next}}`,
		"an error":           `rules: [{name: never, when: 'json.a == 1', then: reject}]`,
		"rewritten, refused": `rules: [{name: up, when: 'size(answer) > 0', then: {rewrite: 'answer + "?"'}}, {name: never, when: 'size(answer) > 0', then: reject}]`,
	} {
		s := start(t, "models:\n  a: "+brace(text)+"\n")
		a := s.ask(t, "a", 0)
		if a.Text != "" || a.IDs != nil || a.Tokens != nil || a.Reason != serve.ReasonPolicy || a.Verdict.Reason == "" || !a.Verdict.Withheld() {
			t.Errorf("%s: %+v", name, a)
		}
		raw, err := json.Marshal(a.Verdict)
		if err != nil {
			t.Fatal(err)
		}
		if said := s.plain(t, "a").Text; strings.Contains(string(raw), said) || strings.Contains(string(raw), said[:4]) {
			t.Errorf("%s: the verdict says what was withheld, %q: %s", name, said, raw)
		}
	}
}

func brace(s string) string {
	if strings.HasPrefix(s, "{") {
		return s
	}
	return "{" + s + "}"
}

func TestGate(t *testing.T) {
	s := start(t, `models:
  a: {gate: {confidence: 0.000001, below: abstain}}
  b: {gate: {confidence: 0.999999, below: {answer: I do not know}}}
  c: {gate: {confidence: 0.000001, below: abstain, of: least, temperature: 3}}
`)
	a, b, c := s.ask(t, "a", 0), s.ask(t, "b", 0), s.ask(t, "c", 0)
	if v := a.Verdict; v.Outcome != policy.Accepted || *v.Calibrated || v.Of != "mean" || *v.Confidence <= 0 || a.Text != s.plain(t, "a").Text {
		t.Errorf("%+v", a)
	}
	if v := b.Verdict; v.Outcome != policy.Replaced || b.Text != "I do not know" || !*v.Calibrated || v.By != "gate" || b.IDs != nil {
		t.Errorf("%+v", b)
	}
	if !*c.Verdict.Calibrated || c.Verdict.Of != "least" {
		t.Errorf("%+v", c)
	}
	if w := s.keeper.Policy().Warnings(s.Hub); len(w) != 1 || !strings.Contains(w[0], "policy of a: a has no calibration") {
		t.Errorf("warnings %q", w)
	}
	// The confidence is the mean of the tokens' probabilities at the temperature.
	sum := 0.0
	for _, tok := range a.Tokens {
		sum += math.Exp(tok.Value)
	}
	if got, want := *a.Verdict.Confidence, sum/float64(len(a.Tokens)); math.Abs(got-want) > 1e-9 {
		t.Errorf("confidence %g, by the log-probabilities %g", got, want)
	}
}

func TestVotes(t *testing.T) {
	s := start(t, `models:
  panel: {vote: {over: [a, b, c], kind: weighted, weights: [1, 1, 3]}}
  strict: {vote: {over: [a, b, c], kind: majority, agree: 0.5}}
  checked:
    vote: {over: [a, b, c], kind: weighted, weights: [1, 1, 3]}
    rules: [{name: third, when: 'model == "c" && confidence > 0.5', then: {model: a}}]
  sure: {vote: {over: [a, b], kind: majority}, gate: {confidence: 0.000001, of: mean, below: abstain}}
`)
	texts := map[string]string{}
	for _, m := range []string{"a", "b", "c"} {
		texts[m] = s.plain(t, m).Text
	}
	if texts["a"] == texts["b"] || texts["b"] == texts["c"] || texts["a"] == texts["c"] {
		t.Fatalf("models agree: %q", texts)
	}
	a := s.ask(t, "panel", 0)
	if v := a.Verdict; a.Text != texts["c"] || v.Model != "c" || len(v.Votes) != 3 || v.Votes[0].Answer != texts["c"] || math.Abs(*v.Confidence-0.6) > 1e-9 || v.Of != "votes" || a.Computed != 24 {
		t.Errorf("%+v", a)
	}
	if got := strings.Join(s.events, "; "); got != "vote panel majority; outcome panel accepted" {
		t.Error(got)
	}
	a = s.ask(t, "strict", 0)
	if v := a.Verdict; a.Text != "" || v.Outcome != policy.Abstained || v.By != "vote" || len(v.Votes) != 3 || v.Votes[0].Answer != "" {
		t.Errorf("%+v", a)
	}
	a = s.ask(t, "checked", 0)
	if v := a.Verdict; a.Text != texts["a"] || v.Model != "a" || v.Attempts != 2 || v.Votes != nil {
		t.Errorf("%+v", a)
	}
	a = s.ask(t, "sure", 0)
	if v := a.Verdict; v.Of != "mean" || *v.Calibrated || a.Text != texts["a"] { // only b is
		t.Errorf("%+v", a)
	}
}

// The mixture's logits are the logarithm of the weighted mean of probabilities, or the
// weighted mean of log-probabilities, whatever runs together.
func TestMixture(t *testing.T) {
	for _, geometric := range []bool{false, true} {
		mix := policy.Mix{Weights: []float64{0.75, 0.25}, Geometric: geometric}
		var members []engine.Decoder
		var alone []engine.Decoder
		var b *bundle.Bundle
		for _, dir := range []string{"a", "cal"} {
			var dec engine.Decoder
			var err error
			if b, dec, err = open(t)(dir, 2); err != nil {
				t.Fatal(err)
			}
			members = append(members, dec)
			if _, dec, err = open(t)(dir, 2); err != nil {
				t.Fatal(err)
			}
			alone = append(alone, dec)
			defer dec.Close()
		}
		vocab := b.Tokenizer.VocabSize()
		m, err := policy.NewMixture(mix, members, vocab)
		if err != nil {
			t.Fatal(err)
		}
		want := func(n int, call func(d engine.Decoder) ([]float32, error)) []float64 {
			out := make([]float64, n*vocab)
			for k, d := range alone {
				logits, err := call(d)
				if err != nil {
					t.Fatal(err)
				}
				wide := len(logits) / n
				for i := range n {
					sum := 0.0
					for _, v := range logits[i*wide : i*wide+vocab] {
						sum += math.Exp(float64(v))
					}
					for j, v := range logits[i*wide : i*wide+vocab] {
						p := math.Exp(float64(v)) / sum
						if geometric {
							out[i*vocab+j] += mix.Weights[k] * math.Log(p)
						} else {
							out[i*vocab+j] += mix.Weights[k] * p
						}
					}
				}
			}
			if !geometric {
				for i := range out {
					out[i] = math.Log(out[i])
				}
			}
			return out
		}
		same := func(what string, got []float32, err error, want []float64) {
			t.Helper()
			if err != nil || len(got) != len(want) {
				t.Fatalf("%s: %d logits, want %d: %v", what, len(got), len(want), err)
			}
			for i := range got {
				if math.Abs(float64(got[i])-want[i]) > 1e-4*(1+math.Abs(want[i])) {
					t.Fatalf("%s: logit %d is %g, want %g", what, i, got[i], want[i])
				}
			}
		}
		for seq, ids := range [][]int32{{1, 2, 3}, {4, 5}} {
			got, err := m.Prefill(seq, ids)
			same("prefill", got, err, want(1, func(d engine.Decoder) ([]float32, error) { return d.Prefill(seq, ids) }))
		}
		got, err := m.Decode([]int{0, 1}, []int32{7, 8})
		same("decode", got, err, want(2, func(d engine.Decoder) ([]float32, error) { return d.Decode([]int{0, 1}, []int32{7, 8}) }))
		if m.Len(0) != 4 || m.Len(1) != 3 {
			t.Errorf("lengths %d and %d", m.Len(0), m.Len(1))
		}
		if m.Drop(0); m.Len(0) != 0 {
			t.Error("a dropped sequence has tokens")
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := policy.NewMixture(policy.Mix{Weights: []float64{1}}, nil, 3); err == nil {
		t.Error("a mixture of nothing")
	}
}

// With few pages, which texts wait for, share and find among earlier prompts, a mixture
// says what it says alone.
func TestMixtureInPages(t *testing.T) {
	var bundles []*bundle.Bundle
	for seed := range uint64(2) {
		bundles = append(bundles, servetest.Bundle(t, seed))
	}
	mix := policy.Mix{Over: []string{"a", "b"}, Weights: []float64{0.5, 0.5}}
	b, err := policy.MixedBundle(mix.Over, bundles)
	if err != nil {
		t.Fatal(err)
	}
	mixture := func(pages ...int64) engine.Decoder {
		t.Helper()
		var members []engine.Decoder
		for i, n := range pages {
			dec, err := native.NewDecoder(bundles[i].Arch, bundles[i].Params, native.DecoderOptions{MaxSeqs: 8, KVBytes: n * bundles[i].Arch.PageBytes()})
			if err != nil {
				t.Fatal(err)
			}
			members = append(members, dec)
		}
		m, err := policy.NewMixture(mix, members, b.Arch.Vocab)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	alone, few := mixture(8, 8), mixture(7, 5)
	defer alone.Close()
	kv := few.(engine.KVCache)
	if at := kv.KV(); at.Pages != 5 || at.Free != 5 || at.Bytes != 2*bundles[0].Arch.PageBytes() {
		t.Errorf("%+v", at)
	}
	if err := kv.UseKV(0, 3); err == nil {
		t.Error("a page that nobody keeps was used")
	}
	s, err := serve.NewScheduler(few, b.Tokenizer, serve.DefaultSchedulerConfig())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Drain(context.Background()) })
	size := kv.KV().Tokens
	var wg sync.WaitGroup
	for i := range 12 {
		req := serve.Defaults(b)
		req.Sampling.Temperature, req.Sampling.Seed, req.MaxTokens = 1, uint64(i), 1+i*7%60
		req.Context, req.Special = b.Arch.Context, true
		for j := range size*(i%3) + 1 + i {
			req.IDs = append(req.IDs, int32(3+j*j%250))
		}
		want, err := serve.Generate(t.Context(), alone, b.Tokenizer, req, nil)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			got, err := s.Generate(t.Context(), req, nil)
			if err != nil || !slices.Equal(got.IDs, want.IDs) {
				t.Errorf("request %d: %v, alone %v: %v", i, got.IDs, want.IDs, err)
			}
		})
	}
	wg.Wait()
	if st := s.Status(); st.PrefixHits == 0 || st.Pages != 5 {
		t.Errorf("%+v", st)
	}
}

// The file is read anew: soft votes come, change and go; what can't be leaves all as it was.
func TestKeeper(t *testing.T) {
	const soft = "models:\n  blend: {vote: {over: [a, b], kind: soft, weights: [%d, 1]}}\n"
	s := start(t, fmt.Sprintf(soft, 1))
	version := func() string {
		m, release, err := s.Get("blend", "")
		if err != nil {
			return err.Error()
		}
		defer release()
		return m.Version
	}
	first := s.plain(t, "blend")
	if version() != "1" || s.keeper.Policy().Find("blend").Decides() || first.Text == "" {
		t.Fatalf("version %s", version())
	}
	if err := s.keeper.Load(s.Hub); err != nil || version() != "1" {
		t.Errorf("a vote that is what it was was loaded anew: %s, %v", version(), err)
	}
	for name, bad := range map[string]string{
		"no YAML":                       "models: [",
		"a test that fails":             "models: {a: {rules: [{when: 'attempt > 0', then: reject}], tests: [{answer: x, want: accept}]}}",
		"no model of that name":         "models: {d: {gate: {confidence: 0.5, below: abstain}}}",
		"a vote of a bundle's name":     "models: {a: {vote: {over: [b, c], kind: majority}}}",
		"a vote over what isn't served": "models: {blend: {vote: {over: [a, d], kind: soft}}}",
		"falls to what isn't served":    "models: {a: {next: [d], gate: {confidence: 0.5, below: next}}}",
		"a vote over a vote":            "models: {x: {vote: {over: [a, y], kind: majority}}, y: {vote: {over: [a, b], kind: soft}}}",
	} {
		s.write(t, bad)
		if err := s.keeper.Load(s.Hub); err == nil || !strings.Contains(err.Error(), s.path) {
			t.Errorf("%s: %v", name, err)
		}
		if version() != "1" || s.keeper.Policy().Find("blend") == nil {
			t.Fatalf("%s: the old one is gone", name)
		}
	}
	s.write(t, fmt.Sprintf(soft, 1_000_000))
	if err := s.keeper.Load(s.Hub); err != nil || version() != "2" {
		t.Errorf("%s, %v", version(), err)
	}
	if got, want := s.plain(t, "blend").Text, s.plain(t, "a").Text; got != want { // nearly all weight is a's
		t.Errorf("%q, want %q", got, want)
	}
	s.write(t, "models:\n  mix: {vote: {over: [a, b], kind: soft}}\n  a: {next: [mix], gate: {confidence: 1, of: product, below: next}}\n")
	if err := s.keeper.Load(s.Hub); err != nil || !slices.Equal(s.Names(), []string{"a", "b", "c", "mix"}) {
		t.Errorf("%v, %v", s.Names(), err)
	}
	if v := s.ask(t, "a", 0).Verdict; v.Outcome != policy.Abstained || len(v.Earlier) != 1 || v.Model != "mix" {
		t.Errorf("%+v", v)
	}
	if err := policy.NewKeeper("", nil).Load(s.Hub); err != nil {
		t.Error(err)
	}
}

// A vote that can't be opened leaves those before it as they were.
func TestKeeperUndoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.yaml")
	k := policy.NewKeeper(path, map[string]string{"a": "a", "b": "cal", "x": "broken"})
	hub := serve.NewHub(k.Opener(open(t)), serve.DefaultSchedulerConfig(), nil)
	defer func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		hub.Drain(ctx)
	}()
	if err := hub.Load("a", "a"); err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{
		"models: {m1: {vote: {over: [a, b], kind: soft}}}",
		"models: {m0: {vote: {over: [a, b], kind: soft}}, m1: {vote: {over: [a, b], kind: soft, mean: geometric}}, m2: {vote: {over: [a, x], kind: soft}}}",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := k.Load(hub); (err == nil) != (i == 0) {
			t.Fatal(err)
		}
	}
	if !slices.Equal(hub.Names(), []string{"a", "m1"}) || !slices.Equal(k.Policy().Names(), []string{"m1"}) {
		t.Errorf("served are %v, by a policy of %v", hub.Names(), k.Policy().Names())
	}
	if mix, _ := k.Policy().Find("m1").Mixed(); mix.Geometric {
		t.Error("the new vote counts")
	}
	if err := hub.Reload("m1"); err != nil {
		t.Error(err)
	}
}
