package space

import (
	"fmt"
	"math"

	"github.com/open-autoglm/autoglm/gpu/glm"
)

// Names of the dimensions of a decoder and its training.
const (
	Layers    = "layers"
	Dim       = "dim"
	Heads     = "heads"
	KVHeads   = "kv_heads"
	FFNRatio  = "ffn_ratio" // inner width over dim, rounded to a multiple of 64
	Context   = "context"
	Vocab     = "vocab"
	Tied      = "tied"
	Optimizer = "optimizer"
	LR        = "lr"      // AdamW's peak rate
	MuonLR    = "muon_lr" // Muon's peak rate for the matrices; exists when optimizer is muon
	Batch     = "batch_tokens"
	Dropout   = "dropout"
	Decay     = "weight_decay"
	Warmup    = "warmup_steps"
	Schedule  = "schedule"
)

// Limits bound the decoder space by the machine, the data and the budget.
type Limits struct {
	MaxParams   int64   // largest model, parameters; 0 is no bound
	MinMatrix   int64   // smallest model, by glm.Arch.MatrixParams
	MaxMatrix   int64   // largest model, likewise; 0 is no bound
	MaxBytes    int64   // memory to train in; 0 is no bound
	Threads     int     // that train a model; 0 is 1
	MaxVocab    int     // largest vocabulary that the data gave
	MaxContext  int     // longest context worth training for (the data's length)
	Context     int     // fixed by the user's max_seq_length; 0 is searched
	Epochs      float64 // passes over the data that the final training will take
	TrainTokens int64
}

// IsArchitecture tells which dimensions shape the model rather than train it.
func IsArchitecture(name string) bool {
	switch name {
	case Layers, Dim, Heads, KVHeads, FFNRatio, Context, Vocab, Tied:
		return true
	}
	return false
}

// decoderDims are the field's ranges; a job's `space:` replaces any of them.
func decoderDims(l Limits) []Dimension {
	vocab := "categorical(["
	for i, v := range []int{320, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384} {
		if v > l.MaxVocab && i > 0 {
			break
		}
		if i > 0 {
			vocab += ", "
		}
		vocab += fmt.Sprint(v)
	}
	vocab += "])"
	context := fmt.Sprint(l.Context)
	if l.Context == 0 {
		context = "categorical(["
		for i, t := range []int{64, 128, 256, 512, 1024} {
			if t > l.MaxContext && i > 0 {
				break
			}
			if i > 0 {
				context += ", "
			}
			context += fmt.Sprint(t)
		}
		context += "])"
	}
	maxDrop := 0.1
	if l.Epochs > 3 {
		maxDrop = 0.4
	}
	return []Dimension{
		MustParse(Layers, "int(2, 12)"),
		MustParse(Dim, "categorical([64, 128, 192, 256, 320, 384, 448, 512, 640, 768])"),
		MustParse(Heads, "categorical([1, 2, 4, 6, 8, 12])"),
		MustParse(KVHeads, "categorical([1, 2, 4, 6, 8, 12])"),
		MustParse(FFNRatio, "uniform(2, 4)"),
		MustParse(Context, context),
		MustParse(Vocab, vocab),
		MustParse(Tied, "categorical([true, false])"),
		MustParse(Optimizer, "categorical([adamw, muon])"),
		MustParse(LR, "log_uniform(1e-5, 1e-2)"),
		MustParse(MuonLR, "log_uniform(0.002, 0.1)").When(Optimizer, "muon"),
		MustParse(Batch, "categorical([1024, 2048, 4096, 8192, 16384])"),
		MustParse(Dropout, fmt.Sprintf("uniform(0, %g)", maxDrop)),
		MustParse(Decay, "log_uniform(0.001, 0.5)"),
		MustParse(Warmup, "log_int(10, 400)"),
		MustParse(Schedule, "wsd"),
	}
}

// Decoder is the space of language models within limits, with the user's
// overrides (name to expression, see Parse) applied. An override's error names
// the dimension.
func Decoder(l Limits, overrides map[string]string) (*Space, error) {
	dims := decoderDims(l)
	left := map[string]bool{}
	for n := range overrides {
		left[n] = true
	}
	for i, d := range dims {
		expr, ok := overrides[d.Name]
		if !ok {
			continue
		}
		o, err := Parse(d.Name, expr)
		if err != nil {
			return nil, err
		}
		if err := sensible(o); err != nil {
			return nil, err
		}
		o.Parent, o.On, o.AtLeast = d.Parent, d.On, d.AtLeast
		dims[i] = o
		delete(left, d.Name)
	}
	for n := range left {
		return nil, fmt.Errorf("%s is no dimension of the space; there are %v", n, Names())
	}
	s, err := New(dims...)
	if err != nil {
		return nil, err
	}
	return s.Constrain(l.constraints()...), nil
}

// Names lists the dimensions of the decoder space.
func Names() []string {
	var out []string
	for _, d := range decoderDims(Limits{MaxVocab: 512, MaxContext: 128}) {
		out = append(out, d.Name)
	}
	return out
}

// CheckOverride reports what is wrong with one entry of a job's `space:`.
func CheckOverride(name, expr string) error {
	d, err := Parse(name, expr)
	if err != nil {
		return err
	}
	return sensible(d)
}

// sensible refuses values that no model can have.
func sensible(d Dimension) error {
	lo, hi, words, integer := math.Inf(-1), math.Inf(1), []string(nil), false
	switch d.Name {
	case Layers:
		lo, hi, integer = 1, 256, true
	case Dim, Heads, KVHeads:
		lo, hi, integer = 1, 65536, true
	case FFNRatio:
		lo, hi = 0.25, 16
	case Context:
		lo, hi, integer = 8, 1<<20, true
	case Vocab:
		lo, hi, integer = 263, 1<<20, true
	case Batch:
		lo, hi, integer = 8, 1<<26, true
	case Warmup:
		lo, hi, integer = 0, 1<<30, true
	case LR, MuonLR:
		lo, hi = 1e-12, 10
	case Dropout:
		lo, hi = 0, 0.95
	case Decay:
		lo, hi = 0, 10
	case Tied:
		words = []string{"true", "false"}
	case Optimizer:
		words = []string{"adamw", "muon"}
	case Schedule:
		words = []string{"wsd", "cosine"}
	}
	check := func(v Value) error {
		if words != nil {
			for _, w := range words {
				if v.Word == w {
					return nil
				}
			}
			return fmt.Errorf("%s: %s is not one of %v", d.Name, v, words)
		}
		switch {
		case v.IsWord():
			return fmt.Errorf("%s: %q is not a number", d.Name, v.Word)
		case v.Num < lo || v.Num > hi:
			return fmt.Errorf("%s: %s is outside %g … %g", d.Name, v, lo, hi)
		case integer && v.Num != math.Trunc(v.Num):
			return fmt.Errorf("%s: %s is not a whole number", d.Name, v)
		case d.Name == Dim && math.Mod(v.Num, 64) != 0:
			return fmt.Errorf("%s: %s is not a multiple of 64", d.Name, v)
		}
		return nil
	}
	if len(d.Choices) > 0 {
		for _, v := range d.Choices {
			if err := check(v); err != nil {
				return err
			}
		}
		return nil
	}
	if words != nil {
		return fmt.Errorf("%s takes a word of %v, not a range", d.Name, words)
	}
	if err := check(Number(d.Low)); err != nil {
		return err
	}
	return check(Number(d.High))
}

// Arch is the shape that a config describes.
func Arch(c Config) glm.Arch {
	d := c.Int(Dim)
	ffn := max(64, int(math.Round(float64(d)*c.Float(FFNRatio)/64))*64)
	return glm.Arch{
		Vocab: c.Int(Vocab), Dim: d, Layers: c.Int(Layers), Heads: c.Int(Heads), KVHeads: c.Int(KVHeads),
		FFN: ffn, Context: c.Int(Context), Tied: c.Word(Tied) == "true",
	}.WithDefaults()
}

// constraints are the bounds as rules over the shape and the batch, the most telling
// first.
func (l Limits) constraints() []Constraint {
	var out []Constraint
	rule := func(f func(a glm.Arch, batch int) error) {
		out = append(out, func(c Config) error { return f(Arch(c), c.Int(Batch)) })
	}
	if l.MaxParams > 0 {
		rule(func(a glm.Arch, _ int) error {
			if p := a.Params(); p > l.MaxParams {
				return fmt.Errorf("%d parameters, at most %d are allowed", p, l.MaxParams)
			}
			return nil
		})
	}
	if l.MaxMatrix > 0 {
		rule(func(a glm.Arch, _ int) error {
			if n := a.MatrixParams(); n > l.MaxMatrix {
				return fmt.Errorf("%d parameters in matrices, the budget trains at most %d", n, l.MaxMatrix)
			}
			return nil
		})
	}
	rule(func(a glm.Arch, _ int) error {
		if n := a.MatrixParams(); n < l.MinMatrix {
			return fmt.Errorf("%d parameters in matrices, the budget feeds at least %d", n, l.MinMatrix)
		}
		return nil
	})
	rule(func(a glm.Arch, _ int) error { return a.Validate() })
	rule(func(a glm.Arch, _ int) error {
		if h := a.HeadDim(); h < 16 || h > 128 || h%16 != 0 {
			return fmt.Errorf("head size %d is not 16 … 128 in steps of 16", h)
		}
		return nil
	})
	rule(func(a glm.Arch, batch int) error {
		switch {
		case batch < a.Context:
			return fmt.Errorf("batch of %d tokens is shorter than the context %d", batch, a.Context)
		case batch > 64*a.Context:
			return fmt.Errorf("batch of %d tokens is more than 64 sequences of %d", batch, a.Context)
		}
		return nil
	})
	if l.MaxBytes > 0 {
		rule(func(a glm.Arch, batch int) error {
			// A training that is short of memory keeps few activations.
			need := a.TrainingBytes(glm.Training{Sequences: max(1, batch/a.Context), Tokens: a.Context, Threads: l.Threads, BF16: true, Recompute: true})
			if need > l.MaxBytes {
				return fmt.Errorf("training needs about %d MB, %d MB are free", need>>20, l.MaxBytes>>20)
			}
			return nil
		})
	}
	return out
}
