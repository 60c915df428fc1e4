package native

import (
	"math"

	"github.com/open-autoglm/autoglm/gpu/glm"
)

// matrix is a weight [rows, in] whose product lands in columns col … of its
// output. Weights that lie one after the other in the arena and read the same
// input (q, k, v; gate, up) are one matrix.
type matrix struct {
	w         []float32
	rows, col int
	forms     *forms // of a parameter that is trained
}

// tensors are views of an arena, of parameters or of gradients, by their use.
type tensors struct {
	embed     []float32 // [V, C]
	layers    []layerTensors
	finalNorm []float32 // [C]
	head      []matrix  // [V, C]; embed itself when tied
}

type layerTensors struct {
	norm1 []float32 // [C]
	qkv   []matrix  // [H·D+2·KV, C]
	o     []matrix  // [C, H·D]
	norm2 []float32 // [C]
	glu   []matrix  // [2F, C], gate then up
	down  []matrix  // [C, F]
}

// view cuts an arena by its layout.
func view(a glm.Arch, layout []glm.Param, arena []float32) *tensors {
	i := 0
	next := func() glm.Param { i++; return layout[i-1] }
	vec := func() []float32 {
		p := next()
		return arena[p.Offset : p.Offset+p.Elems : p.Offset+p.Elems]
	}
	join := func(n int) []matrix {
		var ms []matrix
		col, end := 0, -1
		for range n {
			p := next()
			if p.Offset == end {
				last := &ms[len(ms)-1]
				last.rows += p.Shape[0]
				last.w = last.w[:len(last.w)+p.Elems]
			} else {
				ms = append(ms, matrix{w: arena[p.Offset : p.Offset+p.Elems], rows: p.Shape[0], col: col})
			}
			col += p.Shape[0]
			end = p.Offset + p.Elems
		}
		return ms
	}
	t := &tensors{embed: vec()}
	for range a.Layers {
		t.layers = append(t.layers, layerTensors{
			norm1: vec(), qkv: join(3), o: join(1),
			norm2: vec(), glu: join(2), down: join(1),
		})
	}
	t.finalNorm = vec()
	t.head = []matrix{{w: t.embed, rows: a.Vocab}}
	if !a.Tied {
		t.head = join(1)
	}
	return t
}

// rotary holds the cosines and sines of the rotary embedding, [T, D/2] each.
type rotary struct {
	cos, sin []float32
	half     int
}

// newRotary computes the angles in float32 as Hugging Face does, so that long
// positions agree with it.
func newRotary(a glm.Arch, n int) rotary {
	r := rotary{half: a.HeadDim() / 2}
	r.cos = make([]float32, n*r.half)
	r.sin = make([]float32, n*r.half)
	for i := range r.half {
		freq := float32(1 / math.Pow(a.RopeTheta, float64(2*i)/float64(a.HeadDim())))
		for t := range n {
			angle := float64(float32(t) * freq)
			r.cos[t*r.half+i] = float32(math.Cos(angle))
			r.sin[t*r.half+i] = float32(math.Sin(angle))
		}
	}
	return r
}

// at is the row of position t.
func (r *rotary) at(t int) (cos, sin []float32) {
	return r.cos[t*r.half : (t+1)*r.half], r.sin[t*r.half : (t+1)*r.half]
}
