package search

import (
	"math"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// hyperbandBest is the best score at the full resource that a strategy finds in some
// rounds of Hyperband; with little training, scores are off by what depends on the
// configuration.
func hyperbandBest(t *testing.T, name string, seed uint64) float64 {
	t.Helper()
	sp := bowl(t)
	st := made(t, name, sp, Options{Seed: seed})
	var brackets []Bracket
	for range 3 {
		brackets = append(brackets, Brackets(1, 27, 3)...)
	}
	s := New(st, NewHyperband(brackets), 2)
	best := math.Inf(1)
	for !s.Done() {
		ds, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			score := bowlScore(d.Config) * (1 + 1/d.Resource)
			if d.Resource == 27 {
				best = min(best, score)
			}
			if err := s.Report(d.Seq, Outcome{Score: score}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return best
}

// Under Hyperband dehb finds better configurations than random and than de, for whom all
// resources are one.
func TestDEHBUnderHyperband(t *testing.T) {
	mean := map[string]float64{}
	for _, name := range []string{"random", "de", "dehb"} {
		for seed := range uint64(12) {
			mean[name] += math.Log(hyperbandBest(t, name, seed+1)) / 12
		}
	}
	t.Log(mean)
	if mean["dehb"] > mean["random"]-0.2 {
		t.Errorf("mean logarithms of the best scores: %v", mean)
	}
}

// A trial that begins at a higher resource is bred from the best of the one below it; what
// is promoted stands in the population that it comes to.
func TestDEHBBreedsFromBelow(t *testing.T) {
	sp, err := space.New(space.MustParse("x", "uniform(0, 1)"), space.MustParse("y", "uniform(0, 1)"))
	if err != nil {
		t.Fatal(err)
	}
	st := newDEHB(newHistory(sp, Options{Seed: 1, Startup: 3, Population: 4}))
	st.Begin(1)
	cs, err := st.Ask(8)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range cs {
		st.Tell(Result{Trial: string(rune('a' + i)), Config: c, Resource: 1, Score: float64(i)})
	}
	st.Tell(Result{Trial: "c", Config: cs[2], Resource: 3, Score: 5})
	if got := st.below(3, 4); len(got) != 4 || got[0].key != cs[0].Key() || got[3].key != cs[3].Key() {
		t.Errorf("%d at the resource below", len(got))
	}
	people := st.place(3)
	if people[0] == nil || people[0].key != cs[2].Key() || people[1] != nil {
		t.Errorf("the population above is %v", people)
	}
	// Places at the lowest are the proposals' own, of whom the better stands.
	for i, o := range st.place(1) {
		if o == nil || o.key != cs[i].Key() {
			t.Errorf("place %d is %v", i, o)
		}
	}
	st.Begin(3)
	if _, err := st.Ask(2); err != nil || st.levels[9] != 3 {
		t.Errorf("%v, %v", st.levels, err)
	}
}
