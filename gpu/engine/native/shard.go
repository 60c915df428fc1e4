package native

import (
	"errors"
	"fmt"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// shard is the part of the optimiser's state that this rank keeps.
type shard struct {
	own []engine.Range
	at  []int // where the moments of own[i] begin
	n   int   // elements in all
}

var _ engine.Sharded = (*Model)(nil)

var errSharded = errors.New("native: the optimiser is divided over ranks; update by UpdateShard")

// Shard implements engine.Sharded. Muon needs whole matrices and is not divided.
func (m *Model) Shard(own []engine.Range) error {
	switch {
	case m.opt.Inference:
		return errInference
	case m.opt.Optimizer != engine.AdamW:
		return fmt.Errorf("native: the state of %s is not divided over ranks, only that of %s is", m.opt.Optimizer, engine.AdamW)
	case m.shard != nil:
		return errSharded
	}
	s := &shard{own: own}
	end := 0
	for _, r := range own {
		if r.From < end || r.To < r.From || r.To > m.size {
			return fmt.Errorf("native: elements %d to %d of an arena of %d are no shard behind element %d", r.From, r.To, m.size, end)
		}
		end = r.To
		s.at = append(s.at, s.n)
		s.n += r.To - r.From
	}
	m.m, m.v = s.pick(m.m), s.pick(m.v)
	m.shard = s
	return nil
}

// pick copies the own elements of an arena.
func (s *shard) pick(arena []float32) []float32 {
	out := make([]float32, 0, s.n)
	for _, r := range s.own {
		out = append(out, arena[r.From:r.To]...)
	}
	return out
}

// parts calls f for thread i's pieces of what this rank updates, each with the
// place of its moments.
func (m *Model) parts(i int, f func(r engine.Range, at int)) {
	if m.shard == nil {
		f(m.ranges[i], m.ranges[i].From)
		return
	}
	threads := len(m.worker)
	for k, r := range m.shard.own {
		n := r.To - r.From
		lo, hi := n*i/threads&^15, n*(i+1)/threads&^15
		if i+1 == threads {
			hi = n
		}
		if lo < hi {
			f(engine.Range{From: r.From + lo, To: r.From + hi}, m.shard.at[k]+lo)
		}
	}
}

func (m *Model) squares(i int) (sum float64) {
	m.parts(i, func(r engine.Range, _ int) { sum += kernel.SumSquares(m.grads[r.From:r.To]) })
	return sum
}

func (m *Model) adamwOf(i int) { m.parts(i, m.adamw) }

// UpdateShard implements engine.Sharded.
func (m *Model) UpdateShard(h engine.Hyper, norm float64) error {
	if m.shard == nil {
		return errors.New("native: the optimiser is not divided over ranks; update by Update")
	}
	if err := m.update(h, norm); err != nil {
		return err
	}
	return m.team.run(taskZero) // AdamW zeroes what it has used alone
}

// Moments implements engine.Sharded.
func (m *Model) Moments() (exp, sq []float32) { return m.m, m.v }

// WholeState implements engine.Sharded.
func (m *Model) WholeState(exp, sq []float32) engine.StateDict {
	return engine.States(m.layout, m.opt.Optimizer, m.params, exp, sq, m.step[:])
}

// loadShard is Load, which keeps the own moments.
func (m *Model) loadShard(s engine.StateDict) error {
	exp, sq := make([]float32, m.size), make([]float32, m.size)
	optimizer, err := s.CopyTo(m.WholeState(exp, sq), len(m.layout))
	if err != nil {
		return fmt.Errorf("native: load: %w", err)
	}
	if !optimizer {
		m.step[0] = 0
	}
	m.m, m.v = m.shard.pick(exp), m.shard.pick(sq)
	m.changed()
	return nil
}
