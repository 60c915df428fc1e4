package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/search"
)

// warmTrials are the random trials of each earlier search.
const warmTrials = 100

// warmStart gives for each seed the trials of earlier searches: random ones of tables.
func warmStart(tables []string, dir string) (func(seed int) []search.Past, error) {
	type earlier struct {
		task task
		sign float64
	}
	var all []earlier
	for _, name := range tables {
		e := earlier{sign: 1}
		if rest, inverted := strings.CutPrefix(name, "inverted:"); inverted {
			name, e.sign = rest, -1
		}
		if !strings.ContainsAny(name, "/.") {
			name = filepath.Join(dir, name+".csv.gz")
		}
		var err error
		if e.task, err = table(name); err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return func(seed int) []search.Past {
		var out []search.Past
		for i, e := range all {
			sp, err := e.task.space()
			if err != nil {
				panic(err) // it was read
			}
			rng := rand.New(rand.NewPCG(uint64(seed), uint64(i)+77))
			for n := range warmTrials {
				c, err := sp.Sample(rng)
				if err != nil {
					panic(err)
				}
				if scores, _ := e.task.eval(c); !math.IsInf(scores[0], 0) {
					out = append(out, search.Past{Source: e.task.name, Trial: fmt.Sprintf("t%03d", n), Config: c, Score: e.sign * scores[0]})
				}
			}
		}
		return out
	}, nil
}
