package search

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/search/gauss"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// gp is Bayesian optimisation: a Gaussian process over what was tried, one more for each
// measured constraint, and the configuration of the largest expected improvement over
// what they believe to be the best so far. Several objectives are weighted anew for
// each proposal (ParEGO, Knowles 2006); what is pending counts as if it had come out as
// believed (the kriging believer, Ginsbourger et al. 2010).
type gp struct {
	*history
	*design
	fits map[string]fitted // each process's last fit
}

// fitted is a process and the data that its hyper-parameters were fitted to.
type fitted struct {
	*gauss.Model
	rows int
}

// serves tells whether hyper-parameters are still good for data that have hardly grown.
func (f fitted) serves(d gauss.Data) bool {
	return f.Model != nil && f.rows <= len(d.X) && len(d.X)-f.rows <= len(d.X)/20
}

func newGP(h *history) *gp {
	return &gp{history: h, design: newDesign(h), fits: map[string]fitted{}}
}

func (g *gp) Ask(n int) ([]space.Config, error) { return g.ask(n, g.propose) }

func (g *gp) propose(rng *rand.Rand) (space.Config, error) {
	if len(g.results()) < min(g.opts.Startup, 8) {
		return g.begin(rng)
	}
	g.informed = true
	b, err := g.belief(rng)
	if err != nil {
		return g.space.Sample(rng) // scores that no process can be fitted to
	}
	return b.climb(rng)
}

const (
	// gpFit is the most observations that hyper-parameters are fitted to, gpMost the
	// most that a process is conditioned on: time grows with their cube.
	gpFit, gpMost = 150, 1000
	// gpPool is the number of random candidates; gpHeads the best configurations whose
	// neighbours are candidates too.
	gpPool, gpHeads = 500, 5
)

// belief is a model of score and constraints, ready to be asked where to look next.
type belief struct {
	*history
	objective   *gauss.Model // nil while nothing that holds the constraints is known
	constraints []limited
	best        float64
	heads       []*observation // the best that were tried
	prior       bool           // objective is of what the past did not expect
	offset      float64        // what it expects where a slope is followed
}

// limited is a constraint's model: it holds below limit.
type limited struct {
	*gauss.Model
	limit float64
}

// features are a point's coordinates for the models: of what is not active the middle
// of its range, or a choice of its own.
func (b *belief) features(p []float64) []float64 {
	x := make([]float64, len(p))
	for i, v := range p {
		switch {
		case !math.IsNaN(v):
			x[i] = v
		case b.dims[i].Numeric():
			x[i] = 0.5
		default:
			x[i] = -1
		}
	}
	return x
}

func (g *gp) belief(rng *rand.Rand) (*belief, error) {
	b := &belief{history: g.history}
	results := g.results()
	weights := b.weights(results, rng)
	all := representative(b, results, weights)
	b.heads = all[:min(gpHeads, len(all))]

	data := gauss.Data{Kinds: make([]gauss.Kind, len(g.dims))}
	for i, d := range g.dims {
		if !d.Numeric() {
			data.Kinds[i] = gauss.Name
		}
	}
	rows, expected := make([]Result, len(all)), make([]float64, len(all))
	for i, o := range all {
		rows[i], expected[i] = o.standing, g.past.expects(o.point)
		data.X = append(data.X, b.features(o.point))
	}
	var ahead [][]float64
	for _, o := range g.pending() {
		ahead = append(ahead, b.features(o.point))
	}

	held := false
	count := 0
	for _, r := range rows {
		held = held || r.class() == 0
		count = max(count, len(r.Violations))
	}
	for c := range count {
		y := make([]float64, len(rows))
		for i, r := range rows {
			y[i] = math.Inf(1)
			if c < len(r.Violations) {
				y[i] = r.Violations[c]
			}
		}
		var limit float64
		data.Y, limit = compressed(y)
		m, err := g.fit("constraint"+string(rune('0'+c)), data, ahead, false)
		if err != nil {
			return nil, err
		}
		b.constraints = append(b.constraints, limited{m, limit})
	}
	if count > 0 && !held {
		return b, nil
	}
	data.Y = make([]float64, len(rows))
	for i, r := range rows {
		data.Y[i] = weights.of(r)
	}
	// The best scores are often of what misses a constraint: drawn out there, those that
	// count would lie close together.
	if data.Y = finite(data.Y); count > 0 {
		standardise(data.Y)
	} else {
		data.Y = drawnOut(data.Y)
	}
	for i, past := range expected {
		b.prior = b.prior || past != 0
		data.Y[i] -= past
	}
	m, err := g.fit("score", data, ahead, weights.weight != nil)
	if err != nil {
		return nil, err
	}
	b.objective, b.best = m, math.Inf(1)
	for i, v := range m.Means(data.X) {
		if rows[i].class() == 0 {
			b.best = min(b.best, v+expected[i])
		}
	}
	if math.IsInf(b.best, 1) {
		b.best = math.Inf(1) // everything failed
		for i, y := range data.Y {
			b.best = min(b.best, y+expected[i])
		}
	}
	return b, nil
}

// representative lists at most gpMost observations, best first: the best and the
// youngest of more.
func representative(b *belief, results []*observation, w weighting) []*observation {
	all := slices.Clone(results)
	slices.SortStableFunc(all, func(x, y *observation) int {
		p, q := x.standing, y.standing
		p.Score, q.Score = w.of(p), w.of(q)
		return better(p, q)
	})
	if len(all) <= gpMost {
		return all
	}
	kept := all[:gpMost/2]
	young := slices.Clone(all[gpMost/2:])
	slices.SortStableFunc(young, func(x, y *observation) int { return cmp.Compare(y.seq, x.seq) })
	return append(kept, young[:gpMost-len(kept)]...)
}

// fit conditions a process on the data and on what is pending. Its hyper-parameters are
// fitted to some of the data where there are many, and anew where they have grown by a
// twentieth, or are of another weighting than the last.
func (g *gp) fit(name string, data gauss.Data, ahead [][]float64, reweighted bool) (m *gauss.Model, err error) {
	last := g.fits[name]
	if !reweighted && last.serves(data) {
		m, _ = last.Condition(data) // fails where rounding has made them singular
	}
	if m == nil {
		if m, err = last.refit(data); err != nil {
			return nil, err
		}
		g.fits[name] = fitted{m, len(data.X)}
	}
	if len(ahead) > 0 {
		data.X = append(slices.Clone(data.X), ahead...)
		data.Y = append(slices.Clone(data.Y), m.Means(ahead)...)
		return m.Condition(data)
	}
	return m, nil
}

// refit fits hyper-parameters, from those of the last fit on.
func (f fitted) refit(data gauss.Data) (*gauss.Model, error) {
	part := data
	if n := len(data.X); n > gpFit {
		part.X, part.Y = nil, nil
		for i := range gpFit { // a third of them the best, the others evenly from the rest
			at := i
			if third := gpFit / 3; i >= third {
				at = third + (i-third)*(n-third)/(gpFit-third)
			}
			part.X, part.Y = append(part.X, data.X[at]), append(part.Y, data.Y[at])
		}
	}
	o := gauss.Options{Warp: true, Steps: 30}
	if f.Model != nil {
		o.Start, o.Steps = f.Params(), 8 // little has changed since
	}
	m, err := gauss.Fit(part, o)
	if err != nil && o.Start != nil {
		o.Start, o.Steps = nil, 30
		m, err = gauss.Fit(part, o)
	}
	if err != nil || len(part.X) == len(data.X) {
		return m, err
	}
	return m.Condition(data)
}

// weighting makes one score of several.
type weighting struct {
	weight, low, span []float64 // nil for one objective
}

// weights draws a weighting of the objectives, each scaled to what was seen of it.
func (b *belief) weights(results []*observation, rng *rand.Rand) weighting {
	n := objectives(results)
	if n < 2 {
		return weighting{}
	}
	w := weighting{make([]float64, n), make([]float64, n), make([]float64, n)}
	sum := 0.0
	for i := range n {
		w.weight[i] = rng.ExpFloat64() // even over the simplex
		sum += w.weight[i]
		w.low[i] = math.Inf(1)
		high := math.Inf(-1)
		for _, o := range results {
			if r := o.standing; !failed(r) {
				v := r.values(n)[i]
				w.low[i], high = min(w.low[i], v), max(high, v)
			}
		}
		if w.span[i] = high - w.low[i]; !(w.span[i] > 0) || math.IsInf(w.span[i], 0) {
			w.span[i] = 1
		}
	}
	for i := range w.weight {
		w.weight[i] /= sum
	}
	return w
}

// of is the augmented Chebyshev scalarisation, or the score itself.
func (w weighting) of(r Result) float64 {
	if w.weight == nil || failed(r) {
		return r.Score
	}
	most, sum := 0.0, 0.0
	for i, v := range r.values(len(w.weight)) {
		t := w.weight[i] * (v - w.low[i]) / w.span[i]
		most = max(most, t)
		sum += t
	}
	return most + 0.05*sum
}

// drawnOut makes scores ready for a process of mean 0 and variance 1. Differences
// between good scores matter more than those between bad ones: the logarithm of the
// distance to a point a little below the best, a tenth of the way to the median. y is
// overwritten.
func drawnOut(y []float64) []float64 {
	s := slices.Sorted(slices.Values(y))
	lo, middle := s[0], s[len(s)/2]
	shift := 0.1 * (middle - lo)
	if shift == 0 {
		shift = 0.1 * (s[len(s)-1] - lo) // more than half are equal
	}
	if shift > 0 {
		for i, v := range y {
			y[i] = math.Log(v - lo + shift)
		}
	}
	standardise(y)
	return y
}

// compressed makes violations ready for a process, and says where 0 has come to: far
// from 0 only the order matters.
func compressed(y []float64) (out []float64, limit float64) {
	y = append(finite(y), 0)
	size := make([]float64, len(y))
	for i, v := range y {
		size[i] = math.Abs(v)
	}
	slices.Sort(size)
	if unit := size[len(size)/2]; unit > 0 {
		for i, v := range y {
			y[i] = math.Copysign(math.Log1p(math.Abs(v)/unit), v)
		}
	}
	standardise(y)
	return y[:len(y)-1], y[len(y)-1]
}

// finite puts failures a little above the worst score.
func finite(y []float64) []float64 {
	y = slices.Clone(y)
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range y {
		if math.Abs(v) < 1e300 {
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	if lo > hi {
		lo, hi = 0, 0
	}
	for i, v := range y {
		switch {
		case v <= -1e300:
			y[i] = lo
		case !(v < 1e300):
			y[i] = hi + 0.1*(hi-lo)
		}
	}
	return y
}

func standardise(y []float64) {
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
}
