package native

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// TestStepsDoNotGrowWithWidth checks coordinates: what a few steps change of the logits is
// as large in a model eight times as wide, where the standard parametrisation changes them
// several times as much.
func TestStepsDoNotGrowWithWidth(t *testing.T) {
	if testing.Short() {
		t.Skip("trains wide models")
	}
	for _, tied := range []bool{true, false} {
		change := func(dim, base int) float64 {
			a := glm.Arch{Vocab: 50, Dim: dim, Layers: 2, Heads: dim / 32, KVHeads: dim / 32, FFN: 2 * dim, Context: 16, Tied: tied}.WithDefaults()
			m := build(t, a, Options{Threads: 2, MaxBatch: 4, Seed: 1, BaseWidth: base})
			b := randomBatch(rand.New(rand.NewPCG(2, 2)), 4, 13, 50, true)
			at := func() []float32 {
				out, err := m.Logits(b)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			before := at()
			h := engine.DefaultHyper()
			h.LR = 2e-3
			for range 3 {
				if _, err := m.Backward(b, nil); err != nil {
					t.Fatal(err)
				}
				if _, err := m.Update(h); err != nil {
					t.Fatal(err)
				}
			}
			sum := 0.0
			for i, v := range at() {
				d := float64(v - before[i])
				sum += d * d
			}
			return math.Sqrt(sum)
		}
		narrow := change(32, 0)
		if r := change(256, 32) / narrow; r < 0.5 || r > 2 {
			t.Errorf("tied %v: eight times as wide the logits change %.2f times as much", tied, r)
		}
		if r := change(256, 0) / narrow; r < 2.5 {
			t.Errorf("tied %v: in the standard parametrisation they change %.2f times as much", tied, r)
		}
	}
}
