package search

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// Action is what a decision asks for.
type Action string

// Actions.
const (
	Start   Action = "start"   // a new trial, up to Resource
	Promote Action = "promote" // a known trial goes on from its checkpoint, up to Resource
	Fork    Action = "fork"    // a new trial goes on from Inherit's checkpoint at From, up to Resource
)

// Decision is one piece of work. Seq numbers them from 0.
type Decision struct {
	Seq      int          `json:"seq" msgpack:"seq"`
	Action   Action       `json:"action" msgpack:"action"`
	Trial    string       `json:"trial" msgpack:"trial"`
	Config   space.Config `json:"config,omitempty" msgpack:"config"`
	Bracket  int          `json:"bracket" msgpack:"bracket"`
	Rung     int          `json:"rung" msgpack:"rung"`
	From     float64      `json:"from" msgpack:"from"`                             // resource already spent
	Resource float64      `json:"resource" msgpack:"resource"`                     // train up to here
	Reason   string       `json:"reason" msgpack:"reason"`                         // why this one, in words
	Inherit  string       `json:"inherit,omitempty" msgpack:"inherit,omitempty"`   // of a start: the trial whose last checkpoint it begins from, see Lineage; of a fork: see PBT
	Replaces string       `json:"replaces,omitempty" msgpack:"replaces,omitempty"` // of a fork: the trial whose place it takes
	// Stop says when the trial ends before Resource; nil is never.
	Stop *Rule `json:"stop,omitempty" msgpack:"stop"`
	// Where the search was made wider than its plan: the slots, and how many results,
	// in the order of their decisions, this one was made from.
	Slots int `json:"slots,omitempty" msgpack:"slots"`
	Told  int `json:"told,omitempty" msgpack:"told"`
}

// Outcome is how a decision ended.
type Outcome struct {
	Score  float64 `json:"score" msgpack:"score"`
	Failed bool    `json:"failed,omitempty" msgpack:"failed"`
	// Scores and Violations are as a Result's: of several objectives, Score first, and
	// of measured constraints.
	Scores     []float64 `json:"scores,omitempty" msgpack:"scores"`
	Violations []float64 `json:"violations,omitempty" msgpack:"violations"`
	// Curve is the trial's so far, where its decision has a rule.
	Curve []Point `json:"curve,omitempty" msgpack:"curve"`
	// Stopped tells that the rule or a user ended it, and Why: Score is the curve's last,
	// NaN where it has none, and it is not promoted.
	Stopped bool   `json:"stopped,omitempty" msgpack:"stopped"`
	Why     string `json:"why,omitempty" msgpack:"why"`
}

// reached is the resource that a decision was trained to.
func (o Outcome) reached(d Decision) float64 {
	if o.Stopped && len(o.Curve) > 0 {
		return o.Curve[len(o.Curve)-1].Resource
	}
	return d.Resource
}

// Ranked is a trial's standing.
type Ranked struct {
	Trial    string
	Config   space.Config
	Rung     int
	Resource float64
	Score    float64
	Violated float64 // by how much its constraints are missed in all; 0 where they hold
}

// Search joins a strategy and a scheduler. It is a plain value, owned by one
// goroutine.
type Search struct {
	strategy  Strategy
	scheduler Scheduler
	plan      int // slots at the beginning
	slots     int
	widened   bool       // decisions say what they were made from
	recorded  []Decision // of an earlier run, made with the slots that they name
	decisions []Decision
	outcomes  []*Outcome // by Seq; nil while it runs
	told      int        // Invariant: outcomes[:told] were told, in order
	trials    map[string]*Ranked
	order     []string
	closed    bool
	finished  bool // the scheduler has nothing more to decide

	orders    []Order
	obeyed    int             // Invariant: orders[:obeyed] have taken effect
	queue     []space.Config  // that users enqueued and that have not started
	stopped   map[string]bool // trials that users stopped
	exhausted bool            // the space holds nothing that was not tried
}

// New starts a search that keeps at most slots decisions unfinished.
func New(strategy Strategy, scheduler Scheduler, slots int) *Search {
	slots = max(slots, 1)
	return &Search{strategy: strategy, scheduler: scheduler, plan: slots, slots: slots, trials: map[string]*Ranked{}, stopped: map[string]bool{}}
}

// Widen lets so many decisions be unfinished from the next one on. Decisions then
// say what they were made from, so that Repeat makes them again.
func (s *Search) Widen(slots int) { s.slots, s.widened = max(slots, 1), true }

// Repeat has the first decisions made as those of an earlier run were, and its orders
// carried out where they were. Call it before Next.
func (s *Search) Repeat(decisions []Decision, orders []Order) {
	s.recorded, s.orders = decisions, orders
}

// terms are how many decisions may be unfinished once the k-th is made, and how many
// results must be told before.
func (s *Search) terms(k int) (slots, told int) {
	slots = s.slots
	if k < len(s.recorded) {
		slots, told = cmp.Or(s.recorded[k].Slots, s.plan), s.recorded[k].Told
	}
	return slots, max(told, k-slots+1)
}

// Next returns the decisions to start now; none means wait for a Report, or
// that the search is done.
func (s *Search) Next() ([]Decision, error) {
	var out []Decision
	for !s.closed {
		running := 0
		for _, o := range s.outcomes {
			if o == nil {
				running++
			}
		}
		k := len(s.decisions)
		if !s.catchUp(k) {
			return out, nil
		}
		slots, told := s.terms(k)
		if running >= slots || !s.tell(told) {
			return out, nil
		}
		var d Decision
		for {
			var ok bool
			if d, ok = s.scheduler.next(); ok {
				break
			}
			if s.scheduler.done() {
				s.finished = true
				return out, nil
			}
			if s.told == k || !s.tell(s.told+1) {
				return out, nil
			}
		}
		switch d.Action {
		case Start:
			if r, ok := s.strategy.(Rationed); ok {
				r.Begin(d.Resource)
			}
			c, err := s.ask(&d)
			// Where few configurations hold the constraints, none may be found though some were.
			if (errors.Is(err, ErrExhausted) || errors.Is(err, space.ErrInfeasible)) && len(s.order) > 0 {
				s.exhausted = true
				s.scheduler.stopStarting()
				continue
			}
			if err != nil {
				return out, err
			}
			d.Config = c
			if d.Inherit = s.parent(d.Config); d.Inherit != "" {
				d.Reason += ", from the weights of " + d.Inherit
			}
			s.begin(&d)
		case Fork:
			d.Config = s.explore(d.Inherit)
			s.begin(&d)
		default:
			d.Config = s.trials[d.Trial].Config
		}
		d.Seq = k
		if s.widened || k < len(s.recorded) && s.recorded[k].Slots > 0 {
			d.Slots, d.Told = slots, s.told
		}
		s.decisions = append(s.decisions, d)
		s.outcomes = append(s.outcomes, nil)
		out = append(out, d)
	}
	return out, nil
}

// begin makes a trial of a decision.
func (s *Search) begin(d *Decision) {
	d.Trial = fmt.Sprintf("t%03d", len(s.order)+1)
	s.trials[d.Trial] = &Ranked{Trial: d.Trial, Config: d.Config, Rung: -1, Score: math.Inf(1)}
	s.order = append(s.order, d.Trial)
	s.scheduler.started(*d)
}

// ask is the configuration of the next trial: what a user enqueued, or the strategy's
// proposal.
func (s *Search) ask(d *Decision) (space.Config, error) {
	if len(s.queue) > 0 {
		c := s.queue[0]
		s.queue = s.queue[1:]
		s.strategy.(Steerable).Adopt(c)
		d.Reason = EnqueuedByUser
		return c, nil
	}
	cs, err := s.strategy.Ask(1)
	if err != nil {
		return nil, err
	}
	if r, ok := s.strategy.(Reasoned); ok {
		d.Reason = cmp.Or(r.Reason(cs[0]), d.Reason)
	}
	return cs[0], nil
}

// tell passes outcomes on, in order, until n are told; false when one of them
// is still missing.
func (s *Search) tell(n int) bool {
	for s.told < n {
		o := s.outcomes[s.told]
		if o == nil {
			return false
		}
		d, told := s.decisions[s.told], *o
		if o.Failed || math.IsNaN(o.Score) {
			told.Score, told.Scores, told.Violations = math.Inf(1), nil, nil
		}
		if !o.Stopped || !math.IsNaN(o.Score) { // else it was stopped before there was a score
			s.strategy.Tell(Result{Trial: d.Trial, Config: d.Config, Resource: o.reached(d), Score: told.Score, Scores: told.Scores, Violations: told.Violations})
		}
		if o.Stopped || s.stopped[d.Trial] {
			told.Score = math.Inf(1)
		}
		s.scheduler.report(d, told)
		s.told++
	}
	return true
}

// Report records how decision seq ended.
func (s *Search) Report(seq int, o Outcome) error {
	if seq < 0 || seq >= len(s.decisions) {
		return fmt.Errorf("search: no decision %d", seq)
	}
	if s.outcomes[seq] != nil {
		return fmt.Errorf("search: decision %d was reported before", seq)
	}
	s.outcomes[seq] = &o
	d := s.decisions[seq]
	t := s.trials[d.Trial]
	if o.Failed || o.Stopped || math.IsNaN(o.Score) {
		if t.Rung < 0 {
			t.Resource = o.reached(d)
		}
		return nil
	}
	if d.Rung >= t.Rung {
		t.Rung, t.Resource, t.Score = d.Rung, d.Resource, o.Score
		t.Violated = Result{Violations: o.Violations}.violation()
	}
	return nil
}

// Close lets no further decision out; what runs may still be reported.
func (s *Search) Close() { s.closed = true }

// Done tells whether nothing runs and Next found that nothing more will be
// decided.
func (s *Search) Done() bool {
	for _, o := range s.outcomes {
		if o == nil {
			return false
		}
	}
	return s.closed || s.finished
}

// Running lists the decisions that have no outcome yet.
func (s *Search) Running() []Decision {
	var out []Decision
	for i, o := range s.outcomes {
		if o == nil {
			out = append(out, s.decisions[i])
		}
	}
	return out
}

// Ranking lists the trials that have a score at the end of a rung, best first: those that
// hold the constraints before others, those with more resource before those with less, then
// by score, ties by trial.
func (s *Search) Ranking() []Ranked {
	var out []Ranked
	for _, id := range s.order {
		if t := s.trials[id]; t.Rung >= 0 && !math.IsInf(t.Score, 1) {
			out = append(out, *t)
		}
	}
	slices.SortStableFunc(out, func(a, b Ranked) int {
		return cmp.Or(cmp.Compare(a.Violated, b.Violated), -cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Score, b.Score), cmp.Compare(a.Trial, b.Trial))
	})
	return out
}
