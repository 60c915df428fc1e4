package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/open-autoglm/autoglm/bench/curves"
	"github.com/open-autoglm/autoglm/bench/stat"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// Trials of a search: its first, and when it is looked at.
const startup = 8

var looks = []int{8, 16, 32}

// firsts are how the first trials are chosen, among four times as many that are drawn at
// random: by what is known without training.
var firsts = []string{"random", "parameters", "path", "both"}

// found prints what searches over the table have found whose first trials an estimate has
// chosen: the median over the searches of the best score less that of the table.
func found(text string, rows []curves.Row, searches int) error {
	known := map[string]float64{}
	best := math.Inf(1)
	var dims []space.Dimension
	for n, list := range map[string]string{"lr": "2e-4, 6e-4, 2e-3, 6e-3, 2e-2", "dim": "32, 64, 96, 128", "layers": "1, 2, 4", "batch": "256, 512, 1024"} {
		dims = append(dims, space.MustParse(n, "ordinal(["+list+"])"))
	}
	dims = append(dims, space.MustParse("optimizer", "categorical([adamw, muon])"))
	slices.SortFunc(dims, func(a, b space.Dimension) int { return cmp.Compare(a.Name, b.Name) })
	sp, err := space.New(dims...)
	if err != nil {
		return err
	}
	by := map[string]map[string]float64{}
	for _, r := range rows {
		c := r.Config
		k := space.Config{
			"lr": space.Number(c.LR), "dim": space.Number(float64(c.Arch.Dim)), "layers": space.Number(float64(c.Arch.Layers)),
			"batch": space.Number(float64(c.BatchTokens)), "optimizer": space.Word(string(c.Optimizer)),
		}.Key()
		known[k] = math.Inf(1)
		if len(r.Bits) == 20 {
			known[k] = r.Bits[19]
		}
		best = min(best, known[k])
		by[k] = shape(c)
	}
	out := json.NewEncoder(os.Stdout)
	for _, strategy := range []string{"gp", "tpe", "auto"} {
		for _, first := range firsts {
			regret := make([][]float64, len(looks))
			for seed := range uint64(searches) {
				o := search.Options{Seed: seed, Startup: startup}
				pool, err := drawn(sp, seed)
				if err != nil {
					return err
				}
				o.Initial = chosen(pool, by, first)
				s, err := search.NewStrategy(strategy, sp, o)
				if err != nil {
					return err
				}
				got := math.Inf(1)
				for n, at := 0, 0; at < len(looks); n++ {
					cs, err := s.Ask(1)
					if err != nil {
						return err
					}
					score, ok := known[cs[0].Key()]
					if !ok {
						return fmt.Errorf("the table has no %s", cs[0].Key())
					}
					got = min(got, score)
					s.Tell(search.Result{Trial: fmt.Sprint(n), Config: cs[0], Resource: 1, Score: score})
					if n+1 == looks[at] {
						regret[at] = append(regret[at], got-best)
						at++
					}
				}
			}
			line := map[string]any{"text": text, "strategy": strategy, "first": first}
			for i, n := range looks {
				line[fmt.Sprintf("regret_%d", n)] = round(stat.Median(regret[i]))
			}
			if err := out.Encode(line); err != nil {
				return err
			}
		}
	}
	return nil
}

// drawn is the pool of a search.
func drawn(sp *space.Space, seed uint64) ([]space.Config, error) {
	r := rand.New(rand.NewPCG(seed, 11))
	var out []space.Config
	for len(out) < 4*startup {
		c, err := sp.Sample(r)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(out, func(o space.Config) bool { return o.Key() == c.Key() }) {
			out = append(out, c)
		}
	}
	return out, nil
}

// chosen are the first trials.
func chosen(pool []space.Config, by map[string]map[string]float64, first string) []space.Config {
	sum := make([]float64, len(pool))
	for _, name := range []string{"parameters", "path"} {
		if first != name && first != "both" {
			continue
		}
		var x []float64
		for _, c := range pool {
			x = append(x, by[c.Key()][name])
		}
		for i, r := range ranks(x) {
			sum[i] += r
		}
	}
	order := make([]int, len(pool))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(sum[a], sum[b]) })
	var out []space.Config
	for _, i := range order[:startup] {
		out = append(out, pool[i])
	}
	return out
}
