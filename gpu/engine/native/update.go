package native

import (
	"errors"
	"fmt"
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// reduce adds the other workers' gradients to the model's, in their order. Blocks
// stay in the cache while all workers' are added.
func (m *Model) reduce(r engine.Range) {
	const block = 1 << 14
	for i := r.From; i < r.To; i += block {
		j := min(i+block, r.To)
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
	if m.shard != nil {
		return 0, errSharded
	}
	squares, err := m.Squares()
	if err != nil {
		return 0, err
	}
	norm := math.Sqrt(squares)
	return norm, m.update(h, norm)
}

// Squares implements engine.Sharded.
func (m *Model) Squares() (squares float64, err error) {
	if m.opt.Inference {
		return 0, errInference
	}
	if err := m.team.run(taskNorm); err != nil {
		return 0, err
	}
	for _, w := range m.worker {
		squares += w.squares
	}
	return squares, nil
}

// update takes a step by the gradient, of which norm is the norm.
func (m *Model) update(h engine.Hyper, norm float64) error {
	if h.Optimizer == "" {
		h.Optimizer = m.opt.Optimizer
	}
	if h.Optimizer != m.opt.Optimizer {
		return fmt.Errorf("native: update by %s, but the model was made for %s (Options.Optimizer)", h.Optimizer, m.opt.Optimizer)
	}
	if math.IsNaN(norm) || math.IsInf(norm, 0) {
		return errors.Join(fmt.Errorf("native: gradient norm is %g: %w", norm, engine.ErrNotFinite), m.team.run(taskZero))
	}
	m.job.hyper, m.job.clip = h, 1
	if h.Clip > 0 && norm > h.Clip {
		m.job.clip = h.Clip / (norm + 1e-6) // PyTorch's clip_grad_norm_
	}
	m.step[0]++
	m.changed()
	if h.Optimizer == engine.Muon {
		if err := m.team.run(taskMuon); err != nil {
			return err
		}
	}
	return m.team.run(taskUpdate)
}

// adamw updates the parameters of a range that are AdamW's. Their moments begin
// at element at of m.m and m.v.
func (m *Model) adamw(r engine.Range, at int) {
	h := &m.job.hyper
	for i := range m.layout {
		p := &m.layout[i]
		from, to := max(r.From, p.Offset), min(r.To, p.Offset+p.Elems)
		if from >= to || m.opt.Optimizer.ByMuon(p) {
			continue
		}
		scale := glm.Width{Arch: m.arch, Base: m.opt.BaseWidth}.Rate(*p)
		decay := h.WeightDecay / scale // what decays in a step is the same at all widths
		if p.Role == glm.Norm {
			decay = 0
		}
		lo, hi := at+from-r.From, at+to-r.From
		kernel.AdamW(m.params[from:to], m.grads[from:to], m.m[lo:hi], m.v[lo:hi], kernel.Adam{
			GradScale: m.job.clip, LR: h.LR * scale, Beta1: h.Beta1, Beta2: h.Beta2, Eps: h.Eps,
			WeightDecay: decay, Step: int(m.step[0]),
		})
	}
}
