//go:build libtorch

package torch

import (
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

const (
	optimizerPrefix = "optimizer."
	stepName        = optimizerPrefix + "step"
)

// State implements engine.Model: parameters, then the optimiser's tensors and
// its step, under engine native's names. A CUDA device's are copies, made here.
// It is nil when the device fails to give them.
func (m *Model) State() engine.StateDict {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var transfer scope
	defer transfer.free()
	for _, a := range []*arena{&m.params, &m.m1, &m.m2} {
		m.download(&transfer, a)
	}
	if transfer.err != nil {
		return nil
	}
	return m.tensors()
}

// tensors are views of the arenas' host memory.
func (m *Model) tensors() engine.StateDict {
	var s, optimizer engine.StateDict
	for i := range m.layout {
		p := &m.layout[i]
		cut := func(name string, a *arena) engine.Tensor {
			return engine.Tensor{Name: name, Shape: p.Shape, Data: a.host[p.Offset : p.Offset+p.Elems : p.Offset+p.Elems]}
		}
		s = append(s, cut(p.Name, &m.params))
		if m.ownedByMuon(p) {
			optimizer = append(optimizer, cut(optimizerPrefix+"momentum."+p.Name, &m.m1))
			continue
		}
		optimizer = append(optimizer, cut(optimizerPrefix+"exp_avg."+p.Name, &m.m1), cut(optimizerPrefix+"exp_avg_sq."+p.Name, &m.m2))
	}
	s = append(s, optimizer...)
	return append(s, engine.Tensor{Name: stepName, Shape: []int{1}, Data: m.step[:]})
}

// Load implements engine.Model. Nothing is changed unless all of s fits: every
// parameter present, of its shape and finite; every optimiser tensor present, or
// none; no name unknown.
func (m *Model) Load(s engine.StateDict) error {
	given := make(map[string]engine.Tensor, len(s))
	optimizer := false
	for _, t := range s {
		if _, twice := given[t.Name]; twice {
			return fmt.Errorf("torch: load: tensor %s is there twice", t.Name)
		}
		given[t.Name] = t
		optimizer = optimizer || strings.HasPrefix(t.Name, optimizerPrefix)
	}
	want := m.tensors()
	if !optimizer {
		want = want[:len(m.layout)]
	}
	known := make(map[string]bool, len(want))
	for _, w := range want {
		known[w.Name] = true
		g, ok := given[w.Name]
		if !ok {
			return fmt.Errorf("torch: load: tensor %s is missing", w.Name)
		}
		if !slices.Equal(g.Shape, w.Shape) || len(g.Data) != len(w.Data) {
			return fmt.Errorf("torch: load: tensor %s has shape %v and %d values, want %v and %d", w.Name, g.Shape, len(g.Data), w.Shape, len(w.Data))
		}
		for i, v := range g.Data {
			if v-v != 0 { // NaN and infinities
				return fmt.Errorf("torch: load: tensor %s holds %g at element %d; the checkpoint is damaged or its training diverged", w.Name, v, i)
			}
		}
	}
	for _, t := range s {
		if !known[t.Name] {
			return fmt.Errorf("torch: load: tensor %s is unknown to this shape", t.Name)
		}
	}
	for _, w := range want {
		copy(w.Data, given[w.Name].Data)
	}
	if !optimizer {
		clear(m.m1.host)
		clear(m.m2.host)
		m.step[0] = 0
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var transfer scope
	defer transfer.free()
	for _, a := range []*arena{&m.params, &m.m1, &m.m2} {
		m.upload(&transfer, a)
	}
	if transfer.err != nil {
		return fmt.Errorf("torch: load: %w", transfer.err)
	}
	return nil
}
