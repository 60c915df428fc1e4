package search

import (
	"fmt"
	"math"
	"slices"
)

// ASHAConfig configures asynchronous successive halving.
type ASHAConfig struct {
	Trials    int       // started at most
	Resources []float64 // cumulative resource of each rung, rising
	Eta       int       // one trial of so many goes on
	Budget    float64   // resource that all trials may take together; 0 is no bound
	// Progressive begins with two rungs, and opens another one only once the two
	// highest disagree about the order of their trials (PASHA, Bohdal et al. 2023).
	Progressive bool
}

// ASHA is asynchronous successive halving (Li et al., MLSys 2020) in its promotion
// form: from the top rung down the best trial that was not promoted yet and is among
// the best ⌊n/eta⌋ of the n that reached its rung goes on from its checkpoint; where
// there is none a new trial starts. Nobody waits for a rung to fill. A trial that is
// passed over is paused: it goes on later if its rung grows enough. Since trials that
// come later may displace those that were promoted, more go on than in a synchronous
// bracket; Budget bounds what they take together, promotions before starts.
type ASHA struct {
	cfg     ASHAConfig
	begun   int
	running int
	spent   float64
	rungs   []rung
	open    int // rungs below this one may be trained to
}

type rung struct {
	entries  []entry // in order
	promoted map[string]bool
}

// NewASHA makes one. It panics unless there are rungs and Eta is at least 2.
func NewASHA(c ASHAConfig) *ASHA {
	if len(c.Resources) == 0 || c.Eta < 2 {
		panic(fmt.Sprintf("search: ASHA with %d rungs and eta %d", len(c.Resources), c.Eta))
	}
	a := &ASHA{cfg: c, rungs: make([]rung, len(c.Resources)), open: len(c.Resources)}
	for i := range a.rungs {
		a.rungs[i].promoted = map[string]bool{}
	}
	if c.Progressive {
		a.open = min(a.open, 2)
	}
	return a
}

func (a *ASHA) affords(cost float64) bool {
	return a.cfg.Budget <= 0 || a.spent+cost <= a.cfg.Budget*(1+1e-9)
}

// candidate is the highest rung with a trial to promote, and the trial.
func (a *ASHA) candidate() (int, entry, bool) {
	for r := a.open - 2; r >= 0; r-- {
		if !a.affords(a.cfg.Resources[r+1] - a.cfg.Resources[r]) {
			continue
		}
		g := a.rungs[r]
		for _, e := range g.entries[:len(g.entries)/a.cfg.Eta] {
			if !g.promoted[e.trial] && !e.failed() {
				return r, e, true
			}
		}
	}
	return 0, entry{}, false
}

func (a *ASHA) mayStart() bool { return a.begun < a.cfg.Trials && a.affords(a.cfg.Resources[0]) }

func (a *ASHA) done() bool {
	if a.running > 0 || a.mayStart() {
		return false
	}
	_, _, ok := a.candidate()
	return !ok
}

func (a *ASHA) next() (Decision, bool) {
	if r, e, ok := a.candidate(); ok {
		g := a.rungs[r]
		g.promoted[e.trial] = true
		d := Decision{
			Action: Promote, Trial: e.trial, Rung: r + 1, From: a.cfg.Resources[r], Resource: a.cfg.Resources[r+1],
			Reason: fmt.Sprintf("place %d of %d at rung %d with %.4f", slices.IndexFunc(g.entries, func(o entry) bool { return o.trial == e.trial })+1, len(g.entries), r, e.score),
		}
		a.begin(d)
		return d, true
	}
	if !a.mayStart() {
		return Decision{}, false
	}
	return Decision{Action: Start, Resource: a.cfg.Resources[0], Reason: fmt.Sprintf("trial %d of at most %d", a.begun+1, a.cfg.Trials)}, true
}

func (a *ASHA) begin(d Decision) {
	a.running++
	a.spent += d.Resource - d.From
}

func (a *ASHA) started(d Decision) {
	a.begun++
	a.begin(d)
}

func (a *ASHA) stopStarting() { a.cfg.Trials = a.begun }

func (a *ASHA) report(d Decision, o Outcome) {
	a.running--
	g := &a.rungs[d.Rung]
	g.entries = inserted(g.entries, entryOf(d, o))
	if d.Rung == a.open-1 && a.open < len(a.rungs) && a.unsettled() {
		a.open++
	}
}

func (a *ASHA) extend(brackets []Bracket) {
	for _, b := range brackets {
		a.cfg.Trials += b.Trials
		if a.cfg.Budget > 0 {
			a.cfg.Budget += b.Cost()
		}
	}
}

// paused is the rung at which a trial waits to be promoted, and its place there; −1
// where it does not.
func (a *ASHA) paused(trial string) (rung, place int) {
	for r := len(a.rungs) - 2; r >= 0; r-- {
		g := a.rungs[r]
		if i := slices.IndexFunc(g.entries, func(e entry) bool { return e.trial == trial }); i >= 0 {
			if g.promoted[trial] || g.entries[i].failed() {
				break
			}
			return r, i
		}
	}
	return -1, -1
}

func (a *ASHA) waits(trial string) bool {
	r, _ := a.paused(trial)
	return r >= 0
}

func (a *ASHA) starts() int {
	if !a.mayStart() {
		return 0
	}
	return a.cfg.Trials - a.begun
}

func (a *ASHA) drop(trial string) {
	r, i := a.paused(trial)
	if r < 0 {
		return
	}
	g := &a.rungs[r]
	g.entries = inserted(slices.Delete(g.entries, i, i+1), entry{trial: trial, score: math.Inf(1)})
}

// unsettled tells whether the two highest rungs rank the trials of the highest one
// differently: PASHA's soft ranking, in which trials within ε of each other are in
// any order.
func (a *ASHA) unsettled() bool {
	top, below := a.rungs[a.open-1].entries, a.rungs[a.open-2].entries
	var common []entry // of below, in its order
	for _, e := range below {
		if slices.ContainsFunc(top, func(t entry) bool { return t.trial == e.trial }) {
			common = append(common, e)
		}
	}
	if len(common) < 2 {
		return false
	}
	eps := a.epsilon()
	for i, t := range top {
		if e := common[i]; e.trial != t.trial {
			// t's place below: its neighbours there within ε could stand in its place.
			j := slices.IndexFunc(common, func(c entry) bool { return c.trial == t.trial })
			if !(math.Abs(common[j].score-e.score) <= eps) {
				return true
			}
		}
	}
	return false
}

// epsilon is the noise of the ranking: the 90th percentile of the distances between
// trials whose curves over the rungs crossed twice.
func (a *ASHA) epsilon() float64 {
	curves := map[string][]float64{}
	var order []string
	for _, g := range a.rungs[:a.open] {
		for _, e := range g.entries {
			if len(curves[e.trial]) == 0 {
				order = append(order, e.trial)
			}
			curves[e.trial] = append(curves[e.trial], e.score)
		}
	}
	slices.Sort(order)
	var gaps []float64
	for i, x := range order {
		for _, y := range order[:i] {
			gaps = append(gaps, crossings(curves[x], curves[y])...)
		}
	}
	if len(gaps) == 0 {
		return 0
	}
	slices.Sort(gaps)
	return quantile(gaps, 0.9)
}

// crossings are the distances between two curves, where they crossed at least twice.
func crossings(x, y []float64) []float64 {
	var gaps []float64
	times, last := 0, 0
	for i := range min(len(x), len(y)) {
		d := x[i] - y[i]
		if math.IsNaN(d) || math.IsInf(d, 0) {
			return nil
		}
		gaps = append(gaps, math.Abs(d))
		s := 0
		switch {
		case d > 0:
			s = 1
		case d < 0:
			s = -1
		}
		if s != 0 && last != 0 && s != last {
			times++
		}
		if s != 0 {
			last = s
		}
	}
	if times < 2 {
		return nil
	}
	return gaps
}

// quantile of sorted numbers, by linear interpolation.
func quantile(x []float64, q float64) float64 {
	at := q * float64(len(x)-1)
	i := int(at)
	if i+1 >= len(x) {
		return x[len(x)-1]
	}
	return x[i] + (at-float64(i))*(x[i+1]-x[i])
}
