package native

import (
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// newton is the scratch of orthogonalising one matrix.
type newton struct {
	x, y []float32 // [rows, cols]
	a, b []float32 // [k, k], k the shorter side
}

func (s *newton) cut(cut func(*[]float32, int), layout []glm.Param) {
	elems, side := glm.MuonScratch(layout)
	cut(&s.x, elems)
	cut(&s.y, elems)
	cut(&s.a, side*side)
	cut(&s.b, side*side)
}

// orthogonalize replaces s.x, a [rows, cols] matrix, by an approximation of the
// nearest (semi-)orthogonal one.
func (s *newton) orthogonalize(rows, cols int, gemm gemm, work []float32) {
	n, k := rows*cols, min(rows, cols)
	kernel.Scale(s.x[:n], float32(1/(math.Sqrt(kernel.SumSquares(s.x[:n]))+1e-7)))
	a, b := s.a[:k*k], s.b[:k*k]
	for range engine.NewtonSteps {
		x, y := s.x[:n], s.y[:n]
		// A is X·Xᵀ or Xᵀ·X, whichever is smaller; B = bA + cA².
		if rows <= cols {
			gemm(kernel.NT, k, k, cols, x, cols, x, cols, a, k, false, work)
		} else {
			gemm(kernel.TN, k, k, rows, x, cols, x, cols, a, k, false, work)
		}
		gemm(kernel.NN, k, k, k, a, k, a, k, b, k, false, work)
		kernel.Scale(b, engine.NewtonC)
		kernel.Axpy(b, engine.NewtonB, a)
		// X = aX + B·X, or aX + X·B.
		if rows <= cols {
			gemm(kernel.NN, rows, cols, k, b, k, x, cols, y, cols, false, work)
		} else {
			gemm(kernel.NN, rows, cols, k, x, cols, b, k, y, cols, false, work)
		}
		kernel.Axpy(y, engine.NewtonA, x)
		s.x, s.y = s.y, s.x
	}
}

// muon updates the matrices of worker i: every threads-th.
func (m *Model) muon(i int) {
	h, w := &m.job.hyper, m.worker[i]
	product := m.opt.product()
	turn := 0
	for j := range m.layout {
		p := &m.layout[j]
		if !m.opt.Optimizer.ByMuon(p) {
			continue
		}
		turn++
		if turn%m.opt.Threads != i {
			continue
		}
		from, to := p.Offset, p.Offset+p.Elems
		rows, cols := p.Shape[0], p.Shape[1]
		g, buf, x := m.grads[from:to], m.m[from:to], w.newton.x[:p.Elems]
		// buf = μ·buf + g, then Nesterov's g + μ·buf.
		kernel.Scale(buf, float32(h.MuonMomentum))
		kernel.Axpy(buf, float32(m.job.clip), g)
		copy(x, g)
		kernel.Scale(x, float32(m.job.clip))
		kernel.Axpy(x, float32(h.MuonMomentum), buf)
		clear(g)
		w.newton.orthogonalize(rows, cols, product, w.work)
		rate := h.MuonLR * math.Sqrt(max(1, float64(rows)/float64(cols)))
		kernel.Scale(m.params[from:to], float32(1-h.MuonLR*h.WeightDecay))
		kernel.Axpy(m.params[from:to], float32(-rate), w.newton.x[:p.Elems])
	}
}
