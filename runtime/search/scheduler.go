package search

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// Scheduler rations trials: it says when to start another, which of them go on and
// how far. Implementations are state machines without clock or randomness: the same
// calls give the same answers. It is owned by the Search that it was given to.
type Scheduler interface {
	// next returns a decision without a trial's configuration, and for a start or a fork
	// without the trial; false when reports must come first or all is done.
	next() (Decision, bool)
	// started tells that the start or fork that next returned was given a trial.
	started(d Decision)
	// stopStarting tells that there are no more configurations to start with.
	stopStarting()
	// report tells how a decision ended; Score is +Inf when it failed.
	report(d Decision, o Outcome)
	// done tells that nothing is left to decide, whatever is reported.
	done() bool
}

// Schedulers lists what Plan.Scheduler may say. auto and hyperband are Hyperband, auto
// with the brackets that suit the budget, or asha where these would leave slots idle; sha is one bracket of it; asha and pasha are
// asynchronous; pbt trains a population, whose worst go on from its best; the others train every trial to the full resource, but for those that
// their rule (see Rule) stops before.
func Schedulers() []string {
	return []string{"auto", "hyperband", "sha", "asha", "pasha", "pbt", "median", "wilcoxon", "curve", "none"}
}

// AboutScheduler says in a few words what a scheduler does; "" of one that is not known.
func AboutScheduler(name string) string {
	return map[string]string{
		"auto":      "Hyperband with the brackets that suit the budget; a trial whose learning curve foretells that it can't win is stopped",
		"hyperband": "Hyperband: the best third of a rung goes on to the next",
		"sha":       "successive halving: the best third of a rung goes on to the next",
		"asha":      "asynchronous halving: whatever is among the best quarter of a rung so far goes on at once",
		"pasha":     "asynchronous halving whose rungs grow only while the order of the best still changes",
		"pbt":       "a population: its worst go on from copies of its best, with other settings",
		"median":    "whole trainings; one below the median of the others at its step is stopped",
		"wilcoxon":  "whole trainings; one that is worse by Wilcoxon's test is stopped",
		"curve":     "whole trainings; one whose learning curve foretells that it can't win is stopped",
		"none":      "whole trainings",
	}[name]
}

// NewScheduler makes the scheduler of a plan.
func NewScheduler(p Plan) (Scheduler, error) {
	switch p.Scheduler {
	case "auto":
		return Stopping(NewHyperband(p.Brackets), CurveRule, p.Brackets, 1-p.Cool), nil
	case "", "hyperband", "sha", "none":
		return NewHyperband(p.Brackets), nil
	case "median", "wilcoxon", "curve":
		return Stopping(NewHyperband(p.Brackets), RuleKind(p.Scheduler), p.Brackets, 1-p.Cool), nil
	case "asha", "pasha", "pbt":
		if len(p.Brackets) != 1 {
			return nil, fmt.Errorf("scheduler %s: the plan has %d brackets, it takes one", p.Scheduler, len(p.Brackets))
		}
		b := p.Brackets[0]
		if p.Scheduler == "pbt" {
			return NewPBT(b.Trials, b.Resources), nil
		}
		c := ASHAConfig{Trials: b.Trials, Resources: b.Resources, Eta: ashaEta, Budget: b.Cost(), Progressive: p.Scheduler == "pasha"}
		return NewASHA(c), nil
	}
	return nil, fmt.Errorf("unknown scheduler %q; there are %s", p.Scheduler, strings.Join(Schedulers(), ", "))
}

// entry is a trial at a rung.
type entry struct {
	trial    string
	score    float64   // +Inf when it failed
	scores   []float64 // of several objectives; nil for one
	violated float64   // by how much constraints are missed in all
}

func entryOf(d Decision, o Outcome) entry {
	e := entry{trial: d.Trial, score: o.Score, violated: Result{Violations: o.Violations}.violation()}
	if len(o.Scores) > 1 {
		e.scores = o.Scores
	}
	return e
}

// ahead orders a rung of one objective: those that hold the constraints first and
// failures last, then the lower score, ties by trial.
func ahead(a, b entry) int {
	if a.failed() != b.failed() {
		if a.failed() {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(a.violated, b.violated), cmp.Compare(a.score, b.score), cmp.Compare(a.trial, b.trial))
}

// order sorts a rung, best first: of several objectives those that hold the constraints
// by fronts, of a front the ends and then those that lie farthest from others (as NSGA-II
// ranks).
func order(rung []entry) {
	slices.SortStableFunc(rung, ahead)
	end := slices.IndexFunc(rung, func(e entry) bool { return e.failed() || e.violated > 0 })
	if end < 0 {
		end = len(rung)
	}
	if end == 0 || rung[0].scores == nil {
		return
	}
	good := slices.Clone(rung[:end])
	points := make([][]float64, end)
	for i, e := range good {
		points[i] = e.scores
	}
	rung = rung[:0]
	for _, front := range fronts(points) {
		of := make([][]float64, len(front))
		for i, at := range front {
			of[i] = points[at]
		}
		for _, i := range leastCrowded(of, len(of)) {
			rung = append(rung, good[front[i]])
		}
	}
}

// inserted puts an entry into a rung that is in order.
func inserted(rung []entry, e entry) []entry {
	if e.scores == nil {
		at, _ := slices.BinarySearchFunc(rung, e, ahead)
		return slices.Insert(rung, at, e)
	}
	rung = append(rung, e)
	order(rung)
	return rung
}

// beats tells whether an entry that stands before another in their rung is better, not
// its equal.
func (e entry) beats(o entry) bool {
	if e.failed() || o.failed() {
		return !e.failed()
	}
	return e.violated < o.violated || e.score < o.score || o.scores != nil
}

func (e entry) failed() bool { return math.IsInf(e.score, 1) || math.IsNaN(e.score) }
