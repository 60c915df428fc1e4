package train

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// Collective joins the ranks of a run: one rank's end of a ring. It is called from
// the run's goroutine alone. Wait blocks until all ranks are there or the ring is
// aborted. Commit stands between a step's sums and their use: where it returns nil
// on any rank, all ranks hold the sums.
type Collective interface {
	Reduce(bucket int, b ring.Buffer)
	Wait() error
	Commit(step uint64) error
}

// meter measures what a run spends on its ring.
type meter struct {
	Collective
	exposed time.Duration // in which the rank did nothing but wait
	bytes   int64         // handed over to be summed
}

func (m *meter) Reduce(bucket int, b ring.Buffer) {
	if bucket >= 0 { // control words have numbers below
		m.bytes += int64(b.Len() * b.DType.Size())
	}
	m.Collective.Reduce(bucket, b)
}

func (m *meter) Wait() error {
	begin := time.Now()
	defer func() { m.exposed += time.Since(begin) }()
	return m.Collective.Wait()
}

func (m *meter) Commit(step uint64) error {
	begin := time.Now()
	defer func() { m.exposed += time.Since(begin) }()
	return m.Collective.Commit(step)
}

// ErrDiverged means that the loss or the gradient is no longer a number.
var ErrDiverged = errors.New("training diverged")

// StepMetrics is what one logged step reports.
type StepMetrics struct {
	Step      int     `json:"step" msgpack:"step"`
	Tokens    int64   `json:"tokens" msgpack:"tokens"`
	Seconds   float64 `json:"seconds" msgpack:"seconds"`
	Loss      float64 `json:"loss,omitempty" msgpack:"loss"` // nats a scored token, mean since the last report; 0 in a validation record
	LR        float64 `json:"lr" msgpack:"lr"`               // share of the peak rate
	GradNorm  float64 `json:"grad_norm" msgpack:"grad_norm"`
	PerSecond float64 `json:"tokens_per_s" msgpack:"tokens_per_s"`
	SyncShare float64 `json:"sync_share,omitempty" msgpack:"sync_share"`       // of the time, in which the rank only waited for the ring; of several ranks
	SyncBytes int64   `json:"sync_bytes,omitempty" msgpack:"sync_bytes"`       // of gradient summed in a step
	Bits      float64 `json:"bits_per_byte,omitempty" msgpack:"bits_per_byte"` // of a validation sample, where one was taken
}

// Events are called by rank 0 from the run's goroutine; any may be nil.
type Events struct {
	Step       func(StepMetrics)                                 // about four times a second
	Checkpoint func(s State, m engine.Model) error               // the run may go on from here
	Best       func(s State, m engine.Model, bits float64) error // a new lowest validation score
}

// Run is the loop of one rank. Set the fields, then call To; it is owned by one
// goroutine.
type Run struct {
	Model  engine.Model
	Config Config
	Train  *Corpus
	Valid  *Corpus              // nil: no evaluations inside a segment
	Rank   int                  //
	World  int                  // at least 1
	Ring   Collective           // nil when World is 1
	Clock  func() time.Duration // monotonic

	ByteLen         func(id int32) int
	EvalEvery       float64       // positions between evaluations inside a segment; 0 is none
	EvalTokens      int64         // of such an evaluation
	CheckpointEvery time.Duration // between calls of Events.Checkpoint; 0 is none
	Events          Events

	control [16]float32 // rank 0's word to all: stop, position of the step
}

// To trains from a state up to the segment's end. The error is ErrDiverged,
// ctx's cause, the ring's, or the engine's; the state is where the last whole
// step ended.
func (r *Run) To(ctx context.Context, st State, seg Segment) (State, error) {
	var sync *meter
	if r.World > 1 {
		sync = &meter{Collective: r.Ring}
		defer func(own Collective) { r.Ring = own }(r.Ring)
		r.Ring = sync
	}
	batches := NewBatches(r.Train, r.Config.Arch.Context, r.Config.Seed)
	t := r.Config.Arch.Context
	total := r.Config.Sequences()
	inputs, targets := make([]int32, total*t), make([]int32, total*t)
	lo, hi := r.Rank*total/r.World, (r.Rank+1)*total/r.World
	micro := r.Config.MicroBatch(r.World)

	start := r.Clock()
	base := st.Seconds
	lastReport, lastCheckpoint := start, start
	var lossSum float64
	var lossSteps int
	reportTokens := st.Tokens
	for {
		if err := context.Cause(ctx); err != nil {
			return st, err
		}
		now := r.Clock()
		st.Seconds = base + (now - start).Seconds()
		pos, stop, err := r.agree(st, seg)
		if err != nil {
			return st, err
		}
		if stop {
			return st, nil
		}
		if r.EvalEvery > 0 && pos >= r.EvalEvery*float64(st.Evals+1) {
			if err := r.evaluate(&st, pos); err != nil {
				return st, err
			}
		}

		// Every rank lays the whole step out, since the loss's denominator counts it all.
		scored := 0
		for j := range total {
			scored += batches.Sequence(st.Step*total+j, inputs[j*t:(j+1)*t], targets[j*t:(j+1)*t])
		}
		loss, err := r.backward(st, inputs, targets, lo, hi, micro, float64(max(scored, 1)))
		if err != nil {
			return st, err
		}
		if sync != nil {
			if err := sync.Commit(uint64(st.Step + 1)); err != nil {
				return st, err
			}
		}
		share := rate(r.Config, st.Step, pos, seg)
		norm, err := r.Model.Update(r.hyper(share))
		if errors.Is(err, engine.ErrNotFinite) {
			return st, fmt.Errorf("%w at step %d: %w", ErrDiverged, st.Step+1, err)
		}
		if err != nil {
			return st, err
		}
		if math.IsNaN(loss) || math.IsInf(loss, 0) {
			return st, fmt.Errorf("%w at step %d: loss is %g", ErrDiverged, st.Step+1, loss)
		}
		st.Step++
		st.Tokens += int64(total * t)
		lossSum += loss
		lossSteps++
		if r.Rank != 0 {
			continue
		}
		now = r.Clock()
		st.Seconds = base + (now - start).Seconds()
		if r.Events.Step != nil && (now-lastReport >= 250*time.Millisecond || st.Step == 1) {
			m := StepMetrics{
				Step: st.Step, Tokens: st.Tokens, Seconds: st.Seconds, Loss: lossSum / float64(lossSteps), LR: share, GradNorm: norm,
				PerSecond: float64(st.Tokens-reportTokens) / max((now-lastReport).Seconds(), 1e-9),
			}
			if sync != nil {
				m.SyncShare = sync.exposed.Seconds() / max((now-lastReport).Seconds(), 1e-9)
				m.SyncBytes = sync.bytes / int64(lossSteps)
				sync.exposed, sync.bytes = 0, 0
			}
			r.Events.Step(m)
			lastReport, reportTokens, lossSum, lossSteps = now, st.Tokens, 0, 0
		}
		if r.Events.Checkpoint != nil && r.CheckpointEvery > 0 && now-lastCheckpoint >= r.CheckpointEvery {
			if err := r.Events.Checkpoint(st, r.Model); err != nil {
				return st, fmt.Errorf("checkpoint: %w", err)
			}
			lastCheckpoint = r.Clock()
		}
	}
}

// agree lets rank 0 decide where the run stands and whether the segment is over:
// clocks of ranks differ, steps must not.
func (r *Run) agree(st State, seg Segment) (pos float64, stop bool, err error) {
	pos = st.Position(seg)
	stop = pos >= seg.End()
	if r.World <= 1 {
		return pos, stop, nil
	}
	r.control = [16]float32{}
	if r.Rank == 0 {
		r.control[0] = float32(pos)
		if stop {
			r.control[1] = 1
		}
	}
	r.Ring.Reduce(-1, ring.Buffer{Data: r.control[:]})
	if err := r.Ring.Wait(); err != nil {
		return 0, false, err
	}
	return float64(r.control[0]), r.control[1] != 0, nil
}

// backward runs this rank's micro-batches; the last one sums over the ring.
func (r *Run) backward(st State, inputs, targets []int32, lo, hi, micro int, norm float64) (float64, error) {
	t := r.Config.Arch.Context
	loss := 0.0
	for at := lo; at < hi || at == lo; at += micro {
		n := min(micro, hi-at)
		b := engine.Batch{B: n, T: t, Norm: norm, Seed: r.Config.Seed ^ (uint64(st.Step)<<20+uint64(at)+1)*0x9e3779b97f4a7c15}
		if n <= 0 { // fewer sequences than ranks: this one only joins the sum
			b.B, b.Inputs, b.Targets = 1, make([]int32, t), make([]int32, t)
			for i := range b.Targets {
				b.Targets[i] = engine.Ignore
			}
		} else {
			b.Inputs, b.Targets = inputs[at*t:(at+n)*t], targets[at*t:(at+n)*t]
		}
		var sync engine.GradientSync
		if r.World > 1 && at+micro >= hi {
			sync = r.Ring
		}
		l, err := r.Model.Backward(b, sync)
		if err != nil {
			return 0, err
		}
		loss += l
	}
	if r.World > 1 {
		r.control = [16]float32{float32(loss)}
		r.Ring.Reduce(-2, ring.Buffer{Data: r.control[:]})
		if err := r.Ring.Wait(); err != nil {
			return 0, err
		}
		loss = float64(r.control[0])
	}
	return loss, nil
}

func (r *Run) hyper(share float64) engine.Hyper {
	h := engine.DefaultHyper()
	h.Optimizer = r.Config.Optimizer
	h.LR = r.Config.LR * share
	h.MuonLR = r.Config.MuonLR * share
	h.WeightDecay = r.Config.WeightDecay
	return h
}

// Validate scores a sample of the validation part, shared out over the ranks.
func (r *Run) Validate(tokens int64) (Score, error) {
	s, err := Sample(r.Model, r.Valid, r.Config.Arch.Context, r.Config.MicroBatch(r.World), tokens, r.ByteLen, Share{Rank: r.Rank, World: r.World})
	if err != nil || r.World <= 1 {
		return s, err
	}
	return s, r.join(&s)
}

// join sums a score over the ranks. Float32 carries 24 bits: each number goes as
// three limbs, so that every rank ends with the same, exact enough sum.
func (r *Run) join(s *Score) error {
	r.control = [16]float32{}
	for i, v := range []float64{s.NLL, float64(s.Tokens), float64(s.Bytes)} {
		hi := float32(v)
		mid := float32(v - float64(hi))
		r.control[3*i], r.control[3*i+1], r.control[3*i+2] = hi, mid, float32(v-float64(hi)-float64(mid))
	}
	// Each rank's limbs are gathered rather than added, so that nothing is rounded.
	all := make([]float32, 9*r.World)
	copy(all[9*r.Rank:], r.control[:9])
	r.Ring.Reduce(-3, ring.Buffer{Data: all})
	if err := r.Ring.Wait(); err != nil {
		return err
	}
	var sum [3]float64
	for k := range r.World {
		for i := range sum {
			l := all[9*k+3*i:]
			sum[i] += float64(l[0]) + float64(l[1]) + float64(l[2])
		}
	}
	s.NLL, s.Tokens, s.Bytes = sum[0], int64(math.Round(sum[1])), int64(math.Round(sum[2]))
	return nil
}

func (r *Run) evaluate(st *State, pos float64) error {
	st.Evals = int(pos / r.EvalEvery)
	s, err := r.Validate(r.EvalTokens)
	if err != nil {
		return err
	}
	bits := s.BitsPerByte()
	if st.BestStep == 0 || bits < st.BestBits {
		st.BestBits, st.BestStep = bits, st.Step
		if r.Rank == 0 && r.Events.Best != nil {
			if err := r.Events.Best(*st, r.Model, bits); err != nil {
				return fmt.Errorf("checkpoint: %w", err)
			}
		}
	}
	if r.Rank == 0 && r.Events.Step != nil {
		r.Events.Step(StepMetrics{Step: st.Step, Tokens: st.Tokens, Seconds: st.Seconds, Bits: bits})
	}
	return nil
}
