package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/search"
)

// warmTrials are the random trials of an earlier search.
const warmTrials = 100

// warmStart gives for each seed the trials of an earlier search: random ones of a table,
// whose scores inverted: turns round.
func warmStart(name, dir string) (func(seed int) []search.Past, error) {
	sign := 1.0
	if rest, inverted := strings.CutPrefix(name, "inverted:"); inverted {
		name, sign = rest, -1
	}
	if !strings.ContainsAny(name, "/.") {
		name = filepath.Join(dir, name+".csv.gz")
	}
	t, err := table(name)
	if err != nil {
		return nil, err
	}
	sp, err := t.space()
	if err != nil {
		return nil, err
	}
	return func(seed int) []search.Past {
		var out []search.Past
		rng := rand.New(rand.NewPCG(uint64(seed), 77))
		for n := range warmTrials {
			c, err := sp.Sample(rng)
			if err != nil {
				panic(err) // a table's space has no constraints
			}
			if scores, _ := t.eval(c); !math.IsInf(scores[0], 0) {
				out = append(out, search.Past{Source: t.name, Trial: fmt.Sprintf("t%03d", n), Config: c, Score: sign * scores[0]})
			}
		}
		return out
	}, nil
}
