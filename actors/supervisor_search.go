package actors

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// The Supervisor's part in the search and in the final training.

// finalSeq stands for the final training among decisions.
const finalSeq = -1

// startSearch plans, unless the journal has a plan, and starts the agent.
func (s *Supervisor) startSearch(ctx actor.Context) {
	if s.state.Plan != nil {
		s.startAgent(ctx)
		return
	}
	active := s.active()
	m := &planMade{}
	s.background(ctx, job.StageSearch, func(run context.Context) (err error) {
		m.plan, err = s.cfg.Work.Plan(run, active)
		return err
	}, func(err error) any {
		m.err = err
		return m
	})
}

func (s *Supervisor) planned(ctx actor.Context, m *planMade) {
	if m.err != nil {
		s.stageFailed(ctx, job.StageSearch, Final{m.err})
		return
	}
	if s.commit(ctx, journal.Event{Kind: journal.Planned, Plan: &m.plan}) {
		s.startAgent(ctx)
	}
}

func (s *Supervisor) startAgent(ctx actor.Context) {
	s.agent = ctx.Spawn(SearchAgentProps(s.cfg.Work, s.slots(), s.cfg.Hooks))
	ctx.Watch(s.agent)
}

// slots is how many trials run side by side: as planned, or more where workers came.
func (s *Supervisor) slots() int { return max(s.state.Plan.Slots, len(s.workers)-len(s.gone)) }

// history answers an agent that (re)started.
func (s *Supervisor) history(ctx actor.Context) {
	if s.over || s.agent == nil {
		return
	}
	s.unanswered(ctx, errors.New("the search has started anew meanwhile; say it again"))
	h := &History{Plan: *s.state.Planned, Outcomes: map[int]search.Outcome{}, Closed: s.state.SearchClosed}
	h.Decisions, h.Orders = append(h.Decisions, s.state.Decisions...), append(h.Orders, s.state.Orders...)
	for seq, r := range s.state.Outcomes {
		h.Outcomes[seq] = r.Outcome(&s.state.Spec)
	}
	ctx.Send(s.agent, h)
}

// decide commits a decision and starts it. One that is committed, running or
// over already is not started again.
func (s *Supervisor) decide(ctx actor.Context, d search.Decision) {
	if s.over || s.machine.Status(job.StageSearch) != job.Running || d.Seq > len(s.state.Decisions) {
		return
	}
	if d.Seq == len(s.state.Decisions) && !s.commit(ctx, journal.Event{Kind: journal.Decided, Decision: &d}) {
		return
	}
	if _, over := s.state.Outcomes[d.Seq]; over || s.trials[d.Seq] != nil {
		return
	}
	for _, w := range s.waiting {
		if w.Seq == d.Seq {
			return
		}
	}
	if s.state.StoppedByUser(d.Trial) { // before the last restart
		s.stopped(ctx, d)
		return
	}
	s.waiting = append(s.waiting, d)
	s.dispatch(ctx)
}

// dispatch starts waiting decisions on free workers.
func (s *Supervisor) dispatch(ctx actor.Context) {
	for len(s.waiting) > 0 && len(s.free) > 0 {
		d := s.waiting[0]
		s.waiting = s.waiting[1:]
		w := s.free[0]
		s.free = s.free[1:]
		s.startTrial(ctx, d.Seq, &running{d: d, workers: []int{w}, attempt: s.state.Retries[d.Seq] + 1})
	}
}

func (s *Supervisor) startTrial(ctx actor.Context, seq int, r *running) {
	var d *search.Decision
	if seq != finalSeq {
		d = &r.d
	}
	task, err := s.cfg.Work.Task(*s.state, d)
	s.trials[seq] = r
	if err != nil {
		s.trialEnded(ctx, &TrialEnded{Seq: seq, Err: Final{err}})
		return
	}
	pids := make([]*actor.PID, len(r.workers))
	for i, w := range r.workers {
		pids[i] = s.workers[w]
	}
	r.pid = ctx.Spawn(TrialProps(seq, task, pids, s.cfg.TrialConfig))
	ctx.Watch(r.pid)
}

// trialEnded commits how a task ended, or starts another attempt.
func (s *Supervisor) trialEnded(ctx actor.Context, m *TrialEnded) {
	r := s.trials[m.Seq]
	if r == nil || s.over {
		return
	}
	delete(s.trials, m.Seq)
	if r.pid != nil {
		ctx.Unwatch(r.pid)
		ctx.Stop(r.pid)
	}
	if Blameless(m.Err) {
		// Nothing is committed: resume goes on with the trial.
		s.end(ctx, fmt.Errorf("trial %s: %w", r.d.Trial, m.Err), false)
		return
	}
	stopped := m.Seq != finalSeq && s.state.StoppedByUser(r.d.Trial)
	if m.Err != nil && !stopped && (m.Gone || slices.ContainsFunc(r.workers, func(w int) bool { return s.gone[w] })) {
		s.again(ctx, m.Seq, r)
		return
	}
	rep := &journal.TrialReport{
		Trial: r.d.Trial, Seq: m.Seq, Attempt: r.attempt, State: m.Report.State, Bits: m.Report.Bits, Params: m.Report.Params, PerSecond: m.Report.PerSecond,
		Stopped: m.Report.Stopped, Cost: m.Report.Cost, Averaging: m.Report.Averaging, Soup: m.Report.Soup,
	}
	switch {
	case stopped: // however it ended meanwhile
		rep.Stopped = search.StoppedByUser
		if m.Err != nil || math.IsNaN(rep.Bits) {
			rep.Bits = 0
		}
	case m.Err != nil:
		rep.Failed, rep.Err = true, m.Err.Error()
		var final Final
		if retryable(m.Err) && !errors.As(m.Err, &final) && r.attempt <= s.state.Spec.Retries {
			if s.commit(ctx, journal.Event{Kind: journal.TrialRetried, Trial: rep}) {
				s.startTrial(ctx, m.Seq, &running{d: r.d, workers: r.workers, attempt: r.attempt + 1})
			}
			return
		}
	}
	s.release(r.workers)
	if m.Seq == finalSeq {
		s.finalEnded(ctx, rep)
		return
	}
	if rep.Failed {
		rep.Bits = 0
	} else if math.IsNaN(rep.Bits) {
		rep.Failed, rep.Err, rep.Bits = true, "the score is not a number", 0
	}
	if !s.commit(ctx, journal.Event{Kind: journal.TrialEnded, Trial: rep}) {
		return
	}
	if s.agent != nil {
		ctx.Send(s.agent, &Outcome{Seq: m.Seq, Outcome: rep.Outcome(&s.state.Spec)})
	}
	s.dispatch(ctx)
}

// release lets workers take other work, but for those that are gone.
func (s *Supervisor) release(workers []int) {
	for _, w := range workers {
		if !s.gone[w] {
			s.free = append(s.free, w)
		}
	}
}

// again starts a trial anew whose worker is gone: no fault of its own. It goes on
// from its checkpoint, on another device.
func (s *Supervisor) again(ctx actor.Context, seq int, r *running) {
	s.release(r.workers)
	if seq != finalSeq {
		s.waiting = append(s.waiting, r.d)
		s.dispatch(ctx)
		return
	}
	s.trainOnAll(ctx, r.attempt)
}

// enlist takes workers of another node in: for the trials that wait, or into the final
// training's ring.
func (s *Supervisor) enlist(ctx actor.Context, m *Enlist) {
	if s.over {
		return
	}
	came, lost := false, false
	for _, w := range m.Workers {
		if i := slices.IndexFunc(s.workers, w.Equal); i >= 0 {
			lost = lost || s.gone[i]
			continue // said before
		}
		s.extra[len(s.workers)] = !m.Asked
		s.free = append(s.free, len(s.workers))
		s.workers = append(s.workers, w)
		ctx.Watch(w)
		came = true
	}
	if m.From != nil {
		ctx.Send(m.From, &Enlisted{Lost: lost})
	}
	if !came {
		return
	}
	if s.agent != nil {
		ctx.Send(s.agent, &Widen{Slots: s.slots()})
	}
	s.dispatch(ctx)
	if s.idle > 0 {
		s.trainOnAll(ctx, s.idle)
	}
	s.grow(ctx)
}

// grow offers free workers to the final training.
func (s *Supervisor) grow(ctx actor.Context) {
	r := s.trials[finalSeq]
	if r == nil || r.pid == nil || len(s.free) == 0 || s.settled {
		return
	}
	var more []*actor.PID
	for _, w := range s.free {
		more, r.workers = append(more, s.workers[w]), append(slices.Clone(r.workers), w)
	}
	s.free = nil
	ctx.Send(r.pid, &Grow{Workers: more})
}

// returned takes back what a training is no faster with, and offers it no more.
func (s *Supervisor) returned(ctx actor.Context, m *Returned) {
	r := s.trials[m.Seq]
	if r == nil {
		return
	}
	var back []int
	r.workers = slices.DeleteFunc(slices.Clone(r.workers), func(w int) bool {
		if !slices.ContainsFunc(m.Workers, s.workers[w].Equal) {
			return false
		}
		back = append(back, w)
		return true
	})
	s.settled = true
	if s.cfg.Events.Notice != nil {
		s.cfg.Events.Notice(fmt.Sprintf("the final training lets %d devices of other nodes go: with them it made %.0f tokens/s, and %.0f without", len(back), m.With, m.Without))
	}
	s.release(back)
	s.dispatch(ctx)
}

// workerGone takes a worker out that will not come back. Without any the job
// ends with its state kept.
func (s *Supervisor) workerGone(ctx actor.Context, w int) {
	s.gone[w] = true
	s.free = slices.DeleteFunc(s.free, func(f int) bool { return f == w })
	if len(s.gone) == len(s.workers) {
		s.end(ctx, errNoDevice, false)
	}
}

// errNoDevice ends a job that has nothing left to compute on.
var errNoDevice = errors.New("no device is left to compute on: see autoglm devices; resume goes on once one is well")

// terminated hears of children and workers that died for good.
func (s *Supervisor) terminated(ctx actor.Context, who *actor.PID) {
	if s.over {
		return
	}
	if w := slices.IndexFunc(s.workers, who.Equal); w >= 0 {
		s.workerGone(ctx, w)
		return
	}
	if s.agent != nil && who.Equal(s.agent) {
		s.agent = nil
		s.step(ctx, job.Event{Kind: job.StageFailed, Stage: job.StageSearch, Err: "the search failed again and again"})
		return
	}
	for seq, r := range s.trials {
		if r.pid != nil && who.Equal(r.pid) {
			r.pid = nil
			s.trialEnded(ctx, &TrialEnded{Seq: seq, Err: errors.New("the trial's actor failed again and again")})
			return
		}
	}
}

func (s *Supervisor) searchEnded(ctx actor.Context, err error) {
	if s.machine.Status(job.StageSearch) != job.Running {
		return
	}
	if s.agent != nil {
		ctx.Unwatch(s.agent)
		ctx.Stop(s.agent)
		s.agent = nil
	}
	if err == nil {
		if lb := s.state.Leaderboard(""); lb.Choice() == nil {
			err = Final{fmt.Errorf("none of the %d trials succeeded%s", len(lb.Trials), lastReason(lb))}
		}
	}
	if err != nil {
		s.stageFailed(ctx, job.StageSearch, err)
		return
	}
	s.stageDone(ctx, job.StageSearch)
}

func lastReason(lb journal.Leaderboard) string {
	for _, e := range lb.Trials {
		if e.Reason != "" {
			return "; one of them: " + e.Reason
		}
	}
	return ""
}

// startFinal trains the winner to the end, on all workers, once the journal says what it
// is trained as.
func (s *Supervisor) startFinal(ctx actor.Context) {
	if s.state.Winner != "" {
		s.bringFinal(ctx)
		return
	}
	lb := s.state.Leaderboard("")
	best := lb.Choice()
	if len(best.Misses) > 0 && s.cfg.Events.Notice != nil {
		s.cfg.Events.Notice(fmt.Sprintf("no trial holds the constraints; %s, which misses them least, is trained to the end: %s", best.ID, strings.Join(best.Misses, ", ")))
	}
	st := s.state.Clone()
	m := &finalSized{winner: journal.TrialReport{Trial: best.ID, Seq: finalSeq, Bits: *best.Bits}}
	s.background(ctx, job.StageTrain, func(run context.Context) (err error) {
		m.sizing, err = s.cfg.Work.Size(run, st, best.ID)
		return err
	}, func(err error) any {
		m.err = err
		return m
	})
}

func (s *Supervisor) finalSized(ctx actor.Context, m *finalSized) {
	if s.over || s.machine.Status(job.StageTrain) != job.Running || s.state.Winner != "" {
		return
	}
	if m.err != nil {
		s.stageFailed(ctx, job.StageTrain, m.err)
		return
	}
	if s.commit(ctx, journal.Event{Kind: journal.FinalStarted, Trial: &m.winner, Sizing: m.sizing}) {
		s.bringFinal(ctx)
	}
}

// bringFinal has brought here what the final training starts from.
func (s *Supervisor) bringFinal(ctx actor.Context) {
	st := s.state.Clone()
	s.background(ctx, job.StageTrain, func(run context.Context) error {
		return s.cfg.Work.Stage(run, job.StageTrain, st)
	}, func(err error) any { return &finalReady{err} })
}

// finalReady begins the final training: what it starts from is here.
func (s *Supervisor) finalReady(ctx actor.Context, m *finalReady) {
	if s.over || s.machine.Status(job.StageTrain) != job.Running {
		return
	}
	if m.err != nil {
		s.stageFailed(ctx, job.StageTrain, m.err)
		return
	}
	s.trainOnAll(ctx, s.state.Retries[finalSeq]+1)
}

// trainOnAll starts the final training on all workers that the job asked for, or any
// where none of them is there; the others are offered to it. Where there is none at
// all, the next one that enlists starts it.
func (s *Supervisor) trainOnAll(ctx actor.Context, attempt int) {
	s.settled = false
	if len(s.free) == 0 {
		s.idle = attempt
		return
	}
	slices.Sort(s.free)
	first := slices.DeleteFunc(slices.Clone(s.free), func(w int) bool { return s.extra[w] })
	if len(first) == 0 {
		first = slices.Clone(s.free)
	}
	s.free = slices.DeleteFunc(s.free, func(w int) bool { return slices.Contains(first, w) })
	s.idle = 0
	s.startTrial(ctx, finalSeq, &running{d: search.Decision{Seq: finalSeq, Trial: "final"}, workers: first, attempt: attempt})
	s.grow(ctx)
}

func (s *Supervisor) finalEnded(ctx actor.Context, rep *journal.TrialReport) {
	if rep.Failed {
		s.step(ctx, job.Event{Kind: job.StageFailed, Stage: job.StageTrain, Err: rep.Err, Final: true})
		return
	}
	if s.commit(ctx, journal.Event{Kind: journal.FinalEnded, Trial: rep}) {
		s.stageDone(ctx, job.StageTrain)
	}
}
