package search

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// group is a set of dimensions that every configuration has all or none of, and the
// values that the observations have there. Its numbers lie in [0, 1] as space.Unit has
// them: integers and ordinals in the middle of equal cells, which widens their range by
// half a step at either end.
type group struct {
	dims []parzenDim // reals first
	real int         // how many are real
	rows []int       // which observations have the group, by their place in the order of asking
	x    []float64   // [row][dim]
	// norm is the logarithm of a kernel's normaliser where it is as narrow as they get;
	// most are when there are many.
	norm []float64 // [row][dim], of real ones
	// order of the rows by their value, for each dimension that has one; ties by row.
	order       [][]placed
	conditional bool
}

// placed is a row and its value.
type placed struct {
	value float64
	row   int32
}

// parzenDim is a dimension of a group.
type parzenDim struct {
	space.Dimension
	at int // in history.dims
}

// groups divides the dimensions that free names by the conditions under which they
// exist.
func groups(sp *space.Space, dims []space.Dimension, free func(string) bool) []*group {
	var condition func(d space.Dimension) string
	condition = func(d space.Dimension) string {
		if d.Parent == "" {
			return ""
		}
		p, _ := sp.Dimension(d.Parent)
		on := slices.Compact(slices.Sorted(slices.Values(d.On)))
		if len(p.Choices) > 0 && !slices.ContainsFunc(p.Choices, func(v space.Value) bool { return !slices.Contains(on, v.String()) }) {
			return condition(p) // whenever the parent exists
		}
		return d.Parent + "\x00" + strings.Join(on, "\x00")
	}
	var out []*group
	of := map[string]*group{}
	for i, d := range dims {
		if !free(d.Name) {
			continue
		}
		g := of[condition(d)]
		if g == nil {
			g = &group{conditional: condition(d) != ""}
			of[condition(d)] = g
			out = append(out, g)
		}
		g.dims = append(g.dims, parzenDim{d, i})
	}
	for _, g := range out {
		slices.SortStableFunc(g.dims, func(a, b parzenDim) int { return cmp.Compare(a.rank(), b.rank()) })
		for _, d := range g.dims {
			if d.continuous() {
				g.real++
			}
		}
		g.order = make([][]placed, len(g.dims))
	}
	return out
}

func (d parzenDim) continuous() bool { return d.Kind == space.Uniform || d.Kind == space.LogUniform }

func (d parzenDim) rank() int {
	if d.continuous() {
		return 0
	}
	return 1
}

// cell is what a value in the middle of it stands for, of numbers that are not real.
func (d parzenDim) cell(u float64) (low, high float64) {
	switch d.Kind {
	case space.LogInt:
		a, b := math.Log(d.Low-0.5), math.Log(d.High+0.5)
		v := d.Value(u).Num
		return (math.Log(v-0.5) - a) / (b - a), (math.Log(v+0.5) - a) / (b - a)
	case space.Int:
		half := 0.5 / ((d.High-d.Low)/d.Step + 1)
		return u - half, u + half
	}
	half := 0.5 / float64(len(d.Choices))
	return u - half, u + half
}

// add takes an observation in, by its place in the order of asking.
func (g *group) add(row int, point []float64) {
	if math.IsNaN(point[g.dims[0].at]) {
		return
	}
	at := int32(len(g.rows))
	g.rows = append(g.rows, row)
	for j, d := range g.dims {
		g.x = append(g.x, point[d.at])
		if j < g.real {
			g.norm = append(g.norm, logNormaliser(point[d.at], narrowest))
		}
	}
	for j, d := range g.dims {
		if d.Numeric() {
			v := point[d.at]
			i := sort.Search(len(g.order[j]), func(i int) bool { return g.order[j][i].value > v })
			g.order[j] = slices.Insert(g.order[j], i, placed{v, at})
		}
	}
}

func (g *group) value(row int32, j int) float64 { return g.x[int(row)*len(g.dims)+j] }

// put writes values of the group into a point.
func (g *group) put(point, values []float64) {
	for j, d := range g.dims {
		point[d.at] = values[j]
	}
}

func (g *group) clear() {
	g.rows, g.x, g.norm = g.rows[:0], g.x[:0], g.norm[:0]
	for j := range g.order {
		g.order[j] = g.order[j][:0]
	}
}

// narrowest is the least σ that kernels have.
const narrowest = 0.01

// logNormaliser is the logarithm of what a normal density inside [0, 1] is divided by.
func logNormaliser(mu, sigma float64) float64 {
	norm := halfLog2Pi + math.Log(sigma)
	if mu < 9*sigma || 1-mu < 9*sigma { // else all of it lies inside
		norm += logNormalMass(-mu/sigma, (1-mu)/sigma)
	}
	return norm
}

// mixture is a Parzen estimator over a group: a product of one-dimensional kernels for
// each observation and for the prior, which stands last. Flat arrays, since every
// candidate meets every component.
type mixture struct {
	g    *group
	cum  []float64 // cumulated weights
	logW []float64 // log weights less the logarithms of the real kernels' normalisers
	// Of real dimensions, [dim][component]: μ and 1/(σ√2).
	mu, scale [][]float64
	// What is not real has few different kernels: pair says which one a component has, of
	// pairs or, for a categorical dimension, of its choices with the prior behind them.
	pair  []int32 // [component][dim - reals]
	pairs [][]kernel
	cache [][]tabled // by dim - reals: the logarithms at values met so far
	near  []term

	component []int32 // of each of the group's rows; -1 when it is not in
}

// term is a component that a point isn't too far from.
type term struct {
	component int32
	log       float64
}

type kernel struct{ mu, sigma, logMass float64 }

type tabled struct {
	x   float64
	log []float64 // by pair
}

// build makes the mixture of those of the group's observations that in names by their
// place in the order of asking; faded gives early observations less weight.
func (m *mixture) build(g *group, in func(row int) bool, faded bool) {
	D, R := len(g.dims), g.real
	m.g = g
	m.component = resized(m.component, len(g.rows))
	component := m.component
	n := 0
	for i, row := range g.rows {
		component[i] = -1
		if in(row) {
			component[i] = int32(n)
			n++
		}
	}
	kernels := n + 1
	m.weigh(n, faded)
	m.mu, m.scale = resized(m.mu, R), resized(m.scale, R)
	for j := range R {
		m.mu[j], m.scale[j] = resized(m.mu[j], kernels), resized(m.scale[j], kernels)
	}
	m.pair = resized(m.pair, kernels*(D-R))
	m.pairs = resized(m.pairs, D-R)
	m.cache = make([][]tabled, D-R)
	smallest := max(narrowest, 1/float64(kernels+1))
	smallestScale := 1 / (smallest * math.Sqrt2)
	for j, d := range g.dims {
		if !d.Numeric() {
			for i, k := range component {
				if k >= 0 {
					m.pair[int(k)*(D-R)+j-R] = int32(g.value(int32(i), j))
				}
			}
			m.pair[n*(D-R)+j-R] = int32(len(d.Choices))
			continue
		}
		if j >= R {
			m.pairs[j-R] = m.pairs[j-R][:0]
		}
		set := func(row int32, k int, mu, gap float64, run int) {
			sigma := gap
			if gap < smallest {
				sigma = smallest
			}
			if j < R {
				m.mu[j][k], m.scale[j][k] = mu, smallestScale
				switch {
				case sigma > smallest:
					m.scale[j][k] = 1 / (sigma * math.Sqrt2)
					m.logW[k] -= logNormaliser(mu, sigma)
				case smallest == narrowest:
					m.logW[k] -= g.norm[int(row)*R+j]
				default:
					m.logW[k] -= logNormaliser(mu, sigma)
				}
				return
			}
			ps := m.pairs[j-R]
			p := run
			for p < len(ps) && ps[p].sigma != sigma {
				p++
			}
			if p == len(ps) {
				m.pairs[j-R] = append(ps, kernel{mu, sigma, logNormalMass(-mu/sigma, (1-mu)/sigma)})
			}
			m.pair[k*(D-R)+j-R] = int32(p)
		}
		// A kernel is as wide as the larger gap to its neighbours; the outermost have one
		// gap, a single one those to the ends of the range.
		var left, mu float64
		last, run := int32(-1), 0
		for _, p := range g.order[j] {
			if component[p.row] < 0 {
				continue
			}
			x := p.value
			if last >= 0 {
				gap := x - mu
				set(last, int(component[last]), mu, max(left, gap), run)
				if left = gap; gap > 0 && j >= R {
					run = len(m.pairs[j-R])
				}
			}
			mu, last = x, p.row
		}
		if last >= 0 {
			if n == 1 {
				left = max(mu, 1-mu)
			}
			set(last, int(component[last]), mu, left, run)
		}
		if j >= R {
			run = len(m.pairs[j-R])
		}
		set(-1, n, 0.5, 1, run)
	}
}

// weigh sets the weights of n observations and the prior. Where they fade, the last 25
// count in full, earlier ones the less the older they are.
func (m *mixture) weigh(n int, faded bool) {
	const full = 25
	m.cum, m.logW = resized(m.cum, n+1), resized(m.logW, n+1)
	sum := 0.0
	for k := range m.cum {
		w := 1.0
		if ramp := n - full; faded && k < ramp {
			w = 1 / float64(n)
			if ramp > 1 {
				w += (1 - w) * float64(k) / float64(ramp-1)
			}
		}
		sum += w
		m.cum[k], m.logW[k] = sum, w
	}
	for k := range m.cum {
		m.cum[k] /= sum
		m.logW[k] = math.Log(m.logW[k] / sum)
	}
}

func resized[T any](s []T, n int) []T { return slices.Grow(s[:0], n)[:n] }

// sample draws a point of the group into x.
func (m *mixture) sample(x []float64, rng *rand.Rand) {
	R, n := m.g.real, len(m.cum)-1
	T := len(m.g.dims) - R
	u := rng.Float64()
	k := min(sort.Search(n, func(k int) bool { return m.cum[k] > u }), n)
	pair := m.pair[k*T:]
	for j, d := range m.g.dims {
		switch {
		case j < R:
			x[j] = truncated(m.mu[j][k], 1/(m.scale[j][k]*math.Sqrt2), rng)
		case d.Numeric():
			p := m.pairs[j-R][pair[j-R]]
			x[j] = d.Unit(d.Value(truncated(p.mu, p.sigma, rng)))
		case k == n || rng.Float64()*(float64(n+1)+float64(len(d.Choices))) < float64(len(d.Choices)):
			x[j] = float64(rng.IntN(len(d.Choices)))
		default:
			x[j] = float64(pair[j-R])
		}
	}
}

// truncated draws from a normal around mu inside [0, 1]; mu lies there and sigma is at
// most 1, so that at least one draw in three does.
func truncated(mu, sigma float64, rng *rand.Rand) float64 {
	for {
		if x := mu + sigma*rng.NormFloat64(); x >= 0 && x <= 1 {
			return x
		}
	}
}

// logDensity at a point of the group: a density in the real dimensions, a probability
// in the others.
func (m *mixture) logDensity(x []float64) float64 {
	R := m.g.real
	T := len(m.g.dims) - R
	tables := make([][]float64, T)
	for t := range tables {
		tables[t] = m.table(t, x[R+t])
	}
	// Every factor makes a term smaller. What falls below e^-40 of the prior's term can't
	// be seen in the sum and is left, after the first dimension most of it.
	const unseen = 40
	prior := len(m.cum) - 1
	least := m.logW[prior] - unseen
	for j := range R {
		z := (x[j] - m.mu[j][prior]) * m.scale[j][prior]
		least -= z * z
	}
	for j, p := range m.pair[prior*T:] {
		least += tables[j][p]
	}
	m.near = resized(m.near, prior+1)
	n := 0
	if R == 0 {
		for k, w := range m.logW {
			m.near[k] = term{int32(k), w}
		}
		n = prior + 1
	} else {
		v, mu, scale, near := x[0], m.mu[0][:prior+1], m.scale[0][:prior+1], m.near
		for k, t := range m.logW {
			z := (v - mu[k]) * scale[k]
			t -= z * z
			near[n] = term{int32(k), t}
			n += int(1 - math.Float64bits(t-least)>>63) // where t ≥ least; without a branch, since none could be foreseen
		}
	}
	near := m.near[:n]
	for j := 1; j < R; j++ {
		v, mu, scale := x[j], m.mu[j], m.scale[j]
		n := 0
		for _, t := range near {
			z := (v - mu[t.component]) * scale[t.component]
			t.log -= z * z
			near[n] = t
			n += int(1 - math.Float64bits(t.log-least)>>63)
		}
		near = near[:n]
	}
	top := math.Inf(-1)
	for i := range near {
		t := &near[i]
		for j, p := range m.pair[int(t.component)*T : (int(t.component)+1)*T] {
			t.log += tables[j][p]
		}
		top = max(top, t.log)
	}
	if math.IsInf(top, -1) {
		return top
	}
	sum := 0.0
	for _, t := range near {
		if t.log > top-unseen {
			sum += math.Exp(t.log - top)
		}
	}
	return top + math.Log(sum)
}

// table gives the logarithm of every kernel's probability of a value in one of the
// dimensions that aren't real.
func (m *mixture) table(t int, x float64) []float64 {
	for _, c := range m.cache[t] {
		if c.x == x {
			return c.log
		}
	}
	var log []float64
	if d := m.g.dims[m.g.real+t]; d.Numeric() {
		low, high := d.cell(x)
		for _, p := range m.pairs[t] {
			log = append(log, logCell(low, high, p))
		}
	} else {
		// Each kernel has 1/kernels everywhere and 1 more at its choice.
		choices, kernels := float64(len(d.Choices)), float64(len(m.cum))
		for i := range d.Choices {
			hit := 0.0
			if i == int(x) {
				hit = kernels
			}
			log = append(log, math.Log((1+hit)/(choices+kernels)))
		}
		log = append(log, -math.Log(choices))
	}
	m.cache[t] = append(m.cache[t], tabled{x, log})
	return log
}

// logCell is the logarithm of a kernel's share between low and high.
func logCell(low, high float64, k kernel) float64 {
	a, b := (low-k.mu)/k.sigma, (high-k.mu)/k.sigma
	h, z := b-a, (a+b)/2
	if h > 0.1 || h*math.Abs(z) > 1 {
		return logNormalMass(a, b) - k.logMass
	}
	// A narrow cell: the density in its middle and the terms of h² and h⁴.
	y := h * z * h * z
	return -0.5*z*z - halfLog2Pi + math.Log(h) + (y-h*h)/24 - y*y/2880 - k.logMass
}
