package telemetry

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// features are n rows of p values each. A categorical column holds numbers of
// categories, −1 where the parameter does not exist.
type features struct {
	x           [][]float64
	categorical []bool
}

// treeNode splits at threshold (≤ goes left), or on one category (= goes left).
type treeNode struct {
	feature     int // −1 is a leaf
	threshold   float64
	left, right int
	value       float64
}

type tree []treeNode

// forest is a random forest of regression trees (Breiman 2001): bootstrap
// samples, a third of the features tried at each split.
type forest struct {
	trees []tree
	out   [][]int // rows that each tree has not seen
}

func (f features) left(n treeNode, row []float64) bool {
	if f.categorical[n.feature] {
		return row[n.feature] == n.threshold
	}
	return row[n.feature] <= n.threshold
}

func grow(f features, y []float64, count int, rng *rand.Rand) forest {
	var w forest
	n := len(y)
	for range count {
		rows, seen := make([]int, n), make([]bool, n)
		for i := range rows {
			rows[i] = rng.IntN(n)
			seen[rows[i]] = true
		}
		var out []int
		for i, s := range seen {
			if !s {
				out = append(out, i)
			}
		}
		var t tree
		t.grow(f, y, rows, rng)
		w.trees, w.out = append(w.trees, t), append(w.out, out)
	}
	return w
}

// minLeaf is the fewest rows of a leaf.
const minLeaf = 2

func (t *tree) grow(f features, y []float64, rows []int, rng *rand.Rand) int {
	at := len(*t)
	sum := 0.0
	for _, r := range rows {
		sum += y[r]
	}
	*t = append(*t, treeNode{feature: -1, value: sum / float64(len(rows))})
	best, ok := split(f, y, rows, rng)
	if !ok {
		return at
	}
	var left, right []int
	for _, r := range rows {
		if f.left(best, f.x[r]) {
			left = append(left, r)
		} else {
			right = append(right, r)
		}
	}
	best.value = (*t)[at].value
	best.left = t.grow(f, y, left, rng)
	best.right = t.grow(f, y, right, rng)
	(*t)[at] = best
	return at
}

// split finds the cut that takes most from the squared error; false when none
// takes anything.
func split(f features, y []float64, rows []int, rng *rand.Rand) (treeNode, bool) {
	if len(rows) < 2*minLeaf {
		return treeNode{}, false
	}
	var total float64
	for _, r := range rows {
		total += y[r]
	}
	n := float64(len(rows))
	best, gain := treeNode{feature: -1}, 1e-12
	try := func(feature int, threshold, sum, k float64) {
		if k < minLeaf || n-k < minLeaf {
			return
		}
		rest := total - sum
		if g := sum*sum/k + rest*rest/(n-k) - total*total/n; g > gain {
			gain, best = g, treeNode{feature: feature, threshold: threshold}
		}
	}
	p := len(f.categorical)
	for _, j := range rng.Perm(p)[:(p+2)/3] {
		order := slices.Clone(rows)
		slices.SortFunc(order, func(a, b int) int { return cmp.Compare(f.x[a][j], f.x[b][j]) })
		var sum, k float64
		for i, r := range order {
			v := f.x[r][j]
			if i > 0 && v != f.x[order[i-1]][j] {
				if f.categorical[j] {
					try(j, f.x[order[i-1]][j], sum, k)
					sum, k = 0, 0
				} else {
					try(j, (f.x[order[i-1]][j]+v)/2, sum, k)
				}
			}
			sum, k = sum+y[r], k+1
		}
		if f.categorical[j] {
			try(j, f.x[order[len(order)-1]][j], sum, k)
		}
	}
	return best, best.feature >= 0
}

func (t tree) predict(f features, row []float64) float64 {
	at := 0
	for t[at].feature >= 0 {
		if f.left(t[at], row) {
			at = t[at].left
		} else {
			at = t[at].right
		}
	}
	return t[at].value
}

// uses lists the features that a tree splits on.
func (t tree) uses() []int {
	var out []int
	for _, n := range t {
		if n.feature >= 0 && !slices.Contains(out, n.feature) {
			out = append(out, n.feature)
		}
	}
	slices.Sort(out)
	return out
}

// permute gives for each feature how much the squared error of unseen rows grows
// when that feature's values are shuffled among them, as a share of the variance
// of y; and the R² of unseen rows.
func (w forest) permute(f features, y []float64, rng *rand.Rand) (share []float64, r2 float64) {
	share = make([]float64, len(f.categorical))
	variance := spread(y)
	if variance == 0 {
		return share, 0
	}
	sums, counts := make([]float64, len(y)), make([]float64, len(y))
	for k, t := range w.trees {
		out := w.out[k]
		if len(out) < 2 {
			continue
		}
		base := 0.0
		for _, r := range out {
			p := t.predict(f, f.x[r])
			sums[r], counts[r] = sums[r]+p, counts[r]+1
			base += (p - y[r]) * (p - y[r])
		}
		for _, j := range t.uses() {
			worse := 0.0
			for i, from := range rng.Perm(len(out)) {
				row := slices.Clone(f.x[out[i]])
				row[j] = f.x[out[from]][j]
				d := t.predict(f, row) - y[out[i]]
				worse += d * d
			}
			share[j] += (worse - base) / float64(len(out)) / variance / float64(len(w.trees))
		}
	}
	var miss, n float64
	for i := range y {
		if counts[i] > 0 {
			d := sums[i]/counts[i] - y[i]
			miss, n = miss+d*d, n+1
		}
	}
	if n == 0 {
		return share, math.Inf(-1)
	}
	return share, 1 - miss/n/variance
}

// spread is the variance.
func spread(y []float64) float64 {
	var sum, squares float64
	for _, v := range y {
		sum += v
	}
	mean := sum / float64(len(y))
	for _, v := range y {
		squares += (v - mean) * (v - mean)
	}
	return squares / float64(len(y))
}
