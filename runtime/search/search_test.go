package search

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

func TestBracketsOfThePaper(t *testing.T) {
	// Li et al. 2018, table 1 for R = 81, eta = 3 (with the ceiling convention).
	want := []string{
		"[81 27 9 3 1] [1 3 9 27 81]", "[34 11 3 1] [3 9 27 81]", "[15 5 1] [9 27 81]", "[8 2] [27 81]", "[5] [81]",
	}
	configs := 0
	for i, b := range Brackets(1, 81, 3) {
		r := make([]int, len(b.Resources))
		for j, x := range b.Resources {
			r[j] = int(math.Round(x))
		}
		if got := fmt.Sprint(b.Keep, r); got != want[i] {
			t.Errorf("bracket %d is %s, want %s", i, got, want[i])
		}
		configs += b.Trials
	}
	if configs != 143 {
		t.Errorf("%d configurations, want 143", configs)
	}
}

func bowl(t testing.TB) *space.Space {
	s, err := space.New(
		space.MustParse("x", "uniform(-5, 5)"),
		space.MustParse("y", "log_uniform(1e-4, 1)"),
		space.MustParse("k", "categorical([a, b, c])"),
		space.MustParse("z", "int(1, 9)").When("k", "b"),
	)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func bowlScore(c space.Config) float64 {
	x, y := c.Float("x"), math.Log10(c.Float("y"))
	s := (x-1)*(x-1) + (y+2)*(y+2)
	switch c.Word("k") {
	case "a":
		s += 3
	case "c":
		s++
	default:
		s += math.Abs(float64(c.Int("z")-7)) / 4
	}
	return s
}

func best(t testing.TB, name string, seed uint64, n int) float64 {
	t.Helper()
	st, err := NewStrategy(name, bowl(t), Options{Seed: seed, Architecture: func(n string) bool { return n == "k" || n == "z" }})
	if err != nil {
		t.Fatal(err)
	}
	b, seen := math.Inf(1), map[string]bool{}
	for i := range n {
		cs, err := st.Ask(1)
		if err != nil {
			t.Fatal(err)
		}
		if seen[cs[0].Key()] {
			t.Fatalf("%s proposed %s twice", name, cs[0].Key())
		}
		seen[cs[0].Key()] = true
		s := bowlScore(cs[0])
		b = min(b, s)
		st.Tell(Result{Trial: fmt.Sprintf("t%03d", i), Config: cs[0], Resource: 1, Score: s})
	}
	return b
}

func TestModelsBeatRandom(t *testing.T) {
	mean := map[string]float64{}
	const seeds = 10
	for _, name := range []string{"random", "tpe", "evolution", "evolutionary", "forest", "nsga2", "cma-es"} {
		for s := range uint64(seeds) {
			mean[name] += best(t, name, s, 60) / seeds
		}
	}
	t.Log(mean)
	for _, name := range []string{"tpe", "evolution", "evolutionary", "forest", "nsga2", "cma-es"} {
		if mean[name] > 0.8*mean["random"] {
			t.Errorf("%s reached %.3f, random %.3f", name, mean[name], mean["random"])
		}
	}
}

// Differential evolution takes longer to begin and ends well.
func TestDifferentialEvolutionConverges(t *testing.T) {
	const seeds = 10
	mean := map[string]float64{}
	for _, name := range []string{"random", "de"} {
		for s := range uint64(seeds) {
			mean[name] += best(t, name, s, 400) / seeds
		}
	}
	t.Log(mean)
	if mean["de"] > 0.2*mean["random"] {
		t.Errorf("de reached %.4f, random %.4f", mean["de"], mean["random"])
	}
}

func TestExhaustedSpace(t *testing.T) {
	sp, err := space.New(space.MustParse("k", "[a, b, c]"))
	if err != nil {
		t.Fatal(err)
	}
	st, err := NewStrategy("tpe", sp, Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	s := New(st, NewHyperband([]Bracket{{Trials: 9, Keep: []int{9, 3}, Resources: []float64{1, 3}}}), 2)
	trials := drive(t, s, 1, func(d Decision) float64 { return float64(d.Config.Word("k")[0]) })
	if len(trials) != 6 { // three starts, three promotions
		t.Fatalf("decisions: %v", trials)
	}
	if r := s.Ranking(); r[0].Config.Word("k") != "a" || r[0].Resource != 3 {
		t.Fatalf("ranking %v", r)
	}
}

// drive runs a search to its end, answering decisions in an order that shuffle decides.
func drive(t *testing.T, s *Search, shuffle uint64, score func(Decision) float64) []string {
	t.Helper()
	rng := rand.New(rand.NewPCG(shuffle, 7))
	var log []string
	var open []Decision
	for !s.Done() {
		ds, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			log = append(log, fmt.Sprintf("%d %s %s %v %s", d.Seq, d.Action, d.Trial, d.Resource, d.Config.Key()))
		}
		open = append(open, ds...)
		if len(open) == 0 {
			if s.Done() {
				break
			}
			t.Fatalf("stuck after %d decisions", len(log))
		}
		i := rng.IntN(len(open))
		d := open[i]
		open = append(open[:i], open[i+1:]...)
		sc := score(d)
		if err := s.Report(d.Seq, Outcome{Score: sc, Failed: math.IsInf(sc, 1)}); err != nil {
			t.Fatal(err)
		}
	}
	return log
}

// The order in which trials finish must not change what is tried.
func TestDecisionsDoNotDependOnArrival(t *testing.T) {
	for _, slots := range []int{1, 2, 5} {
		var first []string
		for shuffle := range uint64(8) {
			st, err := NewStrategy("evolutionary", bowl(t), Options{Seed: 3, Startup: 4})
			if err != nil {
				t.Fatal(err)
			}
			s := New(st, NewHyperband([]Bracket{
				{Trials: 12, Keep: []int{12, 4, 2}, Resources: []float64{1, 3, 9}},
				{Trials: 4, Keep: []int{4, 2}, Resources: []float64{3, 9}},
			}), slots)
			log := drive(t, s, shuffle, func(d Decision) float64 {
				if d.Seq%7 == 3 {
					return math.Inf(1) // some fail
				}
				return bowlScore(d.Config) + 1/d.Resource
			})
			if first == nil {
				first = log
			}
			if fmt.Sprint(first) != fmt.Sprint(log) {
				t.Fatalf("slots %d, arrival order %d:\n%v\nwant\n%v", slots, shuffle, log, first)
			}
		}
		if len(first) < 20 {
			t.Fatalf("only %d decisions", len(first))
		}
	}
}

// A search that is made wider in its middle is repeated decision by decision, whenever
// results arrive.
func TestWidenIsRepeated(t *testing.T) {
	begin := func() *Search {
		st, err := NewStrategy("evolutionary", bowl(t), Options{Seed: 3, Startup: 4})
		if err != nil {
			t.Fatal(err)
		}
		return New(st, NewHyperband([]Bracket{
			{Trials: 12, Keep: []int{12, 4, 2}, Resources: []float64{1, 3, 9}},
			{Trials: 4, Keep: []int{4, 2}, Resources: []float64{3, 9}},
		}), 2)
	}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := begin()
		var all, open []Decision
		var outcomes []Outcome
		for !s.Done() {
			switch rng.IntN(6) {
			case 0:
				s.Widen(2 + rng.IntN(4))
			case 1:
				s.Widen(1)
			}
			ds, err := s.Next()
			if err != nil {
				t.Fatal(err)
			}
			all, open = append(all, ds...), append(open, ds...)
			if len(open) == 0 {
				continue
			}
			i := rng.IntN(len(open))
			d := open[i]
			open = slices.Delete(open, i, i+1)
			outcomes = append(outcomes, make([]Outcome, max(0, d.Seq+1-len(outcomes)))...)
			outcomes[d.Seq] = Outcome{Score: bowlScore(d.Config) + 1/d.Resource, Failed: d.Seq%7 == 3}
			if err := s.Report(d.Seq, outcomes[d.Seq]); err != nil {
				t.Fatal(err)
			}
		}
		again := begin()
		again.Repeat(all, nil)
		var repeated []Decision
		for !again.Done() {
			ds, err := again.Next()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range slices.Backward(ds) { // in another order than before
				if err := again.Report(d.Seq, outcomes[d.Seq]); err != nil {
					t.Fatal(err)
				}
			}
			repeated = append(repeated, ds...)
			if len(ds) == 0 && !again.Done() {
				t.Fatalf("seed %d: %d of %d decisions, and nothing more", seed, len(repeated), len(all))
			}
		}
		if got, want := fmt.Sprint(repeated), fmt.Sprint(all); got != want {
			t.Fatalf("seed %d:\n%s\nwant\n%s", seed, got, want)
		}
	}
}

func TestRankingPutsRungFirst(t *testing.T) {
	st, err := NewStrategy("random", bowl(t), Options{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	s := New(st, NewHyperband([]Bracket{{Trials: 4, Keep: []int{4, 2}, Resources: []float64{1, 3}}}), 2)
	drive(t, s, 1, func(d Decision) float64 { return bowlScore(d.Config) + d.Resource })
	r := s.Ranking()
	if len(r) != 4 || r[0].Rung != 1 || r[1].Rung != 1 || r[2].Rung != 0 || r[0].Score > r[1].Score || r[2].Score > r[3].Score {
		t.Fatalf("ranking %+v", r)
	}
}

// Every strategy and scheduler says what it does.
func TestAbout(t *testing.T) {
	for _, name := range Names() {
		if AboutStrategy(name, 12) == "" || AboutStrategy(name, 1000) == "" {
			t.Errorf("strategy %s says nothing", name)
		}
	}
	for _, name := range Schedulers() {
		if AboutScheduler(name) == "" {
			t.Errorf("scheduler %s says nothing", name)
		}
	}
}
