package search

import (
	"math"
	"math/rand/v2"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// de is differential evolution (Storn and Price 1997) with DEHB's constants (Awad et al.
// 2021): rand/1/bin, F = 0.5, CR = 0.5, what leaves the range is drawn anew. Each
// proposal contends for one place of the population and takes it when it turns out
// better, so that results may come in any order.
type de struct {
	*history
	*design
}

func newDE(h *history) *de { return &de{h, newDesign(h)} }

func (e *de) Ask(n int) ([]space.Config, error) {
	return e.ask(n, func(rng *rand.Rand) (space.Config, error) {
		people := e.people()
		target := people[len(e.proposed)%len(people)]
		var of []*observation // the others
		for _, o := range people {
			if o != nil && o != target {
				of = append(of, o)
			}
		}
		if target == nil || len(e.results()) < e.opts.Startup || len(of) < 3 {
			return e.design.next(rng)
		}
		return e.cross(target, of, rng)
	})
}

// cross proposes a trial for the target's place that holds the constraints.
func (e *de) cross(target *observation, of []*observation, rng *rand.Rand) (space.Config, error) {
	for range 64 {
		for i := range 3 { // three different ones to the front
			k := i + rng.IntN(len(of)-i)
			of[i], of[k] = of[k], of[i]
		}
		if c := e.config(e.trial(target, of, rng), rng); e.space.Feasible(c) == nil {
			return c, nil
		}
	}
	return e.space.Mutate(target.config, 1, nil, rng)
}

// trial crosses the target with a mutant.
func (e *de) trial(target *observation, of []*observation, rng *rand.Rand) []float64 {
	const f, cr = 0.5, 0.5
	x := make([]float64, len(e.dims))
	sure := rng.IntN(max(len(e.dims), 1))
	for i, d := range e.dims {
		unit := func(o *observation) float64 {
			switch v := o.point[i]; {
			case math.IsNaN(v):
				return rng.Float64()
			case d.Numeric():
				return v
			default:
				return (v + 0.5) / float64(len(d.Choices))
			}
		}
		u := unit(target)
		if i == sure || rng.Float64() < cr {
			if u = unit(of[0]) + f*(unit(of[1])-unit(of[2])); u < 0 || u > 1 {
				u = rng.Float64()
			}
		}
		if x[i] = u; !d.Numeric() {
			x[i] = u * float64(len(d.Choices))
		}
	}
	return x
}

// people fills the places of the population: the best foreign results first, then each
// proposal in its place. A place whose proposals are all pending or failed is nil.
func (e *de) people() []*observation {
	e.results()
	out := make([]*observation, e.population(20))
	place := func(at int, o *observation) {
		if len(o.reports) == 0 || failed(o.standing) {
			return
		}
		if out[at] == nil || better(o.standing, out[at].standing) < 0 {
			out[at] = o
		}
	}
	if len(e.foreign) > 0 {
		at := 0
		for _, o := range e.sorted() {
			if o.seq < 0 && at < len(out) {
				place(at, o)
				at++
			}
		}
	}
	for _, o := range e.proposed {
		place(o.seq%len(out), o)
	}
	return out
}
