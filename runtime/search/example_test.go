package search_test

import (
	"fmt"

	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

func Example() {
	sp, err := space.New(space.MustParse("x", "uniform(-1, 1)"))
	if err != nil {
		fmt.Println(err)
		return
	}
	strategy, err := search.NewStrategy("tpe", sp, search.Options{Seed: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	s := search.New(strategy, search.NewHyperband(search.Brackets(1, 9, 3)), 2)
	trials := 0
	for {
		decisions, err := s.Next()
		if err != nil || len(decisions) == 0 {
			break
		}
		for _, d := range decisions {
			if d.Action == search.Start {
				trials++
			}
			x := d.Config.Float("x")
			if err := s.Report(d.Seq, search.Outcome{Score: x*x + 1/d.Resource}); err != nil {
				fmt.Println(err)
			}
		}
	}
	best := s.Ranking()[0]
	fmt.Println(trials, "trials; the best had a resource of", best.Resource)
	fmt.Println(best.Score < 0.2)
	// Output:
	// 17 trials; the best had a resource of 9
	// true
}
