//go:build libtorch

package torch

import (
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/enginetest"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

var shapes = []glm.Arch{
	{Vocab: 61, Dim: 48, Layers: 2, Heads: 4, KVHeads: 2, FFN: 72, Context: 40},
	{Vocab: 50, Dim: 32, Layers: 2, Heads: 2, KVHeads: 2, FFN: 40, Context: 40, Tied: true},
}

func build(t *testing.T, a glm.Arch, o Options) *Model {
	t.Helper()
	m, err := New(a.WithDefaults(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func near(t *testing.T, what string, got, want []float32, tolerance float64) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d values, native has %d", what, len(got), len(want))
	}
	for i := range got {
		if d := math.Abs(float64(got[i] - want[i])); !(d <= tolerance) {
			t.Fatalf("%s: value %d is %g, native's %g", what, i, got[i], want[i])
		}
	}
}

// TestNative holds logits, loss, gradients, scores and ten steps of both
// optimisers against engine native.
func TestNative(t *testing.T) {
	for _, a := range shapes {
		for _, optimizer := range []engine.Optimizer{engine.AdamW, engine.Muon} {
			a = a.WithDefaults()
			b := enginetest.Batch(rand.New(rand.NewPCG(1, 2)), 3, 33, a.Vocab, true)
			peer, err := native.New(a, native.Options{MaxBatch: 3, Seed: 5, BaseWidth: 16, ZLoss: 1e-3, Optimizer: optimizer})
			if err != nil {
				t.Fatal(err)
			}
			defer peer.Close()
			m := build(t, a, Options{Device: CPU, MaxBatch: 3, Seed: 5, BaseWidth: 16, ZLoss: 1e-3, Optimizer: optimizer})
			want, err := peer.Logits(b)
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.Logits(b)
			if err != nil {
				t.Fatal(err)
			}
			near(t, "logits", got, want, 1e-4)
			h := engine.DefaultHyper()
			h.Optimizer, h.LR = optimizer, 3e-3
			for step := range 10 {
				wantLoss, err := peer.Backward(b, nil)
				if err != nil {
					t.Fatal(err)
				}
				loss, err := m.Backward(b, nil)
				if err != nil {
					t.Fatal(err)
				}
				if step == 0 {
					near(t, "gradients", m.grads.host, peer.Grads(), 1e-5)
				}
				wantNorm, err := peer.Update(h)
				if err != nil {
					t.Fatal(err)
				}
				norm, err := m.Update(h)
				if err != nil {
					t.Fatal(err)
				}
				if math.Abs(loss-wantLoss) > 2e-4 || math.Abs(norm-wantNorm) > 2e-3 {
					t.Errorf("%v %s, step %d: loss %g norm %g, native's %g and %g", a, optimizer, step, loss, norm, wantLoss, wantNorm)
				}
			}
			if err := m.Load(peer.State()); err != nil {
				t.Fatal(err)
			}
			wantNLL, wantN, err := peer.Eval(b)
			if err != nil {
				t.Fatal(err)
			}
			nll, n, err := m.Eval(b)
			if err != nil || n != wantN || math.Abs(nll/wantNLL-1) > 1e-5 {
				t.Errorf("eval %g of %d, %v; native's %g of %d", nll, n, err, wantNLL, wantN)
			}
			if err := peer.Load(m.State()); err != nil {
				t.Errorf("native can't load the state: %v", err)
			}
		}
	}
}

// TestComposedAttention holds attention out of products against the fused one.
func TestComposedAttention(t *testing.T) {
	m := build(t, shapes[0], Options{Device: CPU, MaxBatch: 2, Seed: 1})
	if !m.fused {
		t.Skip("this libtorch has no fused attention to compare with")
	}
	b := enginetest.Batch(rand.New(rand.NewPCG(3, 4)), 2, 20, m.arch.Vocab, true)
	want, err := m.Logits(b)
	if err != nil {
		t.Fatal(err)
	}
	m.fused = false
	got, err := m.Logits(b)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "composed attention", got, want, 1e-5)
}

// TestOutOfMemory cuts the batch until it fits, wherever memory ends, and the
// gradient is the same.
func TestOutOfMemory(t *testing.T) {
	for _, a := range shapes {
		for _, at := range []int{-1, 0, 1, 2, 3} { // forward, embedding, layers, head
			o := Options{Device: CPU, MaxBatch: 5, Seed: 1}
			whole, cut := build(t, a, o), build(t, a, o)
			cut.refuse = func(n, part int) bool { return n > 2 && part == at }
			b := enginetest.Batch(rand.New(rand.NewPCG(3, 4)), 5, 20, whole.arch.Vocab, true)
			want, err := whole.Backward(b, nil)
			if err != nil {
				t.Fatal(err)
			}
			var w watcher
			got, err := cut.Backward(b, &w)
			if err != nil || math.Abs(got-want) > 1e-5 || cut.micro != 2 {
				t.Errorf("loss %g, %v, micro-batch %d; want %g and 2", got, err, cut.micro, want)
			}
			near(t, "gradients", cut.grads.host, whole.grads.host, 1e-6)
			w.check(t, cut)
			cut.refuse = func(_, part int) bool { return part == at }
			if _, err := cut.Backward(b, nil); err == nil {
				t.Error("no memory for one sequence is no error")
			}
			if slices.ContainsFunc(cut.grads.host, func(x float32) bool { return x != 0 }) {
				t.Error("a gradient is left of a pass that failed")
			}
		}
	}
}

func TestDropoutAndBF16Train(t *testing.T) {
	m := build(t, shapes[1], Options{Device: CPU, MaxBatch: 4, Seed: 1, Dropout: 0.1, Precision: engine.BF16})
	b := enginetest.Batch(rand.New(rand.NewPCG(3, 4)), 4, 20, m.arch.Vocab, true)
	var first, last float64
	for i := range 40 {
		b.Seed = uint64(i)
		loss, err := m.Backward(b, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Update(engine.DefaultHyper()); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = loss
		}
		last = loss
	}
	if !(last < first-0.1) {
		t.Errorf("loss went from %g to %g", first, last)
	}
}

// TestNoGrowth watches the process's resident memory over many steps.
func TestNoGrowth(t *testing.T) {
	steps := 10_000
	if testing.Short() {
		steps = 500
	}
	m := build(t, glm.Arch{Vocab: 20, Dim: 8, Layers: 1, Heads: 2, KVHeads: 1, FFN: 8, Context: 8}, Options{Device: CPU, MaxBatch: 1})
	b := enginetest.Batch(rand.New(rand.NewPCG(3, 4)), 1, 8, 20, true)
	run := func(n int) {
		for range n {
			if _, err := m.Backward(b, &watcher{}); err != nil {
				t.Fatal(err)
			}
			if _, err := m.Update(engine.DefaultHyper()); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(200)
	before := resident(t)
	run(steps)
	after := resident(t)
	t.Logf("resident %d KiB, after %d steps %d KiB", before>>10, steps, after>>10)
	if after > before+16<<20 {
		t.Errorf("resident memory grew from %d to %d bytes", before, after)
	}
}

func resident(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(data))[1])
	if err != nil {
		t.Fatal(err)
	}
	return pages * os.Getpagesize()
}

func TestSelfCheck(t *testing.T) {
	lines, err := SelfCheck()
	if err != nil || len(lines) != 4 {
		t.Errorf("%v, %q", err, lines)
	}
}
