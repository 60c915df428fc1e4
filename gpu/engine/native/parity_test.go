package native

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine/enginetest"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// TestHuggingFace holds logits and a ten-step AdamW run against transformers'
// LlamaForCausalLM and PyTorch, within 1e-4.
func TestHuggingFace(t *testing.T) {
	for _, a := range []glm.Arch{
		{Vocab: 61, Dim: 48, Layers: 2, Heads: 4, KVHeads: 2, FFN: 72, Context: 96, Tied: false},
		{Vocab: 50, Dim: 32, Layers: 2, Heads: 2, KVHeads: 2, FFN: 40, Context: 96, Tied: true},
		{Vocab: 61, Dim: 48, Layers: 2, Heads: 2, KVHeads: 1, Head: 16, FFN: 72, Context: 96, Tied: true},
	} {
		a = a.WithDefaults()
		m := build(t, a, Options{MaxBatch: 3, Threads: 2, Seed: 3})
		b := randomBatch(rand.New(rand.NewPCG(7, 7)), 3, 70, a.Vocab, true)
		want := enginetest.HuggingFace(t, a, m.parameters(), b, 10)
		got, err := m.Logits(b)
		if err != nil {
			t.Fatal(err)
		}
		for i := range want.Logits {
			if d := math.Abs(float64(got[i] - want.Logits[i])); !(d <= 1e-4) {
				t.Fatalf("%v: logit %d is %g, Hugging Face's %g", a, i, got[i], want.Logits[i])
			}
		}
		for i := range want.Losses {
			loss, err := m.Backward(b, nil)
			if err != nil {
				t.Fatal(err)
			}
			norm, err := m.Update(enginetest.PeerHyper())
			if err != nil {
				t.Fatal(err)
			}
			if math.Abs(loss-want.Losses[i]) > 1e-4 || math.Abs(norm-want.Norms[i]) > 1e-3 {
				t.Errorf("%v, step %d: loss %g norm %g, PyTorch's %g and %g", a, i, loss, norm, want.Losses[i], want.Norms[i])
			}
		}
	}
}
