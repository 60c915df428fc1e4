package actors

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// SupervisorConfig is what a Supervisor stands on. It outlives the actor's
// restarts.
type SupervisorConfig struct {
	Spec    job.Spec      // written to a new journal; an old one has its own
	Past    []search.Past // likewise: trials of earlier searches
	Log     journal.Log   // appended to by the Supervisor alone
	Work    Work
	Workers []*actor.PID // one a device of this node; those of others enlist
	TrialConfig
	Room   job.Resources        // that steps which run beside each other may take; see job.NewMachine
	Clock  func() time.Duration // monotonic
	Now    func() time.Time     // for the journal's dates
	Tick   time.Duration        // between records of the job's clock
	Events Events
}

// Supervisor owns a job: its journal, its graph of stages, its devices and its
// leaderboard. State belongs to its mailbox and is rebuilt from the journal after
// a restart.
type Supervisor struct {
	cfg SupervisorConfig

	state   *journal.State
	machine *job.Machine
	since   time.Duration // clock at which state.Active was base
	base    float64
	over    bool

	agent   *actor.PID
	trials  map[int]*running // by decision; −1 is the final training
	waiting []search.Decision
	workers []*actor.PID
	free    []int        // indices of workers
	gone    map[int]bool // … of those that will not come back
	extra   map[int]bool // … of those that the job did not ask for: a training tries them
	settled bool         // the final training is no faster with more of them
	asked   []*actor.PID // whose orders the search has not answered yet
	idle    int          // attempt of a final training that has no worker yet; 0 is none

	stages map[string]*attempt // the last at each stage
	stop   chan struct{}       // ends the ticks
	wg     sync.WaitGroup      // goroutines of this instance
}

// attempt at a stage.
type attempt struct {
	n      int
	timer  *time.Timer             // of its timeout, or of the time before the next one; may be nil
	cancel context.CancelCauseFunc // of its goroutine
	done   chan struct{}           // closed when that has ended; nil where it has none
}

type running struct {
	pid     *actor.PID
	workers []int
	d       search.Decision
	attempt int
}

// The Supervisor's own messages.
type (
	tick       struct{}
	stageEnded struct {
		stage   string
		attempt int
		err     error
		event   *journal.Event // to commit before the stage is done
	}
	planMade struct {
		plan search.Plan
		err  error
	}
	finalSized struct {
		winner journal.TrialReport
		sizing *search.Sizing
		err    error
	}
	finalReady struct{ err error }
	stageLate  struct {
		stage   string
		attempt int
		after   time.Duration
	}
	stageDue struct{ stage string }
)

var errInterrupted = errors.New("interrupted")

// SupervisorProps makes the actor of a job.
func SupervisorProps(cfg SupervisorConfig, opts ...actor.PropsOption) *actor.Props {
	opts = append([]actor.PropsOption{actor.WithSupervisor(actor.NewOneForOneStrategy(10, time.Minute, actor.DefaultDecider))}, opts...)
	return actor.PropsFromProducer(func() actor.Actor { return &Supervisor{cfg: cfg} }, opts...)
}

// Receive implements actor.Actor.
func (s *Supervisor) Receive(ctx actor.Context) {
	s.cfg.Hooks.receive("supervisor", ctx.Message())
	switch m := ctx.Message().(type) {
	case *actor.Started:
		s.begin(ctx)
	case *actor.Restarting, *actor.Stopping:
		s.over = true // children that end now are the next instance's to start
		for _, w := range s.workers {
			ctx.Unwatch(w)
		}
		s.halt(errReleased)
	case *Interrupt:
		s.interrupt(ctx)
	case *tick:
		s.tick(ctx)
	case *stageEnded:
		s.stageEnded(ctx, m)
	case *stageLate:
		if a := s.stages[m.stage]; a != nil && a.n == m.attempt {
			s.step(ctx, job.Event{Kind: job.StageTimeout, Stage: m.stage, Err: job.TookLonger(m.after)})
		}
	case *stageDue:
		s.step(ctx, job.Event{Kind: job.StageDue, Stage: m.stage})
	case *planMade:
		s.planned(ctx, m)
	case *finalSized:
		s.finalSized(ctx, m)
	case *finalReady:
		s.finalReady(ctx, m)
	case *AgentReady:
		s.history(ctx)
	case *Decide:
		s.decide(ctx, m.Decision)
	case *Steer:
		s.steer(ctx, m)
	case *Ordered:
		s.ordered(ctx, m)
	case *SearchEnded:
		s.searchEnded(ctx, m.Err)
	case *Progress:
		if r := s.trials[m.Seq]; r != nil && s.cfg.Events.Progress != nil {
			s.cfg.Events.Progress(*m)
		}
		credit(ctx, m.From, m.Epoch, m.N)
	case *Said:
		if s.cfg.Events.Notice != nil {
			s.cfg.Events.Notice(m.Text)
		}
		credit(ctx, m.From, 0, m.N)
	case *TrialEnded:
		s.trialEnded(ctx, m)
	case *Enlist:
		s.enlist(ctx, m)
	case *Returned:
		s.returned(ctx, m)
	case *actor.Terminated:
		s.terminated(ctx, m.Who)
	}
}

// credit lets who reported go on, where its Nth is one to answer.
func credit(ctx actor.Context, to *actor.PID, epoch, n uint64) {
	if to != nil && due(n) {
		ctx.Send(to, &Credit{Epoch: epoch, N: n})
	}
}

func (s *Supervisor) active() float64 { return s.base + (s.cfg.Clock() - s.since).Seconds() }

// commit makes an event durable, applies it and tells the listener. An event
// that can't be written ends the job.
func (s *Supervisor) commit(ctx actor.Context, e journal.Event) bool {
	if s.over {
		return false
	}
	e.At, e.Active = s.cfg.Now().UnixMilli(), s.active()
	rec, err := e.Encode()
	if err == nil {
		err = s.cfg.Log.Append(rec, e.Kind != journal.Tick)
	}
	if err != nil {
		s.end(ctx, err, false)
		return false
	}
	s.state.Apply(e)
	if s.cfg.Events.Journal != nil {
		s.cfg.Events.Journal(e, s.state)
	}
	return true
}

// begin replays the journal and goes on.
func (s *Supervisor) begin(ctx actor.Context) {
	s.trials, s.stop, s.stages = map[int]*running{}, make(chan struct{}), map[string]*attempt{}
	s.gone, s.extra = map[int]bool{}, map[int]bool{}
	for i, w := range s.cfg.Workers {
		s.workers, s.free = append(s.workers, w), append(s.free, i)
		ctx.Watch(w)
	}
	var err error
	s.state, err = journal.Replayed(s.cfg.Log)
	s.since, s.base = s.cfg.Clock(), s.state.Active
	if err != nil {
		s.end(ctx, err, false)
		return
	}
	if s.state.Events == 0 {
		spec := s.cfg.Spec
		if !s.commit(ctx, journal.Event{Kind: journal.Created, Spec: &spec, Past: s.cfg.Past}) {
			return
		}
	} else if !s.commit(ctx, journal.Event{Kind: journal.Resumed}) {
		return
	}
	stages := job.StagesOf(s.state.Spec)
	s.machine = job.NewMachine(stages, s.cfg.Room)
	for _, st := range stages {
		if s.state.Done[st.Name] {
			s.machine.Restore(st.Name)
		} else if a := s.state.Attempts[st.Name]; a.N > 0 {
			s.machine.RestoreFailed(st.Name, a.N, time.UnixMilli(a.Again).Sub(s.cfg.Now()))
		}
	}
	self, root, stop := ctx.Self(), ctx.ActorSystem().Root, s.stop
	s.wg.Go(func() { ticking(root, self, s.cfg.Tick, stop) })
	s.step(ctx, job.Event{Kind: job.Begin})
}

// ticking sends ticks to an actor until stop is closed.
func ticking(root *actor.RootContext, to *actor.PID, every time.Duration, stop <-chan struct{}) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			root.Send(to, &tick{})
		case <-stop:
			return
		}
	}
}

// halt stops the goroutines of this instance and waits for them.
func (s *Supervisor) halt(reason error) {
	if s.stop != nil {
		close(s.stop)
		s.stop = nil
	}
	for _, a := range s.stages {
		a.stop(reason)
	}
	s.wg.Wait()
}

// end is the end of the job for this process.
func (s *Supervisor) end(ctx actor.Context, err error, interrupted bool) {
	if s.over {
		return
	}
	s.over = true
	for _, r := range s.trials {
		ctx.Stop(r.pid)
	}
	if s.agent != nil {
		ctx.Stop(s.agent)
	}
	s.unanswered(ctx, errors.New("the job has ended here"))
	s.halt(errInterrupted)
	if s.cfg.Events.End != nil {
		s.cfg.Events.End(err, interrupted)
	}
}

func (s *Supervisor) interrupt(ctx actor.Context) {
	if s.over {
		return
	}
	s.commit(ctx, journal.Event{Kind: journal.Tick})
	s.end(ctx, errInterrupted, true)
}

func (s *Supervisor) tick(ctx actor.Context) {
	if s.over || !s.commit(ctx, journal.Event{Kind: journal.Tick}) {
		return
	}
	// A search that overruns its share by a quarter decides nothing more.
	if p := s.state.Plan; p != nil && p.Unit == search.Seconds && s.agent != nil && !s.state.SearchClosed {
		if late := s.active() - s.state.SearchBegan; late > 1.25*p.SearchSeconds {
			if s.commit(ctx, journal.Event{Kind: journal.SearchClosed}) {
				ctx.Send(s.agent, &CloseSearch{})
			}
		}
	}
}

// step feeds the stage machine and carries out what it asks for.
func (s *Supervisor) step(ctx actor.Context, e job.Event) {
	if s.over {
		return
	}
	failed := e.Kind == job.StageFailed || e.Kind == job.StageTimeout
	if failed && s.machine.Status(e.Stage) != job.Running {
		return
	}
	todo := s.machine.Step(e)
	if failed {
		f := journal.Event{Kind: journal.StageFailed, Stage: e.Stage, Err: e.Err}
		if a := s.stages[e.Stage]; a != nil {
			f.Attempt = a.n
		}
		if i := slices.IndexFunc(todo, func(a job.Action) bool { return a.Kind == job.DelayStage && a.Stage == e.Stage }); i >= 0 {
			f.RetryIn = todo[i].Delay.Seconds()
		}
		if !s.commit(ctx, f) {
			return
		}
	}
	for _, a := range todo {
		switch a.Kind {
		case job.DelayStage:
			s.attempt(a.Stage).after(ctx, a.Delay, &stageDue{stage: a.Stage})
		case job.StartStage:
			if !s.commit(ctx, journal.Event{Kind: journal.StageStarted, Stage: a.Stage, Attempt: a.Attempt}) {
				return
			}
			s.startStage(ctx, a)
		case job.StopStage:
			s.stopStage(ctx, a.Stage)
		case job.Finish:
			if !s.state.Finished && !s.commit(ctx, journal.Event{Kind: journal.Finished}) {
				return
			}
			s.end(ctx, nil, false)
		case job.Fail:
			if s.commit(ctx, journal.Event{Kind: journal.Failed, Err: a.Err}) {
				s.end(ctx, fmt.Errorf("%s: %s", a.Stage, a.Err), false)
			}
		}
	}
}

// attempt is the last at a stage, or a place for the first.
func (s *Supervisor) attempt(stage string) *attempt {
	a := s.stages[stage]
	if a == nil {
		a = &attempt{cancel: func(error) {}}
		s.stages[stage] = a
	}
	return a
}

func (a *attempt) stop(reason error) {
	if a.timer != nil {
		a.timer.Stop()
	}
	a.cancel(reason)
}

// after mails the Supervisor a message in a while; 0 only stops the last.
func (a *attempt) after(ctx actor.Context, d time.Duration, message any) {
	if a.timer != nil {
		a.timer.Stop()
	}
	if d > 0 {
		self, root := ctx.Self(), ctx.ActorSystem().Root
		a.timer = time.AfterFunc(d, func() { root.Send(self, message) })
	}
}

func (s *Supervisor) startStage(ctx actor.Context, a job.Action) {
	at := s.attempt(a.Stage)
	at.n = a.Attempt
	at.after(ctx, a.Timeout, &stageLate{a.Stage, a.Attempt, a.Timeout})
	switch a.Stage {
	case job.StageSearch:
		s.startSearch(ctx)
	case job.StageTrain:
		s.startFinal(ctx)
	case job.StageEvaluate:
		st := s.state.Clone()
		s.inBackground(ctx, a, func(run context.Context) (*journal.Event, error) {
			score, on, err := s.cfg.Work.Evaluate(run, st)
			return &journal.Event{Kind: journal.Evaluated, Score: &score, Placed: on}, err
		})
	default:
		st := s.state.Clone()
		s.inBackground(ctx, a, func(run context.Context) (*journal.Event, error) {
			return nil, s.cfg.Work.Stage(run, a.Stage, st)
		})
	}
}

// inBackground runs a stage on a goroutine, which mails its end.
func (s *Supervisor) inBackground(ctx actor.Context, a job.Action, f func(context.Context) (*journal.Event, error)) {
	m := &stageEnded{stage: a.Stage, attempt: a.Attempt}
	s.background(ctx, a.Stage, func(run context.Context) (err error) {
		m.event, err = f(run)
		return err
	}, func(err error) any {
		m.err = err
		return m
	})
}

// background does a stage's work on a goroutine, once that of the attempt before has
// ended, and mails how it ended.
func (s *Supervisor) background(ctx actor.Context, stage string, work func(context.Context) error, ended func(error) any) {
	run, cancel := context.WithCancelCause(context.Background())
	at := s.attempt(stage)
	before, done := at.done, make(chan struct{})
	at.cancel, at.done = cancel, done
	self, root := ctx.Self(), ctx.ActorSystem().Root
	s.wg.Go(func() {
		defer close(done)
		if before != nil {
			<-before // it was told to
		}
		err := guarded(func() error { return work(run) })
		if context.Cause(run) == nil {
			root.Send(self, ended(err))
		}
	})
}

// guarded makes an error of a panic.
func guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return f()
}

func (s *Supervisor) stopStage(ctx actor.Context, name string) {
	s.attempt(name).stop(errReleased)
	if name == job.StageSearch || name == job.StageTrain {
		for seq, r := range s.trials {
			ctx.Stop(r.pid)
			s.release(r.workers)
			delete(s.trials, seq)
		}
		if s.agent != nil {
			ctx.Stop(s.agent)
			s.agent = nil
		}
	}
}

func (s *Supervisor) stageEnded(ctx actor.Context, m *stageEnded) {
	if m.attempt != s.attempt(m.stage).n {
		return
	}
	if m.err != nil {
		s.stageFailed(ctx, m.stage, m.err)
		return
	}
	if m.event != nil && !s.commit(ctx, *m.event) {
		return
	}
	s.stageDone(ctx, m.stage)
}

// stageFailed ends an attempt at a stage, or the job with its state kept where the
// stage is not to blame.
func (s *Supervisor) stageFailed(ctx actor.Context, stage string, err error) {
	if Blameless(err) {
		s.end(ctx, fmt.Errorf("%s: %w", stage, err), false)
		return
	}
	var final Final
	s.step(ctx, job.Event{Kind: job.StageFailed, Stage: stage, Err: err.Error(), Final: errors.As(err, &final)})
}

func (s *Supervisor) stageDone(ctx actor.Context, stage string) {
	if s.machine.Status(stage) == job.Running && s.commit(ctx, journal.Event{Kind: journal.StageDone, Stage: stage}) {
		s.step(ctx, job.Event{Kind: job.StageDone, Stage: stage})
	}
}
