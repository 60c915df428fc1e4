package native

import (
	"fmt"
	"slices"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// weights is a matrix W [n, k] of a decoder, packed for x·Wᵀ: floats, or narrow.
type weights struct {
	n, k   int
	floats []float32
	narrow *kernel.Narrow
}

// row writes W's row j, k values.
func (w *weights) row(dst []float32, j int) {
	if w.narrow != nil {
		w.narrow.Row(dst, j)
		return
	}
	width := kernel.PackedLen(1, 1)
	panel := w.floats[j/width*width*w.k+j%width:]
	for i := range dst {
		dst[i] = panel[i*width]
	}
}

// product is what a thread needs to multiply by weights.
type product struct {
	rounds  bool      // activations too
	records []byte    // rounded activations
	work    []float32 // a panel of weights, widened
}

func newProduct(w glm.Weights, rows, k int) product {
	switch {
	case w == glm.F32Weights:
		return product{}
	case w.RoundsActivations():
		return product{rounds: true, records: make([]byte, kernel.RecordsLen(rows, k))}
	}
	return product{work: make([]float32, kernel.WorkLen)}
}

// times computes y[m, n] (+)= x[m, k] · Wᵀ.
func (p *product) times(w *weights, m int, x, y []float32, acc bool) {
	switch {
	case w.narrow == nil:
		kernel.GemmPacked(false, m, w.n, w.k, x, w.k, w.floats, w.k, y, w.n, acc)
	case p.rounds:
		kernel.RoundRecords(p.records, w.narrow.Bits, m, w.k, x, w.k)
		kernel.GemmInt8(m, p.records, w.narrow, y, w.n, acc)
	default:
		kernel.GemmNarrow(m, x, w.k, w.narrow, y, w.n, acc, p.work)
	}
}

// embedding is a matrix [V, C] of which rows are read: floats, or packed.
type embedding struct {
	floats []float32
	packed weights
}

func (e *embedding) row(dst []float32, id int) {
	if e.floats == nil {
		e.packed.row(dst, id)
		return
	}
	copy(dst, e.floats[id*len(dst):(id+1)*len(dst)])
}

// load takes the parameters in.
func (d *Decoder) load(state engine.StateDict) error {
	layout, _ := d.arch.Layout()
	if d.opt.Weights == "" {
		d.opt.Weights = asGiven(state)
	}
	if err := d.opt.Weights.Validate(); err != nil {
		return err
	}
	params, err := state.Pick(layout)
	if err != nil {
		return err
	}
	i := 0
	vec := func() []float32 {
		i++
		return slices.Clone(params[i-1].Data)
	}
	join := func(n int) weights {
		if err != nil {
			return weights{}
		}
		var w weights
		w, err = pack(params[i:i+n], d.opt.Weights.BitsOf(layout[i].Role))
		i += n
		return w
	}
	if d.arch.Tied {
		d.head = join(1)
		d.embed.packed = d.head
	} else if d.opt.Weights == glm.F32Weights {
		d.embed.floats = slices.Clone(params[0].Floats())
		i++
	} else {
		d.embed.packed = join(1)
	}
	for range d.arch.Layers {
		d.layers = append(d.layers, packedLayer{
			norm1: vec(), qkv: join(3), o: join(1),
			norm2: vec(), glu: join(2), down: join(1),
		})
	}
	d.norm = vec()
	if !d.arch.Tied {
		d.head = join(1)
	}
	return err
}

// asGiven is the kind that needs no rounding of what state holds.
func asGiven(state engine.StateDict) glm.Weights {
	kind := glm.F32Weights
	for _, t := range state {
		switch {
		case t.Blocks == nil:
		case t.Blocks.Bits == 4:
			return glm.Int4
		default:
			kind = glm.Int8
		}
	}
	return kind
}

// pack packs tensors that read the same input as one matrix of so many bits, matrix by
// matrix, so that they are never all there in another form.
func pack(parts engine.StateDict, bits int) (weights, error) {
	var w weights
	w.k = parts[0].Shape[1]
	for _, t := range parts {
		w.n += t.Shape[0]
	}
	switch bits {
	case 32:
		w.floats = packFloats(parts, w.n, w.k)
		return w, nil
	case 16:
		w.narrow = kernel.NarrowBF16(w.n, w.k, joined(parts, w.n*w.k))
		return w, nil
	}
	var blocks []*kernel.Blocks
	for _, t := range parts {
		b := t.Blocks
		if b == nil || b.Bits != bits {
			var err error
			if b, err = kernel.RoundBlocks(bits, kernel.BlockLen, t.Shape[0], t.Shape[1], t.Floats()); err != nil {
				return w, fmt.Errorf("tensor %s: %w", t.Name, err)
			}
		}
		blocks = append(blocks, b)
	}
	w.narrow = kernel.NarrowBlocks(blocks...)
	return w, nil
}

// packFloats packs them where they lie, unless a panel has rows of two.
func packFloats(parts engine.StateDict, n, k int) []float32 {
	p := make([]float32, kernel.PackedLen(n, k))
	width := kernel.PackedLen(1, 1)
	for _, t := range parts[:len(parts)-1] {
		if t.Shape[0]%width != 0 {
			kernel.Pack(p, kernel.NT, n, k, joined(parts, n*k), k)
			return p
		}
	}
	at := 0
	for _, t := range parts {
		kernel.Pack(p[at*k:], kernel.NT, t.Shape[0], k, t.Floats(), k)
		at += t.Shape[0]
	}
	return p
}

// joined are the rows of all, n values.
func joined(parts engine.StateDict, n int) []float32 {
	if len(parts) == 1 {
		return parts[0].Floats()
	}
	out := make([]float32, 0, n)
	for _, t := range parts {
		out = append(out, t.Floats()...)
	}
	return out
}

// Weights says how the matrices are held.
func (d *Decoder) Weights() glm.Weights { return d.opt.Weights }
