package search

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"

	"gonum.org/v1/gonum/optimize"

	"github.com/open-autoglm/autoglm/runtime/search/gauss"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// candidate is a configuration that might be proposed.
type candidate struct {
	config space.Config
	point  []float64
	value  float64 // of the acquisition
}

// climb finds a configuration of large expected improvement that was not tried: from
// random ones and the neighbours of the best, then along slopes and neighbours.
func (b *belief) climb(rng *rand.Rand) (space.Config, error) {
	p := newPool(b)
	for range gpPool {
		c, err := b.space.Sample(rng)
		if err != nil {
			return nil, err
		}
		p.add(c)
	}
	for _, o := range b.heads {
		p.neighbours(o.point, nil, rng)
		for range 40 {
			c, err := b.space.Mutate(o.config, 2, nil, rng)
			if err != nil {
				return nil, err
			}
			p.add(c)
		}
	}
	p.judge()
	if len(p.all) == 0 {
		return b.space.Sample(rng)
	}
	best := p.all[0]
	for _, at := range p.all[:min(3, len(p.all))] {
		but := func(space.Dimension) bool { return false }
		for range 8 {
			q := newPool(b)
			q.add(b.slide(at, rng))
			q.neighbours(at.point, but, rng)
			but = sliding // steps in these were tried: slopes say more from here on
			q.judge()
			if len(q.all) == 0 || !(q.all[0].value > at.value) {
				break
			}
			gain := q.all[0].value - at.value
			at = q.all[0]
			if gain < 0.01 { // of a hundredth more improvement: at the top
				break
			}
		}
		if at.value > best.value {
			best = at
		}
	}
	return best.config, nil
}

// pool gathers candidates, each once, none that was tried.
type pool struct {
	*belief
	held map[string]bool
	all  []candidate
}

func newPool(b *belief) *pool { return &pool{belief: b, held: map[string]bool{}} }

func (p *pool) add(c space.Config) {
	k := c.Key()
	if p.held[k] || p.known[k] != nil || p.space.Feasible(c) != nil {
		return
	}
	p.held[k] = true
	p.all = append(p.all, candidate{config: c, point: p.point(c)})
}

// neighbours differ in one dimension: by each other choice where there are few, by
// steps of three sizes where there are many. None differ in one that but says.
func (p *pool) neighbours(at []float64, but func(space.Dimension) bool, rng *rand.Rand) {
	for i, d := range p.dims {
		if math.IsNaN(at[i]) || but != nil && but(d) {
			continue
		}
		try := func(u float64) {
			if u != at[i] {
				q := slices.Clone(at)
				q[i] = u
				p.add(p.config(q, rng))
			}
		}
		cells := int(d.Cells())
		switch {
		case !d.Numeric():
			for j := range cells {
				try(float64(j))
			}
		case d.Kind != space.LogInt && cells > 0 && cells <= 16:
			for j := range cells {
				try((float64(j) + 0.5) / float64(cells))
			}
		default:
			for _, s := range []float64{0.2, 0.05, 0.01} {
				for range 2 {
					try(bounce(at[i] + s*rng.NormFloat64()))
				}
			}
		}
	}
}

// bounce folds a step beyond a range's end back into it.
func bounce(u float64) float64 {
	if u < 0 {
		u = -u
	}
	if u > 1 {
		u = 2 - u
	}
	return min(max(u, 0), 1)
}

// judge gives the candidates their values and sorts them, best first.
func (p *pool) judge() {
	xs, past := make([][]float64, len(p.all)), make([]float64, len(p.all))
	for i, c := range p.all {
		xs[i] = p.features(c.point)
		if p.prior {
			past[i] = p.past.expects(c.point)
		}
	}
	for i, v := range p.values(xs, past) {
		p.all[i].value = v
	}
	slices.SortStableFunc(p.all, func(a, b candidate) int { return -cmp.Compare(a.value, b.value) })
}

// values of the acquisition at features of which the past expects so much: the logarithms of the expected improvement and
// of the probabilities that the constraints hold (Gardner et al., ICML 2014).
func (b *belief) values(xs [][]float64, past []float64) []float64 {
	out := make([]float64, len(xs))
	if b.objective != nil {
		means, variances := b.objective.PredictAll(xs)
		for i := range out {
			out[i] = gauss.LogEI(means[i]+past[i], math.Sqrt(variances[i]), b.best)
		}
	}
	for _, c := range b.constraints {
		means, variances := c.PredictAll(xs)
		for i := range out {
			out[i] += gauss.LogProbability(means[i], math.Sqrt(variances[i]), c.limit)
		}
	}
	return out
}

// slope is the acquisition's value at features and its gradient.
func (b *belief) slope(x, gradient []float64) float64 {
	clear(gradient)
	value := 0.0
	add := func(byMean, byDeviation, deviation float64, dMean, dVariance []float64) {
		for i := range gradient {
			gradient[i] += byMean*dMean[i] + byDeviation*dVariance[i]/(2*deviation)
		}
	}
	if b.objective != nil {
		mean, variance, dm, dv := b.objective.Slope(x)
		dev := math.Sqrt(variance)
		v, byMean, byDev := gauss.LogEISlope(mean+b.offset, dev, b.best)
		value += v
		add(byMean, byDev, dev, dm, dv)
	}
	for _, c := range b.constraints {
		mean, variance, dm, dv := c.Slope(x)
		dev := math.Sqrt(variance)
		v, byMean, byDev := gauss.LogProbabilitySlope(mean, dev, c.limit)
		value += v
		add(byMean, byDev, dev, dm, dv)
	}
	return value
}

// sliding tells which dimensions have slopes.
func sliding(d space.Dimension) bool { return d.Numeric() && d.Cells() == 0 }

// slide follows the slope over the real dimensions, by L-BFGS over angles, which keep
// each coordinate in its range.
func (b *belief) slide(c candidate, rng *rand.Rand) space.Config {
	var free []int
	for i, d := range b.dims {
		if sliding(d) && !math.IsNaN(c.point[i]) {
			free = append(free, i)
		}
	}
	if len(free) == 0 {
		return c.config
	}
	if b.prior {
		b.offset = b.past.expects(c.point) // a forest has no slope to follow
	}
	x := b.features(c.point)
	gradient := make([]float64, len(x))
	low, wide := make([]float64, len(free)), make([]float64, len(free)) // of what is to be proposed
	start := make([]float64, len(free))
	for k, i := range free {
		low[k], wide[k] = b.inside(b.dims[i], 0), b.inside(b.dims[i], 1)
		wide[k] -= low[k]
		if wide[k] > 0 {
			start[k] = math.Acos(1 - 2*min(max((x[i]-low[k])/wide[k], 0.001), 0.999))
		}
	}
	place := func(z []float64) {
		for k, i := range free {
			x[i] = low[k] + wide[k]*(0.5-0.5*math.Cos(z[k]))
		}
	}
	var last []float64 // value and gradient are those there
	value := 0.0
	at := func(z []float64) {
		if !slices.Equal(last, z) {
			last = append(last[:0], z...)
			place(z)
			value = b.slope(x, gradient)
		}
	}
	r, err := optimize.Minimize(optimize.Problem{
		Func: func(z []float64) float64 {
			at(z)
			return -value
		},
		Grad: func(dst, z []float64) {
			at(z)
			for k, i := range free {
				dst[k] = -gradient[i] * wide[k] * 0.5 * math.Sin(z[k])
			}
		},
	}, start, &optimize.Settings{MajorIterations: 15, FuncEvaluations: 40, GradientThreshold: 1e-3}, &optimize.LBFGS{})
	if r == nil || err != nil && len(r.X) == 0 {
		return c.config
	}
	place(r.X)
	p := slices.Clone(c.point)
	for _, i := range free {
		p[i] = x[i]
	}
	return b.config(p, rng)
}
