package search

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// trees is a random forest for regression over the points of history: each tree grows on
// a bootstrap sample, each split is the best of one random cut of each of most
// dimensions (Geurts et al. 2006).
type trees struct {
	all [][]node // the root first
}

// node is a split, or a leaf.
type node struct {
	kind        kind
	dim         int32
	left, right int32
	missing     int32   // where a point goes that lacks the dimension
	cut         float64 // a number goes left up to here
	set         uint64  // a choice goes left when its bit is set
	mean        float64
	variance    float64 // of a leaf's sample
}

type kind uint8

const (
	leaf   kind = iota
	number      // by cut
	choice      // by set
	exists      // left when the dimension is active
)

const (
	treeCount = 30
	leastCut  = 3 // a smaller sample is a leaf
)

// grow fits a forest to y at the points x; the seed decides it.
func grow(dims []space.Dimension, x [][]float64, y []float64, seed uint64) *trees {
	f := &trees{make([][]node, treeCount)}
	for t := range f.all {
		rng := rand.New(rand.NewPCG(seed, uint64(t)))
		g := grower{dims: dims, x: x, y: y, rng: rng}
		g.split(bootstrap(len(y), rng))
		f.all[t] = g.nodes
	}
	return f
}

// bootstrap draws n of n with replacement.
func bootstrap(n int, rng *rand.Rand) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = rng.IntN(n)
	}
	return out
}

// predict gives the mean of the leaves that a point falls into, and the variance: that
// of the means and the mean of those within.
func (f *trees) predict(p []float64) (mean, variance float64) {
	square := 0.0
	for _, nodes := range f.all {
		n := &nodes[0]
		for n.kind != leaf {
			n = &nodes[n.next(p[n.dim])]
		}
		mean += n.mean
		square += n.mean*n.mean + n.variance
	}
	k := float64(len(f.all))
	mean /= k
	return mean, max(square/k-mean*mean, 0)
}

// next is the child that a point with value v goes to.
func (n *node) next(v float64) int32 {
	left := false
	switch {
	case n.kind == exists:
		left = v == v // not NaN
	case v != v:
		return n.missing
	case n.kind == number:
		left = v <= n.cut
	default:
		left = n.set>>(uint(v)%64)&1 == 1
	}
	if left {
		return n.left
	}
	return n.right
}

// grower grows one tree.
type grower struct {
	dims  []space.Dimension
	x     [][]float64
	y     []float64
	rng   *rand.Rand
	nodes []node
}

// split makes the node of a sample and those under it, and returns its place.
func (g *grower) split(sample []int) int32 {
	at := int32(len(g.nodes))
	var end node
	for _, i := range sample {
		end.mean += g.y[i]
	}
	end.mean /= float64(len(sample))
	for _, i := range sample {
		end.variance += (g.y[i] - end.mean) * (g.y[i] - end.mean)
	}
	end.variance /= float64(len(sample))
	g.nodes = append(g.nodes, end)
	if len(sample) < leastCut || end.variance == 0 {
		return at
	}
	best, bestGain := end, 0.0
	enough := (5*len(g.dims) + 5) / 6
	for tried, d := range g.rng.Perm(len(g.dims)) {
		if tried >= enough && best.kind != leaf {
			break
		}
		n, ok := g.cut(sample, d)
		if !ok {
			continue
		}
		// What the cut takes from the sum of squares, but for what all cuts share.
		var sum, count [2]float64
		for _, i := range sample {
			side := 1
			if n.next(g.x[i][d]) == 0 {
				side = 0
			}
			sum[side] += g.y[i] - end.mean
			count[side]++
		}
		if gain := sum[0]*sum[0]/count[0] + sum[1]*sum[1]/count[1]; best.kind == leaf || gain > bestGain {
			best, bestGain = n, gain
		}
	}
	if best.kind == leaf {
		return at
	}
	var left, right []int
	for _, i := range sample {
		if best.next(g.x[i][best.dim]) == 0 {
			left = append(left, i)
		} else {
			right = append(right, i)
		}
	}
	best.mean, best.variance = end.mean, end.variance
	best.left = g.split(left)
	best.right = g.split(right)
	if best.missing = best.left; len(right) > len(left) {
		best.missing = best.right
	}
	g.nodes[at] = best
	return at
}

// cut draws a cut of a dimension that leaves some of the sample on either side, left
// being 0 and right 1; false when there is none.
func (g *grower) cut(sample []int, d int) (node, bool) {
	n := node{kind: choice, dim: int32(d), right: 1}
	low, high, missing := math.Inf(1), math.Inf(-1), 0
	var met uint64
	for _, i := range sample {
		v := g.x[i][d]
		if math.IsNaN(v) {
			missing++
			continue
		}
		low, high = min(low, v), max(high, v)
		met |= 1 << (uint(v) % 64)
	}
	switch {
	case missing == len(sample):
		return n, false
	case missing > 0:
		n.kind = exists
		return n, true
	case low == high:
		return n, false
	case g.dims[d].Numeric():
		n.kind, n.cut = number, low+(high-low)*g.rng.Float64()
		return n, n.cut < high
	}
	if met&(met-1) == 0 {
		return n, false // choices that share a bit
	}
	for n.set == 0 || n.set == met {
		n.set = met & g.rng.Uint64()
	}
	return n, true
}

// warped spreads out what is near the best: the logarithm of how far each value lies
// above the least, of a tenth of the median's distance on.
func warped(y []float64) []float64 {
	sorted := slices.Sorted(slices.Values(y))
	low := sorted[0]
	unit := 0.1 * (sorted[len(sorted)/2] - low)
	out := make([]float64, len(y))
	if !(unit > 0) || math.IsInf(unit, 1) {
		unit = 1
	}
	for i, v := range y {
		out[i] = math.Log1p(min(v-low, 1e300) / unit)
	}
	return out
}
