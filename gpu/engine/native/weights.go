package native

import (
	"fmt"

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

// embedding is a matrix [V, C] of which rows are read.
type embedding struct {
	floats []float32
	narrow *kernel.Narrow
}

func (e *embedding) row(dst []float32, id int) {
	if e.narrow != nil {
		e.narrow.Row(dst, id)
		return
	}
	copy(dst, e.floats[id*len(dst):(id+1)*len(dst)])
}

// load takes the parameters in.
func (d *Decoder) load(state engine.StateDict) error {
	layout, size := d.arch.Layout()
	if d.opt.Weights == "" {
		d.opt.Weights = asGiven(state)
	}
	if err := d.opt.Weights.Validate(); err != nil {
		return err
	}
	if d.opt.Weights != glm.F32Weights {
		return d.loadNarrow(layout, state)
	}
	arena := make([]float32, size)
	if _, err := state.CopyTo(engine.Parameters(layout, arena), len(layout)); err != nil {
		return err
	}
	w := view(d.arch, layout, arena)
	C, F, V := d.arch.Dim, d.arch.FFN, d.arch.Vocab
	pack := func(ms []matrix, rows, in int) weights {
		joined := make([]float32, 0, rows*in)
		for _, m := range ms {
			joined = append(joined, m.w...)
		}
		p := make([]float32, kernel.PackedLen(rows, in))
		kernel.Pack(p, kernel.NT, rows, in, joined, in)
		return weights{n: rows, k: in, floats: p}
	}
	for i := range w.layers {
		l := &w.layers[i]
		d.layers = append(d.layers, packedLayer{
			norm1: l.norm1, norm2: l.norm2,
			qkv: pack(l.qkv, C+2*d.arch.KVDim(), C), o: pack(l.o, C, C), glu: pack(l.glu, 2*F, C), down: pack(l.down, C, F),
		})
	}
	d.embed.floats, d.norm = w.embed, w.finalNorm
	d.head = pack([]matrix{{w: w.head[0].w}}, V, C)
	return nil
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

// loadNarrow takes the parameters in with fewer bits, matrix by matrix, so that they
// are never all there in float32.
func (d *Decoder) loadNarrow(layout []glm.Param, state engine.StateDict) error {
	params, err := state.Pick(layout)
	if err != nil {
		return err
	}
	i := 0
	vec := func() []float32 {
		i++
		return append([]float32(nil), params[i-1].Data...)
	}
	join := func(n int) weights {
		if err != nil {
			return weights{}
		}
		var w weights
		w, err = narrow(params[i:i+n], d.opt.Weights.BitsOf(layout[i].Role))
		i += n
		return w
	}
	embed := join(1)
	for range d.arch.Layers {
		d.layers = append(d.layers, packedLayer{
			norm1: vec(), qkv: join(3), o: join(1),
			norm2: vec(), glu: join(2), down: join(1),
		})
	}
	d.norm = vec()
	d.embed.narrow, d.head = embed.narrow, embed
	if !d.arch.Tied {
		d.head = join(1)
	}
	return err
}

// narrow packs tensors that read the same input as one matrix of so many bits.
func narrow(parts engine.StateDict, bits int) (weights, error) {
	var w weights
	w.k = parts[0].Shape[1]
	for _, t := range parts {
		w.n += t.Shape[0]
	}
	if bits == 16 {
		joined := make([]float32, 0, w.n*w.k)
		for _, t := range parts {
			joined = append(joined, t.Floats()...)
		}
		w.narrow = kernel.NarrowBF16(w.n, w.k, joined)
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

// Weights says how the matrices are held.
func (d *Decoder) Weights() glm.Weights { return d.opt.Weights }
