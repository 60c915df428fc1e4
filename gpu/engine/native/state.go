package native

import (
	"fmt"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// State implements engine.Model: parameters, then (unless for inference) the
// optimiser's tensors and its step.
func (m *Model) State() engine.StateDict {
	if m.opt.Inference || m.shard != nil {
		return m.parameters()
	}
	return engine.States(m.layout, m.opt.Optimizer, m.params, m.m, m.v, m.step[:])
}

func (m *Model) parameters() engine.StateDict { return engine.Parameters(m.layout, m.params) }

// Load implements engine.Model. Nothing is changed unless all of s fits: see
// engine.StateDict.CopyTo. An inference model skips optimiser tensors.
func (m *Model) Load(s engine.StateDict) error {
	if m.shard != nil {
		return m.loadShard(s)
	}
	optimizer, err := s.CopyTo(m.State(), len(m.layout))
	if err != nil {
		return fmt.Errorf("native: load: %w", err)
	}
	m.changed()
	if !optimizer && !m.opt.Inference {
		clear(m.m)
		clear(m.v)
		m.step[0] = 0
	}
	return nil
}
