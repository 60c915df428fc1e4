package search

import (
	"cmp"
	"math"
	"slices"
)

// dominates tells whether a is nowhere worse than b and somewhere better; lower is better.
func dominates(a, b []float64) bool {
	better := false
	for i, x := range a {
		if x > b[i] {
			return false
		}
		better = better || x < b[i]
	}
	return better
}

// fronts sorts points by non-domination: those that none dominates, then those that only
// these dominate, and so on (Deb et al. 2002). Indices rise within a front.
func fronts(points [][]float64) [][]int {
	dominated := make([][]int, len(points)) // by each point
	count := make([]int, len(points))       // that dominate it
	for i := range points {
		for j := range i {
			switch {
			case dominates(points[i], points[j]):
				dominated[i] = append(dominated[i], j)
				count[j]++
			case dominates(points[j], points[i]):
				dominated[j] = append(dominated[j], i)
				count[i]++
			}
		}
	}
	var out [][]int
	var front []int
	for i, n := range count {
		if n == 0 {
			front = append(front, i)
		}
	}
	for len(front) > 0 {
		out = append(out, front)
		var next []int
		for _, i := range front {
			for _, j := range dominated[i] {
				if count[j]--; count[j] == 0 {
					next = append(next, j)
				}
			}
		}
		slices.Sort(next)
		front = next
	}
	return out
}

// Front lists the points that no other dominates; lower is better in every coordinate.
func Front(points [][]float64) []int {
	var out []int
	for i, p := range points {
		if !slices.ContainsFunc(points, func(q []float64) bool { return dominates(q, p) }) {
			out = append(out, i)
		}
	}
	return out
}

// crowding gives each point of a front how far its neighbours lie apart, in shares of the
// front's extent summed over the objectives; the ends of each are infinitely far.
func crowding(front [][]float64) []float64 {
	far := make([]float64, len(front))
	if len(front) == 0 {
		return far
	}
	order := make([]int, len(front))
	for k := range front[0] {
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(front[a][k], front[b][k]) })
		first, last := order[0], order[len(order)-1]
		extent := front[last][k] - front[first][k]
		far[first], far[last] = math.Inf(1), math.Inf(1)
		if !(extent > 0) || math.IsInf(extent, 1) {
			continue
		}
		for i := 1; i+1 < len(order); i++ {
			far[order[i]] += (front[order[i+1]][k] - front[order[i-1]][k]) / extent
		}
	}
	return far
}

// Hypervolume is the volume of what the points dominate within a reference point, which
// is worse than what counts in every coordinate (While et al. 2012 from three objectives on).
func Hypervolume(points [][]float64, reference []float64) float64 {
	var in [][]float64
	for _, p := range points {
		inside := true
		for i, x := range p {
			inside = inside && x < reference[i]
		}
		if inside {
			in = append(in, p)
		}
	}
	return hypervolume(in, reference)
}

func hypervolume(points [][]float64, reference []float64) float64 {
	switch {
	case len(points) == 0:
		return 0
	case len(reference) == 1:
		return reference[0] - slices.MinFunc(points, func(a, b []float64) int { return cmp.Compare(a[0], b[0]) })[0]
	}
	points = slices.Clone(points)
	slices.SortStableFunc(points, func(a, b []float64) int {
		return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1]))
	})
	sum := 0.0
	if len(reference) == 2 {
		top := reference[1]
		for _, p := range points {
			if p[1] < top {
				sum += (reference[0] - p[0]) * (top - p[1])
				top = p[1]
			}
		}
		return sum
	}
	// What a point has alone: its box less what the points behind it cover of the box.
	for i, p := range points {
		box := 1.0
		for k, x := range p {
			box *= reference[k] - x
		}
		var covered [][]float64
		for _, q := range points[i+1:] {
			limited := make([]float64, len(p))
			for k := range p {
				limited[k] = max(p[k], q[k])
			}
			covered = append(covered, limited)
		}
		var front [][]float64
		for _, j := range Front(covered) {
			front = append(front, covered[j])
		}
		sum += box - hypervolume(front, reference)
	}
	return sum
}

// spreadOut picks k points of a front, each the one that adds most to the hypervolume of
// those before it.
func spreadOut(front [][]float64, k int) []int {
	reference := make([]float64, len(front[0]))
	for i := range reference {
		worst := math.Inf(-1)
		for _, p := range front {
			worst = max(worst, p[i])
		}
		if reference[i] = max(1.1*worst, 0.9*worst); reference[i] == 0 {
			reference[i] = 1e-12
		}
	}
	var picked []int
	var chosen [][]float64
	volume := 0.0
	// What a point adds only shrinks while others are picked: what it added when it was
	// last looked at is a bound.
	bound := make([]float64, len(front))
	for i := range bound {
		bound[i] = math.Inf(1)
	}
	for len(picked) < k {
		fresh := make([]bool, len(front))
		for {
			most := -1
			for i, b := range bound {
				if !slices.Contains(picked, i) && (most < 0 || b > bound[most]) {
					most = i
				}
			}
			if fresh[most] {
				picked, chosen = append(picked, most), append(chosen, front[most])
				volume += bound[most]
				break
			}
			if bound[most] = Hypervolume(append(slices.Clip(chosen), front[most]), reference) - volume; math.IsNaN(bound[most]) {
				bound[most] = 0
			}
			fresh[most] = true
		}
	}
	return picked
}

// leastCrowded picks k points of a front, those that lie farthest from others.
func leastCrowded(front [][]float64, k int) []int {
	far := crowding(front)
	order := make([]int, len(front))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return -cmp.Compare(far[a], far[b]) })
	return order[:k]
}

// Knee is the point of a front from which a little less of one objective costs most of the
// others: the one farthest below the plane through the ends, by extents of the front.
func Knee(front [][]float64) int {
	best, least := -1, math.Inf(1)
	for i, p := range front {
		sum := 0.0
		for k, x := range p {
			low, high := x, x
			for _, q := range front {
				low, high = min(low, q[k]), max(high, q[k])
			}
			if high > low {
				sum += (x - low) / (high - low)
			}
		}
		if best < 0 || sum < least {
			best, least = i, sum
		}
	}
	return best
}

// objectives is how many the results have.
func objectives(results []*observation) int {
	n := 1
	for _, o := range results {
		n = max(n, len(o.last().Scores))
	}
	return n
}

// values are a result's n objectives; those that it lacks are as bad as can be.
func (r Result) values(n int) []float64 {
	v := slices.Clone(r.Scores)
	if len(v) == 0 {
		v = []float64{r.Score}
	}
	for len(v) < n {
		v = append(v, math.Inf(1))
	}
	return v
}

// ranked is a result's place among others.
type ranked struct {
	at    int // in the results
	front int // counted through all tiers
}

// choose picks the n best results of several objectives: those that hold the constraints
// before others, those that got farther before others, and of equals by fronts; of the
// last front as many as are left are picked by partial.
func choose(results []Result, n int, partial func(front [][]float64, k int) []int) []ranked {
	m := 1
	order := make([]int, len(results))
	for i, r := range results {
		order[i], m = i, max(m, len(r.Scores))
	}
	tier := func(a, b Result) int {
		return cmp.Or(cmp.Compare(a.class(), b.class()), cmp.Compare(a.violation(), b.violation()), cmp.Compare(b.Resource, a.Resource))
	}
	slices.SortStableFunc(order, func(a, b int) int { return tier(results[a], results[b]) })
	var out []ranked
	rank := 0
	for len(order) > 0 && len(out) < n {
		end := 1
		for end < len(order) && tier(results[order[0]], results[order[end]]) == 0 {
			end++
		}
		points := make([][]float64, end)
		for i, at := range order[:end] {
			points[i] = results[at].values(m)
		}
		for _, front := range fronts(points) {
			if left := n - len(out); len(front) > left {
				var of [][]float64
				for _, i := range front {
					of = append(of, points[i])
				}
				var some []int
				if left > 0 {
					for _, k := range partial(of, left) {
						some = append(some, front[k])
					}
				}
				front = some
			}
			for _, i := range front {
				out = append(out, ranked{order[i], rank})
			}
			rank++
		}
		order = order[end:]
	}
	return out
}
