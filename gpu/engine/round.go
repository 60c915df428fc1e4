package engine

import (
	"fmt"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// Round gives parameters the bits of a kind of weights, as a bundle stores them: the
// matrices and an untied head as blocks; the embedding, which transformers takes as
// floats alone, in half precision. A decoder rounds that to 8 bits when it is made.
func Round(a glm.Arch, params StateDict, kind glm.Weights) (StateDict, error) {
	layout, _ := a.Layout()
	given, err := params.Pick(layout)
	if err != nil {
		return nil, err
	}
	var out StateDict
	for i, t := range given {
		switch role := layout[i].Role; role {
		case glm.Norm:
		case glm.Embedding:
			t, err = halves(t)
		default:
			bits := kind.BitsOf(role)
			if t.Blocks == nil || t.Blocks.Bits > bits {
				t, err = blocks(t, bits)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("tensor %s: %w", t.Name, err)
		}
		out = append(out, t)
	}
	return out, nil
}

// blocks rounds a tensor to 8 bits, in groups as large as let scales take little room,
// or to 4, where a group has to be small for its values to be near each other.
func blocks(t Tensor, bits int) (Tensor, error) {
	rows, cols := t.Shape[0], t.Shape[1]
	group := kernel.BlockLen
	if cols%group != 0 {
		return t, fmt.Errorf("its rows have %d values; weights of few bits come in groups of %d", cols, group)
	}
	if bits == 8 {
		for group < 128 && cols%(2*group) == 0 {
			group *= 2
		}
	}
	b, err := kernel.RoundBlocks(bits, group, rows, cols, t.Floats())
	return Tensor{Name: t.Name, Shape: t.Shape, Blocks: b}, err
}

func halves(t Tensor) (Tensor, error) {
	x := make([]float32, len(t.Data))
	for i, v := range t.Floats() {
		x[i] = kernel.FromHalf(kernel.ToHalf(v))
		if x[i]-x[i] != 0 {
			return t, fmt.Errorf("it holds %g, for which half precision has no room", v)
		}
	}
	t.Data = x
	return t, nil
}
