package serve

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve/servetest"
)

func tinyDecoder(t *testing.T, b *bundle.Bundle, threads int) engine.Decoder {
	t.Helper()
	dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{Threads: threads, MaxSeqs: 8})
	if err != nil {
		t.Fatal(err)
	}
	return dec
}

func schedule(t *testing.T, b *bundle.Bundle, dec engine.Decoder, change func(*SchedulerConfig)) *Scheduler {
	t.Helper()
	cfg := DefaultSchedulerConfig()
	if change != nil {
		change(&cfg)
	}
	s, err := NewScheduler(dec, b.Tokenizer, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// gated is a scheduler whose decoder waits for permits.
func gated(t *testing.T, b *bundle.Bundle, change func(*SchedulerConfig)) (*Scheduler, *servetest.Gate) {
	t.Helper()
	gate := servetest.NewGate(tinyDecoder(t, b, 1))
	s := schedule(t, b, gate, change)
	t.Cleanup(gate.Open) // before the scheduler's own
	return s, gate
}

func sampled(b *bundle.Bundle, prompt string, seed uint64, tokens int) Request {
	return Request{
		Prompt: prompt, Context: b.Arch.Context, MaxTokens: tokens, MinTokens: tokens, EOS: b.Generation.EOS, Logprobs: true, Top: 3,
		Sampling: Sampling{Temperature: 1, TopP: 0.95, Seed: seed, FrequencyPenalty: 0.1},
	}
}

// The same request gives the same text and log-probabilities, to the bit: alone, among
// seven others, on another decoder, and with its prompt found among earlier ones.
func TestSameTextInABatch(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	b := servetest.Bundle(t, 1)
	long := strings.Repeat("the quick brown fox ", 30)
	reqs := make([]Request, 8)
	for i := range reqs {
		reqs[i] = sampled(b, long[:1+40*i], uint64(i/2), 60)
	}
	type told struct {
		text   string
		tokens []Token
	}
	tell := func(s *Scheduler, req Request) told {
		var out told
		res, err := s.Generate(t.Context(), req, func(p Piece) error {
			out.text += p.Text
			out.tokens = append(out.tokens, p.Tokens...)
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if res.Text != out.text || len(out.tokens) != 60 || len(res.IDs) != 60 || res.Reason != ReasonLength {
			t.Errorf("%d tokens told of %d, ended by %s: %q, %q", len(out.tokens), len(res.IDs), res.Reason, out.text, res.Text)
		}
		return out
	}
	alone := schedule(t, b, tinyDecoder(t, b, 1), func(c *SchedulerConfig) { c.Prefix = 0 })
	want := make([]told, len(reqs))
	for i, req := range reqs {
		want[i] = tell(alone, req)
	}
	s := schedule(t, b, tinyDecoder(t, b, 2), func(c *SchedulerConfig) { c.Prefill = 16 })
	for round := range 2 {
		var wg sync.WaitGroup
		for i, req := range reqs {
			wg.Go(func() {
				if got := tell(s, req); got.text != want[i].text || fmt.Sprint(got.tokens) != fmt.Sprint(want[i].tokens) {
					t.Errorf("round %d, request %d: %q, alone %q", round, i, got.text, want[i].text)
				}
			})
		}
		wg.Wait()
	}
	if st := s.Status(); st.PrefixHits == 0 || st.PrefixHits >= st.PrefixQueries {
		t.Errorf("%d of %d tokens of prompts were kept", st.PrefixHits, st.PrefixQueries)
	}
	// As Generate alone says it.
	dec := tinyDecoder(t, b, 1)
	defer dec.Close()
	res, err := Generate(t.Context(), dec, b.Tokenizer, reqs[3], nil)
	if err != nil || res.Text != want[3].text {
		t.Errorf("Generate gives %q, %v; the scheduler %q", res.Text, err, want[3].text)
	}
	for _, tk := range want[0].tokens {
		if len(tk.Top) != 3 || tk.Top[0].Value < tk.Top[1].Value || tk.Value > tk.Top[0].Value || tk.Value > 0 || math.IsNaN(tk.Value) {
			t.Fatalf("log-probabilities %+v", tk)
		}
	}
	alone.Close()
	s.Close()
}

func TestSchedulerRefuses(t *testing.T) {
	b := servetest.Bundle(t, 1)
	s, gate := gated(t, b, func(c *SchedulerConfig) { c.Slots, c.Queue = 1, 2 })
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 3 {
		wg.Go(func() {
			_, err := s.Generate(ctx, sampled(b, "the", uint64(i), 5), nil)
			if !errors.Is(err, context.Canceled) {
				t.Errorf("request %d: %v", i, err)
			}
		})
	}
	wait(t, func() bool { st := s.Status(); return st.Running == 1 && st.Waiting == 2 })
	_, err := s.Generate(t.Context(), sampled(b, "the", 9, 5), nil)
	var busy *BusyError
	if !errors.As(err, &busy) || busy.Waiting != 2 || busy.After < time.Second {
		t.Errorf("a full queue: %v", err)
	}
	var full *ContextError
	if _, err := s.Generate(t.Context(), sampled(b, strings.Repeat("x", 999), 9, 5), nil); !errors.As(err, &full) || full.Context != 256 || full.Prompt < 999 {
		t.Errorf("a long prompt: %v", err)
	}
	cancel() // callers return at once, also while the decoder computes
	wg.Wait()
	gate.Open()
	wait(t, func() bool { st := s.Status(); return st.Running == 0 && st.Waiting == 0 && st.Stalled == 0 })
	if _, err := s.Generate(t.Context(), sampled(b, "the", 9, 5), nil); err != nil {
		t.Error(err)
	}
	boom := errors.New("closed")
	if _, err := s.Generate(t.Context(), sampled(b, "the", 9, 50), func(Piece) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("emit's error is lost: %v", err)
	}
	wait(t, func() bool { return s.Status().Running == 0 })
	s.Close()
	if _, err := s.Generate(t.Context(), sampled(b, "the", 9, 5), nil); !errors.Is(err, ErrDraining) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := NewScheduler(nil, nil, SchedulerConfig{}); err == nil {
		t.Error("a scheduler without slots is made")
	}
}

func wait(t *testing.T, until func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !until(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never came")
		}
	}
}

// A request that is cancelled has freed its slot when the round that runs is over; a
// short prompt is answered while a long one is still being read.
func TestRounds(t *testing.T) {
	b := servetest.Bundle(t, 1)
	s, gate := gated(t, b, func(c *SchedulerConfig) { c.Slots, c.Prefill, c.Prefix = 2, 32, 0 })
	ctx, cancel := context.WithCancel(t.Context())
	var text []string
	var mu sync.Mutex
	said := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(text)
	}
	var wg sync.WaitGroup
	left := make(chan struct{})
	wg.Go(func() {
		defer close(left)
		req := sampled(b, "the", 1, 200)
		_, err := s.Generate(ctx, req, func(p Piece) error {
			mu.Lock()
			defer mu.Unlock()
			text = append(text, p.Text)
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	step := func() { <-gate.Enter; gate.Permit <- struct{}{} }
	step() // its prompt
	step() // a token
	<-gate.Enter
	wg.Go(func() {
		if _, err := s.Generate(t.Context(), sampled(b, strings.Repeat("z", 200), 2, 1), nil); err != nil {
			t.Error(err)
		}
	})
	wait(t, func() bool { return s.Status().Waiting == 1 })
	gate.Permit <- struct{}{} // the token that was under way
	before := said()
	for range 5 { // pieces of the long prompt, and a token after each
		step()
		step()
	}
	wait(t, func() bool { return said() > before })
	cancel()
	<-left
	step() // the rest of the round
	step()
	wait(t, func() bool { return s.Status().Running == 1 })
	gate.Open()
	wg.Wait()
}

func TestDrain(t *testing.T) {
	b := servetest.Bundle(t, 1)
	t.Run("all is done in time", func(t *testing.T) {
		s, gate := gated(t, b, func(c *SchedulerConfig) { c.Slots = 1 })
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				if res, err := s.Generate(t.Context(), sampled(b, "the", uint64(i), 5), nil); err != nil || len(res.IDs) != 5 {
					t.Errorf("%+v, %v", res, err)
				}
			})
		}
		wait(t, func() bool { st := s.Status(); return st.Running == 1 && st.Waiting == 2 })
		s.Refuse()
		if _, err := s.Generate(t.Context(), sampled(b, "the", 9, 5), nil); !errors.Is(err, ErrDraining) {
			t.Errorf("while draining: %v", err)
		}
		gate.Open()
		s.Drain(t.Context())
		wg.Wait()
	})
	t.Run("not in time", func(t *testing.T) {
		s, gate := gated(t, b, func(c *SchedulerConfig) { c.Slots = 1 })
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				if _, err := s.Generate(t.Context(), sampled(b, "the", uint64(i), 200), nil); !errors.Is(err, ErrDrained) {
					t.Errorf("request %d: %v", i, err)
				}
			})
		}
		wait(t, func() bool { st := s.Status(); return st.Running == 1 && st.Waiting == 2 })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		wg.Go(func() { s.Drain(ctx) })
		wait(t, s.abort.Load)
		gate.Open()
		wg.Wait()
	})
}

// broken is a Decoder that fails once it is told to.
type broken struct {
	engine.Decoder
	fail error
}

func (b *broken) Decode([]int, []int32) ([]float32, error) { return nil, b.fail }

func TestDecoderFails(t *testing.T) {
	b := servetest.Bundle(t, 1)
	boom := errors.New("boom")
	s := schedule(t, b, &broken{tinyDecoder(t, b, 1), boom}, nil)
	for range 2 { // it goes on
		if _, err := s.Generate(t.Context(), sampled(b, "the", 1, 5), nil); !errors.Is(err, boom) {
			t.Error(err)
		}
	}
}

// digits is a grammar of three digits.
type digits struct {
	said int
	one  map[int32]bool
}

func (d *digits) Allowed() ([]uint64, bool) {
	ids := make([]uint64, 8)
	if d.said < 3 {
		for id := range d.one {
			ids[id/64] |= 1 << (id % 64)
		}
	}
	return ids, d.said == 3
}

func (d *digits) Take(id int32) {
	d.said++
	if !d.one[id] {
		panic("a token that is no digit")
	}
}

func TestGrammarConfines(t *testing.T) {
	b := servetest.Bundle(t, 1)
	s := schedule(t, b, tinyDecoder(t, b, 1), nil)
	one := map[int32]bool{}
	for _, c := range "0123456789" {
		one[b.Tokenizer.Encode(nil, string(c))[0]] = true
	}
	for seed := range uint64(5) {
		req := sampled(b, "number: ", seed, 50)
		req.MinTokens, req.Grammar = 0, &digits{one: one}
		res, err := s.Generate(t.Context(), req, nil)
		if err != nil || res.Reason != ReasonStop || len(res.Text) != 3 || strings.Trim(res.Text, "0123456789") != "" {
			t.Errorf("%q by %s, %v", res.Text, res.Reason, err)
		}
	}
}

// A grammar that panics ends its own text alone.
func TestPanicEndsOneText(t *testing.T) {
	b := servetest.Bundle(t, 1)
	s := schedule(t, b, tinyDecoder(t, b, 1), nil)
	req := sampled(b, "x", 1, 5)
	req.MinTokens, req.Grammar = 0, &digits{one: map[int32]bool{1 << 20: true}} // beyond the vocabulary
	if _, err := s.Generate(t.Context(), req, nil); err == nil || !strings.Contains(err.Error(), "panic") {
		t.Error(err)
	}
	if _, err := s.Generate(t.Context(), sampled(b, "x", 1, 5), nil); err != nil {
		t.Error(err)
	}
}

func TestPenaltiesAndBias(t *testing.T) {
	logits := []float32{3, 2, 1, 0}
	s, err := NewSampler(Sampling{FrequencyPenalty: 1, PresencePenalty: 0.5})
	if err != nil {
		t.Fatal(err)
	}
	s.Saw(0, 0, 0) // of the prompt: no penalty
	var got []int32
	for range 6 {
		id, err := s.Next(logits)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, id)
	}
	// Logits 3 2 1 0; 1.5 2 …; 1.5 0.5 1 0; 0.5 0.5 1 0; 0.5 0.5 -0.5 0; -0.5 0.5 …
	if !slices.Equal(got, []int32{0, 1, 0, 2, 0, 1}) {
		t.Errorf("chose %v", got)
	}
	s, err = NewSampler(Sampling{Bias: map[int32]float64{3: 10, 0: -100}})
	if err != nil {
		t.Fatal(err)
	}
	if id, err := s.Next(logits); id != 3 || err != nil {
		t.Errorf("with a bias: %d, %v", id, err)
	}
}

func TestLogprobs(t *testing.T) {
	got := logprobs([]float32{float32(math.Log(2)), float32(math.Log(4)), float32(math.Log(2)), 0}, 3, 2)
	want := Token{Logprob{3, math.Log(1. / 9)}, []Logprob{{1, math.Log(4. / 9)}, {0, math.Log(2. / 9)}}}
	if got.ID != want.ID || math.Abs(got.Value-want.Value) > 1e-6 || len(got.Top) != 2 || got.Top[0].ID != 1 || got.Top[1].ID != 0 || math.Abs(got.Top[1].Value-want.Top[1].Value) > 1e-6 {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// Texts that wait for pages, share them and take them from earlier prompts are the texts
// that each gets alone.
func TestPages(t *testing.T) {
	b := servetest.Bundle(t, 1)
	const pages = 5
	dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{MaxSeqs: 8, KVBytes: pages * b.Arch.PageBytes()})
	if err != nil {
		t.Fatal(err)
	}
	size := dec.KV().Tokens
	s := schedule(t, b, dec, nil)
	ids := func(n, from int) []int32 {
		out := make([]int32, n)
		for i := range out {
			out[i] = int32(3 + (from+i*i)%250)
		}
		return out
	}
	_, err = s.Generate(t.Context(), Request{IDs: ids(pages*size+1, 0), Context: b.Arch.Context}, nil)
	var long *ContextError
	if !errors.As(err, &long) || long.Context != pages*size {
		t.Errorf("a prompt larger than all pages: %v", err)
	}
	alone := tinyDecoder(t, b, 1)
	t.Cleanup(func() { _ = alone.Close() })
	var wg sync.WaitGroup
	for i := range 30 {
		req := sampled(b, "", uint64(i), 1+i*7%60)
		req.IDs = slices.Concat(ids(size*(i%3), 0), ids(1+i*5%40, i))
		want, err := Generate(t.Context(), alone, b.Tokenizer, req, nil)
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			got, err := s.Generate(t.Context(), req, nil)
			if err != nil || !slices.Equal(got.IDs, want.IDs) {
				t.Errorf("request %d: %v, alone %v: %v", i, got.IDs, want.IDs, err)
			}
			if st := s.Status(); st.Pages != pages || st.PagesHeld > pages {
				t.Errorf("%d of %d pages are held", st.PagesHeld, st.Pages)
			}
		})
	}
	wg.Wait()
	if s.Status().PrefixHits == 0 {
		t.Error("nothing was found among earlier prompts")
	}
	// A text that may fill all pages gets them.
	req := sampled(b, "", 1, pages*size)
	req.IDs, req.MaxTokens = ids(size, 1), 0
	res, err := s.Generate(t.Context(), req, nil)
	if err != nil || len(res.IDs) != (pages-1)*size+1 || res.Reason != ReasonLength {
		t.Errorf("%d tokens until the pages were full: %s, %v", len(res.IDs), res.Reason, err)
	}
}

// Probabilities are those of the chosen tokens at the temperature that was asked for.
func TestProbs(t *testing.T) {
	logits := []float32{1, 3, -2, 0.5}
	for _, temperature := range []float64{0.5, 1, 4} {
		sum := 0.0
		for _, v := range logits {
			sum += math.Exp(float64(v) / temperature)
		}
		for id, v := range logits {
			if got, want := probability(logits, int32(id), temperature), math.Exp(float64(v)/temperature)/sum; math.Abs(got-want) > 1e-12 {
				t.Errorf("token %d at %g: %g, want %g", id, temperature, got, want)
			}
		}
	}
	if p := probability([]float32{-1e30, 1e30}, 0, 0.05); p != 0 {
		t.Error(p)
	}
	tok := tinyTokenizer(t)
	s := &script{t: t, vocab: tok.VocabSize(), context: 64, say: tok.Encode(nil, "hello"), seqs: map[int][]int32{}}
	res, err := Generate(t.Context(), s, tok, Request{Prompt: "a", Context: 64, MaxTokens: 3, Confidence: 2}, nil)
	if err != nil || len(res.Probs) != len(res.IDs) || !(res.Probs[0] > 0 && res.Probs[0] < 1) {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := Generate(t.Context(), s, tok, Request{Prompt: "a", Context: 64, Confidence: -1}, nil); err == nil {
		t.Error("a negative temperature was taken")
	}
}

// What a gate adds to a token: its probability at a temperature.
func BenchmarkProbability(b *testing.B) {
	for _, vocab := range []int{4096, 32768} {
		logits := make([]float32, vocab)
		for i := range logits {
			logits[i] = float32(i%17) - 8
		}
		b.Run(fmt.Sprintf("V%d", vocab), func(b *testing.B) {
			for b.Loop() {
				probability(logits, 3, 1.3)
			}
		})
	}
}
