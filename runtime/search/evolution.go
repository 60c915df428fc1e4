package search

import (
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// evolution is regularised evolution (Real et al., AAAI 2019): a population of
// the youngest results, a tournament for the parent, one child by mutation (or,
// one time in four, crossover and mutation), and the oldest leaves.
type evolution struct{ *history }

func (e *evolution) Ask(n int) ([]space.Config, error) {
	return e.ask(n, func(rng *rand.Rand) (space.Config, error) {
		if len(e.results()) < min(e.opts.Startup, e.population(20)) {
			return e.space.Sample(rng)
		}
		return breed(e.history, nil, rng)
	})
}

// breed makes a child of the population whose mutation touches the dimensions
// named by only (nil is all). Where Options.Grows is set it takes the first of several
// children that can begin from their parent's weights, if there is one, and notes whose.
func breed(h *history, only func(string) bool, rng *rand.Rand) (space.Config, error) {
	size := h.population(20)
	population := make([]Result, 0, size)
	results := h.results()
	for i := len(results) - 1; i >= 0 && len(population) < size; i-- {
		if r := results[i].standing; !failed(r) {
			population = append(population, r)
		}
	}
	if len(population) == 0 {
		return h.space.Sample(rng)
	}
	compare := better
	if places := placesOf(population); places != nil {
		compare = func(a, b Result) int { return places[a.Trial] - places[b.Trial] }
	}
	pick := func() Result {
		best := population[rng.IntN(len(population))]
		for range max(1, len(population)/4) {
			if r := population[rng.IntN(len(population))]; compare(r, best) < 0 {
				best = r
			}
		}
		return best
	}
	parent := pick()
	child := parent.Config
	if len(population) > 1 && rng.Float64() < 0.25 {
		var err error
		if child, err = h.space.Cross(child, pick().Config, rng); err != nil {
			return nil, err
		}
	}
	mutate := func() (space.Config, error) { return h.space.Mutate(child, 1+rng.IntN(2), only, rng) }
	if h.opts.Grows != nil {
		for range growTries {
			if c, err := mutate(); err != nil || h.opts.Grows(c, parent.Config) {
				h.bred = parent.Trial
				return c, err
			}
		}
	}
	return mutate()
}

// placesOf gives results of several objectives their places by fronts; nil of
// one objective.
func placesOf(results []Result) map[string]int {
	if !slices.ContainsFunc(results, func(r Result) bool { return len(r.Scores) > 1 }) {
		return nil
	}
	out := map[string]int{}
	for i, r := range choose(results, len(results), leastCrowded) {
		out[results[r.at].Trial] = i
	}
	return out
}

// growTries is how many children are looked at for one that can be grown: half of all
// mutations make a model smaller.
const growTries = 8
