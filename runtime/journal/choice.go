package journal

import (
	"math"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// Outcome is what the search of a job learns of the report.
func (r TrialReport) Outcome(s *job.Spec) search.Outcome {
	o := search.Outcome{Score: r.Bits, Failed: r.Failed, Curve: r.State.Curve, Stopped: r.Stopped != "", Why: r.Stopped}
	if o.Stopped && o.Score == 0 {
		o.Score = math.NaN()
	}
	if r.Cost == nil || r.Failed {
		return o
	}
	if goals := s.Goals(); len(goals) > 1 {
		for _, g := range goals {
			o.Scores = append(o.Scores, job.Value(g, r.Bits, *r.Cost))
		}
	}
	for _, b := range s.Bounds() {
		o.Violations = append(o.Violations, b.Over(*r.Cost))
	}
	return o
}

// misses says which of the bounds an entry misses.
func misses(e Entry, bounds []job.Bound) []string {
	var out []string
	for _, b := range bounds {
		if e.Cost != nil && b.Over(*e.Cost) > 0 {
			out = append(out, b.Miss(*e.Cost))
		}
	}
	return out
}

// Columns are what tables show beside the main score: other objectives, and what
// constraints bound.
func (b *Leaderboard) Columns() []string {
	var out []string
	for _, o := range append(slices.Clone(b.Objectives), b.Bounded...) {
		if o != job.BitsPerByte && !slices.Contains(out, o) {
			out = append(out, o)
		}
	}
	return out
}

// Points are an entry's objectives; nil before it has all of them.
func (b *Leaderboard) Points(e Entry) []float64 {
	if e.Score == nil || e.Cost == nil {
		return nil
	}
	var out []float64
	for _, o := range b.Objectives {
		out = append(out, job.Value(o, *e.Score, *e.Cost))
	}
	return out
}

// mark marks the front of the trials that hold the constraints, and its knee. A trial's
// scores are those of its last rung, so that those that got farther stand better.
func (b *Leaderboard) mark() {
	if len(b.Objectives) < 2 {
		return
	}
	var points [][]float64
	var at []int
	for i, e := range b.Trials { // those with the better main score first
		if p := b.Points(e); p != nil && len(e.Misses) == 0 && !e.barred() {
			points, at = append(points, p), append(at, i)
		}
	}
	var front [][]float64
	var of []int
	for _, i := range search.Front(points) {
		front, of = append(front, points[i]), append(of, at[i])
		b.Trials[at[i]].Front = true
	}
	if k := search.Knee(front); k >= 0 {
		b.Trials[of[k]].Knee = true
	}
}

// Mark says in a word how an entry stands among several objectives and constraints: knee,
// front, misses, or nothing.
func (e Entry) Mark() string {
	switch {
	case len(e.Misses) > 0:
		return "misses"
	case e.Knee:
		return "knee"
	case e.Front:
		return "front"
	}
	return ""
}

// Choice is the trial that the final training continues: the best of those that hold the
// constraints, of several objectives the knee of their front; where none holds them, the
// one that misses them least, with Misses. One that a user stopped is chosen where there is
// no other. Nil while there is none with a score.
func (b *Leaderboard) Choice() *Entry {
	for i := range b.Trials {
		if b.Trials[i].Knee {
			return &b.Trials[i]
		}
	}
	var best *Entry
	for i := range b.Trials {
		if e := &b.Trials[i]; e.Score != nil && (best == nil || best.barred() && !e.barred()) {
			best = e
		}
	}
	return best
}

// barred tells whether a user has stopped the trial, so that others are preferred.
func (e Entry) barred() bool { return e.Status == "stopped" && e.Reason == search.StoppedByUser }

// missedBy is by how much an entry misses the bounds in all; more than all where it has no
// score.
func missedBy(e Entry, bounds []job.Bound) float64 {
	if e.Score == nil {
		return math.Inf(1)
	}
	sum := 0.0
	for _, b := range bounds {
		if e.Cost != nil {
			sum += max(0, b.Over(*e.Cost))
		}
	}
	return sum
}

// why says what the final training continues.
func (b *Leaderboard) why() string {
	c := b.Choice()
	switch {
	case c != nil && len(c.Misses) > 0:
		return "no trial holds the constraints; the one that misses them least, trained to the end: " + strings.Join(c.Misses, ", ")
	case len(b.Objectives) > 1:
		return "the knee of the front, trained to the end"
	}
	return "the best of the search, trained to the end"
}
