package compress

import (
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Engine makes what models are measured and taught with.
type Engine interface {
	// Decoder generates with a bundle's parameters, which may be of few bits: seqs texts at once.
	Decoder(a glm.Arch, params engine.StateDict, threads, seqs int) (Decoder, error)
	// Model trains with batches of at most batch sequences.
	Model(a glm.Arch, threads, batch int, seed uint64) (Model, error)
	// Teacher only says what it makes of batches of at most batch sequences of so many tokens.
	Teacher(a glm.Arch, threads, batch, tokens int) (Model, error)
}

// Decoder also scores, and tells how its weights are held.
type Decoder interface {
	engine.Decoder
	train.Evaluator
	Weights() glm.Weights
}

// Model can learn from another one, and shows its parameters and their gradients, laid
// out as glm.Arch.Layout says.
type Model interface {
	engine.Model
	Params() []float32
	Grads() []float32
	// Outputs are the logits and hidden states of a batch, see engine.Teacher.
	Outputs(b engine.Batch) (logits, hidden []float32, err error)
	BackwardTaught(b engine.Batch, t engine.Teacher, sync engine.GradientSync) (float64, error)
}
