//go:build libtorch

package torch

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/enginetest"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// TestThreeWays holds engine native, this engine and transformers' Llama against
// each other: the same checkpoint gives the same logits, loss and gradients.
func TestThreeWays(t *testing.T) {
	for _, a := range []glm.Arch{
		{Vocab: 61, Dim: 48, Layers: 2, Heads: 4, KVHeads: 2, FFN: 72, Context: 96},
		{Vocab: 50, Dim: 32, Layers: 3, Heads: 2, KVHeads: 2, FFN: 40, Context: 96, Tied: true},
		{Vocab: 320, Dim: 64, Layers: 1, Heads: 4, KVHeads: 1, FFN: 160, Context: 96, RopeTheta: 500_000, NormEps: 1e-6},
	} {
		a = a.WithDefaults()
		const B, T = 3, 70
		b := enginetest.Batch(rand.New(rand.NewPCG(7, 7)), B, T, a.Vocab, true)
		peer, err := native.New(a, native.Options{MaxBatch: B, Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		m := build(t, a, Options{Device: CPU, MaxBatch: B, Seed: 4})
		// One checkpoint for all: what one engine saves, the other loads.
		if err := m.Load(peer.State()); err != nil {
			t.Fatal(err)
		}
		want := enginetest.HuggingFace(t, a, m.State()[:len(m.layout)], b, 1)
		for name, e := range map[string]interface {
			engine.Model
			Logits(engine.Batch) ([]float32, error)
		}{"torch": m, "native": peer} {
			logits, err := e.Logits(b)
			if err != nil {
				t.Fatal(err)
			}
			near(t, name+": logits against Hugging Face's", logits, want.Logits, 1e-4)
			loss, err := e.Backward(b, nil)
			if err != nil {
				t.Fatal(err)
			}
			if math.Abs(loss-want.Losses[0]) > 1e-5 {
				t.Errorf("%s: loss %g, Hugging Face's %g", name, loss, want.Losses[0])
			}
		}
		worst := 0.0
		for i, g := range m.grads.host {
			worst = max(worst, math.Abs(float64(g-peer.Grads()[i])))
		}
		for _, p := range m.layout {
			theirs, ok := want.Grads[p.Name]
			if !ok {
				t.Fatalf("Hugging Face has no gradient of %s", p.Name)
			}
			at := func(all []float32) []float32 { return all[p.Offset : p.Offset+p.Elems] }
			near(t, "torch: gradient of "+p.Name, at(m.grads.host), theirs, 1e-5)
			near(t, "native: gradient of "+p.Name, at(peer.Grads()), theirs, 1e-5)
		}
		t.Logf("%v: torch and native differ by %.1e in a gradient at most", a, worst)
	}
}

// What libtorch says of a device that failed ends the process; short memory and
// mistakes do not.
func TestDeviceFaults(t *testing.T) {
	for text, want := range map[string]error{
		"CUDA error: unspecified launch failure\nException raised from f": engine.ErrDevice,
		"CUDA error: no CUDA-capable device is detected":                  engine.ErrDevice,
		"CUDA out of memory. Tried to allocate 2.00 GiB":                  errMemory,
		"CUDA error: out of memory":                                       errMemory,
		"mat1 and mat2 shapes cannot be multiplied":                       nil,
	} {
		err := classify(text)
		for _, s := range []error{engine.ErrDevice, errMemory} {
			if got := errors.Is(err, s); got != (s == want) {
				t.Errorf("%q: %v is %v: %t", text, err, s, got)
			}
		}
	}
	m := build(t, shapes[1], Options{Device: CPU, MaxBatch: 1})
	if n := m.PeakBytes(); n != 0 {
		t.Errorf("a CPU's allocator counts %d bytes", n)
	}
}
