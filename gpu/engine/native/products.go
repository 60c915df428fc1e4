package native

import (
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// The products of a pass, in float32 or from operands rounded to bfloat16. Each
// operand of those is rounded once for all products that read it: activations
// when their products come, weights once for each version of the parameters, by
// all threads, where packing them anew for every chunk and every block of logits
// took a sixth of a step. In float32, where packing is a copy that the cache
// hides, doing the same saved 1 % and cost two more copies of the parameters.

// forms are the shapes in which products of bfloat16 read a weight W [rows, in].
type forms struct {
	forward []float32 // right operand of x·Wᵀ
	back    []float32 // right operand of dy·W
}

// operands are what a thread rounds, one product's at a time.
type operands struct{ left, across, right []float32 }

func (s *operands) cut(cut func(*[]float32, int), a glm.Arch, n, rows, T int) {
	left, right := a.Operands(n, rows, T)
	cut(&s.left, left)
	cut(&s.across, left)
	cut(&s.right, right)
}

// pack packs the right operand of times.
func (w *worker) pack(dst []float32, op kernel.Op, n, k int, b []float32, ldb int) {
	if w.half {
		kernel.PackPairs(dst, op, n, k, b, ldb, w.work)
		return
	}
	kernel.Pack(dst, op, n, k, b, ldb)
}

// times computes C[m, n] = A[m, k] · B, of whose packed rows it uses the first k.
func (w *worker) times(m, n, k int, a []float32, lda int, right []float32, rows int, c []float32, ldc int) {
	if w.half {
		kernel.RoundLeft(w.round.left, false, m, k, a, lda)
		kernel.GemmPairs(false, m, n, k, w.round.left, right, rows, c, ldc, false)
		return
	}
	kernel.GemmPacked(false, m, n, k, a, lda, right, rows, c, ldc, false)
}

// transposed computes C[m, n] (+)= Aᵀ · B for A [k, m] and B [k, n].
func (w *worker) transposed(m, n, k int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, acc bool) {
	if w.half {
		kernel.PackPairs(w.round.right, kernel.NN, n, k, b, ldb, nil)
		kernel.RoundLeft(w.round.left, true, m, k, a, lda)
		kernel.GemmPairs(true, m, n, k, w.round.left, w.round.right, k, c, ldc, acc)
		return
	}
	kernel.Gemm(kernel.TN, m, n, k, a, lda, b, ldb, c, ldc, acc, w.work)
}

// fill makes rows from … to of an operand; nil is of an operand that is there.
type fill func(from, to int)

func (f fill) rows(from, to int) {
	if f != nil {
		f(from, to)
	}
}

// linear computes y[N, ldy] (+)= x[N, in] · Wᵀ, whose x is made first, row by row
// just before it is rounded.
func (w *worker) linear(y []float32, ldy int, x []float32, in, n int, ms []matrix, acc bool, made fill) {
	if !w.half {
		made.rows(0, n)
		for i := range ms {
			m := &ms[i]
			kernel.Gemm(kernel.NT, n, m.rows, in, x, in, m.w, in, y[m.col:], ldy, acc, w.work)
		}
		return
	}
	for i := 0; i < n; i += kernel.LeftStep {
		j := min(i+kernel.LeftStep, n)
		made.rows(i, j)
		kernel.RoundRows(w.round.left, i, j-i, in, x[i*in:], in)
	}
	for i := range ms {
		m := &ms[i]
		kernel.GemmPairs(false, n, m.rows, in, w.round.left, m.forms.forward, in, y[m.col:], ldy, acc)
	}
}

// linearGrad computes dx[N, in] = dy[N, ldy] · W and writes dyᵀ·x to the gradient or,
// with acc, adds it, and makes dy as linear does x.
func (w *worker) linearGrad(dx, dy []float32, ldy int, x []float32, in, n int, ms, gs []matrix, acc bool, made fill) {
	if !w.half {
		made.rows(0, n)
		for i := range ms {
			m, g, d := &ms[i], gs[i].w, dy[ms[i].col:]
			kernel.Gemm(kernel.TN, m.rows, in, n, d, ldy, x, in, g, in, acc, w.work)
			kernel.Gemm(kernel.NN, n, in, m.rows, d, ldy, m.w, in, dx, in, i > 0, w.work)
		}
		return
	}
	s := &w.round
	kernel.PackPairs(s.right, kernel.NN, in, n, x, in, nil)
	for i := range ms {
		m, g := &ms[i], gs[i].w
		for r := 0; r < n; r += kernel.LeftStep {
			t := min(r+kernel.LeftStep, n)
			if i == 0 {
				made.rows(r, t)
			}
			kernel.RoundBothRows(s.left, s.across, n, r, t-r, m.rows, dy[r*ldy+m.col:], ldy)
		}
		kernel.GemmPairs(true, m.rows, in, n, s.across, s.right, n, g, in, acc)
		kernel.GemmPairs(false, n, in, m.rows, s.left, m.forms.back, m.rows, dx, in, i > 0)
	}
}

// matrices calls f for every weight.
func (t *tensors) matrices(f func(m *matrix, in int)) {
	each := func(ms []matrix, in int) {
		for i := range ms {
			f(&ms[i], in)
		}
	}
	C := len(t.finalNorm)
	for i := range t.layers {
		l := &t.layers[i]
		each(l.qkv, C)
		each(l.o, len(l.o[0].w)/C)
		each(l.glu, C)
		each(l.down, len(l.down[0].w)/C)
	}
	each(t.head, C)
}

// makeForms gives every weight room to be packed, in one arena.
func (t *tensors) makeForms() []float32 {
	total := 0
	t.matrices(func(m *matrix, in int) { total += kernel.PairsLen(m.rows, in) + kernel.PairsLen(in, m.rows) })
	all := newArena(total)
	arena := all
	cut := func(n int) []float32 {
		x := arena[:n:n]
		arena = arena[n:]
		return x
	}
	t.matrices(func(m *matrix, in int) {
		m.forms = &forms{forward: cut(kernel.PairsLen(m.rows, in)), back: cut(kernel.PairsLen(in, m.rows))}
	})
	return all
}

// changed tells that the parameters are no longer those that were packed. Whoever
// writes them calls it.
func (m *Model) changed() { m.packed = false }

// packWeights packs the parameters unless they are.
func (m *Model) packWeights() error {
	if m.packed || m.opt.Precision != engine.BF16 {
		return nil
	}
	m.packed = true
	return m.team.run(taskPack)
}

// packShare packs worker i's share of every weight: whole panels.
func (m *Model) packShare(i int) {
	n, scratch := len(m.worker), m.worker[i].work
	share := func(columns int) (from, to int) {
		panels := (columns + kernel.PanelWidth - 1) / kernel.PanelWidth
		return panels * i / n * kernel.PanelWidth, min(columns, panels*(i+1)/n*kernel.PanelWidth)
	}
	m.w.matrices(func(w *matrix, in int) {
		if from, to := share(w.rows); from < to {
			kernel.PackPairs(w.forms.forward[kernel.PairsLen(from, in):], kernel.NT, to-from, in, w.w[from*in:], in, scratch)
		}
		if from, to := share(in); from < to {
			kernel.PackPairs(w.forms.back[kernel.PairsLen(from, w.rows):], kernel.NN, to-from, w.rows, w.w[from:], in, scratch)
		}
	})
}
