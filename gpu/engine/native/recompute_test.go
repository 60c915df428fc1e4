package native

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// TestRecompute: losses, gradients and parameters have the bits that they have
// with all activations kept.
func TestRecompute(t *testing.T) {
	for _, p := range []engine.Precision{engine.F32, engine.BF16} {
		if p == engine.BF16 && !kernel.FastBF16() {
			continue // the portable products are slow
		}
		for _, dropout := range []float64{0, 0.2} {
			t.Run(fmt.Sprintf("%s, dropout %g", p, dropout), func(t *testing.T) {
				a := arch(64, 4, 4, 2, 96, 200, false)
				a.Context = 96
				o := Options{MaxBatch: 8, Threads: 2, Dropout: dropout, Precision: p, ZLoss: 1e-3}
				whole := build(t, a, o)
				o.Recompute = true
				m := build(t, a, o)
				r := rand.New(rand.NewPCG(8, 8))
				for range 2 {
					b := randomBatch(r, 8, 96, 200, true)
					want, err := whole.Backward(b, nil)
					if err != nil {
						t.Fatal(err)
					}
					if got, err := m.Backward(b, nil); err != nil || got != want {
						t.Fatalf("loss %g, want %g, %v", got, want, err)
					}
					if !slices.Equal(m.grads, whole.grads) {
						t.Fatal("gradients differ")
					}
					for _, x := range []*Model{whole, m} {
						if _, err := x.Update(engine.DefaultHyper()); err != nil {
							t.Fatal(err)
						}
					}
					if !slices.Equal(m.params, whole.params) {
						t.Fatal("parameters differ")
					}
				}
				if kept, all := len(m.worker[0].floats), len(whole.worker[0].floats); kept > all*2/3 {
					t.Errorf("%d elements, %d with all activations", kept, all)
				}
			})
		}
	}
}
