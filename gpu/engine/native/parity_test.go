package native

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// TestHuggingFace holds logits and a ten-step AdamW run against transformers'
// LlamaForCausalLM and PyTorch, within 1e-4.
func TestHuggingFace(t *testing.T) {
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal("AUTOGLM_PYTHON is not set; it names a Python interpreter with torch and transformers")
		}
		t.Skip("AUTOGLM_PYTHON is not set; it names a Python interpreter with torch and transformers")
	}
	for _, a := range []glm.Arch{
		{Vocab: 61, Dim: 48, Layers: 2, Heads: 4, KVHeads: 2, FFN: 72, Context: 96, Tied: false},
		{Vocab: 50, Dim: 32, Layers: 2, Heads: 2, KVHeads: 2, FFN: 40, Context: 96, Tied: true},
	} {
		a = a.WithDefaults()
		m := build(t, a, Options{MaxBatch: 3, Threads: 2, Seed: 3})
		const B, T = 3, 70
		b := randomBatch(rand.New(rand.NewPCG(7, 7)), B, T, a.Vocab, true)
		params := map[string][]float32{}
		for _, p := range m.parameters() {
			params[p.Name] = p.Data
		}
		job, err := json.Marshal(map[string]any{"arch": a, "params": params, "inputs": b.Inputs, "targets": b.Targets, "T": T})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(python, "testdata/parity.py")
		cmd.Stdin = bytes.NewReader(job)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("testdata/parity.py: %v", err)
		}
		var want struct {
			Logits        []float32
			Losses, Norms []float64
		}
		if err := json.Unmarshal(out, &want); err != nil {
			t.Fatal(err)
		}
		got, err := m.Logits(b)
		if err != nil {
			t.Fatal(err)
		}
		if len(want.Logits) != len(got) || len(want.Losses) != 10 {
			t.Fatalf("peer gave %d logits and %d losses", len(want.Logits), len(want.Losses))
		}
		for i := range got {
			if d := math.Abs(float64(got[i] - want.Logits[i])); !(d <= 1e-4) {
				t.Fatalf("%v: logit %d is %g, Hugging Face's %g", a, i, got[i], want.Logits[i])
			}
		}
		h := engine.Hyper{Optimizer: engine.AdamW, LR: 3e-3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, Clip: 1}
		for i := range want.Losses {
			loss, err := m.Backward(b, nil)
			if err != nil {
				t.Fatal(err)
			}
			norm, err := m.Update(h)
			if err != nil {
				t.Fatal(err)
			}
			if math.Abs(loss-want.Losses[i]) > 1e-4 || math.Abs(norm-want.Norms[i]) > 1e-3 {
				t.Errorf("%v, step %d: loss %g norm %g, PyTorch's %g and %g", a, i, loss, norm, want.Losses[i], want.Norms[i])
			}
		}
	}
}
