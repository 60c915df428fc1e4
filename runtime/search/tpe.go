package search

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// tpe is the tree-structured Parzen estimator (Bergstra et al. 2011) in its
// multivariate form, with Optuna 5's constants: below trials γ(n) = min(⌈0.1n⌉,
// 25), 24 candidates from l(x), the best log l − log g is taken; one mixture
// component an observation and one for the prior, components share an index over
// all dimensions, so that what goes together stays together.
type tpe struct{ *history }

func (t *tpe) Ask(n int) ([]space.Config, error) {
	return t.ask(n, func(rng *rand.Rand) (space.Config, error) {
		if len(t.results()) < t.opts.Startup {
			return t.space.Sample(rng)
		}
		return suggest(t.history, nil, func(string) bool { return false }, rng)
	})
}

const candidates = 24

// suggest draws the dimensions that held does not name from the model and takes
// the others from base.
func suggest(h *history, base space.Config, held func(string) bool, rng *rand.Rand) (space.Config, error) {
	results := h.sorted()
	gamma := min(int(math.Ceil(0.1*float64(len(results)))), 25)
	// A handful of results says more than one alone.
	gamma = max(gamma, min(3, len(results)/2))
	free := func(n string) bool { return !held(n) }
	l := newParzen(h.space, results[:gamma], free)
	g := newParzen(h.space, results[gamma:], free)
	var best space.Config
	bestEI := math.Inf(-1)
	for range candidates {
		c := h.space.Repair(l.sample(base, rng), rng)
		if h.space.Feasible(c) != nil || h.seen(c) {
			continue
		}
		if ei := l.logDensity(c) - g.logDensity(c); ei > bestEI {
			best, bestEI = c, ei
		}
	}
	if best != nil {
		return best, nil
	}
	if base != nil {
		return h.space.Mutate(h.space.Repair(base, rng), 1, free, rng)
	}
	return h.space.Sample(rng)
}

// parzen is a mixture of product kernels over the encoded dimensions.
type parzen struct {
	dims   []space.Dimension
	points []space.Config // one component each; the prior is one more
	logW   []float64      // len(points)+1, normalised
	sigma  [][]float64    // [dimension][component], of numeric dimensions, in unit coordinates
	space  *space.Space
}

func newParzen(sp *space.Space, results []*observation, free func(string) bool) *parzen {
	p := &parzen{space: sp}
	for _, d := range sp.Dimensions() {
		if d.Kind != space.Fixed && free(d.Name) {
			p.dims = append(p.dims, d)
		}
	}
	for _, r := range results {
		p.points = append(p.points, r.config)
	}
	n := len(p.points)
	for range n + 1 {
		p.logW = append(p.logW, -math.Log(float64(n+1)))
	}
	for _, d := range p.dims {
		p.sigma = append(p.sigma, bandwidths(d, p.points))
	}
	return p
}

// bandwidths gives each observation the larger gap to its neighbours, clipped to
// [1/min(100, n+2), 1] (the "magic clip"), and the prior 1.
func bandwidths(d space.Dimension, points []space.Config) []float64 {
	sig := make([]float64, len(points)+1)
	sig[len(points)] = 1
	if !d.Numeric() {
		return sig
	}
	type at struct {
		u float64
		i int
	}
	var xs []at
	for i, c := range points {
		if v, ok := c[d.Name]; ok {
			xs = append(xs, at{d.Unit(v), i})
		}
	}
	xs = append(xs, at{0.5, len(points)})
	slices.SortStableFunc(xs, func(a, b at) int {
		if a.u < b.u {
			return -1
		}
		if a.u > b.u {
			return 1
		}
		return a.i - b.i
	})
	low := 1 / math.Min(100, float64(len(points)+2))
	for k, x := range xs {
		if x.i == len(points) {
			continue
		}
		gap := 0.0
		if k > 0 {
			gap = x.u - xs[k-1].u
		}
		if k+1 < len(xs) {
			gap = math.Max(gap, xs[k+1].u-x.u)
		}
		sig[x.i] = min(max(gap, low), 1)
	}
	return sig
}

func (p *parzen) sample(base space.Config, rng *rand.Rand) space.Config {
	c := space.Config{}
	if base != nil {
		c = base.Clone()
	}
	k := rng.IntN(len(p.points) + 1)
	for j, d := range p.dims {
		var v space.Value
		ok := false
		if k < len(p.points) {
			v, ok = p.points[k][d.Name]
		}
		switch {
		case !ok:
			c[d.Name] = d.Sample(rng)
		case d.Numeric():
			c[d.Name] = d.Value(truncated(d.Unit(v), p.sigma[j][k], rng))
		default:
			n := float64(len(p.points) + 1)
			if m := float64(len(d.Choices)); rng.Float64() < m/n/(1+m/n) {
				v = d.Sample(rng)
			}
			c[d.Name] = v
		}
	}
	return c
}

// truncated draws from a normal around mu inside [0, 1].
func truncated(mu, sigma float64, rng *rand.Rand) float64 {
	for range 100 {
		if x := mu + sigma*rng.NormFloat64(); x >= 0 && x <= 1 {
			return x
		}
	}
	return rng.Float64()
}

func (p *parzen) logDensity(c space.Config) float64 {
	terms := make([]float64, len(p.points)+1)
	for k := range terms {
		t := p.logW[k]
		for j, d := range p.dims {
			v, ok := c[d.Name]
			if !ok {
				continue
			}
			var mu space.Value
			has := false
			if k < len(p.points) {
				mu, has = p.points[k][d.Name]
			}
			t += p.logKernel(d, j, k, v, mu, has)
		}
		terms[k] = t
	}
	m := slices.Max(terms)
	s := 0.0
	for _, t := range terms {
		s += math.Exp(t - m)
	}
	return m + math.Log(s)
}

// logKernel is one dimension of one component: a truncated normal for a number
// (the prior's stands in the middle with width 1), a smoothed one-hot for a name.
func (p *parzen) logKernel(d space.Dimension, j, k int, v, mu space.Value, has bool) float64 {
	if !d.Numeric() {
		m := float64(len(d.Choices))
		if !has {
			return -math.Log(m)
		}
		w := 1 / float64(len(p.points)+1)
		hit := w
		if v == mu {
			hit++
		}
		return math.Log(hit / (1 + m*w))
	}
	centre, sigma := 0.5, 1.0
	if has {
		centre, sigma = d.Unit(mu), p.sigma[j][k]
	}
	z := (d.Unit(v) - centre) / sigma
	mass := normalCDF((1-centre)/sigma) - normalCDF(-centre/sigma)
	return -0.5*z*z - math.Log(sigma) - math.Log(mass) - 0.5*math.Log(2*math.Pi)
}

func normalCDF(x float64) float64 { return 0.5 * math.Erfc(-x/math.Sqrt2) }
