package glm

import (
	"fmt"
)

// Arch is the shape of one decoder: everything that must be equal for two
// engines to compute the same function from the same parameters. It is a value;
// copy it freely.
type Arch struct {
	Vocab   int  `json:"vocab" msgpack:"vocab"`         // V, rows of the embedding
	Dim     int  `json:"dim" msgpack:"dim"`             // C, width of the residual stream
	Layers  int  `json:"layers" msgpack:"layers"`       // L
	Heads   int  `json:"heads" msgpack:"heads"`         // H, query heads
	KVHeads int  `json:"kv_heads" msgpack:"kv_heads"`   // K, key and value heads; divides Heads
	Head    int  `json:"head,omitempty" msgpack:"head"` // D, size of a head; 0 is Dim/Heads
	FFN     int  `json:"ffn" msgpack:"ffn"`             // F, inner width of SwiGLU
	Context int  `json:"context" msgpack:"context"`     // longest sequence the model is trained for, tokens
	Tied    bool `json:"tied" msgpack:"tied"`           // output projection shares the embedding's rows

	RopeTheta float64 `json:"rope_theta" msgpack:"rope_theta"` // base of the rotary frequencies
	NormEps   float64 `json:"norm_eps" msgpack:"norm_eps"`     // epsilon inside RMSNorm's root
}

// Default constants of the family (Llama's).
const (
	DefaultRopeTheta = 10000.0
	DefaultNormEps   = 1e-5
)

// HeadDim is the width of one head.
func (a Arch) HeadDim() int {
	if a.Head != 0 {
		return a.Head
	}
	return a.Dim / a.Heads
}

// WithHead gives heads a size. One that is Dim/Heads stays 0, so that shapes that are the
// same are equal.
func (a Arch) WithHead(size int) Arch {
	if a.Head = size; size*a.Heads == a.Dim {
		a.Head = 0
	}
	return a
}

// QueryDim is the width of all queries of one token, and of what attention gives: Dim,
// unless Head says otherwise.
func (a Arch) QueryDim() int { return a.Heads * a.HeadDim() }

// KVDim is the width of all keys (or all values) of one token.
func (a Arch) KVDim() int { return a.KVHeads * a.HeadDim() }

// Validate reports the first reason why the shape can't be built.
func (a Arch) Validate() error {
	for _, f := range []struct {
		name string
		v    int
	}{{"vocab", a.Vocab}, {"dim", a.Dim}, {"layers", a.Layers}, {"heads", a.Heads}, {"kv_heads", a.KVHeads}, {"ffn", a.FFN}, {"context", a.Context}} {
		if f.v <= 0 {
			return fmt.Errorf("arch: %s is %d, must be positive", f.name, f.v)
		}
	}
	switch {
	case a.Head < 0:
		return fmt.Errorf("arch: head is %d, must not be negative", a.Head)
	case a.Head == 0 && a.Dim%a.Heads != 0:
		return fmt.Errorf("arch: dim %d is not a multiple of heads %d", a.Dim, a.Heads)
	case a.Heads%a.KVHeads != 0:
		return fmt.Errorf("arch: heads %d is not a multiple of kv_heads %d", a.Heads, a.KVHeads)
	case a.HeadDim()%2 != 0:
		return fmt.Errorf("arch: head size %d is odd; rotary embedding pairs dimensions", a.HeadDim())
	case a.RopeTheta <= 0:
		return fmt.Errorf("arch: rope_theta is %g, must be positive", a.RopeTheta)
	case a.NormEps <= 0:
		return fmt.Errorf("arch: norm_eps is %g, must be positive", a.NormEps)
	}
	return nil
}

// WithDefaults fills RopeTheta and NormEps where they are zero.
func (a Arch) WithDefaults() Arch {
	if a.RopeTheta == 0 {
		a.RopeTheta = DefaultRopeTheta
	}
	if a.NormEps == 0 {
		a.NormEps = DefaultNormEps
	}
	return a
}

// Params is the number of parameters; a tied output projection counts once.
func (a Arch) Params() int64 {
	c, q, kv, f := int64(a.Dim), int64(a.QueryDim()), int64(a.KVDim()), int64(a.FFN)
	perLayer := 2*c*q + 2*c*kv + 3*c*f + 2*c
	n := int64(a.Vocab)*c + int64(a.Layers)*perLayer + c
	if !a.Tied {
		n += int64(a.Vocab) * c
	}
	return n
}

// MatrixParams is the number of parameters that work on every token: all but
// the embedding, the head and the norms.
func (a Arch) MatrixParams() int64 {
	c, q, kv, f := int64(a.Dim), int64(a.QueryDim()), int64(a.KVDim()), int64(a.FFN)
	return int64(a.Layers) * (2*c*q + 2*c*kv + 3*c*f)
}

// FLOPsPerToken is the arithmetic of one training token (forward and backward,
// multiply and add counted apart) at sequence length t: 6 for each matrix
// parameter, and causal attention's two products.
func (a Arch) FLOPsPerToken(t int) float64 {
	matrix := float64(a.MatrixParams()) + float64(a.Vocab)*float64(a.Dim)
	attention := float64(a.Layers) * 2 * float64(a.QueryDim()) * float64(t) / 2
	return 6 * (matrix + attention)
}

func (a Arch) String() string {
	tied := "untied"
	if a.Tied {
		tied = "tied"
	}
	heads := fmt.Sprintf("%d/%d", a.Heads, a.KVHeads)
	if a.Head != 0 {
		heads += fmt.Sprintf("·%d", a.Head)
	}
	return fmt.Sprintf("d%d L%d H%s F%d T%d V%d %s", a.Dim, a.Layers, heads, a.FFN, a.Context, a.Vocab, tied)
}
