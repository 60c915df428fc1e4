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
	// Where the plan alone does not say so, in a search that was widened or that learns as
	// results arrive: how many decisions were let be unfinished, and the decisions whose
	// results were learnt, in that order, since the decision or order before this one.
	Slots int   `json:"slots,omitempty" msgpack:"slots"`
	Heard []int `json:"heard,omitempty" msgpack:"heard"`
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
	explicit  bool       // decisions say what they were made from
	arrival   bool       // results are learnt as they arrive, not in the order of their decisions
	recorded  []Decision // of an earlier run, made from what they name
	decisions []Decision
	outcomes  []*Outcome // by Seq; nil while it runs
	news      []int      // decisions whose results are here and not learnt, in the order to learn them; neither here nor learnt is what runs
	learnt    []bool     // by Seq
	told      int        // how many are
	heard     []int      // those since the last decision or order
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
func (s *Search) Widen(slots int) { s.slots, s.explicit = max(slots, 1), true }

// ByArrival has results learnt as soon as they arrive. Without it they are learnt in the
// order of their decisions, and a decision waits for all results but those of the last
// slots − 1 before it: the same search whatever the trials take, at the price of slots that
// wait behind a long trial. Call it before Next.
func (s *Search) ByArrival() { s.arrival, s.explicit = true, true }

// Repeat has the first decisions made as those of an earlier run were, and its orders
// carried out where they were. Call it before Next.
func (s *Search) Repeat(decisions []Decision, orders []Order) {
	s.recorded, s.orders = decisions, orders
}

// terms are how many decisions may be unfinished once the k-th is made, and, of a
// decision that is repeated, what it was made from.
func (s *Search) terms(k int) (slots int, heard []int, exact bool) {
	if k < len(s.recorded) {
		d := s.recorded[k]
		return cmp.Or(d.Slots, s.plan), d.Heard, d.Slots > 0
	}
	return s.slots, nil, false
}

// prepare learns what the k-th decision is made from; false when something of it is
// missing or enough is unfinished.
func (s *Search) prepare(k int) bool {
	slots, heard, exact := s.terms(k)
	if exact {
		return s.learnThese(heard)
	}
	if s.arrival {
		for s.learnNext() {
		}
	}
	if k-s.told-len(s.news) >= slots {
		return false
	}
	for s.told < k-slots+1 {
		if !s.learnNext() {
			return false
		}
	}
	return true
}

// Next returns the decisions to start now; none means wait for a Report, or
// that the search is done.
func (s *Search) Next() ([]Decision, error) {
	var out []Decision
	for !s.closed {
		k := len(s.decisions)
		if !s.catchUp(k) || !s.prepare(k) {
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
			if !s.learnNext() {
				return out, nil
			}
		}
		switch d.Action {
		case Start:
			if k < len(s.recorded) && s.recorded[k].Action != Start { // nothing was left to start with
				s.exhausted = true
				s.scheduler.stopStarting()
				continue
			}
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
		if slots, _, exact := s.terms(k); exact || s.explicit {
			d.Slots, d.Heard = slots, s.heard
		}
		s.heard = nil
		s.decisions = append(s.decisions, d)
		s.outcomes, s.learnt = append(s.outcomes, nil), append(s.learnt, false)
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

// learnNext passes the next result on; false when there is none yet.
func (s *Search) learnNext() bool {
	if len(s.news) == 0 || !s.arrival && s.news[0] != s.told {
		return false
	}
	s.learn(s.news[0])
	return true
}

// learnThese passes on those results that were not, in that order; false when one of
// them is still missing.
func (s *Search) learnThese(seqs []int) bool {
	for _, seq := range seqs {
		switch {
		case seq < 0 || seq >= len(s.outcomes) || s.outcomes[seq] == nil:
			return false
		case !s.learnt[seq]:
			s.learn(seq)
		}
	}
	return true
}

// learn passes a result on to the strategy and the scheduler.
func (s *Search) learn(seq int) {
	d, o := s.decisions[seq], *s.outcomes[seq]
	told := o
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
	s.news = slices.DeleteFunc(s.news, func(n int) bool { return n == seq })
	s.learnt[seq] = true
	s.told++
	s.heard = append(s.heard, seq)
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
	s.news = append(s.news, seq)
	if !s.arrival {
		slices.Sort(s.news)
	}
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
