package search

import (
	"maps"
	"math"
	"slices"
)

// Trials that a scheduler stopped early are compared with those that went on by what they
// would have reached: between two neighbouring resources a line is fitted to the trials
// that reported at both, and a score at a small resource is carried up line by line to
// the largest that anything has reached. Those that went on are the better ones at the
// smaller resource, which does not bias the line: it is chosen by what stands on its
// right-hand side.

// line carries a score from a resource to the next one.
type line struct{ slope, from, to float64 }

// faith is how many trials' worth of belief stands behind a slope of 1: that all trials
// gain alike.
const faith = 4

// lines fits one for each step between resources; those that nothing has crossed carry
// scores as they are. Several objectives are not carried.
func lines(told []*observation) (resources []float64, between []line) {
	have := map[float64]bool{}
	for _, o := range told {
		for _, r := range o.reports {
			have[r.Resource] = true
		}
	}
	resources = slices.Sorted(maps.Keys(have))
	for i := range max(len(resources)-1, 0) {
		var xs, ys []float64
		for _, o := range told {
			a, ok := o.at(resources[i])
			b, there := o.at(resources[i+1])
			if ok && there && !failed(a) && !failed(b) && math.Abs(a.Score) < 1e150 && math.Abs(b.Score) < 1e150 {
				xs, ys = append(xs, a.Score), append(ys, b.Score)
			}
		}
		l := line{slope: 1}
		if len(xs) > 0 {
			l.from, l.to = mean(xs), mean(ys)
			var sxx, sxy float64
			for i, x := range xs {
				sxx += (x - l.from) * (x - l.from)
				sxy += (x - l.from) * (ys[i] - l.to)
			}
			prior := faith * sxx / float64(len(xs))
			if sxx > 0 {
				l.slope = max((sxy+prior)/(sxx+prior), 0.1)
			}
		}
		between = append(between, l)
	}
	return resources, between
}

func mean(x []float64) float64 {
	s := 0.0
	for _, v := range x {
		s += v / float64(len(x))
	}
	return s
}

// place sets where all results stand.
func (h *history) place(told []*observation) {
	resources, between := lines(told)
	for _, o := range told {
		r := o.last()
		if len(r.Scores) <= 1 && !failed(r) {
			i, _ := slices.BinarySearch(resources, r.Resource)
			for ; i < len(between); i++ {
				l := between[i]
				r.Score = l.to + l.slope*(r.Score-l.from)
			}
			r.Resource = resources[len(resources)-1]
		}
		o.standing = r
	}
}
