package actors

import (
	"errors"
	"fmt"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/runtime/search"
)

// SearchAgent owns the search: it turns outcomes into decisions. State belongs
// to its mailbox and is rebuilt from the history after a restart.
type SearchAgent struct {
	work  Work
	slots int
	hooks Hooks

	search *search.Search
	ended  bool
}

// SearchAgentProps makes the actor.
func SearchAgentProps(work Work, slots int, hooks Hooks) *actor.Props {
	return actor.PropsFromProducer(func() actor.Actor {
		return &SearchAgent{work: work, slots: slots, hooks: hooks}
	})
}

// Receive implements actor.Actor.
func (a *SearchAgent) Receive(ctx actor.Context) {
	a.hooks.receive("searchagent", ctx.Message())
	switch m := ctx.Message().(type) {
	case *actor.Started:
		ctx.Send(ctx.Parent(), &AgentReady{})
	case *History:
		if err := a.replay(ctx, m); err != nil {
			a.end(ctx, err)
			return
		}
		a.next(ctx)
	case *Outcome:
		if a.search == nil {
			return // the history will carry it
		}
		if err := a.search.Report(m.Seq, m.Outcome); err != nil {
			a.end(ctx, err)
			return
		}
		a.next(ctx)
	case *Steer:
		a.steer(ctx, m)
	case *Widen:
		a.slots = m.Slots
		if a.search != nil {
			a.search.Widen(m.Slots)
			a.next(ctx)
		}
	case *CloseSearch:
		if a.search != nil {
			a.search.Close()
			a.next(ctx)
		}
	}
}

// replay rebuilds the search and sends what was running once more.
func (a *SearchAgent) replay(ctx actor.Context, h *History) error {
	s, err := a.work.Search(h.Plan, h.Plan.Slots)
	if err != nil {
		return Final{err}
	}
	s.Repeat(h.Decisions, h.Orders)
	if a.slots != h.Plan.Slots {
		s.Widen(a.slots)
	}
	a.search, a.ended = s, false
	reported, made := map[int]bool{}, 0
	for moved := true; moved; {
		moved = false
		if len(h.Decisions) == 0 {
			break
		}
		ds, err := s.Next()
		if err != nil {
			return Final{err}
		}
		made += len(ds)
		for _, d := range ds {
			moved = true
			if d.Seq >= len(h.Decisions) {
				// It had been decided but not committed; the next commit does it.
				ctx.Send(ctx.Parent(), &Decide{Decision: d})
				continue
			}
			if old := h.Decisions[d.Seq]; old.Trial != d.Trial || old.Config.Key() != d.Config.Key() || old.Resource != d.Resource {
				return Final{fmt.Errorf("decision %d of the journal is trial %s, this version would decide %s: build again with the version that began", d.Seq, old.Trial, d.Trial)}
			}
			if _, over := h.Outcomes[d.Seq]; !over {
				ctx.Send(ctx.Parent(), &Decide{Decision: d})
			}
		}
		for seq := range h.Decisions {
			o, over := h.Outcomes[seq]
			if over && !reported[seq] && s.Report(seq, o) == nil {
				reported[seq] = true
				moved = true
			}
		}
	}
	if made < len(h.Decisions) {
		return Final{fmt.Errorf("decision %d of the journal does not follow from what stands before it: build again with the version that began", made)}
	}
	if h.Closed {
		s.Close()
	}
	return nil
}

// steer has the search take an order. Decisions made under it follow the answer.
func (a *SearchAgent) steer(ctx actor.Context, m *Steer) {
	if a.search == nil {
		ctx.Send(ctx.Parent(), &Ordered{From: m.From, Err: errors.New("the search is just beginning; try again")})
		return
	}
	o, err := a.search.Order(m.Order)
	ctx.Send(ctx.Parent(), &Ordered{From: m.From, Order: o, Err: err})
	if err == nil {
		a.next(ctx)
	}
}

func (a *SearchAgent) next(ctx actor.Context) {
	ds, err := a.search.Next()
	for _, d := range ds {
		ctx.Send(ctx.Parent(), &Decide{Decision: d})
	}
	if err != nil {
		a.end(ctx, Final{err})
		return
	}
	if a.search.Done() {
		a.end(ctx, nil)
	}
}

func (a *SearchAgent) end(ctx actor.Context, err error) {
	if !a.ended {
		a.ended = true
		ctx.Send(ctx.Parent(), &SearchEnded{Err: err})
	}
}
