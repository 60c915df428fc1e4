package glm

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// Weights is how a decoder holds a model's matrices and multiplies by them. Norms,
// attention and everything between the products stay float32.
type Weights string

// Kinds of weights. Of 8 and 4 bits, each 32 values of a row share a scale; the
// embedding and the head have 8 bits where the others have 4.
const (
	F32Weights  Weights = "f32"
	BF16Weights Weights = "bf16"         // activations in float32
	Int8        Weights = "int8"         // activations rounded to int8, by 32 too
	Int8Weights Weights = "int8-weights" // activations in float32
	Int4        Weights = "int4"         // as int8
	Int4Weights Weights = "int4-weights" // as int8-weights
)

// AllWeights are the kinds that there are.
var AllWeights = []Weights{F32Weights, BF16Weights, Int8, Int8Weights, Int4, Int4Weights}

// Validate reports an unknown kind.
func (w Weights) Validate() error {
	if slices.Contains(AllWeights, w) {
		return nil
	}
	var names []string
	for _, k := range AllWeights {
		names = append(names, string(k))
	}
	return fmt.Errorf("weights are %q, must be one of %s", w, strings.Join(names, ", "))
}

// Bits is how many a weight of the layers' matrices has.
func (w Weights) Bits() int {
	switch w {
	case BF16Weights:
		return 16
	case Int8, Int8Weights:
		return 8
	case Int4, Int4Weights:
		return 4
	}
	return 32
}

// BitsOf is how many a weight of that role has.
func (w Weights) BitsOf(r Role) int {
	bits := w.Bits()
	switch r {
	case Norm:
		return 32
	case Embedding, Head:
		return max(bits, 8)
	}
	return bits
}

// RoundsActivations tells whether the products' left sides are rounded too.
func (w Weights) RoundsActivations() bool { return w == Int8 || w == Int4 }

// weightBytes is the memory of a decoder's parameters.
func (a Arch) weightBytes(w Weights) int64 {
	layer, head := a.products()
	norms := (2*a.Layers + 1) * a.Dim
	if w == F32Weights {
		n := norms + kernel.PackedLen(head[0], head[1])
		if !a.Tied {
			n += a.Vocab * a.Dim // the embedding, as it is
		}
		for _, p := range layer {
			n += a.Layers * kernel.PackedLen(p[0], p[1])
		}
		return 4 * int64(n)
	}
	bytes := 4 * norms
	heads := 1
	if !a.Tied {
		heads = 2
	}
	bytes += heads * kernel.NarrowBytes(w.BitsOf(Head), head[0], head[1])
	for _, p := range layer {
		bytes += a.Layers * kernel.NarrowBytes(w.Bits(), p[0], p[1])
	}
	return int64(bytes)
}

// productBytes is the scratch of a thread for products with such weights.
func (a Arch) productBytes(w Weights) int64 {
	switch {
	case w == F32Weights:
		return 0
	case w.RoundsActivations():
		return int64(kernel.RecordsLen(PrefillRows, max(a.Dim, a.QueryDim(), a.FFN)))
	}
	return 4 * kernel.WorkLen
}
