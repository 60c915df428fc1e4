package search

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

func TestParseOrder(t *testing.T) {
	for text, want := range map[string]string{
		"enqueue|lr=3e-3|dim=64":        "enqueue dim=64 lr=0.003",
		"enqueue|optimizer=muon":        "enqueue optimizer=muon",
		"narrow|lr=1e-3..1e-2|dim=[64]": "narrow dim=[64] lr=1e-3..1e-2",
		"narrow|lr=log_uniform(1, 2)":   "narrow lr=log_uniform(1, 2)",
		"extend|+10m":                   "extend +10m0s",
		"extend|90s":                    "extend +1m30s",
		"extend|+20|trials":             "extend +20 trials",
		"extend|+20 trials":             "extend +20 trials",
		"extend|+1e6|tokens":            "extend +1e+06 tokens",
		"stop|t003":                     "stop t003",
		"":                              "error: no order",
		"halt|t003":                     `error: "halt" is no order; there are [enqueue narrow extend stop]`,
		"enqueue":                       "error: nothing is given; write for example enqueue lr=3e-3",
		"enqueue|lr":                    `error: "lr" is not NAME=VALUE`,
		"enqueue|lr=a b":                "error: lr: ",
		"narrow|lr=1|lr=2":              "error: lr stands twice",
		"extend|+10":                    "error: write +10m, +20 trials or +1e6 tokens",
		"extend|-10m":                   "error: amount -600 seconds is not above 0",
		"extend|+1.5|trials":            "error: trials come whole",
		"extend|+NaN|tokens":            "error: is not above 0",
		"stop":                          "error: name one trial",
		"stop|":                         "error: name one trial",
		"stop|t001|t002":                "error: name one trial",
	} {
		var words []string
		if text != "" {
			words = strings.Split(text, "|")
		}
		o, err := ParseOrder(words)
		got := o.String()
		if err != nil {
			got = "error: " + err.Error()
		}
		if part, isErr := strings.CutPrefix(want, "error: "); got != want && (!isErr || err == nil || !strings.Contains(got, part)) {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
}

func FuzzParseOrder(f *testing.F) {
	for _, s := range []string{"enqueue lr=3e-3", "narrow a=1..2 b=[1,2]", "extend +10m", "extend +1e6 tokens", "stop t003", "stop ", "extend"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := ParseOrder(strings.Split(text, " "))
		if err != nil {
			return
		}
		again, err := ParseOrder(strings.Split(o.String(), " "))
		if err != nil || again.Kind != o.Kind || again.Trial != o.Trial || len(again.Config) != len(o.Config) || len(again.Ranges) != len(o.Ranges) {
			t.Fatalf("%q reads as %+v, then as %+v, %v", text, o, again, err)
		}
	})
}

// Under every strategy, what is proposed lies inside of what the search was narrowed to,
// from then on, though the results that it learns from lie outside.
func TestNarrowHolds(t *testing.T) {
	ranges := []map[string]string{
		{"x": "-4..-3", "width": "32..64"},
		{"kind": "b", "b_rate": "0.01..0.02", "lr": "[0.001, 0.1]"},
		{"layers": "2..3", "batch": "16..32", "sizes": "[1, 4]", "v_depth": "3..4"},
		{"x": "1", "kind": "[a, c]"},
	}
	each(t, func(t *testing.T, name string) {
		for _, r := range ranges {
			whole := mixedSpace(t)
			st := made(t, name, whole, Options{Seed: 5, Startup: 6})
			parts, err := partsOf(whole, r)
			if err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for i := range 20 {
				if i == 10 {
					st.(Steerable).Narrow(parts)
				}
				cs, err := st.Ask(1)
				if err != nil {
					t.Fatal(err)
				}
				c := cs[0]
				if err := whole.Check(c); err != nil || seen[c.Key()] {
					t.Fatalf("%s: %v, seen %v", c.Key(), err, seen[c.Key()])
				}
				seen[c.Key()] = true
				if i >= 10 {
					if err := whole.Narrow(parts...).Check(c); err != nil {
						t.Fatalf("proposal %d after narrow %v: %v", i, r, err)
					}
				}
				st.Tell(Result{Trial: fmt.Sprintf("%03d", i), Config: c, Resource: 1, Score: mixedScore(c)})
			}
		}
	})
}

// schedulersOf are the schedulers of a plan of 12 trials.
func schedulersOf(t *testing.T) map[string]func() (Scheduler, Plan) {
	out := map[string]func() (Scheduler, Plan){}
	for _, name := range Schedulers() {
		out[name] = func() (Scheduler, Plan) {
			p, err := MakePlan(Needs{Trials: 12, Slots: 2, Corpus: 1e6, Scheduler: name})
			if err != nil {
				t.Fatal(err)
			}
			s, err := NewScheduler(p)
			if err != nil {
				t.Fatal(err)
			}
			return s, p
		}
	}
	return out
}

// A search that is steered at any time is repeated from its decisions and orders: each
// order takes effect where it did, whenever results arrive. What was stopped goes no
// further, what was enqueued is tried, and what was extended has its trials.
func TestOrdersAreRepeated(t *testing.T) {
	for name, make := range schedulersOf(t) {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(12) {
				begin := func() (*Search, Plan) {
					st, err := NewStrategy("evolutionary", bowl(t), Options{Seed: 3, Startup: 4})
					if err != nil {
						t.Fatal(err)
					}
					sched, plan := make()
					return New(st, sched, 2), plan
				}
				rng := rand.New(rand.NewPCG(seed, 1))
				s, plan := begin()
				var all, open []Decision
				var orders []Order
				outcomes := map[int]Outcome{}
				taken := map[OrderKind]int{}
				more := 0
				for !s.Done() {
					o := Order{Kind: OrderKinds()[rng.IntN(4)]}
					switch o.Kind {
					case Enqueue:
						o.Config = space.Config{"x": space.Number(float64(rng.IntN(9)) / 2)}
					case Narrow:
						o.Ranges = map[string]string{"x": []string{"-1..2", "0..3", "-5..5"}[rng.IntN(3)]}
					case Extend:
						o.Amount, o.Unit = float64(1+rng.IntN(9)), "trials"
						var err error
						if o, err = plan.Extend(o); name == "pbt" {
							continue // its population does not grow
						} else if err != nil {
							t.Fatal(err)
						}
					case Stop:
						o.Trial = fmt.Sprintf("t%03d", 1+rng.IntN(12))
					}
					if rng.IntN(5) == 0 && len(orders) < 6 {
						if o, err := s.Order(o); err == nil {
							orders = append(orders, o)
							taken[o.Kind]++
							if o.Kind == Extend {
								more += int(o.Amount)
								plan = plan.Extended(o)
							}
						}
					}
					if rng.IntN(6) == 0 {
						s.Widen(1 + rng.IntN(4))
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
					out := Outcome{Score: bowlScore(d.Config) + 1/d.Resource, Failed: d.Seq%7 == 3}
					if s.stopped[d.Trial] {
						out = Outcome{Score: math.NaN(), Stopped: true, Why: StoppedByUser}
					}
					outcomes[d.Seq] = out
					if err := s.Report(d.Seq, out); err != nil {
						t.Fatal(err)
					}
				}
				again, _ := begin()
				again.Repeat(all, orders)
				var repeated []Decision
				reported := map[int]bool{}
				for idle := 0; !again.Done() && idle < 2; idle++ {
					ds, err := again.Next()
					if err != nil {
						t.Fatal(err)
					}
					repeated = append(repeated, ds...)
					for _, d := range slices.Backward(repeated) { // in another order than before
						if !reported[d.Seq] {
							reported[d.Seq] = true
							idle = 0
							if err := again.Report(d.Seq, outcomes[d.Seq]); err != nil {
								t.Fatal(err)
							}
						}
					}
				}
				for k := range max(len(repeated), len(all)) {
					if k >= len(repeated) || k >= len(all) || !reflect.DeepEqual(repeated[k], all[k]) {
						t.Fatalf("seed %d, orders %v: of %d and %d decisions these differ:\n%v\n%v", seed, orders, len(repeated), len(all), repeated[min(k, len(repeated)):min(k+1, len(repeated))], all[min(k, len(all)):min(k+1, len(all))])
					}
				}
				starts := 0
				for _, d := range all {
					if d.Action == Start {
						starts++
					}
					for _, o := range orders {
						if o.Kind == Stop && o.Trial == d.Trial && d.Seq >= o.Before {
							t.Fatalf("seed %d: %s goes on with decision %d after it was stopped before %d", seed, d.Trial, d.Seq, o.Before)
						}
					}
				}
				if starts > 12+more || name != "asha" && name != "pasha" && starts != 12+more {
					t.Fatalf("seed %d: %d trials, of 12 and %d more", seed, starts, more)
				}
				for _, o := range orders {
					at := slices.IndexFunc(all, func(d Decision) bool { return d.Action == Start && d.Config.Key() == o.Config.Key() })
					if o.Kind == Enqueue && (at < o.Before || all[at].Reason != EnqueuedByUser) && name != "asha" && name != "pasha" {
						t.Fatalf("seed %d: %v is decision %d of %v", seed, o, at, all)
					}
				}
			}
		})
	}
}

func TestOrdersAreChecked(t *testing.T) {
	st, err := NewStrategy("tpe", bowl(t), Options{Seed: 1, Startup: 3})
	if err != nil {
		t.Fatal(err)
	}
	s := New(st, NewHyperband([]Bracket{{Trials: 3, Keep: []int{3, 1}, Resources: []float64{1, 3}}}), 2)
	next := func() []Decision {
		t.Helper()
		ds, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		return ds
	}
	order := func(text, want string) {
		t.Helper()
		o, err := ParseOrder(strings.Split(text, "|"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = s.Order(o)
		if got := fmt.Sprint(err); got != want && (want == "<nil>" || !strings.Contains(got, want)) {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
	order("stop|t001", "none has begun")
	next()
	order("enqueue|q=1", "enqueue: q is no dimension of the space; there are x, y, k, z")
	order("enqueue|x=7", "enqueue: x is 7, outside uniform(-5, 5)")
	order("enqueue|k=a|z=3", "enqueue: z exists only when k is b; give that too")
	order("narrow|x=0..9", `narrow: x: "0..9": is not within uniform(-5, 5)`)
	order("narrow|q=0..9", "narrow: q is no dimension")
	order("stop|t009", `stop: trial "t009" is unknown; there are t001 … t002`)
	order("enqueue|x=1|k=b|z=3", "<nil>")
	order("enqueue|x=1|k=b|z=3", "enqueue: config: it is enqueued already")
	order("enqueue|x=2", "no further trial is started; extend the search first")
	if err := s.Report(0, Outcome{Score: 1}); err != nil {
		t.Fatal(err)
	}
	ds := next()
	if len(ds) != 1 || ds[0].Reason != EnqueuedByUser || ds[0].Config.Key() == "" || ds[0].Config.Float("x") != 1 || ds[0].Config.Int("z") != 3 {
		t.Fatalf("decided %+v", ds)
	}
	order("enqueue|x=2", "no further trial is started")
	// The trial that waits is the best; stopped, the second takes its place.
	for seq, score := range []float64{1: 2, 2: 3} {
		if seq > 0 {
			if err := s.Report(seq, Outcome{Score: score}); err != nil {
				t.Fatal(err)
			}
		}
	}
	order("stop|t001", "<nil>")
	order("stop|t001", "was stopped before")
	if ds := next(); len(ds) != 1 || ds[0].Trial != "t002" || ds[0].Action != Promote {
		t.Fatalf("decided %+v", ds)
	}
	order("stop|t003", "stop: trial t003 has ended")
	if err := s.Report(3, Outcome{Score: math.NaN(), Stopped: true}); err != nil {
		t.Fatal(err)
	}
	next()
	order("narrow|x=0..1", "the search is over")
	if !s.Done() {
		t.Error("the search is not over")
	}
}

// Orders come from whoever may steer, in JSON.
func FuzzOrder(f *testing.F) {
	for _, s := range []string{
		`{"kind": "enqueue", "config": {"x": 1, "k": "b", "z": 3}}`, `{"kind": "narrow", "ranges": {"y": "1e-3..1e-2"}}`, `{"kind": "stop", "trial": "t001", "before": 9}`,
		`{"kind": "extend", "amount": 3, "unit": "trials", "brackets": [{"trials": -1, "keep": [], "resources": [1]}]}`, `{}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var o Order
		if json.Unmarshal(b, &o) != nil {
			return
		}
		st, err := NewStrategy("tpe", bowl(t), Options{Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		plan, err := MakePlan(Needs{Trials: 6, Slots: 2, Corpus: 1e6})
		if err != nil {
			t.Fatal(err)
		}
		s := New(st, NewHyperband(plan.Brackets), 2)
		if _, err := s.Next(); err != nil {
			t.Fatal(err)
		}
		if o.Kind == Extend {
			if o, err = plan.Extend(o); err != nil {
				return
			}
		}
		if o, err = s.Order(o); err != nil {
			return
		}
		_ = o.String()
		for seq := range 2 {
			if err := s.Report(seq, Outcome{Score: 1}); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Next(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestPlansAreExtended(t *testing.T) {
	pace := func(int64, int) Pace { return Pace{Tokens: 1e5, FLOPs: 1e6} }
	for _, name := range Schedulers() {
		for unit, n := range map[string]Needs{
			"trials":  {Trials: 12, Slots: 2, Corpus: 1e6, Scheduler: name},
			"tokens":  {MaxTokens: 1e6, Slots: 2, Corpus: 1e6, Scheduler: name},
			"seconds": {WallClock: 600, Slots: 2, Corpus: 1e6, HeldOut: 1e4, Scheduler: name, Pace: pace},
		} {
			p, err := MakePlan(n)
			if err != nil {
				t.Fatal(err)
			}
			amount := map[string]float64{"trials": 7, "tokens": 2e6, "seconds": 600}[unit]
			o, err := p.Extend(Order{Kind: Extend, Amount: amount, Unit: unit})
			if name == "pbt" {
				if err == nil || !strings.Contains(err.Error(), "does not grow") {
					t.Errorf("%s, %s: %v", name, unit, err)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			e := p.Extended(o)
			cost := func(p Plan) (c float64) {
				for _, b := range p.Brackets {
					c += b.Cost()
				}
				return c
			}
			want := map[string]float64{"trials": 7.0 / 12, "tokens": 2, "seconds": 600 / (p.SearchSeconds + p.FinalSeconds)}[unit]
			if got := cost(e)/cost(p) - 1; math.Abs(got-want) > 0.45*want {
				t.Errorf("%s, %s: the search grows by %.2f, the budget by %.2f: %v", name, unit, got, want, e.Brackets)
			}
			if unit == "trials" && e.SearchTrials != p.SearchTrials+7 || unit != "trials" && !(e.FinalResource+e.FinalSeconds > p.FinalResource+p.FinalSeconds) {
				t.Errorf("%s, %s: %+v", name, unit, e)
			}
			if _, err := NewScheduler(e); err != nil {
				t.Errorf("%s, %s: %v", name, unit, err)
			}
			if _, err := p.Extend(Order{Kind: Extend, Amount: 5, Unit: "parsecs"}); err == nil || !strings.Contains(err.Error(), "parsecs") {
				t.Error(err)
			}
			other := map[string]string{"trials": "tokens", "tokens": "seconds", "seconds": "trials"}[unit]
			if _, err := p.Extend(Order{Kind: Extend, Amount: 5, Unit: other}); err == nil || !strings.Contains(err.Error(), "the budget of this job is in "+unit) {
				t.Error(err)
			}
		}
	}
}
