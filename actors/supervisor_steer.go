package actors

import (
	"errors"
	"slices"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// The Supervisor's part in steering a search: an order goes to the SearchAgent, which
// gives it its place among the decisions, and comes back to be committed before those
// that are made under it.

// Why no order is taken.
var (
	errNoSearchYet = errors.New("the search has not begun yet: the job still reads its data or plans")
	errSearchOver  = errors.New("the search is over: nothing more is decided")
)

func (s *Supervisor) steer(ctx actor.Context, m *Steer) {
	from := m.From
	if from == nil {
		from = ctx.Sender()
	}
	o := m.Order
	o.Seq, o.Before, o.Heard, o.Brackets = 0, 0, nil, nil
	err := s.steerable(o)
	if err == nil && o.Kind == search.Extend {
		o, err = s.extension(o)
	}
	if err != nil {
		ctx.Send(from, &Steered{Order: o, Err: err})
		return
	}
	s.asked = append(s.asked, from)
	ctx.Send(s.agent, &Steer{Order: o, From: from})
}

// unanswered tells those who wait for the search's answer that there will be none.
func (s *Supervisor) unanswered(ctx actor.Context, why error) {
	for _, from := range s.asked {
		ctx.Send(from, &Steered{Err: why})
	}
	s.asked = nil
}

// steerable tells why the search takes no such order now.
func (s *Supervisor) steerable(o search.Order) error {
	switch {
	case s.over || s.machine.Status(job.StageSearch) == job.Done:
		return errSearchOver
	case s.machine.Status(job.StageSearch) != job.Running || s.agent == nil:
		return errNoSearchYet
	case s.state.SearchClosed && o.Kind != search.Stop:
		return errSearchOver
	}
	return nil
}

// extension is an order to extend with what the search does in addition.
func (s *Supervisor) extension(o search.Order) (search.Order, error) {
	o, err := s.state.Plan.Extend(o)
	if err != nil {
		return o, err
	}
	after := s.state.Clone()
	then := o
	then.Seq = len(after.Orders)
	after.Apply(journal.Event{Kind: journal.Ordered, Order: &then})
	return o, after.Spec.Validate()
}

// ordered commits an order that the search has taken, tells who gave it, and stops the
// trial that it names.
func (s *Supervisor) ordered(ctx actor.Context, m *Ordered) {
	if s.over {
		return // who asked was told
	}
	err := m.Err
	if err == nil {
		err = s.steerable(m.Order)
	}
	m.Order.Seq = len(s.state.Orders)
	if err == nil && !s.commit(ctx, journal.Event{Kind: journal.Ordered, Order: &m.Order}) {
		err = errors.New("the order could not be written down, and the job ends")
	}
	s.asked = slices.DeleteFunc(s.asked, m.From.Equal)
	ctx.Send(m.From, &Steered{Order: m.Order, Err: err})
	if err != nil || m.Order.Kind != search.Stop {
		return
	}
	trial := m.Order.Trial
	if i := slices.IndexFunc(s.waiting, func(d search.Decision) bool { return d.Trial == trial }); i >= 0 {
		d := s.waiting[i]
		s.waiting = slices.Delete(slices.Clone(s.waiting), i, i+1)
		s.stopped(ctx, d)
		return
	}
	for _, r := range s.trials {
		if r.d.Trial == trial && r.pid != nil {
			ctx.Send(r.pid, &StopTrial{Why: search.StoppedByUser})
		}
	}
}

// stopped commits the end of a decision that a user has stopped and that does not run.
func (s *Supervisor) stopped(ctx actor.Context, d search.Decision) {
	rep := &journal.TrialReport{Trial: d.Trial, Seq: d.Seq, Attempt: s.state.Retries[d.Seq] + 1, Stopped: search.StoppedByUser}
	if s.commit(ctx, journal.Event{Kind: journal.TrialEnded, Trial: rep}) && s.agent != nil {
		ctx.Send(s.agent, &Outcome{Seq: d.Seq, Outcome: rep.Outcome(&s.state.Spec)})
	}
}
