package native

import (
	"errors"
	"fmt"
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// paramRange is a piece of the arena, from ≤ i < to.
type paramRange struct{ from, to int }

// reduce adds the other workers' gradients to the model's, in their order. Blocks
// stay in the cache while all workers' are added.
func (m *Model) reduce(r paramRange) {
	const block = 1 << 14
	for i := r.from; i < r.to; i += block {
		j := min(i+block, r.to)
		for _, w := range m.worker[1:m.job.active] {
			kernel.Add(m.grads[i:j], w.arena[i:j])
		}
	}
}

// ZeroGrad implements engine.Model.
func (m *Model) ZeroGrad() { clear(m.grads) }

// Update implements engine.Model. On ErrNotFinite the parameters and moments are
// untouched and the gradient is zero.
func (m *Model) Update(h engine.Hyper) (float64, error) {
	if m.opt.Inference {
		return 0, errInference
	}
	if h.Optimizer == "" {
		h.Optimizer = m.opt.Optimizer
	}
	if h.Optimizer != m.opt.Optimizer {
		return 0, fmt.Errorf("native: update by %s, but the model was made for %s (Options.Optimizer)", h.Optimizer, m.opt.Optimizer)
	}
	if err := m.team.run(taskNorm); err != nil {
		return 0, err
	}
	var squares float64
	for _, w := range m.worker {
		squares += w.squares
	}
	norm := math.Sqrt(squares)
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		return norm, errors.Join(fmt.Errorf("native: gradient norm is %g: %w", norm, engine.ErrNotFinite), m.team.run(taskZero))
	}
	m.job.hyper, m.job.clip = h, 1
	if h.Clip > 0 && norm > h.Clip {
		m.job.clip = h.Clip / (norm + 1e-6) // PyTorch's clip_grad_norm_
	}
	m.step[0]++
	m.changed()
	if h.Optimizer == engine.Muon {
		if err := m.team.run(taskMuon); err != nil {
			return norm, err
		}
	}
	return norm, m.team.run(taskUpdate)
}

// adamw updates the parameters of a range that are AdamW's.
func (m *Model) adamw(r paramRange) {
	h := &m.job.hyper
	for i := range m.layout {
		p := &m.layout[i]
		from, to := max(r.from, p.Offset), min(r.to, p.Offset+p.Elems)
		if from >= to || m.opt.Optimizer.ByMuon(p) {
			continue
		}
		decay := h.WeightDecay
		if p.Role == glm.Norm {
			decay = 0
		}
		kernel.AdamW(m.params[from:to], m.grads[from:to], m.m[from:to], m.v[from:to], kernel.Adam{
			GradScale: m.job.clip, LR: h.LR, Beta1: h.Beta1, Beta2: h.Beta2, Eps: h.Eps,
			WeightDecay: decay, Step: int(m.step[0]),
		})
	}
}
