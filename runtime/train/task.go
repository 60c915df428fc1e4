package train

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// Task is one piece of a trial's training, the same for all of its ranks: train
// up to Segment.DecayFrom, save the checkpoint from which a later task may go
// on, let the rate fall to zero by Segment.End, and score. It is a message:
// nothing in it changes after it was sent.
type Task struct {
	Trial string `msgpack:"trial"`
	Dir   string `msgpack:"dir"`  // the trial's folder: metrics.jsonl and checkpoint/ go there
	From  string `msgpack:"from"` // another trial's checkpoint, which starts this one, if it has none itself
	// FromSequences is the sequences of a step of the run that From is of, where this one
	// forks from it with batches of its own: it stands at the same place of the data, its
	// steps counted in its own batches. 0: steps are counted on as they are.
	FromSequences int `msgpack:"from_sequences"`
	// Inherit is another trial's folder whose checkpoint, of shape InheritArch, is grown
	// into the model that this one begins with, its steps counted from zero. Where there
	// is none it begins from initial parameters.
	Inherit     string   `msgpack:"inherit"`
	InheritArch glm.Arch `msgpack:"inherit_arch"`

	Config  Config  `msgpack:"config"`
	Segment Segment `msgpack:"segment"`

	TrainPath  string `msgpack:"train_path"`
	ValidPath  string `msgpack:"valid_path"`
	ByteLens   []int  `msgpack:"byte_lens"` // text length of each token id
	EvalTokens int64  `msgpack:"eval_tokens"`

	Backend         string        `msgpack:"backend"`          // how the ranks join, see gpu/ring; "" picks
	Plaintext       bool          `msgpack:"plaintext"`        // see ring.Config.PlaintextCollectives
	Threads         int           `msgpack:"threads"`          // of each rank
	CheckpointEvery time.Duration `msgpack:"checkpoint_every"` // 0 is none inside the segment
	// Rungs keeps the checkpoints of so many rungs, Rung's the last, for others to fork
	// from while the trial trains on, see RungDir.
	Rungs int `msgpack:"rungs"`
	Rung  int `msgpack:"rung"`
	// Final keeps the best of several evaluations and saves checkpoints while
	// the rate falls: nothing goes on from here.
	Final     bool    `msgpack:"final"`
	EvalEvery float64 `msgpack:"eval_every"` // positions between evaluations before the last; 0 is none
	Average   bool    `msgpack:"average"`    // of a final training: the average of its parameters is the model, where it is better
	// Soup are folders of trials of this one's shape and line of parents, best first: a
	// final training's model is the mean of its own and their parameters, where it is better.
	Soup []string `msgpack:"soup"`
	// Stop ends a trial before its segment, see search.Rule; nil is never. Its curve is
	// measured on SampleTokens at CurvePoints places of the flat part. Resource is what
	// the segment's end counts for in the rule's measure.
	Stop         *search.Rule `msgpack:"stop"`
	Weights      glm.Weights  `msgpack:"weights"` // see Run
	Resource     float64      `msgpack:"resource"`
	CurvePoints  int          `msgpack:"curve_points"`
	SampleTokens int64        `msgpack:"sample_tokens"`
	MaxBytes     int64        `msgpack:"max_bytes"` // memory that the trial may take; 0 is no bound
	Balance      bool         `msgpack:"balance"`   // see Run
	// Keep leaves the parameters that gave a trial's score in BestDir, as Final does.
	Keep    bool    `msgpack:"keep"`
	Serving Serving `msgpack:"serving"`
	// Of several ranks:
	Compression string `msgpack:"compression"` // see Run
	Zero        int    `msgpack:"zero"`        // 1 divides AdamW's moments over the ranks; Muon's state stays whole
}

// Env is what a rank brings along.
type Env struct {
	Rank, World int
	Ring        Collective // nil when World is 1
	NewModel    func(c Config, threads int, world int) (engine.Model, error)
	Clock       func() time.Duration
	Metrics     func(StepMetrics)  // rank 0; may be nil
	Scored      func(State, Score) // rank 0, at each evaluation; may be nil
	// Rejoin is Run's; nil: a lost rank ends the task.
	Rejoin  func(ctx context.Context, cause error) (Place, error)
	Regroup func() bool // Run's
}

// Report is how a task ended.
type Report struct {
	State     State   `json:"state" msgpack:"state"`
	Bits      float64 `json:"bits_per_byte" msgpack:"bits_per_byte"`
	Params    int64   `json:"params" msgpack:"params"`
	PerSecond float64 `json:"tokens_per_s" msgpack:"tokens_per_s"`
	Stopped   string  `json:"stopped,omitempty" msgpack:"stopped"` // why the task's rule ended it; Bits is then the curve's last
	Cost      *Cost   `json:"cost,omitempty" msgpack:"cost"`       // where the task asks for it: added by whoever runs rank 0
	// Averaging is nil where parameters were not averaged.
	Averaging *Comparison `json:"averaging,omitempty" msgpack:"averaging"`
	Soup      *Soup       `json:"soup,omitempty" msgpack:"soup"` // nil where there was nothing to make one of
}

// ErrMemory means that the trial would not fit into the memory it may take.
var ErrMemory = errors.New("out of memory by estimate")

// ErrCheckpoint means that a checkpoint that a task goes on from is damaged.
var ErrCheckpoint = errors.New("a checkpoint is damaged")

// Execute runs one rank's part of a task. Only rank 0 writes files. A task that
// was cut off goes on from its checkpoint and ends as if it had not been.
func Execute(ctx context.Context, t Task, env Env) (rep Report, err error) {
	need := t.Config.Bytes(env.World, t.Threads)
	if t.MaxBytes > 0 && need > t.MaxBytes {
		t.Config.Recompute = true
		need = t.Config.Bytes(env.World, t.Threads)
	}
	if t.MaxBytes > 0 && need > t.MaxBytes {
		return rep, fmt.Errorf("%w: training %s needs about %d MB, %d MB may be used", ErrMemory, t.Config.Arch, need>>20, t.MaxBytes>>20)
	}
	corpus, err := OpenCorpus(t.TrainPath)
	if err != nil {
		return rep, err
	}
	defer corpus.Close()
	valid, err := OpenCorpus(t.ValidPath)
	if err != nil {
		return rep, err
	}
	defer valid.Close()
	m, err := env.NewModel(t.Config, t.Threads, env.World)
	if err != nil {
		return rep, err
	}
	defer m.Close()
	var avg *average
	if t.Average && t.Final && t.Zero == 0 {
		avg = newAverage(m)
	}
	st, err := t.restore(m, avg, env.Rank == 0)
	if err != nil {
		return rep, err
	}
	r := Run{
		Model: m, Config: t.Config, Train: corpus, Valid: valid, Rank: env.Rank, World: env.World, Ring: env.Ring, Clock: env.Clock,
		ByteLen: func(id int32) int { return t.ByteLens[id] }, EvalTokens: t.EvalTokens,
		Balance: t.Balance, Rejoin: env.Rejoin, Regroup: env.Regroup, Compression: t.Compression, average: avg, Weights: t.Weights,
	}
	defer func() {
		err = errors.Join(err, r.Close(err))
	}()
	// A rank that becomes the first one, now or after a loss, writes the files.
	var metrics metricsFile
	defer func() { err = errors.Join(err, metrics.Close()) }()
	r.lead = func(st State) error {
		if metrics.f != nil {
			return nil
		}
		if metrics.f, err = openMetrics(t, st); err != nil {
			return err
		}
		r.Events.Step = func(s StepMetrics) {
			metrics.Write(s)
			if env.Metrics != nil {
				env.Metrics(s)
			}
		}
		r.Events.Checkpoint = func(s State, m engine.StateDict) error { return SaveCheckpoint(t.checkpoint(), m, s) }
		r.Events.Scored = env.Scored
		if t.Final {
			r.Events.Best = func(s State, m engine.Model, _ float64) error {
				return SaveCheckpoint(t.best(), Parameters(m.State()), s)
			}
		}
		return nil
	}
	r.EvalEvery = t.EvalEvery
	// To the point from which others may go on …
	r.CheckpointEvery = t.CheckpointEvery
	flat := t.Segment
	if flat.ByTime {
		flat.Seconds = t.Segment.DecayFrom
	} else {
		flat.Steps = int(math.Ceil(t.Segment.DecayFrom))
	}
	if t.Final && t.Config.Schedule == "cosine" {
		flat = t.Segment
	}
	if st.Position(flat) >= flat.End() {
		r.phase = flatEnd
	}
	if t.Final {
		st.Curve = nil
	} else if t.Stop != nil {
		r.Stop, r.SampleTokens = t.Stop, t.SampleTokens
		r.Marks = t.marks(flat)
	}
	// From here on all ranks hold one state: a rank that comes later gets it from a peer.
	if st, err = r.Join(ctx, st); err != nil {
		return Report{State: st}, err
	}
	if t.Zero > 0 && r.World > 1 && t.Config.Optimizer == engine.AdamW {
		if err := r.shardOptimizer(); err != nil {
			return Report{State: st}, err
		}
	}
	begun := st
	report := func(bits float64) Report {
		p := Report{State: st, Bits: bits, Params: t.Config.Arch.Params()}
		p.PerSecond = float64(st.Tokens-begun.Tokens) / max(st.Seconds-begun.Seconds, 1e-9)
		return p
	}
	var keep func() error
	// What a rule has stopped leaves its state where it stopped, not where the clock had
	// it saved: another trial may begin from it.
	ended := func(s *stoppedError) (Report, error) {
		if err := t.saveFlat(&r, st); err != nil {
			return Report{State: st}, fmt.Errorf("checkpoint: %w", err)
		}
		rep := report(st.Curve[len(st.Curve)-1].Score)
		rep.Stopped = s.why
		return rep, keep()
	}
	keep = func() error {
		if !t.Keep || r.Rank != 0 {
			return nil
		}
		if err := SaveCheckpoint(t.best(), Parameters(m.State()), st); err != nil {
			return fmt.Errorf("checkpoint: %w", err)
		}
		return nil
	}
	var stopped *stoppedError
	if r.phase == flatPart {
		if st, err = r.To(ctx, st, flat); err != nil {
			if errors.As(err, &stopped) {
				return ended(stopped)
			}
			return Report{State: st}, errors.Join(err, t.keep(ctx, &r, st))
		}
		r.phase = flatEnd
	}
	if !t.Final && r.phase == flatEnd {
		if err := t.saveFlat(&r, st); err != nil {
			return Report{State: st}, fmt.Errorf("checkpoint: %w", err)
		}
		if t.Rungs > 0 && r.Rank == 0 {
			if err := keepRung(t.Dir, t.Rung, t.Rungs); err != nil {
				return Report{State: st}, fmt.Errorf("checkpoint: %w", err)
			}
		}
	}
	// … and down to the score. What a later task continues is not overwritten.
	if !t.Final {
		r.CheckpointEvery = 0
	}
	var score Score
	for {
		if st, err = r.To(ctx, st, t.Segment); err != nil {
			if errors.As(err, &stopped) {
				return ended(stopped)
			}
			if t.Final {
				err = errors.Join(err, t.keep(ctx, &r, st))
			}
			return Report{State: st}, err
		}
		if score, err = r.Validate(t.EvalTokens); err == nil {
			break
		}
		if !r.mendable(err) {
			return Report{State: st}, err
		}
		if st, err = r.rejoin(ctx, st, err); err != nil {
			return Report{State: st}, err
		}
	}
	bits := score.BitsPerByte()
	if math.IsNaN(bits) || math.IsInf(bits, 0) {
		return Report{State: st}, fmt.Errorf("%w: the validation loss is not a number", ErrDiverged)
	}
	if r.Rank == 0 {
		r.scored(st, score)
	}
	rep = report(bits)
	if t.Final {
		if st.BestStep > 0 && st.BestBits < bits {
			rep.Bits, rep.State = st.BestBits, st
		} else if r.Rank == 0 {
			if err := SaveCheckpoint(t.best(), Parameters(m.State()), st); err != nil {
				return rep, fmt.Errorf("checkpoint: %w", err)
			}
		}
		if r.Rank == 0 {
			err = t.choose(avg, &r, &rep)
		}
		return rep, err
	}
	return rep, keep()
}

// choose puts means of parameters in the place of a final training's model where they are
// better: the average over the run, then a soup.
func (t Task) choose(avg *average, r *Run, rep *Report) error {
	averaged := avg != nil && avg.n[0] > 0
	if !averaged && (len(t.Soup) == 0 || t.Zero > 0) {
		return nil
	}
	c, err := newContest(t, r)
	if err != nil {
		return fmt.Errorf("averaging: %w", err)
	}
	var own []ingredient
	if averaged {
		out, rest, err := c.enter(avg.parameters(t))
		if err != nil {
			return fmt.Errorf("averaging: %w", err)
		}
		own, rep.Averaging = append(own, ingredient{"average", rest}), &out
		if out.Taken {
			own[0].name, rep.Bits = "last", out.Bits
		}
	}
	if rep.Soup, err = c.soup(own); err != nil {
		return fmt.Errorf("soup: %w", err)
	}
	if s := rep.Soup; s != nil && s.Taken {
		rep.Bits = s.Bits
	}
	return nil
}

// marks are the places of the curve, evenly over the flat part of the rung: the same
// resources for all of its trials, whatever their steps.
func (t Task) marks(flat Segment) []Mark {
	out := make([]Mark, t.CurvePoints)
	for i := range out {
		r := t.Stop.From + (t.Stop.Horizon-t.Stop.From)*float64(i+1)/float64(len(out))
		out[i] = Mark{min(r/t.Resource*t.Segment.End(), flat.End()), r}
	}
	return out
}

// saveFlat saves the state at the end of the flat part, or where a rule stopped it,
// unless it is there already.
func (t Task) saveFlat(r *Run, st State) error {
	if r.Shard == nil && r.Rank != 0 {
		return nil
	}
	s, err := r.state()
	if err != nil || r.Rank != 0 {
		return err
	}
	if own, err := CheckpointState(t.checkpoint()); err == nil && own.Step >= st.Step {
		return nil
	}
	return SaveCheckpoint(t.checkpoint(), s, st)
}

// keep saves what a run that was told to stop has reached. Where the optimiser's
// state is divided the ranks can no longer put it together: the last checkpoint
// stays.
func (t Task) keep(ctx context.Context, r *Run, st State) error {
	if r.Rank != 0 || r.Shard != nil || context.Cause(ctx) == nil || st.Step == 0 {
		return nil
	}
	return SaveCheckpoint(t.checkpoint(), append(r.Model.State(), r.average.state()...), st)
}

func (t Task) checkpoint() string { return filepath.Join(t.Dir, "checkpoint") }
func (t Task) best() string       { return filepath.Join(t.Dir, "best") }

// BestDir is where a final task, or one with Keep, leaves the parameters to ship.
func BestDir(dir string) string { return filepath.Join(dir, "best") }

// restore loads the trial's own checkpoint, or the one it starts from, or grows the one
// it inherits. What was forked or has grown becomes the trial's own at once, with save:
// whatever becomes of its parent, a restart begins from the same.
func (t Task) restore(m engine.Model, avg *average, save bool) (State, error) {
	damaged := func(dir, mend string, err error) (State, error) {
		return State{}, fmt.Errorf("%w: %s: %w; %s", ErrCheckpoint, dir, err, mend)
	}
	const remove = "remove that folder to train this piece from its beginning"
	for _, dir := range []string{t.checkpoint(), t.From} {
		if dir == "" {
			continue
		}
		sd, st, err := LoadCheckpoint(dir)
		if errors.Is(err, fs.ErrNotExist) && (dir != t.From || !save) { // other ranks get it from the first
			continue
		}
		if err == nil {
			sd, err = avg.load(sd)
		}
		if err == nil {
			err = m.Load(sd)
		}
		if err != nil {
			mend := remove
			if dir == t.From {
				mend = "restore that folder from a copy, or build anew"
			}
			return damaged(dir, mend, err)
		}
		if dir == t.From && t.FromSequences > 0 {
			st.Step = int(math.Round(float64(st.Step) * float64(t.FromSequences) / float64(t.Config.Sequences())))
			return st, t.takeOver(m, st, save)
		}
		return st, nil
	}
	if t.Inherit == "" {
		return State{}, nil
	}
	sd, _, err := LoadCheckpoint(t.Inherit)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err == nil {
		sd, err = sd.Grow(t.Config.Arch, t.InheritArch, t.Config.Optimizer, t.Config.Seed)
	}
	if err == nil {
		err = m.Load(sd)
	}
	if err != nil {
		return damaged(t.Inherit, remove, err)
	}
	return State{}, t.takeOver(m, State{}, save)
}

// takeOver makes another trial's state this one's own.
func (t Task) takeOver(m engine.Model, st State, save bool) error {
	if !save {
		return nil
	}
	if err := SaveCheckpoint(t.checkpoint(), m.State(), st); err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

// Parameters drops the optimiser's tensors.
func Parameters(s engine.StateDict) engine.StateDict {
	var out engine.StateDict
	for _, t := range s {
		if len(t.Name) < 10 || t.Name[:10] != "optimizer." {
			out = append(out, t)
		}
	}
	return out
}

// metricsFile appends to metrics.jsonl; records of steps that a restart repeats
// are cut first.
type metricsFile struct {
	f   *os.File
	err error
}

func openMetrics(t Task, st State) (*os.File, error) {
	if err := os.MkdirAll(t.Dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(t.Dir, "metrics.jsonl")
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	keep := 0
	for at := 0; at < len(old); {
		end := at
		for end < len(old) && old[end] != '\n' {
			end++
		}
		var s StepMetrics
		if end == len(old) || json.Unmarshal(old[at:end], &s) != nil || s.Step > st.Step {
			break
		}
		at = end + 1
		keep = at
	}
	if err = f.Truncate(int64(keep)); err == nil {
		_, err = f.Seek(int64(keep), 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Write appends a record; the first error shows at Close.
func (m *metricsFile) Write(s StepMetrics) {
	b, err := json.Marshal(s)
	if err == nil {
		_, err = m.f.Write(append(b, '\n'))
	}
	m.err = errors.Join(m.err, err)
}

func (m *metricsFile) Close() error {
	if m.f == nil {
		return nil
	}
	return errors.Join(m.err, m.f.Close())
}
