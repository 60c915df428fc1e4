package search

import (
	"cmp"
	"math"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/search/gauss"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// gp is Bayesian optimisation: a Gaussian process over what was tried, and the
// configuration of the largest expected improvement over what it believes to be best.
type gp struct {
	*history
	theta []float64 // hyper-parameters of the last fit
}

func (g *gp) Ask(n int) ([]space.Config, error) {
	return g.ask(n, func(rng *rand.Rand) (space.Config, error) {
		if len(g.results()) < min(g.opts.Startup, 8) {
			return g.space.Sample(rng)
		}
		if k := os.Getenv("GP_TPE"); k != "" && g.asked%int(k[0]-'0') == 0 {
			return suggest(g.history, nil, func(string) bool { return false }, rng)
		}
		m, err := g.model(rng)
		if err != nil {
			return g.space.Sample(rng)
		}
		return m.climb(rng)
	})
}

// belief is a model of the score, ready to be asked where to look next.
type belief struct {
	*history
	kinds  []gauss.Kind
	score  *gauss.Model
	best   float64
	sorted []*observation // best first
}

// features are a point's coordinates for the model: what is not active stands in the
// middle of its range, or is a choice of its own.
func (h *history) features(p []float64) []float64 {
	x := slices.Clone(p)
	for i, v := range x {
		switch {
		case !math.IsNaN(v):
		case h.dims[i].Numeric():
			x[i] = 0.5
		default:
			x[i] = -1
		}
	}
	return x
}

func (h *history) kinds() []gauss.Kind {
	kinds := make([]gauss.Kind, len(h.dims))
	for i, d := range h.dims {
		if !d.Numeric() {
			kinds[i] = gauss.Name
		}
	}
	return kinds
}

func (g *gp) model(rng *rand.Rand) (*belief, error) {
	b := &belief{history: g.history, kinds: g.kinds(), sorted: g.sorted()}
	data := gauss.Data{Kinds: b.kinds}
	for _, o := range b.sorted {
		data.X = append(data.X, g.features(o.point))
		data.Y = append(data.Y, o.last().Score)
	}
	how := os.Getenv("GP_T")
	if how == "mix" {
		how = []string{"log", "rank"}[g.asked%2]
	}
	if how == "mix4" {
		how = []string{"log", "log2"}[g.asked%2]
	}
	if how == "mix3" {
		how = []string{"log", "rank", "none"}[g.asked%3]
	}
	data.Y = transformed(data.Y, how)
	o := gauss.Options{Start: g.theta, Warp: os.Getenv("GP_WARP") != "", Steps: 30}
	m, err := gauss.Fit(data, o)
	if err != nil {
		return nil, err
	}
	g.theta = m.Params()
	if pending := g.pending(); len(pending) > 0 {
		all := gauss.Data{Kinds: b.kinds, X: slices.Clone(data.X), Y: slices.Clone(data.Y)}
		for _, p := range pending {
			all.X = append(all.X, g.features(p.point))
		}
		all.Y = append(all.Y, m.Means(all.X[len(data.X):])...)
		if m, err = m.Condition(all, gauss.Options{}); err != nil {
			return nil, err
		}
	}
	b.score = m
	b.best = slices.Min(m.Means(data.X))
	return b, nil
}

// transformed makes scores ready for a process of mean 0 and variance about 1.
func transformed(y []float64, how string) []float64 {
	y = finite(y)
	switch how {
	case "log":
		s := slices.Sorted(slices.Values(y))
		lo, med := s[0], s[len(s)/2]
		shift := 0.1 * (med - lo)
		if shift > 0 {
			for i, v := range y {
				y[i] = math.Log(v - lo + shift)
			}
		}
	case "log2", "log3", "log4":
		s := slices.Sorted(slices.Values(y))
		lo, med := s[0], s[len(s)/2]
		shift := s[len(s)/10] - lo
		if how == "log3" {
			shift = s[len(s)/4] - lo
		}
		if how == "log4" {
			shift = math.Sqrt(max(shift, 1e-3*(med-lo)) * 0.1 * (med - lo))
		}
		shift = max(shift, 0.003*(med-lo))
		if shift > 0 {
			for i, v := range y {
				y[i] = math.Log(v - lo + shift)
			}
		}
	case "rank":
		n := len(y)
		at := make([]int, n)
		for i := range at {
			at[i] = i
		}
		slices.SortStableFunc(at, func(a, b int) int { return cmp.Compare(y[a], y[b]) })
		out := make([]float64, n)
		for i := 0; i < n; {
			j := i
			for j < n && y[at[j]] == y[at[i]] {
				j++
			}
			p := (float64(i+j-1)/2 + 0.5) / float64(n)
			for k := i; k < j; k++ {
				out[at[k]] = math.Sqrt2 * math.Erfinv(2*p-1)
			}
			i = j
		}
		y = out
	}
	return standardised(y)
}

// finite puts failures a little above the worst score.
func finite(y []float64) []float64 {
	y = slices.Clone(y)
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range y {
		if v < 1e300 {
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	if math.IsInf(lo, 1) {
		lo, hi = 0, 0
	}
	for i, v := range y {
		if !(v < 1e300) {
			y[i] = hi + 0.1*(hi-lo)
		}
	}
	return y
}

func standardised(y []float64) []float64 {
	var sum, sq float64
	for _, v := range y {
		sum += v
	}
	mean := sum / float64(len(y))
	for _, v := range y {
		sq += (v - mean) * (v - mean)
	}
	dev := math.Sqrt(sq / float64(len(y)))
	if !(dev > 0) {
		dev = 1
	}
	for i := range y {
		y[i] = (y[i] - mean) / dev
	}
	return y
}

// candidate is a configuration that might be proposed.
type candidate struct {
	config space.Config
	point  []float64
	value  float64 // of the acquisition
}

// climb finds a configuration of large expected improvement that was not tried: from
// random ones and the neighbours of the best, then along neighbours and slopes.
func (b *belief) climb(rng *rand.Rand) (space.Config, error) {
	p := pool{belief: b, known: map[string]bool{}}
	for range 700 {
		c, err := b.space.Sample(rng)
		if err != nil {
			return nil, err
		}
		p.add(c)
	}
	for _, o := range b.sorted[:min(5, len(b.sorted))] {
		p.neighbours(o.point, rng)
		for range 60 {
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
	starts := slices.Clone(p.all[:min(3, len(p.all))])
	best := starts[0]
	for _, at := range starts {
		for range 8 {
			at = b.slide(at, rng)
			q := pool{belief: b, known: map[string]bool{}}
			q.neighbours(at.point, rng)
			q.judge()
			if len(q.all) == 0 || q.all[0].value <= at.value {
				break
			}
			at = q.all[0]
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
	known map[string]bool
	all   []candidate
}

func (p *pool) add(c space.Config) {
	k := c.Key()
	if p.known[k] || p.belief.known(k) || p.space.Feasible(c) != nil {
		return
	}
	p.known[k] = true
	p.all = append(p.all, candidate{config: c, point: p.point(c)})
}

func (b *belief) known(key string) bool { return b.history.known[key] != nil }

// neighbours differ in one dimension.
func (p *pool) neighbours(at []float64, rng *rand.Rand) {
	for i, d := range p.dims {
		if math.IsNaN(at[i]) {
			continue
		}
		try := func(u float64) {
			q := slices.Clone(at)
			q[i] = u
			p.add(p.config(q, rng))
		}
		cells := len(d.Choices)
		if d.Numeric() {
			cells = d.Cells()
		}
		switch {
		case !d.Numeric():
			for j := range d.Choices {
				if float64(j) != at[i] {
					try(float64(j))
				}
			}
		case cells > 0 && cells <= 16:
			for j := range cells {
				try((float64(j) + 0.5) / float64(cells))
			}
		default:
			for _, s := range []float64{0.2, 0.05, 0.01} {
				for range 2 {
					try(reflect(at[i] + s*rng.NormFloat64()))
				}
			}
		}
	}
}

func reflect(u float64) float64 {
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
	xs := make([][]float64, len(p.all))
	for i, c := range p.all {
		xs[i] = p.features(c.point)
	}
	for i, v := range p.values(xs) {
		p.all[i].value = v
	}
	slices.SortStableFunc(p.all, func(a, b candidate) int { return -cmp.Compare(a.value, b.value) })
}

// values of the acquisition at features.
func (b *belief) values(xs [][]float64) []float64 {
	means, variances := b.score.PredictAll(xs)
	out := make([]float64, len(xs))
	for i := range out {
		out[i] = gauss.LogEI(means[i], math.Sqrt(variances[i]), b.best)
	}
	return out
}

// slide follows the slope over the real dimensions.
func (b *belief) slide(c candidate, rng *rand.Rand) candidate {
	return c
}
