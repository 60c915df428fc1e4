package telemetry

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// Interaction is what two parameters do together beyond what each does alone.
type Interaction struct {
	A, B  string
	Share float64 // of the variance of the model of the scores
}

// surrogate is a model of the scores: what it expects of a configuration.
type surrogate struct {
	names  []string
	f      features
	words  []map[string]float64 // codes of a categorical column's words
	forest forest
}

// cut is a tree over cells: its splits on each feature divide the trials' values into
// a few cells each, and every leaf is a box of them.
type cut struct {
	thresholds [][]float64 // by feature: a numeric one's in rising order, a categorical one's as they came
	weight     [][]float64 // of each cell, by how many trials are in it
	leaves     []box
	mean       float64
	variance   float64
}

type box struct {
	in    [][]bool // by feature and cell
	mass  []float64
	all   float64 // product of the masses
	value float64
}

// cell is where a value of feature j falls.
func (c *cut) cell(f features, j int, x float64) int {
	if f.categorical[j] {
		return slices.Index(c.thresholds[j], x) + 1
	}
	k, _ := slices.BinarySearch(c.thresholds[j], x) // values at a threshold stand left of it
	return k
}

func newCut(t tree, f features) cut {
	p := len(f.categorical)
	c := cut{thresholds: make([][]float64, p), weight: make([][]float64, p)}
	for _, n := range t {
		if n.feature >= 0 && !slices.Contains(c.thresholds[n.feature], n.threshold) {
			c.thresholds[n.feature] = append(c.thresholds[n.feature], n.threshold)
		}
	}
	root := make([][]bool, p)
	for j := range p {
		if !f.categorical[j] {
			slices.Sort(c.thresholds[j])
		}
		c.weight[j] = make([]float64, len(c.thresholds[j])+1)
		for _, row := range f.x {
			c.weight[j][c.cell(f, j, row[j])] += 1 / float64(len(f.x))
		}
		root[j] = make([]bool, len(c.weight[j]))
		for i := range root[j] {
			root[j][i] = true
		}
	}
	c.walk(t, f, 0, root)
	for _, l := range c.leaves {
		c.mean += l.all * l.value
	}
	for _, l := range c.leaves {
		c.variance += l.all * (l.value - c.mean) * (l.value - c.mean)
	}
	return c
}

func (c *cut) walk(t tree, f features, at int, in [][]bool) {
	n := t[at]
	if n.feature < 0 {
		b := box{in: in, mass: make([]float64, len(in)), all: 1, value: n.value}
		for j := range in {
			for i, has := range in[j] {
				if has {
					b.mass[j] += c.weight[j][i]
				}
			}
			b.all *= b.mass[j]
		}
		if b.all > 0 {
			c.leaves = append(c.leaves, b)
		}
		return
	}
	k := slices.Index(c.thresholds[n.feature], n.threshold)
	side := func(left bool) [][]bool {
		out := slices.Clone(in)
		cells := slices.Clone(in[n.feature])
		for i := range cells {
			goes := i <= k
			if f.categorical[n.feature] {
				goes = i == k+1
			}
			cells[i] = cells[i] && goes == left
		}
		out[n.feature] = cells
		return out
	}
	c.walk(t, f, n.left, side(true))
	c.walk(t, f, n.right, side(false))
}

// alone is what the tree expects in each cell of feature j, over all others.
func (c *cut) alone(j int) []float64 {
	out := make([]float64, len(c.weight[j]))
	for _, l := range c.leaves {
		for i, has := range l.in[j] {
			if has {
				out[i] += l.value * l.all / l.mass[j]
			}
		}
	}
	return out
}

// together is what it expects in each pair of cells of two features.
func (c *cut) together(j, k int) [][]float64 {
	out := make([][]float64, len(c.weight[j]))
	for i := range out {
		out[i] = make([]float64, len(c.weight[k]))
	}
	for _, l := range c.leaves {
		v := l.value * l.all / (l.mass[j] * l.mass[k])
		for i, has := range l.in[j] {
			if !has {
				continue
			}
			for m, has := range l.in[k] {
				if has {
					out[i][m] += v
				}
			}
		}
	}
	return out
}

// anova divides the variance of the forest's predictions over parameters alone and
// pairs of them (Hutter et al. 2014, fANOVA), each value as likely as trials have it:
// where the search looked longer counts for more. Shares are means over the trees.
func (w forest) anova(f features) (alone []float64, pairs [][]float64) {
	p := len(f.categorical)
	alone, pairs = make([]float64, p), make([][]float64, p)
	for j := range pairs {
		pairs[j] = make([]float64, p)
	}
	trees := 0.0
	for _, t := range w.trees {
		c := newCut(t, f)
		if !(c.variance > 0) {
			continue
		}
		trees++
		used := t.uses()
		main := make([][]float64, p)
		for _, j := range used {
			main[j] = c.alone(j)
			for i, m := range main[j] {
				alone[j] += c.weight[j][i] * (m - c.mean) * (m - c.mean) / c.variance
			}
		}
		for a, j := range used {
			for _, k := range used[a+1:] {
				for i, row := range c.together(j, k) {
					for m, v := range row {
						d := v - main[j][i] - main[k][m] + c.mean
						pairs[j][k] += c.weight[j][i] * c.weight[k][m] * d * d / c.variance
					}
				}
			}
		}
	}
	if trees == 0 {
		return alone, pairs
	}
	for j := range alone {
		alone[j] /= trees
		for k := range pairs[j] {
			pairs[j][k] /= trees
		}
	}
	return alone, pairs
}

// plotContour is what the model of the scores expects over two parameters.
type plotContour struct {
	A int        `json:"a"` // axes
	B int        `json:"b"`
	X []number   `json:"x"` // places on them, 0 to 1
	Y []number   `json:"y"`
	Z [][]number `json:"z"` // by place on A, then on B
}

const (
	maxContours  = 6
	contourCells = 14
)

// contours draws the pairs that explain most.
func (s *surrogate) contours(axes []plotAxis, alone []float64, pairs [][]float64) []plotContour {
	type pair struct {
		a, b  int // axes
		share float64
	}
	column := func(a plotAxis) int { return slices.Index(s.names, a.column) }
	var all []pair
	for a := range axes {
		for b := a + 1; b < len(axes); b++ {
			j, k := column(axes[a]), column(axes[b])
			if j < 0 || k < 0 {
				continue
			}
			all = append(all, pair{a, b, alone[j] + alone[k] + pairs[min(j, k)][max(j, k)]})
		}
	}
	slices.SortStableFunc(all, func(a, b pair) int { return -cmp.Compare(a.share, b.share) })
	cuts := make([]cut, len(s.forest.trees))
	for i, t := range s.forest.trees {
		cuts[i] = newCut(t, s.f)
	}
	var out []plotContour
	for _, p := range all[:min(len(all), maxContours)] {
		j, k := column(axes[p.a]), column(axes[p.b])
		xs, x := s.places(axes[p.a], j)
		ys, y := s.places(axes[p.b], k)
		c := plotContour{A: p.a, B: p.b, X: x, Y: y, Z: make([][]number, len(xs))}
		sum := make([][]float64, len(xs))
		for i := range sum {
			sum[i] = make([]float64, len(ys))
		}
		for n := range cuts {
			t := cuts[n].together(j, k)
			for i, u := range xs {
				for m, v := range ys {
					sum[i][m] += t[cuts[n].cell(s.f, j, u)][cuts[n].cell(s.f, k, v)] / float64(len(cuts))
				}
			}
		}
		for i := range sum {
			for _, v := range sum[i] {
				c.Z[i] = append(c.Z[i], number(v))
			}
		}
		out = append(out, c)
	}
	return out
}

// places are values along an axis and where they stand on it.
func (s *surrogate) places(a plotAxis, j int) (values []float64, at []number) {
	if a.Words != nil {
		for i, w := range a.Words {
			x, known := s.words[j][w]
			if !known {
				x, _ = strconv.ParseFloat(w, 64)
			}
			values, at = append(values, x), append(at, number((float64(i)+0.5)/float64(len(a.Words))))
		}
		return values, at
	}
	low, high := float64(a.Low), float64(a.High)
	for i := range contourCells {
		u := (float64(i) + 0.5) / contourCells
		x := low + u*(high-low)
		if a.Log {
			x = low * math.Pow(high/low, u)
		}
		values, at = append(values, x), append(at, number(u))
	}
	return values, at
}

// codes are the numbers that a categorical column's words stand for.
func codes(configs []space.Config, name string) map[string]float64 {
	out := map[string]float64{}
	for _, c := range configs {
		if v, ok := c[name]; ok {
			if _, seen := out[v.String()]; !seen {
				out[v.String()] = float64(len(out))
			}
		}
	}
	return out
}
