//go:build libtorch

package torch

import (
	"fmt"
	"runtime"

	"github.com/open-autoglm/autoglm/gpu/engine"
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
	return engine.States(m.layout, m.opt.Optimizer, m.params.host, m.m1.host, m.m2.host, m.step[:])
}

// Load implements engine.Model. Nothing is changed unless all of s fits: see
// engine.StateDict.CopyTo.
func (m *Model) Load(s engine.StateDict) error {
	optimizer, err := s.CopyTo(m.tensors(), len(m.layout))
	if err != nil {
		return fmt.Errorf("torch: load: %w", err)
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
