package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/bench/peer"
	"github.com/open-autoglm/autoglm/bench/stat"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/gguf"
	"github.com/open-autoglm/autoglm/runtime/serve"
)

const (
	promptLen = 256
	many      = 8 // texts at once
)

func level() string { return kernel.Level() }

// figure is what one contestant reached: tokens a second, or milliseconds.
type figure struct {
	Value float64 `json:"value"`
	CPU   float64 `json:"cpu,omitempty"` // of the same in seconds of the processor
}

// row is one comparison.
type row struct {
	Name     string            `json:"name"`
	Unit     string            `json:"unit"`
	Ours     figure            `json:"ours"`
	Others   map[string]figure `json:"others"`    // peers, or ourselves in other circumstances
	Ratio    float64           `json:"ratio"`     // of ours to the best of the others
	CPURatio float64           `json:"cpu_ratio"` // the same by the processor's seconds; 0 is not known
	Wanted   float64           `json:"wanted"`
	AtMost   bool              `json:"at_most"` // ratio is to be no more than wanted, and otherwise no less
	Holds    bool              `json:"holds"`
}

func (r row) print(w io.Writer) {
	says := "%s\t%s %s"
	args := []any{r.Name, r.Ours, r.Unit}
	for _, name := range slices.Sorted(maps.Keys(r.Others)) {
		says, args = says+"; %s %s", append(args, name, r.Others[name])
	}
	if len(r.Others) > 0 && r.CPURatio > 0 {
		says, args = says+": ratio %.3g (%.3g)", append(args, r.Ratio, r.CPURatio)
	}
	sign, verdict := "≥", "holds"
	if r.AtMost {
		sign = "≤"
	}
	if !r.Holds {
		verdict = "SHORT"
	}
	fmt.Fprintf(w, says+", wanted %s %g: %s\n", append(args, sign, r.Wanted, verdict)...)
}

// String is the value, and in brackets the same of the processor's seconds.
func (f figure) String() string {
	if f.CPU == 0 {
		return fmt.Sprintf("%.4g", f.Value)
	}
	return fmt.Sprintf("%.4g (%.4g)", f.Value, f.CPU)
}

// sample is what one generation took, seconds.
type sample struct {
	First     float64 `json:"first"`
	FirstCPU  float64 `json:"first_cpu"`
	Decode    float64 `json:"decode"`
	DecodeCPU float64 `json:"decode_cpu"`
}

// question is one generation asked for.
type question struct {
	Type    string `json:"type"`
	Texts   int    `json:"texts"`
	Prompt  int    `json:"prompt"`
	Tokens  int    `json:"tokens"`
	Threads int    `json:"threads"`
	Seed    int    `json:"seed"`
}

// contestant generates.
type contestant struct {
	name string
	run  func(q question) (sample, error)
	q    question // but for the seed
	got  []sample
}

// session is a model under measurement and the peers that were started for it. Owned by
// one goroutine.
type session struct {
	o     options
	b     *bundle.Bundle
	dir   string
	hf    *peer.Driver
	llama *peer.Driver
	ours  map[glm.Weights]*own
}

func (s *session) close() {
	for _, d := range []*peer.Driver{s.hf, s.llama} {
		if d != nil {
			_ = d.Close() // its answers are all read
		}
	}
	for _, m := range s.ours {
		m.close()
	}
}

func (s *session) measure(ctx context.Context, kind string) ([]row, error) {
	switch kind {
	case "decode":
		return s.decode(ctx)
	case "prefix":
		return s.prefix(ctx)
	case "neighbours":
		return s.neighbours(ctx)
	case "overload":
		return s.overload(ctx)
	}
	return s.start(ctx)
}

// bundleDir writes the bundle once.
func (s *session) bundleDir() (string, error) {
	dir := filepath.Join(s.dir, "bundle")
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	return dir, bundle.Write(dir, s.b)
}

// startPeers starts both, unless they run.
func (s *session) startPeers(ctx context.Context) error {
	if s.llama != nil {
		return nil
	}
	python, folder := os.Getenv("AUTOGLM_PYTHON"), os.Getenv("AUTOGLM_LLAMA")
	if python == "" || folder == "" {
		return errors.New("AUTOGLM_PYTHON must name a Python with transformers (export AUTOGLM_PYTHON=$(.ci/peers)) and AUTOGLM_LLAMA a folder with node-llama-cpp (export AUTOGLM_LLAMA=$(.ci/llama))")
	}
	dir, err := s.bundleDir()
	if err != nil {
		return err
	}
	script, err := peer.Script("serve_hf.py")
	if err != nil {
		return err
	}
	if s.hf, err = startPeer(exec.CommandContext(ctx, python, script, dir)); err != nil {
		return fmt.Errorf("transformers: %w", err)
	}
	if script, err = peer.Script("serve_llama.mjs"); err != nil {
		return err
	}
	args := []string{script, folder}
	for _, t := range []gguf.Type{gguf.F32, gguf.F16, gguf.Q8_0} {
		f, _, err := gguf.FromBundle(s.b, gguf.Options{Type: t, Name: "bench"})
		if err != nil {
			return err
		}
		path := filepath.Join(s.dir, t.String()+".gguf")
		if err := gguf.Write(path, f); err != nil {
			return err
		}
		args = append(args, t.String()+"="+path)
	}
	if s.llama, err = startPeer(exec.CommandContext(ctx, "node", args...)); err != nil {
		return fmt.Errorf("llama.cpp: %w", err)
	}
	return nil
}

func startPeer(cmd *exec.Cmd) (*peer.Driver, error) {
	d, err := peer.Start(cmd)
	if err != nil {
		return nil, err
	}
	var ready struct{ Threads int }
	return d, d.Ask(nil, &ready)
}

// own is our decoder with one kind of weights.
type own struct {
	dec   *native.Decoder
	sched *serve.Scheduler // of a decoder of its own
	b     *bundle.Bundle
}

// weights gives the decoder and the scheduler of a kind of weights.
func (s *session) weights(w glm.Weights) (*own, error) {
	if m := s.ours[w]; m != nil {
		return m, nil
	}
	if s.ours == nil {
		s.ours = map[glm.Weights]*own{}
	}
	m := &own{b: s.b}
	cfg := serve.DefaultSchedulerConfig()
	for range 2 {
		dec, err := native.NewDecoder(s.b.Arch, s.b.Params, native.DecoderOptions{Threads: s.o.threads, MaxSeqs: cfg.Slots, Weights: w})
		if err != nil {
			return nil, err
		}
		if m.dec == nil {
			m.dec = dec
			continue
		}
		if m.sched, err = serve.NewScheduler(dec, s.b.Tokenizer, cfg); err != nil {
			return nil, err
		}
	}
	s.ours[w] = m
	return m, nil
}

func (m *own) close() {
	_ = m.dec.Close()
	m.sched.Close()
}

// prompt is of random tokens, of which no two prompts share a block.
func (m *own) prompt(n, seed int) []int32 {
	r := rand.New(rand.NewPCG(uint64(seed), 7))
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(3 + r.IntN(m.b.Arch.Vocab-3))
	}
	return ids
}

// first is how long the scheduler takes to the first token of a prompt.
func (m *own) first(ctx context.Context, ids []int32) (wall, used float64, err error) {
	begin, at := time.Now(), cpu()
	_, err = m.sched.Generate(ctx, serve.Request{IDs: ids, Context: m.b.Arch.Context, MaxTokens: 1}, nil)
	return time.Since(begin).Seconds(), (cpu() - at).Seconds(), err
}

// generate is the decoder's own loop, greedy.
func (m *own) generate(ctx context.Context, q question) (out sample, err error) {
	seqs, ids := make([]int, q.Texts), make([]int32, q.Texts)
	for i := range seqs {
		prompt := m.prompt(q.Prompt, q.Seed*q.Texts+i)
		if q.Texts == 1 {
			if out.First, out.FirstCPU, err = m.first(ctx, prompt); err != nil {
				return out, err
			}
		}
		logits, err := m.dec.Prefill(i, prompt)
		if err != nil {
			return out, err
		}
		defer m.dec.Drop(i)
		seqs[i], ids[i] = i, likeliest(logits)
	}
	begin, at := time.Now(), cpu()
	for range q.Tokens {
		logits, err := m.dec.Decode(seqs, ids)
		if err != nil {
			return out, err
		}
		for i := range ids {
			ids[i] = likeliest(logits[i*m.b.Arch.Vocab:][:m.b.Arch.Vocab])
		}
	}
	out.Decode, out.DecodeCPU = time.Since(begin).Seconds(), (cpu() - at).Seconds()
	return out, ctx.Err()
}

func likeliest(logits []float32) int32 {
	best := 0
	for i, v := range logits {
		if v > logits[best] {
			best = i
		}
	}
	return int32(best)
}

// cpu is the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// asks is a contestant that is a peer.
func asks(d *peer.Driver, name string, q question) *contestant {
	return &contestant{name: name, q: q, run: func(q question) (out sample, err error) {
		err = d.Ask(q, &out)
		if err == nil && out.Decode <= 0 {
			err = errors.New("it answered no times")
		}
		return out, err
	}}
}

// mine is a contestant that is a decoder of ours.
func (s *session) mine(ctx context.Context, w glm.Weights, q question) (*contestant, error) {
	m, err := s.weights(w)
	if err != nil {
		return nil, err
	}
	return &contestant{name: string(w), q: q, run: func(q question) (sample, error) { return m.generate(ctx, q) }}, nil
}

// compete lets all take turns, after one round that doesn't count.
func compete(ctx context.Context, rounds int, all []*contestant) error {
	for round := range rounds + 1 {
		for _, c := range all {
			q := c.q
			q.Seed = round + 1
			if round == 0 {
				q.Tokens = min(q.Tokens, 4)
			}
			got, err := c.run(q)
			if err = cmp.Or(err, ctx.Err()); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			if round > 0 {
				c.got = append(c.got, got)
			}
		}
	}
	return nil
}

// rate is tokens a second of each round, by the clock or by the processor.
func (c *contestant) rate(byCPU bool) []float64 {
	return c.each(func(s sample) float64 {
		t := s.Decode
		if byCPU {
			t = s.DecodeCPU
		}
		return float64(c.q.Texts*c.q.Tokens) / t
	})
}

// firsts are the rounds' milliseconds to the first token.
func (c *contestant) firsts(byCPU bool) []float64 {
	return c.each(func(s sample) float64 {
		if byCPU {
			return 1000 * s.FirstCPU
		}
		return 1000 * s.First
	})
}

func (c *contestant) each(f func(sample) float64) []float64 {
	out := make([]float64, len(c.got))
	for i, s := range c.got {
		out[i] = f(s)
	}
	return out
}

// against makes a row of rates, which are to be wanted times the best of the others, or
// of times, which are to be no more.
func against(name string, times bool, wanted float64, ours *contestant, others ...*contestant) row {
	r := row{Name: name, Unit: "tokens/s", Others: map[string]figure{}, Wanted: wanted, AtMost: times}
	values := (*contestant).rate
	if times {
		r.Unit, values = "ms", (*contestant).firsts
	}
	of := func(c *contestant) figure { return figure{stat.Median(values(c, false)), stat.Median(values(c, true))} }
	r.Ours = of(ours)
	for _, byCPU := range []bool{false, true} {
		worst := 0.0
		for i, c := range others {
			r.Others[c.name] = of(c)
			ratio := stat.Median(ratios(values(ours, byCPU), values(c, byCPU)))
			if i == 0 || times && ratio > worst || !times && ratio < worst {
				worst = ratio
			}
		}
		if byCPU {
			r.CPURatio = worst
		} else {
			r.Ratio = worst
		}
	}
	return r.judged()
}

func (r row) judged() row {
	r.Holds = r.Ratio >= r.Wanted
	if r.AtMost {
		r.Holds = r.Ratio <= r.Wanted
	}
	return r
}

func ratios(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

// decode measures the rows of decoding and of first tokens.
func (s *session) decode(ctx context.Context) ([]row, error) {
	if err := s.startPeers(ctx); err != nil {
		return nil, err
	}
	q := question{Texts: 1, Prompt: promptLen, Tokens: s.o.tokens, Threads: 1}
	one := map[glm.Weights]*contestant{}
	eight := map[glm.Weights]*contestant{}
	var err error
	for _, w := range []glm.Weights{glm.F32Weights, glm.BF16Weights, glm.Int8} {
		if one[w], err = s.mine(ctx, w, q); err != nil {
			return nil, err
		}
		q := q
		q.Texts = many
		if eight[w], err = s.mine(ctx, w, q); err != nil {
			return nil, err
		}
	}
	llama := func(texts int, typ string) *contestant {
		q := q
		q.Texts, q.Type = texts, typ
		return asks(s.llama, "llama.cpp "+typ, q)
	}
	hf := func(texts int) *contestant {
		q := q
		q.Texts = texts
		return asks(s.hf, "transformers", q)
	}
	l32, l16, l8, h := llama(1, "F32"), llama(1, "F16"), llama(1, "Q8_0"), hf(1)
	l32many, l8many, hmany := llama(many, "F32"), llama(many, "Q8_0"), hf(many)
	err = compete(ctx, s.o.rounds, []*contestant{
		one[glm.F32Weights], l32, h, one[glm.BF16Weights], l16, one[glm.Int8], l8,
		eight[glm.F32Weights], l32many, hmany, eight[glm.Int8], l8many,
	})
	if err != nil {
		return nil, err
	}
	return []row{
		against("decode, f32", false, 1, one[glm.F32Weights], l32),
		against("decode, 16 bits", false, 0.9, one[glm.BF16Weights], l16),
		against("decode, int8", false, 0.9, one[glm.Int8], l8),
		against("decode of eight, f32", false, 1, eight[glm.F32Weights], l32many, hmany),
		against("decode of eight, int8", false, 1.2, eight[glm.Int8], l8many),
		against("first token of 256, f32", true, 1, one[glm.F32Weights], h),
		against("first token of 256, int8", true, 1, one[glm.Int8], l8),
	}, nil
}

// prefix measures the first token of prompts that begin alike.
func (s *session) prefix(ctx context.Context) (rows []row, err error) {
	const rest = 16 // tokens that differ
	for _, w := range []glm.Weights{glm.F32Weights, glm.Int8} {
		m, err := s.weights(w)
		if err != nil {
			return nil, err
		}
		var seen, cold contestant
		cold.name = "cold"
		for round := range s.o.rounds {
			ids := m.prompt(promptLen+rest, 1000+round)
			for _, c := range []*contestant{&cold, &seen} {
				var got sample
				if got.First, got.FirstCPU, err = m.first(ctx, ids); err != nil {
					return nil, err
				}
				c.got = append(c.got, got)
				ids = slices.Concat(ids[:promptLen], m.prompt(rest, 2000+round))
			}
		}
		rows = append(rows, against("first token after 256 seen, "+string(w), true, 0.15, &seen, &cold))
	}
	return rows, nil
}
