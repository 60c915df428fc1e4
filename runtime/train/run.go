package train

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/open-autoglm/autoglm/gpu/ddp"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/search"
)

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
	Compute   float64 `json:"compute_share,omitempty" msgpack:"compute_share"` // of the time, in which forward and backward ran
	PeakBytes int64   `json:"peak_bytes,omitempty" msgpack:"peak_bytes"`       // most memory of the device that was held so far; of a CPU, by the process
	// Of several ranks:
	SyncShare float64 `json:"sync_share,omitempty" msgpack:"sync_share"`           // of the time, in which the rank only waited for the ring
	SyncBytes int64   `json:"sync_bytes,omitempty" msgpack:"sync_bytes"`           // of gradient summed in a step
	SyncEff   float64 `json:"sync_efficiency,omitempty" msgpack:"sync_efficiency"` // compute / (compute + waiting for the ring)
	WireBytes int64   `json:"wire_bytes,omitempty" msgpack:"wire_bytes"`           // that the gradient was encoded to, a step; 0: as it is
	Ring      string  `json:"ring,omitempty" msgpack:"ring"`                       // what joins the ranks and why, in the first record of each ring
	// How the gradient's buckets travel, as "bf16 2, powersgd 15", and what changed.
	Compression string         `json:"compression,omitempty" msgpack:"compression"`
	Changes     []ddp.Decision `json:"compression_changes,omitempty" msgpack:"compression_changes"`
	Bits        float64        `json:"bits_per_byte,omitempty" msgpack:"bits_per_byte"` // of a validation sample, where one was taken
}

// Events are called by rank 0 from the run's goroutine; any may be nil.
type Events struct {
	Step       func(StepMetrics)                                 // about four times a second
	Checkpoint func(s State, m engine.StateDict) error           // the run may go on from here
	Best       func(s State, m engine.Model, bits float64) error // a new lowest validation score
	Scored     func(State, Score)                                // each evaluation
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

	// A run with a rule stops where it says so. Its curve gets a point at each of
	// Marks, which rise: the score of SampleTokens.
	Stop         *search.Rule
	Marks        []Mark
	SampleTokens int64

	// Weights, where given, are what scores are of: the model with weights rounded to so
	// few bits, as a bundle of it would be compressed. It trains on as it is.
	Weights glm.Weights

	// Balance gives each rank as many of a step's sequences as its measured speed
	// is worth, so that a slow device does not hold up a fast one. The global batch
	// stays what Config says; the sums' bits then depend on the clock.
	Balance bool
	// Compression is how gradients travel between ranks, one of ddp.Modes; "" is
	// none. What another level loses depends on the number of ranks, and what auto
	// chooses on the ring's speed.
	Compression string
	// Shard is Model where each rank keeps a part of the optimiser's state (ZeRO-1).
	// A lost rank then ends the run: its part is in the checkpoint alone.
	Shard engine.Sharded
	// Rejoin gives the run its place in the next ring after a rank was lost. Nil:
	// the loss ends the run.
	Rejoin func(ctx context.Context, cause error) (Place, error)
	// Regroup tells a run of one rank, between two steps, that Rejoin has a place in a
	// larger ring. A run of several is told by its ring. May be nil.
	Regroup func() bool

	elastic
	average *average // of a final training, nil where there is none
	sync    *meter
	compute time.Duration // of forward and backward, since the last report
	shares  balance
	control [16]float32 // rank 0's word to all: stop, position of the step
}

// To trains from a state up to the segment's end, where the ranks compare their models.
// The error is ErrDiverged, ErrApart, ctx's cause, the ring's, or the engine's; the state is where the last whole
// step ended. Where Rejoin is set, a lost rank is no error: the run goes on in the
// next ring from the last step that any rank has committed.
func (r *Run) To(ctx context.Context, st State, seg Segment) (State, error) {
	for {
		var err error
		if st, err = r.to(ctx, st, seg); err == nil || !r.mendable(err) {
			return st, err
		}
		if st, err = r.rejoin(ctx, st, err); err != nil {
			return st, err
		}
	}
}

func (r *Run) to(ctx context.Context, st State, seg Segment) (State, error) {
	if err := r.meter(); err != nil {
		return st, err
	}
	if why := r.Stop.Judge(st.Curve); why != "" { // it was stopped before, and cut off
		return st, &stoppedError{why}
	}
	batches := NewBatches(r.Train, r.Config.Arch.Context, r.Config.Seed)
	t := r.Config.Arch.Context
	total := r.Config.Sequences()
	inputs, targets := make([]int32, total*t), make([]int32, total*t)
	micro := r.microBatch()

	start := r.Clock()
	base := st.Seconds
	lastReport, lastCheckpoint := start, start
	reported := false // the first step is: it says what joins the ranks
	var lossSum float64
	var lossSteps int
	reportTokens, first := st.Tokens, st.Step
	for {
		if err := context.Cause(ctx); err != nil {
			return st, err
		}
		if r.World <= 1 && r.Regroup != nil && r.Regroup() {
			return st, errRegroup
		}
		now := r.Clock()
		st.Seconds = base + (now - start).Seconds()
		save := r.Rank == 0 && r.Events.Checkpoint != nil && r.CheckpointEvery > 0 && now-lastCheckpoint >= r.CheckpointEvery && st.Step > first
		pos, stop, save, err := r.agree(st, seg, save)
		if err != nil {
			return st, err
		}
		if save {
			if err := r.checkpoint(st); err != nil {
				return st, err
			}
			lastCheckpoint = r.Clock()
		}
		if err := r.mark(&st, pos); err != nil {
			return st, err
		}
		if stop && r.World > 1 {
			return st, r.alike(st)
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
		lo, hi, err := r.part(total)
		if err != nil {
			return st, err
		}
		loss, err := r.backward(st, inputs, targets, lo, hi, micro, float64(max(scored, 1)))
		if err != nil {
			return st, err
		}
		if r.sync != nil {
			if err := r.sync.commit(uint64(st.Step + 1)); err != nil {
				return st, err
			}
		}
		share := rate(r.Config, st.Step, pos, seg)
		norm, err := r.update(r.hyper(share))
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
		r.average.add(st.Step)
		if r.phase == flatEnd {
			r.phase = decay
		}
		st.Tokens += int64(total * t)
		lossSum += loss
		lossSteps++
		if r.Rank != 0 {
			continue
		}
		now = r.Clock()
		st.Seconds = base + (now - start).Seconds()
		if r.Events.Step != nil && (now-lastReport >= 250*time.Millisecond || !reported) {
			m := StepMetrics{
				Step: st.Step, Tokens: st.Tokens, Seconds: st.Seconds, Loss: lossSum / float64(lossSteps), LR: share, GradNorm: norm,
				PerSecond: float64(st.Tokens-reportTokens) / max((now-lastReport).Seconds(), 1e-9),
			}
			elapsed := max((now - lastReport).Seconds(), 1e-9)
			m.Compute, m.PeakBytes = min(1, r.compute.Seconds()/elapsed), peakBytes(r.Model)
			if r.sync != nil {
				r.sync.report(&m, r.compute, now-lastReport, lossSteps)
			}
			r.compute = 0
			r.Events.Step(m)
			lastReport, reportTokens, lossSum, lossSteps, reported = now, st.Tokens, 0, 0, true
		}
	}
}

// checkpoint hands the state over to be saved, by rank 0. All ranks call it.
func (r *Run) checkpoint(st State) error {
	s, err := r.state()
	if err != nil || r.Rank != 0 {
		return err
	}
	if err := r.Events.Checkpoint(st, append(s, r.average.state()...)); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// agree lets rank 0 decide where the run stands, whether the segment is over, and
// whether its state is saved now: clocks of ranks differ, steps must not.
func (r *Run) agree(st State, seg Segment, due bool) (pos float64, stop, save bool, err error) {
	pos = st.Position(seg)
	stop = pos >= seg.End()
	if r.World <= 1 {
		return pos, stop, due, nil
	}
	r.control = [16]float32{}
	if r.Rank == 0 {
		r.control[0] = float32(pos)
		if stop {
			r.control[1] = 1
		}
		if due {
			r.control[2] = 1
		}
	}
	r.sync.Reduce(-1, ring.Buffer{Data: r.control[:]})
	if err := r.sync.Wait(); err != nil {
		return 0, false, false, err
	}
	return float64(r.control[0]), r.control[1] != 0, r.control[2] != 0, nil
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
		if r.World > 1 && at+micro >= hi { // before that the gradients only add up
			sync = r.sync
		}
		begin := time.Now()
		l, err := r.Model.Backward(b, sync)
		if err != nil {
			return 0, err
		}
		r.compute += time.Since(begin)
		loss += l
	}
	r.shares.measured(r, hi-lo)
	if r.World > 1 {
		r.control = [16]float32{float32(loss)}
		r.sync.Reduce(-2, ring.Buffer{Data: r.control[:]})
		if err := r.sync.Wait(); err != nil {
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
func (r *Run) Validate(tokens int64) (_ Score, err error) {
	if r.Weights != "" {
		whole, err := r.round()
		if err != nil {
			return Score{}, err
		}
		defer func() { err = errors.Join(err, r.Model.Load(whole)) }()
	}
	s, err := Sample(r.Model, r.Valid, r.Config.Arch.Context, r.microBatch(), tokens, r.ByteLen, Share{Rank: r.Rank, World: r.World})
	if err != nil || r.World <= 1 {
		return s, err
	}
	return s, r.join(&s)
}

// round rounds the model's weights, and returns its state before.
func (r *Run) round() (engine.StateDict, error) {
	held, err := r.state()
	if err != nil {
		return nil, err
	}
	whole := held.Clone() // the model's memory is overwritten
	small, err := engine.Round(r.Config.Arch, Parameters(whole), r.Weights)
	if err != nil {
		return nil, err
	}
	return whole, r.Model.Load(append(small, whole[len(small):]...))
}

// join sums a score over the ranks.
func (r *Run) join(s *Score) error {
	v := []float64{s.NLL, float64(s.Tokens), float64(s.Bytes)}
	if err := r.sum(v); err != nil {
		return err
	}
	s.NLL, s.Tokens, s.Bytes = v[0], int64(math.Round(v[1])), int64(math.Round(v[2]))
	return nil
}

// norm is the root of the sum of all ranks' squares.
func (r *Run) norm(squares float64) (float64, error) {
	v := []float64{squares}
	err := r.sum(v)
	return math.Sqrt(v[0]), err
}

// sum replaces each number by its sum over the ranks. Float32 carries 24 bits: each
// number goes as three limbs, which are gathered rather than added, so that every
// rank ends with the same, exact enough sum.
func (r *Run) sum(v []float64) error {
	n := 3 * len(v)
	all := make([]float32, n*r.World)
	for i, x := range v {
		l := all[n*r.Rank+3*i:]
		hi := float32(x)
		mid := float32(x - float64(hi))
		if hi-hi != 0 { // no number: one limb says it all
			mid = 0
			l[0] = hi
			continue
		}
		l[0], l[1], l[2] = hi, mid, float32(x-float64(hi)-float64(mid))
	}
	r.Ring.Reduce(-3, ring.Buffer{Data: all})
	if err := r.Ring.Wait(); err != nil {
		return err
	}
	for i := range v {
		v[i] = 0
		for k := range r.World {
			l := all[n*k+3*i:]
			v[i] += float64(l[0]) + float64(l[1]) + float64(l[2])
		}
	}
	return nil
}

func (r *Run) evaluate(st *State, pos float64) error {
	s, err := r.Validate(r.EvalTokens)
	if err != nil {
		return err
	}
	st.Evals = int(pos / r.EvalEvery)
	bits := s.BitsPerByte()
	if st.BestStep == 0 || bits < st.BestBits {
		st.BestBits, st.BestStep = bits, st.Step
		if r.Rank == 0 && r.Events.Best != nil {
			if err := r.Events.Best(*st, r.Model, bits); err != nil {
				return fmt.Errorf("checkpoint: %w", err)
			}
		}
	}
	if r.Rank == 0 {
		r.scored(*st, s)
	}
	return nil
}

// scored tells of an evaluation.
func (r *Run) scored(st State, s Score) {
	if r.Events.Step != nil {
		r.Events.Step(StepMetrics{Step: st.Step, Tokens: st.Tokens, Seconds: st.Seconds, Bits: s.BitsPerByte()})
	}
	if r.Events.Scored != nil {
		r.Events.Scored(st, s)
	}
}

// Mark is a place of a learning curve.
type Mark struct {
	At       float64 // position
	Resource float64 // what that counts for in the rule's measure
}

// stoppedError ends a run whose rule says so.
type stoppedError struct{ why string }

func (e *stoppedError) Error() string { return "stopped: " + e.why }

// mark adds the curve's point of the last mark that the run has reached, unless it is
// there, and asks the rule. All ranks see the same score, so that they stop together.
func (r *Run) mark(st *State, pos float64) error {
	if r.Stop == nil {
		return nil
	}
	resource := 0.0
	for _, m := range r.Marks {
		if m.At <= pos {
			resource = m.Resource
		}
	}
	if n := len(st.Curve); resource == 0 || n > 0 && resource <= st.Curve[n-1].Resource {
		return nil
	}
	s, err := r.Validate(r.SampleTokens)
	if err != nil {
		return err
	}
	bits := s.BitsPerByte()
	if math.IsNaN(bits) || math.IsInf(bits, 0) {
		return fmt.Errorf("%w at step %d: the validation loss is not a number", ErrDiverged, st.Step)
	}
	st.Curve = append(slices.Clone(st.Curve), search.Point{Resource: resource, Score: bits})
	if r.Rank == 0 && r.Events.Step != nil {
		r.Events.Step(StepMetrics{Step: st.Step, Tokens: st.Tokens, Seconds: st.Seconds, Bits: bits})
	}
	if why := r.Stop.Judge(st.Curve); why != "" {
		return &stoppedError{why}
	}
	return nil
}
