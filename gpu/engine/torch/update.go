//go:build libtorch

package torch

import (
	"errors"
	"fmt"
	"math"
	"runtime"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// Update implements engine.Model. On ErrNotFinite the parameters and moments are
// untouched and the gradient is zero.
func (m *Model) Update(h engine.Hyper) (float64, error) {
	if h.Optimizer == "" {
		h.Optimizer = m.opt.Optimizer
	}
	if h.Optimizer != m.opt.Optimizer {
		return 0, fmt.Errorf("torch: update by %s, but the model was made for %s (Options.Optimizer)", h.Optimizer, m.opt.Optimizer)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	lib.AtGradSetEnabled(0)
	var s scope
	defer s.free()
	if m.staged {
		m.upload(&s, &m.grads)
	}
	norm := math.Sqrt(s.value(s.sum(s.square(m.grads.flat), kindFloat64)))
	if s.err != nil {
		return 0, fmt.Errorf("torch: gradient norm: %w", s.err)
	}
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		m.ZeroGrad()
		return norm, fmt.Errorf("torch: gradient norm is %g: %w", norm, engine.ErrNotFinite)
	}
	if h.Clip > 0 && norm > h.Clip {
		s.scaleInto(m.grads.flat, h.Clip/(norm+1e-6))
	}
	m.step[0]++
	for i := range m.layout {
		if m.opt.Optimizer.ByMuon(&m.layout[i]) {
			m.muon(i, h, &s)
		} else {
			m.adamw(i, h, &s)
		}
		if s.err != nil {
			return norm, fmt.Errorf("torch: update of %s: %w", m.layout[i].Name, s.err)
		}
	}
	s.zero(m.grads.flat)
	m.staged = false
	return norm, errors.Join(s.err)
}

// adamw updates parameter i (Loshchilov and Hutter 2019, as torch.optim.AdamW).
func (m *Model) adamw(i int, h engine.Hyper, all *scope) {
	s := &scope{err: all.err}
	defer func() { all.err = s.err; s.free() }()
	w, g, m1, m2 := m.params.views[i], m.grads.views[i], m.m1.views[i], m.m2.views[i]
	step := float64(m.step[0])
	if m.layout[i].Role != glm.Norm {
		s.scaleInto(w, 1-h.LR*h.WeightDecay)
	}
	h.LR *= glm.Width{Arch: m.arch, Base: m.opt.BaseWidth}.Rate(m.layout[i])
	s.scalar(1-h.Beta1, func(o *tensor, v lib.Cscalar) { lib.AtgLerp_(o, m1, g, v) })
	s.scaleInto(m2, h.Beta2)
	s.addInto(m2, s.scale(s.square(g), 1-h.Beta2))
	root := s.op(func(o *tensor) { lib.AtgSqrt(o, m2) })
	root = s.addScalar(s.scale(root, 1/math.Sqrt(1-math.Pow(h.Beta2, step))), h.Eps)
	rate := -h.LR / (1 - math.Pow(h.Beta1, step))
	s.op(func(o *tensor) { lib.AtgAddcdiv_(o, w, s.scale(m1, rate), root) })
}

// muon updates matrix i: Nesterov's momentum, orthogonalised.
func (m *Model) muon(i int, h engine.Hyper, all *scope) {
	s := &scope{err: all.err}
	defer func() { all.err = s.err; s.free() }()
	w, g, momentum := m.params.views[i], m.grads.views[i], m.m1.views[i]
	rows, cols := m.layout[i].Shape[0], m.layout[i].Shape[1]
	s.scaleInto(momentum, h.MuonMomentum)
	s.addInto(momentum, g)
	x := s.add(g, s.scale(momentum, h.MuonMomentum))
	norm := math.Sqrt(s.value(s.sum(s.square(x), kindFloat64)))
	x = s.scale(x, 1/(norm+1e-7))
	if rows > cols {
		x = s.transpose(x, 0, 1)
	}
	for range engine.NewtonSteps {
		// A = X·Xᵀ, B = bA + cA², X = aX + B·X.
		a := s.matmul(x, s.transpose(x, 0, 1))
		b := s.add(s.scale(a, engine.NewtonB), s.scale(s.matmul(a, a), engine.NewtonC))
		x = s.add(s.scale(x, engine.NewtonA), s.matmul(b, x))
	}
	if rows > cols {
		x = s.transpose(x, 0, 1)
	}
	s.scaleInto(w, 1-h.MuonLR*h.WeightDecay)
	s.addInto(w, s.scale(x, -h.MuonLR*math.Sqrt(max(1, float64(rows)/float64(cols)))))
}
