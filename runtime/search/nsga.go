package search

import (
	"cmp"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// nsga2 is NSGA-II (Deb et al. 2002) for one or more objectives: a population of the best
// by non-domination and then by distance, parents by tournaments of two, uniform
// crossover nine times in ten, each dimension mutated once in d times. It goes on with
// whatever has reported rather than by whole generations.
type nsga2 struct {
	*history
	*design
	// What whole batches came to, so that they aren't gone through again.
	batches  []*observation
	kept     []*observation
	revision int
}

func newNSGA2(h *history) *nsga2 { return &nsga2{history: h, design: newDesign(h)} }

// member of the population.
type member struct {
	*observation
	front int
	far   float64
}

func (g *nsga2) Ask(n int) ([]space.Config, error) {
	var people []member
	return g.ask(n, func(rng *rand.Rand) (space.Config, error) {
		if len(g.results()) < g.population(50) {
			return g.design.next(rng)
		}
		if people == nil {
			people = g.members()
		}
		if len(people) == 0 {
			return g.space.Sample(rng)
		}
		pick := func() member {
			a, b := people[rng.IntN(len(people))], people[rng.IntN(len(people))]
			if cmp.Or(cmp.Compare(a.front, b.front), -cmp.Compare(a.far, b.far)) <= 0 {
				return a
			}
			return b
		}
		child := pick().config
		var err error
		if rng.Float64() < 0.9 {
			if child, err = g.space.Cross(child, pick().config, rng); err != nil {
				return nil, err
			}
		}
		changes := 0
		for range child {
			if rng.IntN(len(child)) == 0 {
				changes++
			}
		}
		if changes == 0 {
			return child, nil
		}
		return g.space.Mutate(child, changes, nil, rng)
	})
}

// members goes through the results in the order of asking, a population's worth at a
// time, and keeps the best so far.
func (g *nsga2) members() []member {
	size, results := g.population(50), g.results()
	if n := len(g.batches); g.revision != g.history.revision || n > len(results) || !slices.Equal(g.batches, results[:n]) {
		g.batches, g.kept = nil, nil
	}
	g.revision = g.history.revision
	var out []member
	for batch := range slices.Chunk(results[len(g.batches):], size) {
		out = fittest(append(slices.Clip(g.kept), batch...), size)
		if len(batch) == size {
			g.batches = results[:len(g.batches)+size]
			g.kept = g.kept[:0:0]
			for _, p := range out {
				g.kept = append(g.kept, p.observation)
			}
		}
	}
	if out == nil {
		return fittest(g.kept, size)
	}
	return out
}

// fittest picks the best n that didn't fail.
func fittest(from []*observation, n int) []member {
	from = slices.DeleteFunc(slices.Clone(from), func(o *observation) bool { return failed(o.standing) })
	results := make([]Result, len(from))
	for i, o := range from {
		results[i] = o.standing
	}
	var out []member
	for _, r := range choose(results, n, leastCrowded) {
		out = append(out, member{observation: from[r.at], front: r.front})
	}
	m := objectives(from)
	for i := 0; i < len(out); {
		end := i
		var front [][]float64
		for end < len(out) && out[end].front == out[i].front {
			front = append(front, out[end].standing.values(m))
			end++
		}
		for k, far := range crowding(front) {
			out[i+k].far = far
		}
		i = end
	}
	return out
}
