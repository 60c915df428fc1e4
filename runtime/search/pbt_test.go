package search

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// watched tells of what a scheduler decides.
type watched struct {
	Scheduler
	see func(Decision)
}

func (w watched) next() (Decision, bool) {
	d, ok := w.Scheduler.next()
	if ok && d.Action == Promote {
		w.see(d)
	}
	return d, ok
}

func (w watched) started(d Decision) {
	w.Scheduler.started(d)
	w.see(d)
}

func TestPBT(t *testing.T) {
	worse := func(d Decision) float64 { return trialNumber(d.Trial) }
	for name, tc := range map[string]struct {
		members, rungs, slots int
		score                 func(Decision) float64
		want                  string
	}{
		// The worst of five gives its place to a fork of the best after each interval.
		"one device": {
			5, 3, 1, worse,
			"t01@1 t02@1 t03@1 t04@1 t05@1 t01@2 t02@2 t03@2 t04@2 t06=t01/t05@2 t01@3 t02@3 t03@3 t04@3 t07=t01/t06@3",
		},
		// All at once: the first goes on when half of them are there.
		"as many devices as members": {
			5, 2, 5, worse,
			"t01@1 t02@1 t03@1 t04@1 t05@1 t01@2 t02@2 t03@2 t04@2 t06=t01/t05@2",
		},
		// Two of ten are a fifth; the best two take turns.
		"ten": {
			10, 2, 3, worse,
			"t01@1 t02@1 t03@1 t04@1 t05@1 t06@1 t07@1 t08@1 t09@1 t10@1 t01@2 t02@2 t03@2 t04@2 t05@2 t06@2 t07@2 t08@2 t11=t01/t09@2 t12=t02/t10@2",
		},
		"all the same": {5, 2, 1, func(Decision) float64 { return 1 }, "t01@1 t02@1 t03@1 t04@1 t05@1 t01@2 t02@2 t03@2 t04@2 t05@2"},
		"two":          {2, 2, 1, worse, "t01@1 t02@1 t01@2 t02@2"},
		// What failed gives its place away, whatever its number; where all did, they are dead.
		"failures": {
			5, 2, 1, func(d Decision) float64 {
				if d.Rung == 0 && trialNumber(d.Trial) < 4 {
					return math.Inf(1)
				}
				return trialNumber(d.Trial)
			},
			"t01@1 t02@1 t03@1 t04@1 t05@1 t04@2 t05@2 t06=t04/t01@2 t07=t04/t02@2 t08=t04/t03@2",
		},
		"all fail": {3, 2, 2, func(Decision) float64 { return math.Inf(1) }, "t01@1 t02@1 t03@1"},
	} {
		var resources []float64
		for i := range tc.rungs {
			resources = append(resources, float64(i+1))
		}
		p := NewPBT(tc.members, resources)
		log, _ := play(p, tc.slots, func(d Decision) Outcome { return Outcome{Score: tc.score(d)} }, first)
		if got := strings.Join(log, " "); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, tc.want)
		}
		if !p.done() {
			t.Errorf("%s: not done", name)
		}
	}
}

// Whatever order results come in: all members train to the end unless all have failed, no
// member is lapped, a fork's parent stood where the fork begins, and its checkpoint is
// among those that a trial keeps.
func TestPBTInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		members, rungs := rapid.IntRange(1, 12).Draw(t, "members"), rapid.IntRange(1, 7).Draw(t, "rungs")
		slots, seed := rapid.IntRange(1, 14).Draw(t, "slots"), rapid.Uint64().Draw(t, "seed")
		var resources []float64
		for i := range rungs {
			resources = append(resources, float64(i+1))
		}
		rng := rand.New(rand.NewPCG(seed, 1))
		reached := map[string]map[int]bool{} // rungs by trial
		last := map[string]int{}             // rung that a trial was let train to
		var open []Decision
		ends := 0
		p := NewPBT(members, resources)
		see := func(d Decision) {
			last[d.Trial] = d.Rung
			open = append(open, d)
			for _, o := range open {
				if o.Action == Fork && last[o.Inherit]-(o.Rung-1) >= PBTCheckpoints {
					t.Fatalf("%+v begins from rung %d of a trial that is trained to rung %d", o, o.Rung-1, last[o.Inherit])
				}
				if d.Rung-o.Rung > 2 {
					t.Fatalf("%+v laps %+v", d, o)
				}
			}
			if d.Action == Fork && !reached[d.Inherit][d.Rung-1] || d.From != float64(d.Rung) {
				t.Fatalf("%+v begins from what is not there", d)
			}
		}
		play(watched{p, see}, slots, func(d Decision) Outcome {
			open = slices.DeleteFunc(open, func(o Decision) bool { return o.Trial == d.Trial })
			if reached[d.Trial] == nil {
				reached[d.Trial] = map[int]bool{}
			}
			reached[d.Trial][d.Rung] = true
			if d.Rung == rungs-1 {
				ends++
			}
			if rng.IntN(9) == 0 {
				return Outcome{Failed: true}
			}
			return Outcome{Score: float64(rng.IntN(20))}
		}, rng.IntN)
		failedAll := false
		for _, m := range p.members {
			failedAll = failedAll || m.dead
		}
		if !p.done() || ends != members && !failedAll {
			t.Fatalf("%d of %d members came to the end", ends, members)
		}
	})
}

// A fork keeps its parent's model and the words of its training; numbers move by a fifth,
// or are drawn anew now and then.
func TestExplore(t *testing.T) {
	sp, err := space.New(
		space.MustParse("width", "log_int(16, 1024)"),
		space.MustParse("lr", "log_uniform(1e-5, 1e-1)"),
		space.MustParse("drop", "uniform(0, 0.5)"),
		space.MustParse("batch", "categorical([1, 2, 4, 8])"),
		space.MustParse("opt", "categorical([a, b])"),
		space.MustParse("b_lr", "log_uniform(1e-3, 1)").When("opt", "b"),
	)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Seed: 5, Architecture: func(n string) bool { return n == "width" }}
	st, again := made(t, "random", sp, o).(Explorer), made(t, "random", sp, o).(Explorer)
	parent := space.Config{"width": space.Number(64), "lr": space.Number(1e-3), "drop": space.Number(0.2), "batch": space.Number(2), "opt": space.Word("b"), "b_lr": space.Number(0.1)}
	moved, drawn, batches := 0, 0, map[int]int{}
	for range 400 {
		c := st.Explore(parent)
		if got := again.Explore(parent); got.Key() != c.Key() {
			t.Fatal("the same seed explores otherwise")
		}
		if err := sp.Check(c); err != nil || c.Int("width") != 64 || c.Word("opt") != "b" {
			t.Fatalf("%s: %v", c.Key(), err)
		}
		switch r := c.Float("lr") / 1e-3; {
		case math.Abs(r-0.8) < 1e-3, math.Abs(r-1.2) < 1e-3:
			moved++
		default:
			drawn++
		}
		batches[c.Int("batch")]++
	}
	if drawn < 15 || drawn > 80 || batches[1] < 50 || batches[4] < 50 || batches[2] < 100 {
		t.Errorf("%d moved, %d drawn anew, batches %v", moved, drawn, batches)
	}
}

// A population costs what other schedulers do, with the cool part of each interval.
func TestPlanOfPopulation(t *testing.T) {
	for _, n := range []Needs{{WallClock: 20}, {WallClock: 180}, {WallClock: 7200}, {MaxTokens: 5e6}, {Trials: 4}} {
		n.Slots, n.Pace, n.Corpus = 2, flat(80e9), 1e6
		auto, err := MakePlan(n)
		if err != nil {
			t.Fatal(err)
		}
		n.Scheduler = "pbt"
		p, err := MakePlan(n)
		if err != nil {
			t.Fatal(err)
		}
		b, want := p.Brackets[0], 0.0
		for _, a := range auto.Brackets {
			want += a.Cost()
		}
		cost, from, flatEnd := 0.0, 0.0, 0.0
		for _, r := range b.Resources {
			cost += float64(b.Trials) * (r - flatEnd)
			flatEnd = r * (1 - p.CoolOf(Decision{From: from, Resource: r}))
			from = r
		}
		if n.Trials > 0 {
			if b.Trials != n.Trials {
				t.Errorf("%d members, want %d", b.Trials, n.Trials)
			}
		} else if math.Abs(cost/want-1) > 1e-9 || b.Trials < leastMembers {
			t.Errorf("%+v: %d members cost %g, want %g", n.WallClock, b.Trials, cost, want)
		}
	}
}
