package main

import (
	"context"
	"fmt"
	"time"

	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// searcher is one tool: it searches a task for so many trials, some of them side by
// side, and gives the best after each, and the time that its asking and telling took.
type searcher struct {
	name   string
	search func(ctx context.Context, t task, seed, trials, pending int) ([]float64, time.Duration, error)
}

// own is a strategy of this project; it starts warm from what past gives for its seed,
// where that is not nil.
func own(name string, past func(seed int) []search.Past) searcher {
	return searcher{name: name, search: func(ctx context.Context, t task, seed, trials, pending int) ([]float64, time.Duration, error) {
		sp, err := t.space()
		if err != nil {
			return nil, 0, err
		}
		o := search.Options{Seed: uint64(seed)}
		if past != nil {
			o.Past = past(seed)
		}
		st, err := search.NewStrategy(name, sp, o)
		if err != nil {
			return nil, 0, err
		}
		p := newProgress(t)
		var asked time.Duration
		type running struct {
			trial  string
			config space.Config
		}
		var queue []running
		for n := 0; len(p.line) < trials; {
			if err := ctx.Err(); err != nil {
				return nil, 0, err
			}
			for len(queue) < pending && n < trials {
				begin := time.Now()
				cs, err := st.Ask(1)
				asked += time.Since(begin)
				if err != nil {
					return nil, 0, err
				}
				n++
				queue = append(queue, running{fmt.Sprintf("t%05d", n), cs[0]})
			}
			r := queue[0]
			queue = queue[1:]
			scores, violation := t.eval(r.config)
			p.add(scores, violation)
			res := search.Result{Trial: r.trial, Config: r.config, Resource: 1, Score: scores[0]}
			if len(scores) > 1 {
				res.Scores = scores
			}
			if t.constrained {
				res.Violations = []float64{violation}
			}
			begin := time.Now()
			st.Tell(res)
			asked += time.Since(begin)
		}
		return p.line, asked, nil
	}}
}
