package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// What a decision asks a worker to train, and how.

// Tokens of an evaluation of a trial and of the final training, and how many there
// are inside that.
const (
	trialEval  = 20_000
	finalEval  = 100_000
	finalEvals = 12
)

// Places of a trial's learning curve in each rung, and how much smaller their sample is
// than the one that gives its score: all of them take half of that one's time.
const (
	curvePoints = 6
	curveShare  = 12
	curveCost   = 0.03 // of a rung's training, beyond which no rule is worth it that nobody asked for
)

// segment turns a resource into a stretch of training.
func segment(p search.Plan, cfg train.Config, from train.State, resource, decay float64) train.Segment {
	switch p.Unit {
	case search.Seconds:
		return train.Segment{ByTime: true, Seconds: resource, DecayFrom: resource * (1 - decay)}
	case search.Tokens:
		steps := max(4, int(resource/float64(cfg.Sequences()*cfg.Arch.Context)))
		return train.Segment{Steps: steps, DecayFrom: math.Ceil(float64(steps) * (1 - decay))}
	}
	perStep := cfg.Arch.FLOPsPerToken(cfg.Arch.Context) * float64(cfg.Sequences()*cfg.Arch.Context)
	steps := max(4, int(resource*1e9/perStep))
	return train.Segment{Steps: steps, DecayFrom: math.Ceil(float64(steps) * (1 - decay))}
}

// measuring is what a trial's curve costs, as a share of its rung's training: a forward
// pass is a third of that work.
func measuring(p search.Plan, t train.Task, d search.Decision) float64 {
	perStep := float64(t.Config.Sequences() * t.Config.Arch.Context)
	tokens := float64(t.Segment.Steps) * perStep
	if t.Segment.ByTime {
		tokens = p.Rate * t.Segment.Seconds / t.Config.Arch.FLOPsPerToken(t.Config.Arch.Context)
	}
	return curvePoints * float64(t.SampleTokens) / 3 / (tokens * (1 - d.From/d.Resource))
}

// configOf is a configuration of the space as a job trains it.
func configOf(spec job.Spec, p search.Plan, c space.Config) train.Config {
	cfg := train.FromSpace(c, spec.Seed)
	cfg.Precision, cfg.BaseWidth = engine.Precision(spec.Precision), p.BaseWidth
	return cfg
}

// begun is the decision that started a trial, nil where none did.
func begun(st journal.State, trial string) *search.Decision {
	for i := range st.Decisions {
		if st.Decisions[i].Trial == trial {
			return &st.Decisions[i]
		}
	}
	return nil
}

// trialConfig is what a trial that a decision started trains. One that began from
// another's weights sees the text in an order of its own, not once more in the one
// that those were trained in; a fork goes on in its parent's.
func trialConfig(spec job.Spec, p search.Plan, start *search.Decision) train.Config {
	cfg := configOf(spec, p, start.Config)
	if start.Inherit != "" && start.Action == search.Start {
		cfg.Seed += uint64(start.Seq+1) << 32
	}
	return cfg
}

// settings are what a job says of how all its tasks train.
func settings(s job.Spec) train.Task {
	return train.Task{
		Backend: s.Backend, Plaintext: s.PlaintextCollectives,
		Compression: s.Compression, Zero: s.ZeroStage, Balance: s.DynamicBatching,
	}
}

// Task implements actors.Work.
func (s *site) Task(st journal.State, d *search.Decision) (train.Task, error) {
	p := *st.Plan
	t := settings(s.spec)
	t.Threads, t.CheckpointEvery, t.MaxBytes = s.crew.threads, 10*time.Second, s.crew.memory
	if d != nil {
		start := cmp.Or(begun(st, d.Trial), d)
		t.Trial, t.Config = d.Trial, trialConfig(s.spec, p, start)
		t.Dir = s.path("trials", d.Trial)
		if start.Inherit != "" && d.Action != search.Promote {
			parent := begun(st, start.Inherit)
			if parent == nil {
				return t, fmt.Errorf("the journal has trial %s begin from %q and has no such trial", d.Trial, start.Inherit)
			}
			if d.Action == search.Fork {
				t.From, t.FromSequences = train.RungDir(s.path("trials", parent.Trial), d.Rung-1), trialConfig(s.spec, p, parent).Sequences()
			} else {
				t.Inherit, t.InheritArch = s.path("trials", parent.Trial, "checkpoint"), space.Arch(parent.Config)
			}
		}
		if p.Scheduler == "pbt" {
			t.Rung, t.Rungs = d.Rung, search.PBTCheckpoints
		}
		t.Segment = segment(p, t.Config, train.State{}, d.Resource, p.CoolOf(*d))
		t.EvalTokens = trialEval
		if c := s.spec.Compress; c != nil && c.Search {
			t.Weights = glm.Weights(c.Weights)
		}
		if p.Unit == search.Seconds {
			t.EvalTokens = min(100_000, int64(2000*d.Resource)+4000)
		}
		t.SampleTokens = t.EvalTokens / curveShare
		if d.Stop != nil && (p.Scheduler != "auto" || measuring(p, t, *d) <= curveCost) {
			t.Stop, t.Resource, t.CurvePoints = d.Stop, d.Resource, curvePoints
		}
	} else {
		if err := s.final(st, p, &t); err != nil {
			return t, err
		}
	}
	if s.spec.Costed() {
		t.Keep = true
		t.Serving = train.Serving{Threads: s.spec.ServingThreads(), Timed: s.spec.Timed(), Answers: s.spec.Answered()}
		if d != nil {
			t.Serving.Known = known(st, t.Config.Arch)
		}
	}
	return t, s.corpora(&t)
}

// final fills the task of the final training: the winner's configuration and
// checkpoint, or what that is grown into, and what is left of the budget.
func (s *site) final(st journal.State, p search.Plan, t *train.Task) error {
	winner := begun(st, st.Winner)
	if winner == nil {
		return fmt.Errorf("the journal names %q as winner and has no such trial", st.Winner)
	}
	t.Trial, t.Final, t.Config = "final", true, trialConfig(s.spec, p, winner)
	if t.Average = s.spec.Averaging == "auto"; t.Average {
		t.Soup = s.kin(st, t.Config.Arch)
	}
	t.Dir, t.From = s.path("trials", "final"), s.path("trials", st.Winner, "checkpoint")
	from, err := train.CheckpointState(t.From)
	if err != nil {
		return err
	}
	t.EvalTokens = finalEval
	if g := st.Sizing.Grown(); g != nil {
		t.From, t.Inherit, t.InheritArch, from = "", t.From, t.Config.Arch, train.State{}
		t.Config.Arch = space.Arch(g.Config)
		t.Config.Seed = s.spec.Seed + uint64(len(st.Decisions)+1)<<32 // the text in an order of its own, as trials that began so
	}
	if p.Unit != search.Seconds {
		t.Segment = segment(p, t.Config, from, p.FinalResource, p.FinalDecay)
		t.Segment.Steps += from.Step
		t.Segment.DecayFrom += float64(from.Step)
		t.EvalEvery = math.Ceil(float64(t.Segment.Steps) / finalEvals)
		return nil
	}
	left := st.Spec.Budget.WallClock.D().Seconds() - st.Active - p.Reserve // an order may have extended it
	at := from.Seconds
	if own, err := train.CheckpointState(filepath.Join(t.Dir, "checkpoint")); err == nil {
		at = own.Seconds
	}
	end := at + max(left, 1)
	t.Segment = train.Segment{ByTime: true, Seconds: end, DecayFrom: max(from.Seconds, end-p.FinalDecay*(end-from.Seconds))}
	t.EvalEvery = max(2, (end-from.Seconds)/finalEvals)
	return nil
}

// soupMost is the most trials that a soup is tried with.
const soupMost = 4

// kin are the folders of trials of the winner's shape and line of parents, best first.
func (s *site) kin(st journal.State, a glm.Arch) (dirs []string) {
	origin := func(trial string) string {
		for d := begun(st, trial); d != nil && d.Inherit != ""; d = begun(st, trial) {
			trial = d.Inherit
		}
		return trial
	}
	from := origin(st.Winner)
	for _, t := range st.Leaderboard("").Trials {
		if t.Bits == nil || t.Status == "failed" || st.StoppedByUser(t.ID) || origin(t.ID) != from || trialConfig(s.spec, *st.Plan, begun(st, t.ID)).Arch != a {
			continue
		}
		if dirs = append(dirs, s.path("trials", t.ID)); len(dirs) == soupMost {
			break
		}
	}
	return dirs
}

// executor runs ranks on the i-th device, and has what a training left kept.
func (s *site) executor(i int) actors.Executor {
	run := s.runner(i)
	return func(ctx context.Context, a *actors.Assign, progress func(train.StepMetrics)) (train.Report, error) {
		s.ranks.Add(1)
		defer s.ranks.Done()
		smaller := s.crew.memory > 0 && (a.Task.MaxBytes == 0 || a.Task.MaxBytes > s.crew.memory) // than the task is meant for
		rep, err := s.rank(ctx, run, a, progress)
		if !s.guest || context.Cause(ctx) != nil {
			return rep, err
		}
		if errors.Is(err, errFolder) || actors.Blameless(err) || smaller && errors.Is(err, train.ErrMemory) {
			// Another node does better: the task is not told, and goes on there once this
			// one's workers are gone.
			s.unfit(err)
			<-ctx.Done()
			return rep, context.Cause(ctx)
		}
		return rep, err
	}
}

// errFolder marks trouble with what the job's other nodes have, or with handing on what
// this one has.
var errFolder = errors.New("the job's folder")

// rank runs one rank, the first of which writes down what it trains, and has what it
// leaves kept.
func (s *site) rank(ctx context.Context, run actors.Executor, a *actors.Assign, progress func(train.StepMetrics)) (train.Report, error) {
	if err := s.begin(ctx, a); err != nil {
		return train.Report{}, err
	}
	var rep train.Report
	var err error
	if a.Rank == 0 {
		err = s.writeJSON(a.Task.Config, "trials", a.Task.Trial, "config.json")
	}
	if err == nil {
		rep, err = run(ctx, a, progress)
	}
	if err == nil && a.Rank == 0 && a.Task.Serving.Threads > 0 {
		rep.Cost, err = s.cost(ctx, a.Task)
	}
	// What a task that was told to stop has saved goes on elsewhere.
	stopped := context.Cause(ctx) != nil
	last, cancel := ctx, func() {}
	if stopped {
		last, cancel = context.WithTimeout(context.WithoutCancel(ctx), lastKeep)
	}
	defer cancel()
	if e := s.folder.End(last, a.Task.Trial, a.Rank == 0 && (err == nil || stopped)); e != nil {
		err = errors.Join(err, fmt.Errorf("%w: %w", errFolder, e))
	}
	return rep, err
}

// lastKeep bounds how long a rank that was told to stop is waited for.
const lastKeep = 5 * time.Second

// begin says that a rank begins. Rank 0 loads what it goes on from; the others get it
// from a peer.
func (s *site) begin(ctx context.Context, a *actors.Assign) error {
	if s.guest {
		if err := s.feed(ctx); err != nil {
			return fmt.Errorf("%w: %w", errFolder, err)
		}
		if err := s.own(a); err != nil {
			return err
		}
	}
	var from []string
	if a.Rank == 0 {
		from = append(from, a.Task.Trial)
		for _, checkpoint := range []string{a.Task.From, a.Task.Inherit} {
			if checkpoint != "" {
				from = append(from, trialOf(checkpoint))
			}
		}
		for _, dir := range a.Task.Soup {
			from = append(from, filepath.Base(dir))
		}
	}
	if err := s.folder.Begin(ctx, a.Task.Trial, a.Epoch, from); err != nil {
		return fmt.Errorf("%w: %w", errFolder, err)
	}
	if a.Task.Inherit == "" || a.Rank != 0 {
		return nil
	}
	if _, err := train.CheckpointState(a.Task.Inherit); errors.Is(err, fs.ErrNotExist) {
		s.notice(fmt.Sprintf("trial %s starts from its beginning: the checkpoint of trial %s, whose weights it would begin from, is gone", a.Task.Trial, trialOf(a.Task.Inherit)))
	}
	return nil
}

// trialOf is the trial whose checkpoint that is.
func trialOf(checkpoint string) string { return filepath.Base(filepath.Dir(checkpoint)) }

// feed brings the job's data here, once.
func (s *site) feed(ctx context.Context) error {
	s.feeding.Lock()
	defer s.feeding.Unlock()
	if s.fed {
		return nil
	}
	if err := s.folder.Pull(ctx); err != nil {
		return err
	}
	if _, err := s.tokenizer(0); err != nil {
		return err
	}
	s.fed = true
	return nil
}

// own makes the task of another node's Supervisor this node's: its folder, its
// threads, its memory.
func (s *site) own(a *actors.Assign) error {
	t := &a.Task
	if t.Trial == "" || t.Trial != filepath.Base(t.Trial) {
		return fmt.Errorf("a task of trial %q", t.Trial)
	}
	t.Dir = s.path("trials", t.Trial)
	for _, checkpoint := range []*string{&t.From, &t.Inherit} {
		if *checkpoint == "" {
			continue
		}
		name := filepath.Base(*checkpoint)
		if !filepath.IsLocal(name) {
			return fmt.Errorf("a task that begins from %q", *checkpoint)
		}
		*checkpoint = s.path("trials", trialOf(*checkpoint), name)
	}
	for i, dir := range t.Soup {
		name := filepath.Base(dir)
		if !filepath.IsLocal(name) {
			return fmt.Errorf("a task whose soup takes %q in", dir)
		}
		t.Soup[i] = s.path("trials", name)
	}
	t.Threads, t.MaxBytes = s.crew.threads, s.crew.memory
	return s.corpora(t)
}

// corpora names the token files of a task.
func (s *site) corpora(t *train.Task) error {
	v := t.Config.Arch.Vocab
	lens, err := s.byteLens(v)
	if err != nil {
		return err
	}
	t.ByteLens, t.TrainPath, t.ValidPath = lens, s.corpus(v, "train"), s.corpus(v, "valid")
	if t.Final {
		t.TrainPath, t.ValidPath = s.corpus(v, finalCorpus), s.corpus(v, guardCorpus)
	}
	return nil
}

// runner runs ranks on the i-th device: in its process where it has one.
func (s *site) runner(i int) actors.Executor {
	if s.crew.hosts == nil {
		return func(ctx context.Context, a *actors.Assign, progress func(train.StepMetrics)) (train.Report, error) {
			return s.execute(ctx, i, a, progress)
		}
	}
	h := s.crew.hosts[i]
	return func(ctx context.Context, a *actors.Assign, progress func(train.StepMetrics)) (train.Report, error) {
		if err := s.ensure(ctx, a.Task.Config.Arch.Vocab, a.Task.Final); err != nil {
			return train.Report{}, err
		}
		rep, err := h.Train(ctx, a, s.crew.at(i), progress)
		var lost *ring.LostError
		if errors.As(err, &lost) && lost.Rank == a.Rank && context.Cause(ctx) == nil {
			s.notice(fmt.Sprintf("%s: %s; its work is done anew", s.crew.devices[i].ID, firstLines(lost.Why, 6)))
		}
		return rep, err
	}
}

// firstLines keeps n lines of a text: a crash says what it is in its first ones.
func firstLines(s string, n int) string {
	lines := strings.SplitN(s, "\n", n+1)
	if len(lines) > n {
		lines[n] = "…"
	}
	return strings.Join(lines, "\n")
}

// execute runs one rank in this process, on the i-th device.
func (s *site) execute(ctx context.Context, i int, a *actors.Assign, progress func(train.StepMetrics)) (train.Report, error) {
	if err := s.ensure(ctx, a.Task.Config.Arch.Vocab, a.Task.Final); err != nil {
		return train.Report{}, err
	}
	build, err := makerOf(s.crew.at(i))
	if err != nil {
		return train.Report{}, err
	}
	var leave []func() error // the rings that this rank was in
	defer func() {
		for _, f := range leave {
			_ = f()
		}
	}()
	next := a.Next
	env := train.Env{NewModel: build, Clock: func() time.Duration { return time.Since(s.start) }, Metrics: progress}
	join := func(ctx context.Context, a *actors.Assign) (train.Place, error) {
		p := train.Place{Rank: a.Rank, World: a.World}
		if a.World > 1 {
			end, err := a.Ring.Join(ctx, a.Rank)
			if err != nil {
				return p, err
			}
			leave = append(leave, end.Close)
			p.Ring = end
		}
		return p, nil
	}
	// Where a ring is lost before it stands, this rank waits for the next one too.
	var replaced <-chan struct{}
	enter := func(ctx context.Context, a *actors.Assign) (train.Place, error) {
		for {
			replaced = a.Replaced
			p, err := join(ctx, a)
			if err == nil || !errors.Is(err, ring.ErrLost) {
				return p, err
			}
			if a, err = awaitNext(ctx, next); err != nil {
				return p, err
			}
		}
	}
	p, err := enter(ctx, a)
	if err != nil {
		return train.Report{}, err
	}
	env.Rank, env.World, env.Ring = p.Rank, p.World, p.Ring
	env.Rejoin = func(ctx context.Context, _ error) (train.Place, error) {
		next, err := awaitNext(ctx, next)
		if err != nil {
			return train.Place{}, err
		}
		s.folder.Renew(a.Task.Trial, next.Epoch)
		a.Rank = next.Rank
		return enter(ctx, next)
	}
	env.Regroup = func() bool {
		select {
		case <-replaced:
			return true
		default:
			return false
		}
	}
	return train.Execute(ctx, a.Task, env)
}

// awaitNext gives the assignment that follows a lost ring.
func awaitNext(ctx context.Context, next <-chan *actors.Assign) (*actors.Assign, error) {
	bound := time.NewTimer(worker.RejoinWithin)
	defer bound.Stop()
	select {
	case a := <-next:
		return a, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-bound.C:
		return nil, fmt.Errorf("no new ring within %s", worker.RejoinWithin)
	}
}
