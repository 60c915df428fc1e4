package search

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

func TestFitPast(t *testing.T) {
	sp := bowl(t)
	num, word := space.Number, space.Word
	for _, tc := range []struct {
		name   string
		config space.Config
		score  float64
		want   string // the fitted configuration, "" where it is dropped
		used   Used
	}{
		{"as it is", space.Config{"x": num(1), "y": num(0.1), "k": word("a")}, 1, "k=a x=1 y=0.1", Used{}},
		{"filled", space.Config{"k": word("b")}, 1, "k=b x=2 y=0.01 z=5", Used{Filled: 1}},
		{"foreign", space.Config{"x": num(1), "y": num(0.1), "k": word("a"), "width": num(3)}, 1, "k=a x=1 y=0.1", Used{Foreign: 1}},
		{"moved", space.Config{"x": num(9), "y": num(1e-9), "k": word("a")}, 1, "k=a x=5 y=0.0001", Used{Moved: 1}},
		{"a word that is no choice", space.Config{"x": num(1), "k": word("q")}, 1, "", Used{}},
		{"a number for a word", space.Config{"k": num(1)}, 1, "", Used{}},
		{"a word for a number", space.Config{"x": word("a")}, 1, "", Used{}},
		{"of another space", space.Config{"width": num(3)}, 1, "", Used{}},
		{"without a score", space.Config{"x": num(1)}, math.NaN(), "", Used{}},
	} {
		out, used := FitPast(sp, space.Config{"x": num(2)}, []Past{{Config: tc.config, Score: tc.score}})
		got := ""
		if len(out) > 0 {
			got = out[0].Config.Key()
			if err := sp.Check(out[0].Config); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
		tc.used.Given, tc.used.Used = 1, len(out)
		if tc.want == "" {
			tc.used.Dropped = 1
		}
		if got != tc.want || used != tc.used {
			t.Errorf("%s: %q, %+v, want %q, %+v", tc.name, got, used, tc.want, tc.used)
		}
	}
	if s := (Used{Given: 40, Used: 34, Filled: 3, Dropped: 6}).String(); !strings.HasPrefix(s, "34 of 40 earlier trials are used; 3 with") {
		t.Error(s)
	}
}

func TestRankCorrelation(t *testing.T) {
	for _, tc := range []struct {
		x    []float64
		want float64
	}{
		{[]float64{1, 2, 3, 4}, 1},
		{[]float64{9, 3, 2, -4}, -1},
		{[]float64{1, 1, 1}, 0},
		{nil, 0},
		{[]float64{3}, 0},
		{[]float64{1, 1, 2, 2}, math.Sqrt(0.8)},
		{[]float64{2, 1, 4, 3, 5}, 0.8},
	} {
		if got := rankCorrelation(tc.x); math.Abs(got-tc.want) > 1e-12 {
			t.Errorf("%v: %g, want %g", tc.x, got, tc.want)
		}
	}
}

// pastOf is a search of random trials on the bowl, whose scores a function changes.
func pastOf(t *testing.T, n int, change func(float64) float64) []Past {
	t.Helper()
	sp, rng := bowl(t), rand.New(rand.NewPCG(4, 4))
	var out []Past
	for i := range n {
		c, err := sp.Sample(rng)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Past{Source: "run1", Trial: fmt.Sprint(i), Config: c, Score: change(bowlScore(c))})
	}
	return out
}

// warmed runs a strategy and gives the best after each trial.
func warmed(t *testing.T, name string, seed uint64, trials int, past []Past) (line []float64, asked []space.Config) {
	t.Helper()
	st := made(t, name, bowl(t), Options{Seed: seed, Past: past})
	best := math.Inf(1)
	for i := range trials {
		cs, err := st.Ask(1)
		if err != nil {
			t.Fatal(err)
		}
		s := bowlScore(cs[0])
		best = min(best, s)
		line, asked = append(line, best), append(asked, cs[0])
		st.Tell(Result{Trial: fmt.Sprintf("t%03d", i), Config: cs[0], Resource: 1, Score: s})
	}
	return line, asked
}

// An earlier search of the same kind helps every strategy at once, whatever the scale of
// its scores. One that misleads is found out, and costs a few trials.
func TestWarmStart(t *testing.T) {
	each(t, func(t *testing.T, name string) {
		related := pastOf(t, 60, func(s float64) float64 { return 1000 + math.Exp(s) })
		inverted := pastOf(t, 60, func(s float64) float64 { return -s })
		const seeds, trials = 3, 18
		var cold, warm, misled float64
		for seed := range uint64(seeds) {
			c, _ := warmed(t, name, seed, trials, nil)
			w, asked := warmed(t, name, seed, trials, related)
			m, _ := warmed(t, name, seed, trials, inverted)
			cold, warm, misled = cold+c[5], warm+w[5], misled+m[trials-1]-c[trials-1]
			first := 0
			if name == "evolutionary" {
				first = 1
			}
			if k := asked[first].Key(); !slices.ContainsFunc(related, func(p Past) bool { return p.Config.Key() == k }) {
				t.Errorf("trial %s is none of the past", k)
			}
		}
		if warm > 0.8*cold {
			t.Errorf("after 6 trials %.3f with the past, %.3f without", warm/seeds, cold/seeds)
		}
		if misled/seeds > 1.5 {
			t.Errorf("misled, it ends %.3f worse", misled/seeds)
		}
	})
}

// A past that contradicts the results weighs nothing, one that agrees much, and a search
// without any is as it always was.
func TestTrustFollowsResults(t *testing.T) {
	sp := bowl(t)
	for _, tc := range []struct {
		change   func(float64) float64
		low, top float64
	}{{func(s float64) float64 { return s }, 0.6, 1}, {func(s float64) float64 { return -s }, 0, 0}} {
		h := newHistory(sp, Options{Seed: 1, Startup: 10, Past: pastOf(t, 60, tc.change)})
		if h.past.learn(); h.past.weight != pastBelief {
			t.Errorf("before any result the past weighs %g", h.past.weight)
		}
		rng := rand.New(rand.NewPCG(9, 9))
		for i := range 12 {
			c, err := sp.Sample(rng)
			if err != nil {
				t.Fatal(err)
			}
			h.Tell(Result{Trial: fmt.Sprint(i), Config: c, Resource: 1, Score: bowlScore(c)})
		}
		if h.past.learn(); h.past.weight < tc.low || h.past.weight > tc.top {
			t.Errorf("after 12 results the past weighs %.2f, want %g to %g", h.past.weight, tc.low, tc.top)
		}
	}
	if h := newHistory(sp, Options{Past: []Past{{Config: space.Config{"width": space.Number(1)}}}}); h.past != nil {
		t.Error("a past of another space is used")
	}
	few := newHistory(sp, Options{Trials: 6, Past: pastOf(t, 60, func(s float64) float64 { return s })})
	if n := len(few.past.tries); n != 1 {
		t.Errorf("%d of 6 trials are the past's", n)
	}
}

// Proposals of a warm start depend on the past and the results, not on their order.
func TestWarmStartIsRepeatable(t *testing.T) {
	each(t, func(t *testing.T, name string) {
		past := pastOf(t, 20, func(s float64) float64 { return s })
		_, first := warmed(t, name, 2, 12, past)
		_, again := warmed(t, name, 2, 12, past)
		for i := range first {
			if first[i].Key() != again[i].Key() {
				t.Fatalf("proposal %d is %s, then %s", i, first[i].Key(), again[i].Key())
			}
		}
	})
}
