package train

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/open-autoglm/autoglm/gpu/ddp"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// Collective joins the ranks of a run: one rank's end of a ring (ring.Comm). It is
// called from the run's goroutine alone, or from one that the run waits for. Wait
// blocks until all ranks are there or the ring is aborted. Commit stands between a
// step's sums and their use: where it returns nil on any rank, all ranks hold the
// sums. An error that is a ring.ErrLost means that a rank is gone.
type Collective interface {
	ddp.Ring
	Shared() bool                   // the ranks share memory: sums run in Wait
	Devices() bool                  // buffers may be in the memory of the rank's GPU
	Alloc(n int) ([]float32, error) // memory whose sums need no copies; all ranks call it
	Abort(reason error)
}

var _ engine.DeviceSync = (*meter)(nil)

// meter measures what a run spends on its ring, and holds what stands between the
// two: compression, and the division of sums.
type meter struct {
	ring    Collective
	reducer *ddp.Reducer         // nil: sums are the ring's own
	views   engine.GradientViews // the model, where its gradients are in the ring's memory
	exposed time.Duration
	bytes   int64 // of gradient handed over to be summed
	changes []ddp.Decision
	told    bool // what the ring chose was recorded
}

// newMeter joins a run to its ring.
func (r *Run) newMeter() (*meter, error) {
	m := &meter{ring: r.Ring}
	if scatter := r.Shard != nil; scatter || r.Compression != "" && r.Compression != ddp.None.String() {
		layout, size := r.Config.Arch.Layout()
		var err error
		m.reducer, err = ddp.New(r.Ring, ddp.Config{
			Mode: r.Compression, Layout: layout, Size: size, Beside: !r.Ring.Shared(), Shared: r.Ring.Shared(), Scatter: scatter,
			Decide: func(d ddp.Decision) { m.changes = append(m.changes, d) },
		})
		if err != nil {
			return nil, err
		}
	}
	if v, ok := r.Model.(engine.GradientViews); ok && r.Ring.Shared() {
		_, size := r.Config.Arch.Layout()
		mem, err := r.Ring.Alloc(size)
		if err == nil {
			err = v.UseGradients(mem)
		}
		if err != nil {
			return nil, errors.Join(err, m.close())
		}
		m.views = v
	}
	return m, nil
}

// close leaves the ring's memory and ends what sums beside the run.
func (m *meter) close() error {
	if m == nil {
		return nil
	}
	var err error
	if m.reducer != nil {
		err = m.reducer.Close()
	}
	if m.views != nil {
		err = errors.Join(err, m.views.UseGradients(nil))
	}
	return err
}

// Reduce implements engine.GradientSync.
func (m *meter) Reduce(bucket int, b ring.Buffer) {
	if bucket >= 0 { // control words have numbers below
		m.bytes += int64(b.Len() * b.DType.Size())
	}
	if m.reducer != nil {
		m.reducer.Reduce(bucket, b)
		return
	}
	m.ring.Reduce(bucket, b)
}

// TakesDevice implements engine.DeviceSync: a ring between GPUs sums gradients where
// they are, unless a reducer stands before it, whose encodings and shares are made
// in host memory.
func (m *meter) TakesDevice() bool { return m.reducer == nil && m.ring.Devices() }

// Wait implements engine.GradientSync.
func (m *meter) Wait() error {
	return m.waiting(func() error {
		if m.reducer != nil {
			return m.reducer.Wait()
		}
		return m.ring.Wait()
	})
}

func (m *meter) commit(step uint64) error {
	return m.waiting(func() error {
		if m.reducer != nil {
			return m.reducer.Commit(step)
		}
		return m.ring.Commit(step)
	})
}

func (m *meter) waiting(f func() error) error {
	begin := time.Now()
	defer func() { m.exposed += time.Since(begin) }()
	return f()
}

// report moves what was measured into a record of steps.
func (m *meter) report(s *StepMetrics, compute, elapsed time.Duration, steps int) {
	s.SyncShare = min(1, m.exposed.Seconds()/max(elapsed.Seconds(), 1e-9))
	s.SyncBytes = m.bytes / int64(steps)
	s.SyncEff = compute.Seconds() / max((compute+m.exposed).Seconds(), 1e-9)
	if m.reducer != nil {
		s.WireBytes = m.reducer.TakeWire() / int64(steps)
		s.Compression, s.Changes = m.reducer.Levels(), slices.Clone(m.changes)
		m.changes = m.changes[:0]
	}
	if c, ok := m.ring.(interface{ Choice() string }); ok && !m.told {
		s.Ring = c.Choice()
	}
	m.exposed, m.bytes, m.told = 0, 0, true
}

// shardOptimizer begins to share the optimiser's state out over the ranks (ZeRO-1), all of
// which hold the same state.
func (r *Run) shardOptimizer() error {
	s, ok := r.Model.(engine.Sharded)
	if !ok {
		return errors.New("zero_stage 1: this engine does not divide its optimiser; choose engine: native, or zero_stage: 0")
	}
	_, size := r.Config.Arch.Layout()
	if err := s.Shard(engine.Own(size, r.Rank, r.World)); err != nil {
		return fmt.Errorf("zero_stage 1: %w", err)
	}
	r.Shard = s
	return r.meter()
}

// update takes the optimiser's step. Where its state is divided, each rank updates
// its own elements by the norm of all, and the parameters are gathered.
func (r *Run) update(h engine.Hyper) (float64, error) {
	if r.Shard == nil {
		return r.Model.Update(h)
	}
	squares, err := r.Shard.Squares()
	if err != nil {
		return 0, err
	}
	norm, err := r.norm(squares)
	if err != nil {
		return 0, err
	}
	if err := r.Shard.UpdateShard(h, norm); err != nil {
		return norm, err
	}
	params := r.Shard.Params()
	return norm, r.sync.waiting(func() error {
		for _, b := range engine.Cut(len(params)) {
			if err := r.Ring.AllGather(ring.Buffer{Data: params[b.From:b.To]}); err != nil {
				return err
			}
		}
		return nil
	})
}

// state is the model's whole state, which all ranks put together where the
// optimiser's is divided. All ranks call it.
func (r *Run) state() (engine.StateDict, error) {
	if r.Shard == nil {
		return r.Model.State(), nil
	}
	size := len(r.Shard.Params())
	m, v := r.Shard.Moments()
	whole := [2][]float32{make([]float32, size), make([]float32, size)}
	for i, part := range [][]float32{m, v} {
		at := 0
		for _, own := range engine.Own(size, r.Rank, r.World) {
			at += copy(whole[i][own.From:own.To], part[at:])
		}
		for _, b := range engine.Cut(size) {
			if err := r.Ring.AllGather(ring.Buffer{Data: whole[i][b.From:b.To]}); err != nil {
				return nil, err
			}
		}
	}
	return r.Shard.WholeState(whole[0], whole[1]), nil
}
