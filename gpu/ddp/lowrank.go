package ddp

import (
	"math"
	"math/rand/v2"
	"unsafe"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

func bytesOf(h []uint16) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&h[0])), 2*len(h))
}

// factor is the rank of PowerSGD's approximation.
const factor = 4

// matrix is whole rows of a parameter that lie in a bucket.
type matrix struct {
	at, rows, cols int       // at: offset in the bucket
	p              []float32 // [factor, rows]: P, column by column
	q              []float32 // [factor, cols]: Q of the last step, the warm start
}

// span is a piece of a bucket that travels as it is.
type span struct{ from, to int }

// lowRank divides a bucket into matrices and the rest.
type lowRank struct {
	matrices []matrix
	rest     []span
	ps, qs   int // floats of all P with the rest, and of all Q

	sumP, sumQ, mine []float32
}

// newLowRank finds the matrices of elements from … from+n of the arena. Rows that
// the bucket cuts, norms, and matrices whose factors are no smaller travel as they
// are.
func newLowRank(layout []glm.Param, from, n int) *lowRank {
	l := &lowRank{}
	at := 0 // in the bucket, up to which all is placed
	for i := range layout {
		p := &layout[i]
		if len(p.Shape) != 2 {
			continue
		}
		cols := p.Shape[1]
		lo, hi := max(from, p.Offset), min(from+n, p.Offset+p.Elems)
		if lo >= hi {
			continue
		}
		first, last := (lo-p.Offset+cols-1)/cols, (hi-p.Offset)/cols
		rows := last - first
		if rows <= 0 || 2*factor*(rows+cols) > rows*cols {
			continue
		}
		begin := p.Offset + first*cols - from
		if begin > at {
			l.rest = append(l.rest, span{at, begin})
		}
		l.matrices = append(l.matrices, matrix{at: begin, rows: rows, cols: cols})
		at = begin + rows*cols
	}
	if at < n {
		l.rest = append(l.rest, span{at, n})
	}
	for _, m := range l.matrices {
		l.ps += factor * m.rows
		l.qs += factor * m.cols
	}
	for _, s := range l.rest {
		l.ps += s.to - s.from
	}
	return l
}

// floats is how many travel.
func (l *lowRank) floats() int { return l.ps + l.qs }

func (l *lowRank) forget() {
	l.sumP, l.sumQ, l.mine = nil, nil, nil
	for i := range l.matrices {
		l.matrices[i].p, l.matrices[i].q = nil, nil
	}
}

// prepare makes the factors; Q begins as the same noise on every rank.
func (l *lowRank) prepare(seed uint64) {
	if l.sumP != nil {
		return
	}
	l.sumP, l.sumQ, l.mine = make([]float32, l.ps), make([]float32, l.qs), make([]float32, l.qs)
	rng := rand.New(rand.NewPCG(seed, 0x5eed))
	p, q := 0, 0
	for i := range l.matrices {
		m := &l.matrices[i]
		m.p, m.q = l.sumP[p:p+factor*m.rows], l.sumQ[q:q+factor*m.cols]
		p, q = p+len(m.p), q+len(m.q)
		for j := range m.q {
			m.q[j] = float32(rng.NormFloat64())
		}
	}
}

func (k *bucket) sumLowRank(r Ring, g []float32) error {
	l := k.low
	l.prepare(uint64(k.from))
	k.norm = math.Sqrt(kernel.SumSquares(g))
	kernel.Add(g, k.residual) // what was lost before
	norm := math.Sqrt(kernel.SumSquares(g))
	at := 0
	for _, m := range l.matrices {
		for i := range m.rows {
			row := g[m.at+i*m.cols:][:m.cols]
			for j := range factor {
				m.p[j*m.rows+i] = kernel.Dot(row, m.q[j*m.cols:][:m.cols])
			}
		}
		at += len(m.p)
	}
	for _, s := range l.rest {
		at += copy(l.sumP[at:], g[s.from:s.to])
	}
	if err := k.timed(func() error { return r.AllReduce(ring.Buffer{Data: l.sumP}) }); err != nil {
		return err
	}
	at = 0
	for _, m := range l.matrices {
		orthonormal(m.p, m.rows)
		clear(m.q)
		for i := range m.rows {
			row := g[m.at+i*m.cols:][:m.cols]
			for j := range factor {
				kernel.Axpy(m.q[j*m.cols:][:m.cols], m.p[j*m.rows+i], row)
			}
		}
		at += len(m.p)
	}
	copy(l.mine, l.sumQ)
	if len(l.sumQ) > 0 {
		if err := k.timed(func() error { return r.AllReduce(ring.Buffer{Data: l.sumQ}) }); err != nil {
			return err
		}
	}
	// What this rank's own factors miss is kept; the sum of all is the result.
	clear(k.residual)
	q := 0
	for _, m := range l.matrices {
		own := l.mine[q : q+len(m.q)]
		q += len(m.q)
		for i := range m.rows {
			row := g[m.at+i*m.cols:][:m.cols]
			rest := k.residual[m.at+i*m.cols:][:m.cols]
			copy(rest, row)
			clear(row)
			for j := range factor {
				p := m.p[j*m.rows+i]
				kernel.Axpy(rest, -p, own[j*m.cols:][:m.cols])
				kernel.Axpy(row, p, m.q[j*m.cols:][:m.cols])
			}
		}
	}
	for _, s := range l.rest {
		at += copy(g[s.from:s.to], l.sumP[at:])
	}
	k.lost(norm)
	return nil
}

// orthonormal makes the columns of P, each rows long, orthonormal by modified
// Gram–Schmidt in float64, the same on every rank. A column that depends on those
// before becomes zero. A NaN stays one.
func orthonormal(p []float32, rows int) {
	for j := range factor {
		c := p[j*rows:][:rows]
		before := norm64(c)
		for i := range j {
			d := p[i*rows:][:rows]
			dot := 0.0
			for t := range c {
				dot += float64(c[t]) * float64(d[t])
			}
			for t := range c {
				c[t] = float32(float64(c[t]) - dot*float64(d[t]))
			}
		}
		n := norm64(c)
		if n <= 1e-6*before || n == 0 {
			clear(c)
			continue
		}
		for t := range c {
			c[t] = float32(float64(c[t]) / n)
		}
	}
}

func norm64(x []float32) float64 {
	s := 0.0
	for _, v := range x {
		s += float64(v) * float64(v)
	}
	return math.Sqrt(s)
}
