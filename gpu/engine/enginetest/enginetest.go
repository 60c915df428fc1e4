// Package enginetest is what the tests of engines have in common: batches, and
// transformers' Llama as a peer.
package enginetest

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// Batch is B random sequences of T tokens of a vocabulary of V. About one target in
// six is ignored, when some are wanted.
func Batch(r *rand.Rand, B, T, V int, ignore bool) engine.Batch {
	b := engine.Batch{B: B, T: T, Inputs: make([]int32, B*T), Targets: make([]int32, B*T), Seed: r.Uint64()}
	for i := range b.Inputs {
		b.Inputs[i] = int32(r.IntN(V))
		b.Targets[i] = int32(r.IntN(V))
		if ignore && i > 0 && r.IntN(6) == 0 {
			b.Targets[i] = engine.Ignore
		} else {
			b.Norm++
		}
	}
	return b
}

//go:embed llama.py
var llama string

// Peer is what transformers' LlamaForCausalLM makes of a batch.
type Peer struct {
	Logits        []float32
	Losses, Norms []float64            // of steps on that batch
	Grads         map[string][]float32 // of the first
}

// PeerHyper is what the peer's steps are taken by.
func PeerHyper() engine.Hyper {
	return engine.Hyper{Optimizer: engine.AdamW, LR: 3e-3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, Clip: 1}
}

// HuggingFace has the peer take some steps from those parameters. Without an
// interpreter for it the test is left out.
func HuggingFace(t testing.TB, a glm.Arch, params engine.StateDict, b engine.Batch, steps int) (p Peer) {
	t.Helper()
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		const why = "AUTOGLM_PYTHON is not set; it names a Python interpreter with torch and transformers"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	values := map[string][]float32{}
	for _, p := range params {
		values[p.Name] = p.Data
	}
	job, err := json.Marshal(map[string]any{"arch": a, "params": values, "inputs": b.Inputs, "targets": b.Targets, "T": b.T, "steps": steps})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "-c", llama)
	cmd.Stdin, cmd.Stderr = bytes.NewReader(job), os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("llama.py: %v", err)
	}
	if err := json.Unmarshal(out, &p); err != nil {
		t.Fatal(err)
	}
	if len(p.Logits) != b.B*b.T*a.Vocab || len(p.Losses) != steps || len(p.Norms) != steps {
		t.Fatalf("the peer gave %d logits, %d losses and %d norms", len(p.Logits), len(p.Losses), len(p.Norms))
	}
	return p
}
