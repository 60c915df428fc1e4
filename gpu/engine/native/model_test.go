package native

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/enginetest"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

func arch(c, l, h, k, f, v int, tied bool) glm.Arch {
	return glm.Arch{Vocab: v, Dim: c, Layers: l, Heads: h, KVHeads: k, FFN: f, Context: 32, Tied: tied}.WithDefaults()
}

func build(t testing.TB, a glm.Arch, o Options) *Model {
	t.Helper()
	m, err := New(a, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

var randomBatch = enginetest.Batch

// perturb makes norms' gains and everything else less special than at the start.
func perturb(m *Model, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	for _, p := range m.layout {
		for i := range p.Elems {
			m.params[p.Offset+i] += float32(0.1 * r.NormFloat64())
		}
	}
}

// TestGradients holds loss and gradients against central differences of the
// float64 reference, for every tensor of every kind of model.
func TestGradients(t *testing.T) {
	for _, c := range []struct {
		name string
		arch glm.Arch
		opt  Options
		b, t int
	}{
		{"tied", arch(16, 2, 2, 2, 24, 19, true), Options{}, 2, 7},
		{"untied", arch(16, 1, 2, 2, 24, 19, false), Options{}, 1, 5},
		{"grouped", arch(32, 1, 4, 2, 20, 11, true), Options{}, 2, 9},
		{"one kv head", arch(24, 1, 3, 1, 10, 11, false), Options{}, 2, 6},
		{"heads taken away", arch(32, 2, 2, 1, 20, 11, true).WithHead(8), Options{}, 2, 9},
		{"wide heads", arch(16, 1, 3, 3, 20, 11, false).WithHead(8), Options{}, 2, 9},
		{"odd sizes", arch(6, 1, 3, 3, 5, 7, false), Options{}, 3, 3},
		{"one token", arch(8, 1, 2, 1, 8, 5, true), Options{}, 2, 1},
		{"z-loss", arch(16, 1, 2, 2, 24, 19, true), Options{ZLoss: 0.3}, 2, 5},
		{"dropout", arch(16, 2, 2, 2, 24, 19, true), Options{Dropout: 0.3}, 2, 6},
		{"several blocks of rows", arch(8, 1, 1, 1, 8, 7, true), Options{}, 1, 32},
		{"two threads", arch(16, 1, 2, 2, 24, 19, true), Options{Threads: 2}, 3, 6},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opt.MaxBatch, c.opt.MaxSeq = 4, 32
			m := build(t, c.arch, c.opt)
			perturb(m, 3)
			r := rand.New(rand.NewPCG(4, 5))
			b := randomBatch(r, c.b, c.t, c.arch.Vocab, true)
			ref := newReference(m)
			loss, err := m.Backward(b, nil)
			if err != nil {
				t.Fatal(err)
			}
			nll, _ := ref.loss(b, true)
			if math.Abs(loss-nll) > 1e-5*(1+nll) {
				t.Errorf("loss %g, reference %g", loss, nll)
			}
			for _, p := range m.layout {
				x, g := ref.p[p.Name], m.grads[p.Offset:p.Offset+p.Elems]
				for range 12 {
					i := r.IntN(p.Elems)
					const h = 1e-5
					was := x[i]
					x[i] = was + h
					_, up := ref.loss(b, true)
					x[i] = was - h
					_, down := ref.loss(b, true)
					x[i] = was
					want := (up - down) / (2 * h)
					if d := math.Abs(float64(g[i]) - want); d > 2e-4*math.Abs(want)+2e-5 {
						t.Errorf("%s[%d]: gradient %g, reference %g", p.Name, i, g[i], want)
					}
				}
			}
		})
	}
}

// TestLongSequence crosses the blocks of attention, of chunks and of logits.
func TestLongSequence(t *testing.T) {
	a := arch(16, 1, 2, 1, 12, 300, false)
	a.Context = 600
	m := build(t, a, Options{MaxBatch: 2, MaxSeq: 600})
	r := rand.New(rand.NewPCG(6, 6))
	for _, n := range []int{600, 130} {
		b := randomBatch(r, 2, n, 300, true)
		want, _ := newReference(m).loss(b, false)
		nll, tokens, err := m.Eval(b)
		if err != nil || float64(tokens) != b.Norm {
			t.Fatalf("%d tokens of %g, %v", tokens, b.Norm, err)
		}
		if got := nll / b.Norm; math.Abs(got-want) > 1e-5*want {
			t.Errorf("T %d: %g, reference %g", n, got, want)
		}
	}
}

func TestLogits(t *testing.T) {
	for _, inference := range []bool{false, true} {
		a := arch(32, 2, 4, 2, 40, 23, true)
		m := build(t, a, Options{MaxBatch: 3, Inference: inference, Threads: 2})
		b := randomBatch(rand.New(rand.NewPCG(1, 1)), 3, 11, 23, false)
		got, err := m.Logits(b)
		if err != nil {
			t.Fatal(err)
		}
		ref := newReference(m)
		for s := range b.B {
			for i, want := range ref.logits(b, s, false) {
				if g := float64(got[s*b.T*23+i]); math.Abs(g-want) > 1e-5 {
					t.Fatalf("sequence %d logit %d: %g, reference %g", s, i, g, want)
				}
			}
		}
	}
}

// train runs a few steps and returns the parameters.
func train(t *testing.T, threads int, dropout float64, opt engine.Optimizer) []float32 {
	a := arch(32, 2, 4, 2, 40, 50, true)
	m := build(t, a, Options{Threads: threads, MaxBatch: 5, Dropout: dropout, Optimizer: opt, Seed: 9})
	r := rand.New(rand.NewPCG(2, 2))
	h := engine.DefaultHyper()
	h.Optimizer = opt
	for range 4 {
		if _, err := m.Backward(randomBatch(r, 5, 13, 50, true), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Update(h); err != nil {
			t.Fatal(err)
		}
	}
	return append([]float32(nil), m.params...)
}

func TestDeterminism(t *testing.T) {
	for _, opt := range []engine.Optimizer{engine.AdamW, engine.Muon} {
		one := train(t, 1, 0.1, opt)
		for _, threads := range []int{1, 2, 3} {
			x, y := train(t, threads, 0.1, opt), train(t, threads, 0.1, opt)
			worst := 0.0
			for i := range x {
				if x[i] != y[i] {
					t.Fatalf("%s, %d threads: element %d differs between two runs", opt, threads, i)
				}
				worst = max(worst, math.Abs(float64(x[i]-one[i])))
			}
			if worst > 3e-3 { // AdamW divides by tiny moments in the first steps
				t.Errorf("%s: %d threads are %g off one", opt, threads, worst)
			}
		}
	}
}

func TestAccumulation(t *testing.T) {
	a := arch(16, 1, 2, 2, 24, 19, true)
	whole, parts := build(t, a, Options{MaxBatch: 4}), build(t, a, Options{MaxBatch: 4, Threads: 2})
	b := randomBatch(rand.New(rand.NewPCG(8, 8)), 4, 6, 19, false)
	if _, err := whole.Backward(b, nil); err != nil {
		t.Fatal(err)
	}
	for s := range 4 {
		one := b
		one.B, one.Inputs, one.Targets = 1, b.Inputs[s*6:(s+1)*6], b.Targets[s*6:(s+1)*6]
		if _, err := parts.Backward(one, nil); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range whole.grads {
		if math.Abs(float64(parts.grads[i]-want)) > 1e-6 {
			t.Fatalf("gradient %d: %g accumulated, %g at once", i, parts.grads[i], want)
		}
	}
	parts.ZeroGrad()
	for _, g := range parts.grads {
		if g != 0 {
			t.Fatal("ZeroGrad left a gradient")
		}
	}
}

// recorder is a GradientSync that doubles what it is given, as a second rank with
// the same batch would.
type recorder struct {
	t       *testing.T
	buckets [][]float32
}

func (r *recorder) Reduce(bucket int, g ring.Buffer) {
	if bucket != len(r.buckets) {
		r.t.Errorf("bucket %d came as number %d", bucket, len(r.buckets))
	}
	r.buckets = append(r.buckets, g.Data)
	for i := range g.Data {
		g.Data[i] *= 2
	}
}
func (r *recorder) Wait() error { return nil }

func TestSync(t *testing.T) {
	a := arch(64, 2, 4, 4, 400, 3000, true)
	m := build(t, a, Options{MaxBatch: 2, Threads: 2})
	b := randomBatch(rand.New(rand.NewPCG(8, 8)), 2, 6, 3000, false)
	if _, err := m.Backward(b, nil); err != nil {
		t.Fatal(err)
	}
	want := append([]float32(nil), m.grads...)
	m.ZeroGrad()
	r := &recorder{t: t}
	if _, err := m.Backward(b, r); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, x := range r.buckets {
		total += len(x)
	}
	if total != m.size || len(r.buckets) < 2 {
		t.Errorf("%d buckets cover %d of %d elements", len(r.buckets), total, m.size)
	}
	for i := range want {
		if m.grads[i] != 2*want[i] {
			t.Fatalf("element %d was not in exactly one bucket", i)
		}
	}
}

func TestNoAllocationInAStep(t *testing.T) {
	for _, opt := range []engine.Optimizer{engine.AdamW, engine.Muon} {
		m := build(t, arch(32, 2, 4, 2, 40, 50, false), Options{Threads: 2, MaxBatch: 4, Dropout: 0.1, Optimizer: opt})
		b := randomBatch(rand.New(rand.NewPCG(2, 2)), 4, 13, 50, true)
		h := engine.DefaultHyper()
		h.Optimizer = opt
		n := allocations(func() {
			if _, err := m.Backward(b, nil); err != nil {
				t.Error(err)
			}
			if _, err := m.Update(h); err != nil {
				t.Error(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations a step", opt, n)
		}
	}
}

func TestPanicBecomesError(t *testing.T) {
	m := build(t, arch(16, 1, 2, 2, 24, 19, true), Options{Threads: 2, MaxBatch: 2})
	b := randomBatch(rand.New(rand.NewPCG(2, 2)), 2, 4, 19, false)
	keep := m.worker[1].dact
	m.worker[1].dact = nil
	if _, err := m.Backward(b, nil); err == nil || !strings.Contains(err.Error(), "thread 1: panic") {
		t.Errorf("a panic in thread 1 gave %v", err)
	}
	m.worker[1].dact = keep
	m.ZeroGrad()
	if _, err := m.Backward(b, nil); err != nil {
		t.Errorf("the model is unusable after a panic: %v", err)
	}
}

func TestBadBatches(t *testing.T) {
	m := build(t, arch(16, 1, 2, 2, 24, 19, true), Options{MaxBatch: 2, MaxSeq: 8})
	good := func() engine.Batch { return randomBatch(rand.New(rand.NewPCG(2, 2)), 2, 4, 19, false) }
	for want, spoil := range map[string]func(b *engine.Batch){
		"sequences":  func(b *engine.Batch) { b.B = 3 },
		"have 9":     func(b *engine.Batch) { b.T = 9 },
		"inputs":     func(b *engine.Batch) { b.Inputs = b.Inputs[1:] },
		"targets":    func(b *engine.Batch) { b.Targets = b.Targets[1:] },
		"input 3":    func(b *engine.Batch) { b.Inputs[3] = 19 },
		"target 2":   func(b *engine.Batch) { b.Targets[2] = -2 },
		"batch norm": func(b *engine.Batch) { b.Norm = 0 },
	} {
		b := good()
		spoil(&b)
		if _, err := m.Backward(b, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestBadOptions(t *testing.T) {
	a := arch(16, 1, 2, 2, 24, 19, true)
	for want, o := range map[string]Options{
		"threads":      {Threads: -1},
		"max batch":    {MaxBatch: -1},
		"max sequence": {MaxSeq: -1},
		"dropout":      {Dropout: 1},
		"z-loss":       {ZLoss: math.NaN()},
		"optimizer":    {Optimizer: "sgd"},
		"precision":    {Precision: "fp8"},
	} {
		if _, err := New(a, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := New(glm.Arch{}, Options{}); err == nil {
		t.Error("an empty shape was accepted")
	}
}

func TestInferenceRefusesTraining(t *testing.T) {
	m := build(t, arch(16, 1, 2, 2, 24, 19, true), Options{Inference: true})
	if _, err := m.Backward(engine.Batch{}, nil); !errors.Is(err, errInference) {
		t.Errorf("Backward: %v", err)
	}
	if _, err := m.Update(engine.DefaultHyper()); !errors.Is(err, errInference) {
		t.Errorf("Update: %v", err)
	}
}
