package search

import (
	"fmt"
	"math"
	"slices"
)

// Point is a place on a trial's learning curve: the score of a fixed sample, taken
// while the rate was still up.
type Point struct {
	Resource float64 `json:"resource" msgpack:"resource"`
	Score    float64 `json:"score" msgpack:"score"`
}

// RuleKind names what a Rule goes by.
type RuleKind string

// Kinds of rules.
const (
	MedianRule   RuleKind = "median"   // worse than the median of the others
	WilcoxonRule RuleKind = "wilcoxon" // worse than the best at the same places, by a signed-rank test
	CurveRule    RuleKind = "curve"    // unlikely to end among those that go on
)

// Rule says when a trial stops inside its rung. It holds all that was known when its
// decision was made and is judged where the trial runs, from the trial's own curve
// alone: the same curve gives the same verdict wherever and whenever it is judged. A
// rule that has nothing to compare with stops nothing, and has the curve measured.
type Rule struct {
	Kind    RuleKind `json:"kind" msgpack:"kind"`
	From    float64  `json:"from" msgpack:"from"`       // the curve of the rung begins behind this resource
	Horizon float64  `json:"horizon" msgpack:"horizon"` // and ends here, where the rate begins to fall

	// Of median: the median of the others' running means, by resource. Of wilcoxon: the
	// best trial's curve.
	Others []Point `json:"others,omitempty" msgpack:"others"`
	// Of curve: the score that has to be beaten at the rung's end, and how much others
	// gained between the horizon and there, with its spread. Gained 0 is nothing known.
	Best   float64 `json:"best,omitempty" msgpack:"best"`
	Gained float64 `json:"gained,omitempty" msgpack:"gained"`
	Spread float64 `json:"spread,omitempty" msgpack:"spread"`
}

// Constants of the rules.
const (
	leastOthers  = 5    // trials before the median counts
	graceShare   = 0.25 // of the rung, in which median and wilcoxon stop nothing
	wilcoxonP    = 0.1  // a trial is stopped below
	curveP       = 0.05 // likewise
	leastCurve   = 4    // points before a curve is continued
	leastGains   = 3    // trials before their gain counts
	leastSpread  = 0.25 // of the gain
	sampleSpread = 0.01 // of the score: the least noise of a point
)

// Judge says why the trial with that curve stops here, or "".
func (r *Rule) Judge(curve []Point) string {
	if r == nil {
		return ""
	}
	// What came before the rung began under another rate, or while that was rising.
	curve = curve[r.begin(curve):]
	if len(curve) == 0 {
		return ""
	}
	last := curve[len(curve)-1]
	early := last.Resource < r.From+graceShare*(r.Horizon-r.From)
	switch r.Kind {
	case MedianRule:
		m, ok := interpolate(r.Others, last.Resource)
		if early || !ok {
			return ""
		}
		best := math.Inf(1)
		for _, p := range curve {
			best = min(best, p.Score)
		}
		if best > m {
			return fmt.Sprintf("its best score %.4f is worse than the median %.4f of the others' means at %.4g", best, m, last.Resource)
		}
	case WilcoxonRule:
		var diff []float64
		sum := 0.0
		for _, p := range curve {
			if o, ok := at(r.Others, p.Resource); ok {
				diff = append(diff, p.Score-o)
				sum += p.Score - o
			}
		}
		if early || len(diff) < 2 || sum <= 0 {
			return ""
		}
		if p := SignedRank(diff); p < wilcoxonP {
			return fmt.Sprintf("worse than the best at %d evaluations by %.4f in the mean, by chance with %.1f %%", len(diff), sum/float64(len(diff)), 100*p)
		}
	case CurveRule:
		if r.Gained == 0 && r.Spread == 0 {
			return ""
		}
		p, ok := endsBelow(curve, r.Horizon, r.Best+r.Gained, r.Spread)
		if ok && p < curveP {
			return fmt.Sprintf("its curve ends below %.4f with a probability of %.1f %%", r.Best, 100*p)
		}
	}
	return ""
}

// begin is the index of the rung's first point.
func (r *Rule) begin(curve []Point) int {
	i := slices.IndexFunc(curve, func(p Point) bool { return p.Resource > r.From })
	if i < 0 {
		return len(curve)
	}
	return i
}

// at is the score of the point at a resource.
func at(points []Point, resource float64) (float64, bool) {
	for _, p := range points {
		if math.Abs(p.Resource-resource) <= 1e-9*resource {
			return p.Score, true
		}
	}
	return 0, false
}

// interpolate is the score at a resource between points, which rise.
func interpolate(points []Point, resource float64) (float64, bool) {
	if v, ok := at(points, resource); ok {
		return v, true
	}
	for i, p := range points {
		if i > 0 && resource < p.Resource && resource > points[i-1].Resource {
			q := points[i-1]
			return q.Score + (p.Score-q.Score)*(resource-q.Resource)/(p.Resource-q.Resource), true
		}
	}
	return 0, false
}

// stopping adds a rule to every decision of a scheduler.
type stopping struct {
	Scheduler
	kind     RuleKind
	brackets []Bracket
	flat     float64
	rungs    map[[2]int][]measured // by bracket and rung, in the order of the reports
}

// measured is what one trial of a rung has shown.
type measured struct {
	score float64 // at the rung's end; +Inf where it did not get there
	curve []Point // of this rung
}

// Stopping has the trials of a scheduler stopped inside their rungs by a rule. A
// trial's curve is measured up to the share flat of each rung, behind which the rate
// falls. Under curve it has to end among those that brackets let go on from the rung.
func Stopping(s Scheduler, kind RuleKind, brackets []Bracket, flat float64) Scheduler {
	return &stopping{Scheduler: s, kind: kind, brackets: brackets, flat: flat, rungs: map[[2]int][]measured{}}
}

func (s *stopping) next() (Decision, bool) {
	d, ok := s.Scheduler.next()
	if ok {
		d.Stop = s.rule(d)
	}
	return d, ok
}

func (s *stopping) report(d Decision, o Outcome) {
	s.Scheduler.report(d, o)
	if entryOf(d, o).violated > 0 {
		return // what may not be is nothing to compare with
	}
	m := measured{score: o.Score}
	if d.Stop != nil {
		m.curve = o.Curve[d.Stop.begin(o.Curve):]
	}
	at := [2]int{d.Bracket, d.Rung}
	s.rungs[at] = append(s.rungs[at], m)
}

func (s *stopping) extend(brackets []Bracket) {
	s.brackets = append(slices.Clip(s.brackets), brackets...)
	s.Scheduler.(extendable).extend(brackets)
}

func (s *stopping) starts() int { return s.Scheduler.(adjustable).starts() }

func (s *stopping) drop(trial string) { s.Scheduler.(adjustable).drop(trial) }

func (s *stopping) waits(trial string) bool { return s.Scheduler.(adjustable).waits(trial) }

func (s *stopping) rule(d Decision) *Rule {
	r := &Rule{Kind: s.kind, From: s.flat * d.From, Horizon: s.flat * d.Resource}
	others := s.rungs[[2]int{d.Bracket, d.Rung}]
	switch s.kind {
	case MedianRule:
		r.Others = medians(others)
	case WilcoxonRule:
		best := measured{score: math.Inf(1)}
		for _, m := range others {
			if m.score < best.score {
				best = m
			}
		}
		r.Others = best.curve
	case CurveRule:
		r.Best, r.Gained, r.Spread = bar(others, s.keep(d))
	}
	return r
}

// keep is how many trials of a decision's rung go on: one from the last.
func (s *stopping) keep(d Decision) int {
	if d.Bracket < len(s.brackets) {
		if k := s.brackets[d.Bracket].Keep; d.Rung+1 < len(k) {
			return k[d.Rung+1]
		}
	}
	return 1
}

// medians are the medians of the running means, at each resource that enough trials
// have reached.
func medians(trials []measured) []Point {
	means := map[float64][]float64{}
	var at []float64
	for _, m := range trials {
		sum := 0.0
		for i, p := range m.curve {
			sum += p.Score
			if means[p.Resource] == nil {
				at = append(at, p.Resource)
			}
			means[p.Resource] = append(means[p.Resource], sum/float64(i+1))
		}
	}
	slices.Sort(at)
	var out []Point
	for _, x := range at {
		if v := means[x]; len(v) >= leastOthers {
			slices.Sort(v)
			out = append(out, Point{x, quantile(v, 0.5)})
		}
	}
	return out
}

// bar is the keep-th best score of a rung, and what its trials gained while the rate
// fell; zeros where too little is known.
func bar(trials []measured, keep int) (best, gained, spread float64) {
	var scores, gains []float64
	for _, m := range trials {
		if math.IsInf(m.score, 0) || math.IsNaN(m.score) || len(m.curve) == 0 {
			continue
		}
		scores = append(scores, m.score)
		gains = append(gains, m.curve[len(m.curve)-1].Score-m.score)
	}
	n := float64(len(gains))
	if len(scores) < keep || len(gains) < leastGains {
		return 0, 0, 0
	}
	slices.Sort(scores)
	sum := 0.0
	for _, g := range gains {
		sum += g
	}
	gained = sum / n
	for _, g := range gains {
		spread += (g - gained) * (g - gained)
	}
	spread = math.Sqrt(spread / (n - 1) * (1 + 1/n))
	return scores[keep-1], gained, max(spread, leastSpread*math.Abs(gained))
}
