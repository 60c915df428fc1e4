package search

import (
	"cmp"
	"fmt"
	"math"
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
// with the brackets that suit the budget; sha is one bracket of it; asha and pasha are
// asynchronous; pbt trains a population, whose worst go on from its best; the others train every trial to the full resource, but for those that
// their rule (see Rule) stops before.
func Schedulers() []string {
	return []string{"auto", "hyperband", "sha", "asha", "pasha", "pbt", "median", "wilcoxon", "curve", "none"}
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
		c := ASHAConfig{Trials: b.Trials, Resources: b.Resources, Eta: eta, Budget: b.Cost(), Progressive: p.Scheduler == "pasha"}
		return NewASHA(c), nil
	}
	return nil, fmt.Errorf("unknown scheduler %q; there are %s", p.Scheduler, strings.Join(Schedulers(), ", "))
}

// entry is a trial at a rung.
type entry struct {
	trial string
	score float64 // +Inf when it failed
}

// ahead orders a rung: the lower score first, ties by trial.
func ahead(a, b entry) int {
	return cmp.Or(cmp.Compare(a.score, b.score), cmp.Compare(a.trial, b.trial))
}

func (e entry) failed() bool { return math.IsInf(e.score, 1) || math.IsNaN(e.score) }
