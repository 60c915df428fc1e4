package engine_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/enginetest"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// TestGrowState trains a model, grows its state and goes on: the loss is that of before,
// with both optimisers, and falls. What the other optimiser kept is left behind.
func TestGrowState(t *testing.T) {
	src := glm.Arch{Vocab: 40, Dim: 32, Layers: 2, Heads: 2, KVHeads: 1, FFN: 48, Context: 16, Tied: true}.WithDefaults()
	dst := src
	dst.Dim, dst.Heads, dst.KVHeads, dst.Layers, dst.FFN = 64, 4, 2, 3, 96
	for _, tt := range []struct{ was, is engine.Optimizer }{{engine.AdamW, engine.AdamW}, {engine.Muon, engine.Muon}, {engine.Muon, engine.AdamW}, {engine.AdamW, engine.Muon}} {
		t.Run(string(tt.was+" to "+tt.is), func(t *testing.T) {
			h := engine.DefaultHyper()
			h.Optimizer = tt.was
			b := enginetest.Batch(rand.New(rand.NewPCG(1, 2)), 4, 16, src.Vocab, false)
			train := func(m *native.Model, steps int) (loss float64) {
				for range steps {
					var err error
					if loss, err = m.Backward(b, nil); err != nil {
						t.Fatal(err)
					}
					if _, err := m.Update(h); err != nil {
						t.Fatal(err)
					}
				}
				loss, _, err := m.Eval(b)
				if err != nil {
					t.Fatal(err)
				}
				return loss
			}
			small, err := native.New(src, native.Options{MaxBatch: 4, Optimizer: tt.was, Seed: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer small.Close()
			before := train(small, 12)
			state, err := small.State().Grow(dst, src, tt.is, 5)
			if err != nil {
				t.Fatal(err)
			}
			step, has := state.Get("optimizer.step")
			if same := tt.was == tt.is; has != same || same && step.Data[0] != 12 {
				t.Errorf("the averages are there: %v, %v", has, step.Data)
			}
			large, err := native.New(dst, native.Options{MaxBatch: 4, Optimizer: tt.is})
			if err != nil {
				t.Fatal(err)
			}
			defer large.Close()
			if err := large.Load(state); err != nil {
				t.Fatal(err)
			}
			if after := train(large, 0); after-before > 1e-3 || before-after > 1e-3 {
				t.Errorf("loss is %g after the growth, was %g", after, before)
			}
			h.Optimizer = tt.is
			if after := train(large, 5); after >= before {
				t.Errorf("loss is %g five steps after the growth, was %g", after, before)
			}
		})
	}
	m, err := native.New(dst, native.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if _, err := m.State().Grow(src, dst, engine.AdamW, 1); !errors.Is(err, glm.ErrNotGrowable) {
		t.Errorf("a shrunk state: %v", err)
	}
	if _, err := m.State().Grow(dst, src, engine.AdamW, 1); err == nil || errors.Is(err, glm.ErrNotGrowable) {
		t.Errorf("a state of another shape: %v", err)
	}
}
