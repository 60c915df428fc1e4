package journal

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// State is what a job's events add up to. Apply is its only writer.
type State struct {
	Spec         job.Spec
	Past         []search.Past // of earlier searches
	Active       float64
	Done         map[string]bool    // stages
	StageSeconds map[string]float64 // active time that each took
	Running      map[string]int     // stages, and which attempt it is
	Attempts     map[string]Attempt // … that failed last, of stages that are not done
	SearchBegan  float64            // active time at which the search did first
	Plan         *search.Plan
	Planned      *search.Plan // Plan, before orders extended it
	Decisions    []search.Decision
	Orders       []search.Order
	OrderedAt    []float64           // active time, by order
	Outcomes     map[int]TrialReport // by decision
	Spans        map[int]Span        // when each was made and carried out; −1 is the final training
	Retries      map[int]int         // failed attempts, by decision
	SearchClosed bool
	Winner       string         // trial that the final training continues
	Sizing       *search.Sizing // of the final training; nil is the winner as it is, without a law
	Final        *TrialReport
	Score        *train.Score
	Finished     bool
	Failed       string
	Events       int

	stageSince map[string]float64
}

// Span is a stretch of a job's active time, seconds; To is 0 before it has ended.
type Span struct{ From, To float64 }

// Attempt at a stage that failed.
type Attempt struct {
	N     int    // from 1
	Err   string //
	Again int64  // not before this Unix millisecond
}

// Clone is a copy that a goroutine may read while events are applied.
func (s *State) Clone() State {
	c := *s
	c.Done, c.StageSeconds, c.Running, c.Attempts = maps.Clone(s.Done), maps.Clone(s.StageSeconds), maps.Clone(s.Running), maps.Clone(s.Attempts)
	c.Outcomes, c.Retries, c.stageSince, c.Spans = maps.Clone(s.Outcomes), maps.Clone(s.Retries), maps.Clone(s.stageSince), maps.Clone(s.Spans)
	return c
}

// NewState is the state before the first event.
func NewState() *State {
	return &State{
		Done: map[string]bool{}, StageSeconds: map[string]float64{}, Outcomes: map[int]TrialReport{}, Retries: map[int]int{},
		Running: map[string]int{}, Attempts: map[string]Attempt{}, stageSince: map[string]float64{}, Spans: map[int]Span{},
	}
}

// Replayed is the state that a log's events add up to.
func Replayed(l Log) (*State, error) {
	s := NewState()
	return s, l.Replay(func(rec []byte) error {
		e, err := Decode(rec)
		if err == nil {
			s.Apply(e)
		}
		return err
	})
}

// Apply adds one event.
func (s *State) Apply(e Event) {
	s.Events++
	s.Active = max(s.Active, e.Active)
	switch e.Kind {
	case Created:
		if e.Spec != nil {
			s.Spec, s.Past = *e.Spec, e.Past
		}
	case Resumed:
		s.Failed = ""
		clear(s.Running)
	case StageStarted:
		s.stageSince[e.Stage] = e.Active
		s.Running[e.Stage] = e.Attempt
		if e.Stage == job.StageSearch && s.SearchBegan == 0 {
			s.SearchBegan = e.Active
		}
	case StageDone:
		s.Done[e.Stage] = true
		s.StageSeconds[e.Stage] += e.Active - s.stageSince[e.Stage]
		delete(s.Running, e.Stage)
		delete(s.Attempts, e.Stage)
	case StageFailed:
		s.StageSeconds[e.Stage] += e.Active - s.stageSince[e.Stage]
		delete(s.Running, e.Stage)
		s.Attempts[e.Stage] = Attempt{max(e.Attempt, s.Attempts[e.Stage].N+1), e.Err, e.At + int64(1000*e.RetryIn)}
	case Planned:
		s.Plan, s.Planned = e.Plan, e.Plan
	case Ordered:
		if e.Order != nil && e.Order.Seq == len(s.Orders) {
			s.Orders, s.OrderedAt = append(s.Orders, *e.Order), append(s.OrderedAt, e.Active)
			s.extend(*e.Order)
		}
	case Decided:
		if e.Decision != nil && e.Decision.Seq == len(s.Decisions) {
			s.Decisions = append(s.Decisions, *e.Decision)
			s.Spans[e.Decision.Seq] = Span{From: e.Active}
		}
	case TrialRetried:
		if e.Trial != nil {
			s.Retries[e.Trial.Seq]++
		}
	case TrialEnded:
		if e.Trial != nil {
			if _, twice := s.Outcomes[e.Trial.Seq]; !twice {
				s.Outcomes[e.Trial.Seq] = *e.Trial
				s.Spans[e.Trial.Seq] = Span{s.Spans[e.Trial.Seq].From, e.Active}
			}
		}
	case SearchClosed:
		s.SearchClosed = true
	case FinalStarted:
		if e.Trial != nil {
			s.Winner, s.Sizing = e.Trial.Trial, e.Sizing
			s.Spans[e.Trial.Seq] = Span{From: e.Active}
		}
	case FinalEnded:
		s.Final = e.Trial
		if e.Trial != nil {
			s.Spans[e.Trial.Seq] = Span{s.Spans[e.Trial.Seq].From, e.Active}
		}
	case Evaluated:
		s.Score = e.Score
	case Finished:
		s.Finished = true
	case Failed:
		s.Failed = e.Err
		clear(s.Running)
		for stage, a := range s.Attempts { // who resumes has mended something
			s.Attempts[stage] = Attempt{Err: a.Err}
		}
	}
}

// extend lets the budget and the plan grow as an order says.
func (s *State) extend(o search.Order) {
	if o.Kind != search.Extend || s.Plan == nil {
		return
	}
	p := s.Plan.Extended(o)
	s.Plan = &p
	switch b := &s.Spec.Budget; o.Unit {
	case "seconds":
		b.WallClock += job.Duration(o.Amount * float64(time.Second))
	case "trials":
		b.Trials += int(o.Amount)
	case "tokens":
		b.Tokens += int64(o.Amount)
	}
}

// StoppedByUser tells whether a user has stopped a trial.
func (s *State) StoppedByUser(trial string) bool {
	return slices.ContainsFunc(s.Orders, func(o search.Order) bool { return o.Kind == search.Stop && o.Trial == trial })
}

// Node is a stage of the job's graph and how it stands.
type Node struct {
	Stage   string     `json:"stage"`
	Step    bool       `json:"step,omitempty"` // of the user's
	Needs   []string   `json:"needs,omitempty"`
	Status  job.Status `json:"status"`
	Attempt int        `json:"attempt,omitempty"` // that runs, or failed last
	Seconds float64    `json:"seconds,omitempty"` // that finished attempts took, by the job's clock
	Err     string     `json:"err,omitempty"`     // of the last that failed
}

// Graph is the job's stages, each after what it needs.
func (s *State) Graph() []Node {
	if s.Spec.Validate() != nil {
		return nil // nothing was committed yet
	}
	var out []Node
	for _, st := range job.StagesOf(s.Spec) {
		a := s.Attempts[st.Name]
		n := Node{Stage: st.Name, Step: st.Step, Needs: st.Needs, Status: job.Waiting, Attempt: a.N, Seconds: s.StageSeconds[st.Name], Err: a.Err}
		switch at, runs := s.Running[st.Name]; {
		case s.Done[st.Name]:
			n.Status = job.Done
		case runs:
			n.Status, n.Attempt = job.Running, at
		case s.Failed != "" && a.Err != "":
			n.Status = job.Failed
		}
		out = append(out, n)
	}
	return out
}

// Entry is a trial of the leaderboard.
type Entry struct {
	ID        string       `json:"id"`
	Status    string       `json:"status"` // finished, stopped, failed, paused, running
	Score     *float64     `json:"score"`  // the objective; null before the first report
	Bits      *float64     `json:"bits_per_byte"`
	Config    space.Config `json:"config"`
	Params    int64        `json:"params"`
	Rung      int          `json:"rung"`
	Steps     int          `json:"steps"`
	Tokens    int64        `json:"tokens"`
	Seconds   float64      `json:"seconds"`
	PerSecond float64      `json:"tokens_per_s"`
	Parent    string       `json:"parent"`              // trial whose weights it began from
	ForkedAt  float64      `json:"forked_at,omitempty"` // of a fork: how far its parent had been trained, in the plan's unit
	Reason    string       `json:"reason"`
	Cost      *train.Cost  `json:"cost,omitempty"`      // of generating with it, where the job asks
	Misses    []string     `json:"misses,omitempty"`    // constraints, by what is measured, in words
	Front     bool         `json:"front,omitempty"`     // no other that holds the constraints is as good in all objectives and better in one
	Knee      bool         `json:"knee,omitempty"`      // … of these, the one between the objectives
	Valid     *float64     `json:"score_val,omitempty"` // of the final training, whose Score is on the held-out part: on text kept for choosing
}

// Leaderboard is leaderboard.json.
type Leaderboard struct {
	Job       string  `json:"job"`
	Objective string  `json:"objective"`
	Direction string  `json:"direction"`
	Trials    []Entry `json:"trials"`
	Final     *Entry  `json:"final,omitempty"` // the winner, trained to the end
	// Objectives, where the job has several, the main score first.
	Objectives []string `json:"objectives,omitempty"`
	Bounded    []string `json:"bounded,omitempty"` // by constraints on what is measured
}

// Leaderboard ranks the trials: those that hold the constraints first, then higher rungs,
// then the lower score, ties by trial; those without a score come last.
func (s *State) Leaderboard(name string) Leaderboard {
	lb := Leaderboard{Job: name, Objective: s.Spec.Objective, Direction: "minimize", Trials: []Entry{}}
	if goals := s.Spec.Goals(); len(goals) > 1 {
		lb.Objectives = goals
	}
	bounds := s.Spec.Bounds()
	for _, b := range bounds {
		lb.Bounded = append(lb.Bounded, b.Objective)
	}
	byID := map[string]*Entry{}
	var order []string
	over := map[string]bool{} // stopped inside a rung, or replaced
	for _, d := range s.Decisions {
		e := byID[d.Trial]
		if e == nil {
			e = &Entry{ID: d.Trial, Config: d.Config, Rung: -1, Params: space.Arch(d.Config).Params(), Parent: d.Inherit}
			if d.Action == search.Fork {
				e.ForkedAt = d.From
			}
			byID[d.Trial] = e
			order = append(order, d.Trial)
		}
		r, ended := s.Outcomes[d.Seq]
		e.Reason = d.Reason
		switch {
		case !ended:
			e.Status = "running"
		case r.Failed:
			e.Status, e.Reason = "failed", r.Err
		case r.Stopped != "":
			e.Status, e.Reason = "stopped", r.Stopped
			if e.Score == nil && r.Bits != 0 { // else the last rung's stands
				bits := r.Bits
				e.Score, e.Bits = &bits, &bits
			}
			over[d.Trial] = true
		default:
			e.Status = "stopped"
			if s.top(d) {
				e.Status = "finished"
			}
			bits := r.Bits
			e.Score, e.Bits, e.Rung = &bits, &bits, d.Rung
		}
		if ended && r.Cost != nil {
			e.Cost = r.Cost
			e.Misses = misses(*e, bounds)
		}
		if ended && r.State.Step > 0 {
			e.Steps, e.Tokens, e.Seconds, e.PerSecond = r.State.Step, r.State.Tokens, r.State.Seconds, r.PerSecond
		}
	}
	for _, d := range s.Decisions {
		if e := byID[d.Replaces]; e != nil {
			over[d.Replaces] = true
			if e.Status != "failed" {
				e.Reason = fmt.Sprintf("gave its place to %s, a fork of %s", d.Trial, d.Inherit)
			}
		}
	}
	for _, id := range order {
		e := byID[id]
		switch {
		case e.Status != "stopped" || over[id]:
		case s.StoppedByUser(id):
			e.Reason = search.StoppedByUser
		case s.mayGoOn(id):
			e.Status = "paused"
		}
		lb.Trials = append(lb.Trials, *e)
	}
	slices.SortStableFunc(lb.Trials, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(missedBy(a, bounds), missedBy(b, bounds)), -cmp.Compare(a.Rung, b.Rung), cmp.Compare(score(a), score(b)), cmp.Compare(a.ID, b.ID))
	})
	lb.mark()
	if s.Winner != "" {
		f := Entry{ID: "final", Status: "running", Parent: s.Winner, Reason: lb.why()}
		if w := byID[s.Winner]; w != nil {
			f.Config, f.Params, f.Cost = w.Config, w.Params, w.Cost
		}
		if g := s.Sizing.Grown(); g != nil {
			f.Config, f.Params, f.Cost = g.Config, space.Arch(g.Config).Params(), nil
			f.Reason += ", " + s.Sizing.Why
		}
		if s.Final != nil {
			bits, valid := s.Final.Bits, s.Final.Bits
			f.Valid = &valid
			if s.Score != nil {
				bits = s.Score.BitsPerByte() // on the held-out part
			}
			f.Status, f.Score, f.Bits, f.Cost = "finished", &bits, &bits, cmp.Or(s.Final.Cost, f.Cost)
			if a := s.Final.Averaging; a != nil && a.Taken {
				f.Reason += fmt.Sprintf("; the average of its parameters, by %.4f bits per byte better on text kept for choosing (noise %.4f)", a.Against-a.Bits, a.Noise)
			}
			if p := s.Final.Soup; p != nil && p.Taken {
				f.Reason += fmt.Sprintf("; the mean of the parameters of %s, by %.4f bits per byte better on text kept for choosing (noise %.4f)", strings.Join(p.Of, ", "), p.Against-p.Bits, p.Noise)
			}
			f.Steps, f.Tokens, f.Seconds, f.PerSecond = s.Final.State.Step, s.Final.State.Tokens, s.Final.State.Seconds, s.Final.PerSecond
		}
		f.Misses = misses(f, bounds)
		lb.Final = &f
	}
	return lb
}

func score(e Entry) float64 {
	if e.Score == nil {
		return math.Inf(1)
	}
	return *e.Score
}

// top tells whether a decision reached its bracket's last rung.
func (s *State) top(d search.Decision) bool {
	return s.Plan != nil && d.Bracket < len(s.Plan.Brackets) && d.Rung == len(s.Plan.Brackets[d.Bracket].Resources)-1
}

// mayGoOn tells whether the trial waits for its rung to fill.
func (s *State) mayGoOn(id string) bool {
	if s.SearchClosed || s.Done[job.StageSearch] || s.Plan == nil {
		return false
	}
	switch s.Plan.Scheduler {
	case "asha", "pasha", "pbt":
		return true // its rung never closes
	}
	last := search.Decision{Seq: -1}
	for _, d := range s.Decisions {
		if d.Trial == id {
			last = d
		}
	}
	for _, d := range s.Decisions {
		if d.Bracket > last.Bracket || d.Bracket == last.Bracket && d.Rung > last.Rung+0 && d.Seq > last.Seq && d.Action == search.Promote && d.Rung == last.Rung+1 {
			return false // the rung was closed without this trial
		}
	}
	return true
}
