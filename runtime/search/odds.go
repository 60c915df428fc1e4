package search

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// Odds is what a plan's search is likely to find: its scheduler, played through many times
// over trials that are drawn at random. Strategies do better than that, so these are the
// odds that the schedule alone gives.
type Odds struct {
	// Ends are how many trials end at each resource, in the mean.
	Ends []End `json:"ends"`
	// The share of all configurations that are better than the winner: at most Median in
	// half of the searches, at most Ninety in nine of ten.
	Median float64 `json:"better_median"`
	Ninety float64 `json:"better_ninety"`
	// Whole is Median of a search that trains as many trials as the same budget affords to
	// the end.
	Whole float64 `json:"better_median_whole"`
}

// End is how many trials end at a resource.
type End struct {
	Resource float64 `json:"resource"`
	Trials   float64 `json:"trials"`
}

// rungNoise is how much a score after a share of the full resource differs from what it
// would be after all of it, variance over that of the space's own spread: fitted to the
// ranks in bench/testdata's learning curves, where the third of the configurations that is
// best after all ranks there as it did after a tenth with a correlation of 0.75, after a
// quarter of 0.86, and after half of 0.96.
func rungNoise(share float64) float64 { return min(0.2, 0.02*(1/share-1)) }

// Odds plays so many searches.
func (p Plan) Odds(draws int, seed uint64) (Odds, error) {
	var o Odds
	if len(p.Brackets) == 0 || draws < 1 {
		return o, fmt.Errorf("search: odds of %d searches of %d brackets", draws, len(p.Brackets))
	}
	line, err := space.Parse("x", "uniform(0, 1)")
	if err != nil {
		return o, err
	}
	sp, err := space.New(line)
	if err != nil {
		return o, err
	}
	top, cost := 0.0, 0.0
	for _, b := range p.Brackets {
		top = max(top, b.Resources[len(b.Resources)-1])
		cost += b.Cost()
	}
	ends := map[float64]float64{}
	better := make([]float64, draws)
	for n := range better {
		rng := rand.New(rand.NewPCG(seed, uint64(n)))
		st, err := NewStrategy("random", sp, Options{Seed: rng.Uint64()})
		if err != nil {
			return o, err
		}
		sched, err := NewScheduler(p)
		if err != nil {
			return o, err
		}
		s := New(st, sched, p.Slots)
		quality := map[string]float64{} // what a trial would score after all of the resource
		reached := map[string]float64{}
		for {
			ds, err := s.Next()
			if err != nil {
				return o, err
			}
			if len(ds) == 0 {
				break
			}
			for _, d := range ds {
				if d.Action == Fork {
					quality[d.Trial] = quality[d.Inherit] // changed in its training alone
				} else if d.Action == Start {
					quality[d.Trial] = rng.NormFloat64()
				}
				reached[d.Trial] = d.Resource
				score := quality[d.Trial] + math.Sqrt(rungNoise(d.Resource/top))*rng.NormFloat64()
				if err := s.Report(d.Seq, Outcome{Score: score}); err != nil {
					return o, err
				}
			}
		}
		better[n] = normalCDF(quality[s.Ranking()[0].Trial])
		for _, r := range reached {
			ends[r] += 1 / float64(draws)
		}
	}
	for r, n := range ends {
		o.Ends = append(o.Ends, End{r, n})
	}
	slices.SortFunc(o.Ends, func(a, b End) int { return cmp.Compare(a.Resource, b.Resource) })
	slices.Sort(better)
	o.Median, o.Ninety = quantile(better, 0.5), quantile(better, 0.9)
	// The least of n shares, each anywhere between 0 and 1, is below x with 1 − (1 − x)ⁿ.
	o.Whole = 1 - math.Pow(0.5, 1/max(1, math.Floor(cost/top)))
	return o, nil
}
