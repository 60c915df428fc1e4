package telemetry

import (
	"cmp"
	"slices"
)

// costed is a trial's cost and score; lower is better in both.
type costed struct {
	ID          string
	Cost, Score float64
}

// front is the Pareto front, cheapest first: the trials that no other equals or
// beats in both cost and score while beating it in one.
func front(all []costed) []costed {
	s := slices.Clone(all)
	slices.SortFunc(s, func(a, b costed) int {
		return cmp.Or(cmp.Compare(a.Cost, b.Cost), cmp.Compare(a.Score, b.Score), cmp.Compare(a.ID, b.ID))
	})
	var out []costed
	for _, c := range s {
		if len(out) == 0 || c.Score < out[len(out)-1].Score {
			out = append(out, c)
		}
	}
	return out
}
