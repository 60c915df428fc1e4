package search

import (
	"math"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// cmaES is CMA-ES with margin over a space. A number is one coordinate of its
// distribution; a choice has one for each value, of which the largest is taken, so that
// choices are learned one by one and not in their combinations. What is not active is
// drawn all the same and has no effect. A run that has converged or goes round in what is
// known is followed by one from elsewhere with twice the population (IPOP, Auger and
// Hansen 2005).
type cmaES struct {
	*history
	layout []coordinate
	run    *cma
	runs   int
	draws  map[string]*draw // by the configuration's key, until it is learned from
	last   *draw
}

// coordinate is a dimension's place in the distribution.
type coordinate struct {
	parzenDim
	choice int // of a categorical one
}

// draw is a point of the distribution that was proposed.
type draw struct {
	key        string
	x          []float64
	run        int
	generation int
	own        bool // as it was drawn, not put in its place
}

func newCMAES(h *history) *cmaES {
	c := &cmaES{history: h, draws: map[string]*draw{}}
	for i, d := range h.dims {
		if d.Numeric() {
			c.layout = append(c.layout, coordinate{parzenDim{d, i}, 0})
			continue
		}
		for k := range d.Choices {
			c.layout = append(c.layout, coordinate{parzenDim{d, i}, k})
		}
	}
	return c
}

func (c *cmaES) Ask(n int) ([]space.Config, error) {
	var out []space.Config
	if len(c.layout) == 0 { // nothing varies
		return c.ask(n, c.space.Sample)
	}
	for range n {
		c.learn()
		config, err := c.ask(1, c.propose)
		if err != nil {
			return out, err
		}
		o := c.proposed[len(c.proposed)-1]
		if c.last == nil || c.last.key != o.key {
			c.last = &draw{key: o.key, x: c.coordinates(o.point), run: c.runs, generation: c.run.generation}
		}
		c.draws[o.key] = c.last
		out = append(out, config...)
	}
	return out, nil
}

// propose draws from the distribution.
func (c *cmaES) propose(rng *rand.Rand) (space.Config, error) {
	c.last, c.informed = nil, true // a distribution learns from its own draws alone
	for range 100 {
		x := c.run.sample(rng)
		config := c.config(c.pointOf(c.run.read(x)), rng)
		if c.space.Feasible(config) == nil {
			c.last = &draw{key: config.Key(), x: x, run: c.runs, generation: c.run.generation, own: true}
			return config, nil
		}
	}
	return c.space.Sample(rng)
}

// learn begins a run where there is none, and takes in whole generations of results in
// the order of asking.
func (c *cmaES) learn() {
	c.results()
	if c.run == nil {
		mean := slices.Repeat([]float64{0.5}, len(c.layout))
		if best := c.sorted(); len(best) > 0 && best[0].standing.class() == 0 {
			mean = c.coordinates(best[0].point)
		}
		c.run = newCMA(mean, 0, c.cells)
	}
	for {
		var batch []*observation
		for _, o := range c.proposed {
			if d := c.draws[o.key]; d != nil && len(o.reports) > 0 && len(batch) < c.run.size {
				batch = append(batch, o)
			}
		}
		if len(batch) < c.run.size {
			return
		}
		slices.SortStableFunc(batch, func(a, b *observation) int { return better(a.standing, b.standing) })
		var generation []drawn
		own := 0
		for _, o := range batch {
			d := c.draws[o.key]
			delete(c.draws, o.key)
			generation = append(generation, drawn{x: d.x, value: o.standing.Score, alien: !d.own || d.generation != c.run.generation})
			if d.own {
				own++
			}
		}
		if !failed(batch[0].standing) {
			c.run.update(generation)
		}
		if c.run.over() || 2*own < len(batch) {
			c.restart()
		}
	}
}

// restart begins a run of twice the population anywhere; what is still pending belongs to
// none.
func (c *cmaES) restart() {
	c.runs++
	rng := rand.New(rand.NewPCG(c.opts.Seed, 0xc3a5c85c97cb3127+uint64(c.runs)))
	mean := make([]float64, len(c.layout))
	for j := range mean {
		mean[j] = rng.Float64()
	}
	c.run = newCMA(mean, min(2*c.run.size, 1024), c.cells)
	clear(c.draws)
}

// cells implements the type of that name.
func (c *cmaES) cells(j int, x float64) (low, high float64, discrete bool) {
	d := c.layout[j]
	switch {
	case !d.Numeric():
		return 0.5, 0.5, true
	case d.continuous():
		return 0, 0, false
	}
	low, high = d.cell(d.Unit(d.Value(x)))
	switch {
	case low < 1e-12:
		low = high
	case high > 1-1e-12:
		high = low
	}
	return low, high, true
}

// coordinates of a configuration's point, of what it has not the mean's.
func (c *cmaES) coordinates(point []float64) []float64 {
	x := make([]float64, len(c.layout))
	for j, d := range c.layout {
		switch v := point[d.at]; {
		case math.IsNaN(v) && c.run != nil:
			x[j] = c.run.mean[j]
		case math.IsNaN(v):
			x[j] = 0.5
		case d.Numeric():
			x[j] = v
		case int(v) == d.choice:
			x[j] = 0.75
		default:
			x[j] = 0.25
		}
	}
	return x
}

// pointOf is the point of history that coordinates stand for.
func (c *cmaES) pointOf(x []float64) []float64 {
	p := make([]float64, len(c.dims))
	largest := make([]float64, len(c.dims))
	for j, d := range c.layout {
		switch {
		case d.Numeric():
			p[d.at] = x[j]
		case d.choice == 0 || x[j] > largest[d.at]:
			p[d.at], largest[d.at] = float64(d.choice), x[j]
		}
	}
	return p
}
