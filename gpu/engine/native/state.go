package native

import (
	"fmt"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

const (
	optimizerPrefix = "optimizer."
	stepName        = optimizerPrefix + "step"
)

// slots are the optimiser's tensors of a parameter: name and memory.
func (m *Model) slots(p *glm.Param) []engine.Tensor {
	t := func(slot string, arena []float32) engine.Tensor {
		return engine.Tensor{Name: optimizerPrefix + slot + "." + p.Name, Shape: p.Shape, Data: arena[p.Offset : p.Offset+p.Elems : p.Offset+p.Elems]}
	}
	if m.ownedByMuon(p) {
		return []engine.Tensor{t("momentum", m.m)}
	}
	return []engine.Tensor{t("exp_avg", m.m), t("exp_avg_sq", m.v)}
}

// State implements engine.Model: parameters, then (unless for inference) the
// optimiser's tensors and its step.
func (m *Model) State() engine.StateDict {
	s, optimizer := m.parameters(), engine.StateDict(nil)
	if m.opt.Inference {
		return s
	}
	for i := range m.layout {
		optimizer = append(optimizer, m.slots(&m.layout[i])...)
	}
	s = append(s, optimizer...)
	return append(s, engine.Tensor{Name: stepName, Shape: []int{1}, Data: m.step[:]})
}

func (m *Model) parameters() engine.StateDict { return parameters(m.layout, m.params) }

func parameters(layout []glm.Param, arena []float32) engine.StateDict {
	var s engine.StateDict
	for _, p := range layout {
		s = append(s, engine.Tensor{Name: p.Name, Shape: p.Shape, Data: arena[p.Offset : p.Offset+p.Elems : p.Offset+p.Elems]})
	}
	return s
}

// Load implements engine.Model. Nothing is changed unless all of s fits: every
// parameter present, of its shape and finite; every optimiser tensor present, or
// none; no name unknown. An inference model skips optimiser tensors.
func (m *Model) Load(s engine.StateDict) error {
	want := m.State()
	params := len(m.layout)
	given, optimizer, err := index(s)
	if err != nil {
		return err
	}
	switch {
	case m.opt.Inference:
		optimizer = 0
	case optimizer == 0:
		want = want[:params]
	}
	if err := fits(want, given, len(given)-len(want), m.opt.Inference); err != nil {
		return err
	}
	for _, w := range want {
		copy(w.Data, given[w.Name].Data)
	}
	if optimizer == 0 && !m.opt.Inference {
		clear(m.m)
		clear(m.v)
		m.step[0] = 0
	}
	return nil
}

// index maps names to tensors and counts those of the optimiser.
func index(s engine.StateDict) (given map[string]engine.Tensor, optimizer int, err error) {
	given = make(map[string]engine.Tensor, len(s))
	for _, t := range s {
		if _, twice := given[t.Name]; twice {
			return nil, 0, fmt.Errorf("native: load: tensor %s is there twice", t.Name)
		}
		given[t.Name] = t
		if strings.HasPrefix(t.Name, optimizerPrefix) {
			optimizer++
		}
	}
	return given, optimizer, nil
}

// fits reports the first of want that given lacks or holds in another shape or
// with values that are not finite, and the first unknown name if there is a
// surplus. Optimiser tensors may be ignored.
func fits(want engine.StateDict, given map[string]engine.Tensor, surplus int, ignoreOptimizer bool) error {
	for _, w := range want {
		g, ok := given[w.Name]
		if !ok {
			return fmt.Errorf("native: load: tensor %s is missing", w.Name)
		}
		if !slices.Equal(g.Shape, w.Shape) || len(g.Data) != len(w.Data) {
			return fmt.Errorf("native: load: tensor %s has shape %v and %d values, want %v and %d", w.Name, g.Shape, len(g.Data), w.Shape, len(w.Data))
		}
		for i, v := range g.Data {
			if v-v != 0 { // NaN and infinities
				return fmt.Errorf("native: load: tensor %s holds %g at element %d; the checkpoint is damaged or its training diverged", w.Name, v, i)
			}
		}
	}
	if surplus <= 0 {
		return nil
	}
	known := make(map[string]bool, len(want))
	for _, w := range want {
		known[w.Name] = true
	}
	for name := range given {
		if !known[name] && !(ignoreOptimizer && strings.HasPrefix(name, optimizerPrefix)) {
			return fmt.Errorf("native: load: tensor %s is unknown to this shape", name)
		}
	}
	return nil
}
