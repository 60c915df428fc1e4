package search

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/runtime/space"
)

func names(es []entry) []string {
	var out []string
	for _, e := range es {
		out = append(out, e.trial)
	}
	return out
}

func TestOrderOfARung(t *testing.T) {
	inf := math.Inf(1)
	for _, tc := range []struct {
		name string
		rung []entry
		want []string
	}{
		{"one objective", []entry{{trial: "c", score: 3}, {trial: "b", score: 1}, {trial: "x", score: inf}, {trial: "a", score: 3}}, []string{"b", "a", "c", "x"}},
		{"a constraint", []entry{{trial: "a", score: 1, violated: 0.5}, {trial: "b", score: 2}, {trial: "c", score: 1, violated: 0.1}, {trial: "x", score: inf}}, []string{"b", "c", "a", "x"}},
		{"two objectives", []entry{
			{trial: "middle", score: 2, scores: []float64{2, 2}},
			{trial: "close", score: 2.1, scores: []float64{2.1, 1.9}},
			{trial: "beaten", score: 2.2, scores: []float64{2.2, 2.2}},
			{trial: "good", score: 1, scores: []float64{1, 4}},
			{trial: "cheap", score: 4, scores: []float64{4, 1}},
			{trial: "forbidden", score: 0.1, scores: []float64{0.1, 0.1}, violated: 1},
			{trial: "failed", score: inf},
		}, []string{"good", "cheap", "middle", "close", "beaten", "forbidden", "failed"}},
		{"all forbidden", []entry{{trial: "a", score: 1, scores: []float64{1, 1}, violated: 2}, {trial: "b", score: 2, scores: []float64{2, 2}, violated: 1}}, []string{"b", "a"}},
	} {
		order(tc.rung)
		if got := names(tc.rung); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
}

// Nothing stands behind what it dominates, and with one objective the order is that of the
// scores.
func TestOrderHoldsDominance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var rung []entry
		for i := range rapid.IntRange(0, 20).Draw(t, "n") {
			e := entry{trial: fmt.Sprintf("t%02d", i), scores: rapid.SliceOfN(rapid.Float64Range(0, 4), 2, 3).Draw(t, "scores")[:2]}
			e.score = e.scores[0]
			if rapid.IntRange(0, 3).Draw(t, "miss") == 0 {
				e.violated = rapid.Float64Range(0.1, 1).Draw(t, "by")
			}
			rung = append(rung, e)
		}
		single := slices.Clone(rung)
		order(rung)
		for i, a := range rung {
			for _, b := range rung[i+1:] {
				if b.violated < a.violated || a.violated == 0 && b.violated == 0 && dominates(b.scores, a.scores) {
					t.Fatalf("%+v stands before %+v", a, b)
				}
			}
		}
		for i := range single {
			single[i].scores = nil
		}
		order(single)
		if !slices.IsSortedFunc(single, ahead) {
			t.Fatalf("%v", names(single))
		}
	})
}

// A search of two objectives keeps both ends of the trade, refuses what misses a measured
// constraint, and is made again from what it was told.
func TestSearchOfTwoObjectives(t *testing.T) {
	sp, err := space.New(space.MustParse("x", "uniform(0, 1)"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"evolutionary", "auto", "gp", "tpe", "forest", "nsga2", "asha"} {
		make := func() *Search {
			strategy := name
			var sched Scheduler = NewHyperband([]Bracket{{Trials: 24, Keep: []int{24, 8, 2}, Resources: []float64{1, 3, 9}}})
			if name == "asha" {
				strategy = "tpe"
				sched = NewASHA(ASHAConfig{Trials: 24, Resources: []float64{1, 3, 9}, Eta: 3, Budget: 80})
			}
			st, err := NewStrategy(strategy, sp, Options{Seed: 3})
			if err != nil {
				t.Fatal(err)
			}
			return New(st, sched, 2)
		}
		outcome := func(d Decision) Outcome {
			x := d.Config.Float("x")
			// The better the dearer; what is dearer than 0.8 may not be.
			scores := []float64{2 - x + 1/(1+d.Resource), x}
			return Outcome{Score: scores[0], Scores: scores, Violations: []float64{x/0.8 - 1}}
		}
		s := make()
		var decisions []Decision
		promoted := map[string]bool{}
		for !s.Done() {
			next, err := s.Next()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range next {
				decisions = append(decisions, d)
				if x := d.Config.Float("x"); d.Action == Promote {
					promoted[d.Trial] = true
					if x > 0.8 {
						t.Errorf("%s: trial %s is promoted with %g", name, d.Trial, x)
					}
				}
				if err := s.Report(d.Seq, outcome(d)); err != nil {
					t.Fatal(err)
				}
			}
		}
		low, high := 1.0, 0.0
		for _, r := range s.Ranking() {
			if x := r.Config.Float("x"); promoted[r.Trial] {
				low, high = min(low, x), max(high, x)
			}
		}
		if low > 0.3 || high < 0.5 {
			t.Errorf("%s: promoted ones cost %g … %g: an end of the front was lost", name, low, high)
		}
		if best := s.Ranking()[0]; best.Violated > 0 {
			t.Errorf("%s: %s stands first and misses the constraint by %g", name, best.Trial, best.Violated)
		}
		again := make()
		again.Repeat(decisions, nil)
		for k := 0; !again.Done(); {
			next, err := again.Next()
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range next {
				if d.Trial != decisions[k].Trial || d.Config.Key() != decisions[k].Config.Key() {
					t.Fatalf("%s: decision %d is %s %v, was %s %v", name, k, d.Trial, d.Config, decisions[k].Trial, decisions[k].Config)
				}
				if err := again.Report(d.Seq, outcome(d)); err != nil {
					t.Fatal(err)
				}
				k++
			}
		}
	}
}

// Rules compare with what may be alone.
func TestRulesPassOverWhatMissesAConstraint(t *testing.T) {
	s := Stopping(NewHyperband([]Bracket{{Trials: 9, Keep: []int{9, 3}, Resources: []float64{1, 3}}}), WilcoxonRule, []Bracket{{Trials: 9, Keep: []int{9, 3}, Resources: []float64{1, 3}}}, 0.75)
	report := func(trial string, score, violation float64) {
		d, ok := s.next()
		if !ok {
			t.Fatal("no decision")
		}
		d.Trial = trial
		s.started(d)
		s.report(d, Outcome{Score: score, Violations: []float64{violation}, Curve: []Point{{0.5, score + 1}}})
	}
	report("a", 1, 0.5)
	report("b", 2, -0.5)
	d, _ := s.next()
	if len(d.Stop.Others) != 1 || d.Stop.Others[0].Score != 3 {
		t.Errorf("the rule compares with %+v, want the curve of b", d.Stop.Others)
	}
}

// A search that finds nothing more within its constraints ends with what it has tried.
func TestSearchThatFindsNothingMore(t *testing.T) {
	sp, err := space.New(space.MustParse("x", "uniform(0, 1)"))
	if err != nil {
		t.Fatal(err)
	}
	first := space.Config{"x": space.Number(0.5)}
	sp = sp.Constrain(func(c space.Config) error {
		if c.Float("x") != 0.5 {
			return fmt.Errorf("x is not a half")
		}
		return nil
	})
	st, err := NewStrategy("auto", sp, Options{Initial: []space.Config{first}, Trials: 6})
	if err != nil {
		t.Fatal(err)
	}
	s := New(st, NewHyperband([]Bracket{{Trials: 6, Keep: []int{6, 2}, Resources: []float64{1, 3}}}), 1)
	for !s.Done() {
		next, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range next {
			if err := s.Report(d.Seq, Outcome{Score: 1}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if r := s.Ranking(); len(r) != 1 || r[0].Resource != 3 {
		t.Errorf("%+v", r)
	}
}
