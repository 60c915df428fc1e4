package search

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/search/gauss"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// forest is SMAC's way (Hutter et al. 2011): a random forest predicts the score and how
// sure that is, and what promises the largest improvement is looked for by local search
// from the best results and by random draws. One proposal in eight is random. Where
// constraints are measured, a second forest predicts whether they hold. Several
// objectives are weighed anew for each proposal (ParEGO, Knowles 2006).
type forest struct {
	*history
	*design
}

func newForest(h *history) *forest { return &forest{h, newDesign(h)} }

func (f *forest) Ask(n int) ([]space.Config, error) { return f.ask(n, f.propose) }

func (f *forest) propose(rng *rand.Rand) (space.Config, error) {
	switch told := f.results(); {
	case len(told) < f.opts.Startup:
		return f.design.begin(rng)
	case rng.IntN(8) == 0 || !slices.ContainsFunc(told, func(o *observation) bool { return !failed(o.standing) }):
		return f.space.Sample(rng)
	}
	return f.promising(rng)
}

// surrogate is what the forests say of a point.
type surrogate struct {
	score *trees
	holds *trees // 1 where the constraints hold; nil where they always do
	best  float64
	// What the past expects of a point, in the measure of score, which is of the rest.
	past func(p []float64) float64
}

// fit learns from the results. What is pending is taken to come out as predicted.
func (f *forest) fit(rng *rand.Rand) surrogate {
	var x [][]float64
	var y, holds []float64
	feasible := slices.ContainsFunc(f.results(), func(o *observation) bool { return o.standing.class() == 0 })
	worst := math.Inf(-1)
	scores := scalarized(f.results(), rng)
	for i, o := range f.results() {
		r := o.standing
		v := scores[i]
		if !feasible { // how to come nearer to that is what matters first
			v = r.violation()
		}
		hold := 0.0
		if r.class() == 0 {
			hold = 1
		}
		if !failed(r) {
			worst = max(worst, v)
		} else {
			v = math.Inf(1)
		}
		x, y, holds = append(x, o.point), append(y, v), append(holds, hold)
	}
	best := math.Inf(1)
	for i := range y {
		y[i] = max(min(y[i], worst, 1e300), -1e300)
	}
	y = warped(y)
	for i, v := range y {
		if holds[i] == 1 || !feasible {
			best = min(best, v)
		}
	}
	unit := deviation(y)
	s := surrogate{best: best, past: func(p []float64) float64 { return unit * f.past.expects(p) }}
	for i, p := range x {
		y[i] -= s.past(p)
	}
	s.score = grow(f.dims, x, y, rng.Uint64())
	if pending := f.pending(); len(pending) > 0 {
		for _, o := range pending {
			mean, _ := s.score.predict(o.point)
			x, y = append(x, o.point), append(y, mean)
		}
		s.score = grow(f.dims, x, y, rng.Uint64())
	}
	if feasible && slices.Contains(holds, 0) {
		s.holds = grow(f.dims, x[:len(holds)], holds, rng.Uint64())
	}
	return s
}

// deviation is the standard deviation of numbers.
func deviation(y []float64) float64 {
	var sum, squares float64
	for _, v := range y {
		sum += v
		squares += v * v
	}
	n := float64(len(y))
	return math.Sqrt(max(squares/n-sum/n*sum/n, 0))
}

// scalarized are the results' scores. Of several objectives it is the augmented
// Chebyshev norm with random weights, each objective in shares of its extent.
func scalarized(results []*observation, rng *rand.Rand) []float64 {
	out := make([]float64, len(results))
	m := objectives(results)
	if m == 1 {
		for i, o := range results {
			out[i] = o.standing.Score
		}
		return out
	}
	weights, sum := make([]float64, m), 0.0
	for k := range weights {
		weights[k] = rng.ExpFloat64()
		sum += weights[k]
	}
	total := make([]float64, len(results))
	for k, w := range weights {
		low, high := math.Inf(1), math.Inf(-1)
		for _, o := range results {
			if v := o.standing.values(m)[k]; !failed(o.standing) && !math.IsInf(v, 0) {
				low, high = min(low, v), max(high, v)
			}
		}
		for i, o := range results {
			share := 1.0
			if v := o.standing.values(m)[k]; high > low && v < high {
				share = max(v-low, 0) / (high - low)
			}
			out[i] = max(out[i], w/sum*share)
			total[i] += w / sum * share
		}
	}
	for i := range out {
		out[i] += 0.05 * total[i]
	}
	return out
}

// acquisition is the logarithm of the expected improvement, and of the chance that the
// constraints hold.
func (s surrogate) acquisition(p []float64) float64 {
	mean, variance := s.score.predict(p)
	a := gauss.LogEI(mean+s.past(p), math.Sqrt(variance+1e-10), s.best)
	if s.holds != nil {
		chance, _ := s.holds.predict(p)
		a += math.Log(max(chance, 0.01))
	}
	return a
}

// promising is the new configuration with the largest acquisition among random ones and
// those that local searches meet.
func (f *forest) promising(rng *rand.Rand) (space.Config, error) {
	const (
		draws  = 256
		starts = 4 // of the best results and of the best draws each
		steps  = 8
	)
	f.informed = true
	s := f.fit(rng)
	type candidate struct {
		config space.Config
		point  []float64
		acq    float64
	}
	at := func(c space.Config) candidate {
		p := f.point(c)
		return candidate{c, p, s.acquisition(p)}
	}
	falling := func(a, b candidate) int { return cmp.Compare(b.acq, a.acq) }
	var met []candidate
	for range draws {
		c, err := f.space.Sample(rng)
		if err != nil {
			return nil, err
		}
		met = append(met, at(c))
	}
	slices.SortStableFunc(met, falling)
	from := slices.Clone(met[:starts])
	for _, o := range f.sorted()[:min(starts, len(f.results()))] {
		from = append(from, at(o.config))
	}
	for _, here := range from {
		for range steps {
			next := here
			for _, p := range f.neighbours(here.point, rng) {
				c := f.config(p, rng)
				if f.space.Feasible(c) != nil {
					continue
				}
				n := at(c)
				met = append(met, n)
				if n.acq > next.acq {
					next = n
				}
			}
			if next.acq <= here.acq {
				break
			}
			here = next
		}
	}
	slices.SortStableFunc(met, falling)
	for _, c := range met {
		if !f.seen(c.config) {
			return c.config, nil
		}
	}
	return met[0].config, nil
}

// neighbours of a point differ from it in one dimension: every other choice, or four
// numbers near.
func (h *history) neighbours(p []float64, rng *rand.Rand) [][]float64 {
	var out [][]float64
	with := func(i int, v float64) {
		q := slices.Clone(p)
		q[i] = v
		out = append(out, q)
	}
	for i, d := range h.dims {
		switch {
		case math.IsNaN(p[i]):
		case d.Numeric():
			for range 4 {
				with(i, truncated(p[i], 0.2, rng))
			}
		default:
			for choice := range d.Choices {
				if choice != int(p[i]) {
					with(i, float64(choice))
				}
			}
		}
	}
	return out
}
