package search

import (
	"cmp"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// Rationed is a Strategy that is told how far the trial will be trained that the next Ask
// is for.
type Rationed interface {
	Begin(resource float64)
}

// dehb is differential evolution with Hyperband (Awad et al. 2021): each resource at which
// trials begin or are compared has a population of its own, in which what the scheduler
// promotes stands beside what began there. A proposal contends for a place among those of
// the resource that it begins with; it is crossed with a mutant of the best of the resource
// below, which know more of the space, and at the lowest one of its own population. Where
// all trials get the same resource it is de.
type dehb struct {
	*de
	begin  float64
	levels []float64 // by proposal: the resource that it was to begin with
}

func newDEHB(h *history) *dehb { return &dehb{de: newDE(h)} }

// Begin implements Rationed.
func (e *dehb) Begin(resource float64) { e.begin = resource }

func (e *dehb) Ask(n int) ([]space.Config, error) {
	var out []space.Config
	for range n {
		cs, err := e.ask(1, e.propose)
		if err != nil {
			return out, err
		}
		e.levels = append(e.levels, e.begin)
		out = append(out, cs...)
	}
	return out, nil
}

func (e *dehb) propose(rng *rand.Rand) (space.Config, error) {
	turn := 0
	for _, l := range e.levels {
		if l == e.begin {
			turn++
		}
	}
	people := e.place(e.begin)
	pool := e.below(e.begin, len(people)) // none at the lowest
	target := people[turn%len(people)]
	if target == nil && len(pool) > 0 {
		target = pool[turn%len(pool)] // what did well for less
	}
	if len(pool) < 4 {
		for _, o := range people {
			if o != nil && !slices.Contains(pool, o) {
				pool = append(pool, o)
			}
		}
	}
	of := slices.DeleteFunc(pool, func(o *observation) bool { return o == target })
	if target == nil || len(e.results()) < e.opts.Startup || len(of) < 3 {
		return e.design.next(rng)
	}
	return e.cross(target, of, rng)
}

// lowest tells whether nothing has reported at less.
func (e *dehb) lowest(level float64) bool {
	return !slices.ContainsFunc(e.results(), func(o *observation) bool { return o.reports[0].Resource < level })
}

// below are the best at the next lower resource, most at first.
func (e *dehb) below(level float64, most int) []*observation {
	under, found := 0.0, false
	for _, o := range e.results() {
		for _, r := range o.reports {
			if r.Resource < level && (!found || r.Resource > under) {
				under, found = r.Resource, true
			}
		}
	}
	if !found {
		return nil
	}
	return e.best(under, most, func(*observation) bool { return true })
}

// best are those that have a score at a resource, the best of them first.
func (e *dehb) best(level float64, most int, of func(*observation) bool) []*observation {
	var out []*observation
	for _, o := range e.results() {
		if r, ok := o.at(level); ok && !failed(r) && of(o) {
			out = append(out, o)
		}
	}
	slices.SortStableFunc(out, func(a, b *observation) int {
		x, _ := a.at(level)
		y, _ := b.at(level)
		return cmp.Or(better(x, y), cmp.Compare(a.key, b.key))
	})
	return out[:min(most, len(out))]
}

// place fills the places of a resource's population: each proposal that began there stands
// in its place; what was promoted or told, the best of them first, takes those that it is
// better than.
func (e *dehb) place(level float64) []*observation {
	if e.lowest(level) && level == 0 { // nobody says how far trials go
		return e.people()
	}
	out := make([]*observation, e.population(20))
	put := func(at int, o *observation) {
		r, ok := o.at(level)
		if !ok || failed(r) {
			return
		}
		if out[at] != nil {
			if there, _ := out[at].at(level); better(r, there) >= 0 {
				return
			}
		}
		out[at] = o
	}
	n := 0
	began := map[*observation]bool{}
	for i, o := range e.proposed[:min(len(e.levels), len(e.proposed))] {
		if e.levels[i] == level {
			began[o] = true
			put(n%len(out), o)
			n++
		}
	}
	for i, o := range e.best(level, len(out), func(o *observation) bool { return !began[o] }) {
		put(i, o)
	}
	return out
}
