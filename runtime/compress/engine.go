package compress

import (
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// Engine makes what generates and what learns. Each is used by one goroutine and closed.
type Engine interface {
	// Decoder holds the parameters as they are given: of few bits, where they are so.
	Decoder(a glm.Arch, params engine.StateDict, threads, sequences int) (Decoder, error)
	// Model is made for batches of so many sequences of the shape's context; one that
	// does not learn holds no gradients.
	Model(a glm.Arch, threads, sequences int, learns bool) (Model, error)
}

// Decoder generates, and scores by what it generates with.
type Decoder interface {
	engine.Decoder
	Eval(b engine.Batch) (nll float64, tokens int, err error)
	Weights() glm.Weights
}

// Model learns, from another one too.
type Model interface {
	engine.Model
	// Params and Grads are arenas laid out as glm.Arch.Layout says; parameters may be
	// written between an Update and the next Backward.
	Params() []float32
	Grads() []float32
	// Outputs are the logits [B, T, V] and the final norm's results [B, T, C].
	Outputs(b engine.Batch) (logits, hidden []float32, err error)
	BackwardTaught(b engine.Batch, t engine.Teacher, sync engine.GradientSync) (loss float64, err error)
}
