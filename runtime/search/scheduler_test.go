package search

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// play drives a scheduler with so many decisions open at a time and answers those that
// pick chooses. It returns what it decided as "t01@9", starts and promotions alike, and
// "t06=t01/t05@9" of t06 that goes on from t01 in t05's place.
func play(s Scheduler, slots int, score func(Decision) Outcome, pick func(open int) int) (log []string, spent float64) {
	var open []Decision
	n := 0
	for {
		for len(open) < slots {
			d, ok := s.next()
			if !ok {
				break
			}
			if d.Action != Promote {
				n++
				d.Trial = fmt.Sprintf("t%02d", n)
				s.started(d)
			}
			spent += d.Resource - d.From
			line := ""
			if d.Action == Fork {
				line = fmt.Sprintf("=%s/%s", d.Inherit, d.Replaces)
			}
			log = append(log, fmt.Sprintf("%s%s@%.6g", d.Trial, line, d.Resource))
			open = append(open, d)
		}
		if len(open) == 0 {
			return log, spent
		}
		i := pick(len(open))
		d := open[i]
		open = slices.Delete(open, i, i+1)
		o := score(d)
		if o.Failed || o.Stopped || math.IsNaN(o.Score) {
			o.Score = math.Inf(1)
		}
		s.report(d, o)
	}
}

func first(int) int { return 0 }

// trialNumber is n of trial tn.
func trialNumber(trial string) float64 {
	var n float64
	fmt.Sscanf(trial, "t%g", &n)
	return n
}

func TestASHAPromotesFromTheTop(t *testing.T) {
	for name, tc := range map[string]struct {
		score func(Decision) float64
		want  string
	}{
		// Every third trial frees a promotion; it is the best of those that are there.
		"the first is best": {
			func(d Decision) float64 { return trialNumber(d.Trial) },
			"t01@1 t02@1 t03@1 t01@3 t04@1 t05@1 t06@1 t02@3 t07@1 t08@1 t09@1 t03@3 t01@9",
		},
		// What comes later is better: it displaces what was promoted.
		"the last is best": {
			func(d Decision) float64 { return -trialNumber(d.Trial) },
			"t01@1 t02@1 t03@1 t03@3 t04@1 t04@3 t05@1 t05@3 t05@9 t06@1 t06@3 t06@9 t07@1 t07@3 t07@9 t08@1 t08@3 t08@9 t09@1 t09@3 t09@9",
		},
		"failures are passed over": {
			func(d Decision) float64 {
				if trialNumber(d.Trial) != 5 {
					return math.Inf(1)
				}
				return 1
			},
			"t01@1 t02@1 t03@1 t04@1 t05@1 t05@3 t06@1 t07@1 t08@1 t09@1",
		},
	} {
		a := NewASHA(ASHAConfig{Trials: 9, Resources: []float64{1, 3, 9}, Eta: 3})
		log, _ := play(a, 1, func(d Decision) Outcome { return Outcome{Score: tc.score(d)} }, first)
		if got := strings.Join(log, " "); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, tc.want)
		}
		if !a.done() {
			t.Errorf("%s: not done", name)
		}
	}
}

// A trial that was passed over goes on when its rung has grown.
func TestASHAResumesThePaused(t *testing.T) {
	a := NewASHA(ASHAConfig{Trials: 6, Resources: []float64{1, 3}, Eta: 3})
	scores := []float64{0, 1, 2, 3, 9, 8, 7}
	log, _ := play(a, 1, func(d Decision) Outcome { return Outcome{Score: scores[int(trialNumber(d.Trial))]} }, first)
	if got, want := strings.Join(log, " "), "t01@1 t02@1 t03@1 t01@3 t04@1 t05@1 t06@1 t02@3"; got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

// A result that is late is counted where it belongs when it comes.
func TestASHATakesLateTrials(t *testing.T) {
	a := NewASHA(ASHAConfig{Trials: 6, Resources: []float64{1, 3}, Eta: 3})
	log, _ := play(a, 2, func(d Decision) Outcome { return Outcome{Score: trialNumber(d.Trial)} },
		func(open int) int { return open - 1 }) // the first one comes last
	if got, want := strings.Join(log, " "), "t01@1 t02@1 t03@1 t04@1 t02@3 t05@1 t06@1 t01@3"; got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
}

func TestPASHAOpensRungsOnDisagreement(t *testing.T) {
	c := ASHAConfig{Trials: 27, Resources: []float64{1, 3, 9, 27}, Eta: 3, Progressive: true}
	highest := func(log []string) string {
		top := ""
		for _, r := range []string{"1", "3", "9", "27"} {
			if slices.ContainsFunc(log, func(s string) bool { return strings.HasSuffix(s, "@"+r) }) {
				top = r
			}
		}
		return top
	}
	agreeing, _ := play(NewASHA(c), 1, func(d Decision) Outcome { return Outcome{Score: trialNumber(d.Trial)} }, first)
	if got := highest(agreeing); got != "3" {
		t.Errorf("rungs that agree: trained up to %s, want 3", got)
	}
	differing, _ := play(NewASHA(c), 1, func(d Decision) Outcome {
		s := trialNumber(d.Trial)
		if d.Rung%2 == 1 {
			s = -s
		}
		return Outcome{Score: s}
	}, first)
	if got := highest(differing); got != "27" {
		t.Errorf("rungs that differ: trained up to %s, want 27", got)
	}
	c.Progressive = false
	all, _ := play(NewASHA(c), 1, func(d Decision) Outcome { return Outcome{Score: trialNumber(d.Trial)} }, first)
	if got := highest(all); got != "27" {
		t.Errorf("ASHA trained up to %s, want 27", got)
	}
}

// Curves that cross twice are noise: ε is the 90th percentile of their distances.
func TestPASHANoise(t *testing.T) {
	for _, tc := range []struct {
		x, y []float64
		want int
	}{
		{[]float64{3, 1, 3}, []float64{2, 2, 2}, 3},
		{[]float64{3, 1, 1}, []float64{2, 2, 2}, 0},
		{[]float64{3, 2, 3}, []float64{2, 2, 2}, 0},
		{[]float64{3, 2, 1, 3}, []float64{2, 2, 2, 2}, 4},
		{[]float64{3, math.Inf(1), 3}, []float64{2, 2, 2}, 0},
	} {
		if got := crossings(tc.x, tc.y); len(got) != tc.want {
			t.Errorf("%v and %v: %v, want %d distances", tc.x, tc.y, got, tc.want)
		}
	}
	if q := quantile([]float64{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 0.9); q != 9 {
		t.Errorf("quantile %g", q)
	}
}

// Whatever is reported in whatever order, every scheduler ends within its budget, sends
// no failed trial on, and none twice to one rung.
func TestSchedulersEnd(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		p := Plan{Cool: 0.25, Scheduler: rapid.SampledFrom(Schedulers()).Draw(rt, "scheduler"), Slots: rapid.IntRange(1, 5).Draw(rt, "slots")}
		trials := rapid.IntRange(1, 40).Draw(rt, "trials")
		p.Brackets = []Bracket{ladder(trials, 1, rungs(trials))}
		p.schedule(Needs{Trials: trials})
		budget := 0.0
		for _, b := range p.Brackets {
			budget += b.Cost()
		}
		s, err := NewScheduler(p)
		if err != nil {
			rt.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		failing := rapid.SampledFrom([]float64{0, 0.3, 1}).Draw(rt, "failing")
		failed, at := map[string]bool{}, map[string]int{}
		forks := 0
		score := func(d Decision) Outcome {
			if failed[d.Trial] {
				rt.Fatalf("%s had failed and goes on", d.Trial)
			}
			if d.Action == Fork {
				forks++
				if last, ok := at[d.Inherit]; !ok || last < d.Rung-1 {
					rt.Fatalf("%s goes on from rung %d of %s, which is at %d", d.Trial, d.Rung-1, d.Inherit, last)
				}
				at[d.Trial] = d.Rung - 1
			}
			if last, ok := at[d.Trial]; ok && d.Rung != last+1 || !ok && d.Rung != 0 {
				rt.Fatalf("%s goes to rung %d from %d", d.Trial, d.Rung, last)
			}
			at[d.Trial] = d.Rung
			o := Outcome{Score: rng.Float64()}
			if rng.Float64() < failing {
				failed[d.Trial] = true
				switch rng.IntN(4) {
				case 0:
					o.Failed = true
				case 1:
					o.Score = math.NaN()
				case 2:
					o.Score = math.Inf(1)
				case 3:
					o.Stopped = true
				}
			}
			return o
		}
		log, spent := play(s, p.Slots, score, rng.IntN)
		if !s.done() {
			rt.Fatalf("not done after %v", log)
		}
		if spent > budget*(1+1e-9) {
			rt.Fatalf("spent %g of %g: %v", spent, budget, log)
		}
		if len(at)-forks > trials {
			rt.Fatalf("%d trials of %d", len(at), trials)
		}
	})
}

// Every scheduler's plan spends what the search has, or starts as many trials as were
// asked for.
func TestPlansOfSchedulers(t *testing.T) {
	for _, name := range Schedulers() {
		for _, n := range []Needs{
			{WallClock: 600, Spent: 2, Slots: 2, Pace: flat(80e9), Corpus: 1e6, HeldOut: 50e3},
			{WallClock: 7200, Spent: 2, Slots: 4, Pace: flat(80e9), Corpus: 1e6, HeldOut: 50e3},
			{Trials: 20, Slots: 2, Corpus: 1e6},
			{MaxTokens: 5e6, Slots: 2, Corpus: 1e6},
		} {
			auto, err := MakePlan(n)
			if err != nil {
				t.Fatal(err)
			}
			n.Scheduler = name
			p, err := MakePlan(n)
			if err != nil {
				t.Fatal(err)
			}
			sum := func(p Plan) (cost float64) {
				for _, b := range p.Brackets {
					cost += b.Cost()
				}
				return cost
			}
			if n.Trials > 0 && p.SearchTrials != n.Trials {
				t.Errorf("%s: %d trials, want %d", name, p.SearchTrials, n.Trials)
			}
			if n.Trials == 0 && name != "pbt" && math.Abs(sum(p)/sum(auto)-1) > 1e-9 {
				t.Errorf("%s: costs %g %s, auto %g", name, sum(p), p.Unit, sum(auto))
			}
			if _, err := NewScheduler(p); err != nil {
				t.Error(err)
			}
			for _, b := range p.Brackets {
				if b.Trials != b.Keep[0] || len(b.Keep) != len(b.Resources) || !slices.IsSorted(b.Resources) {
					t.Errorf("%s: bracket %+v", name, b)
				}
			}
		}
	}
	if _, err := NewScheduler(Plan{Scheduler: "magic"}); err == nil || !strings.Contains(err.Error(), "pasha") {
		t.Errorf("got %v", err)
	}
}

// eighteen is a search of so many trials on three slots.
func eighteen(t *testing.T, strategy, scheduler string) *Search {
	t.Helper()
	st, err := NewStrategy(strategy, bowl(t), Options{Seed: 3, Startup: 4})
	if err != nil {
		t.Fatal(err)
	}
	p := Plan{Cool: 0.25, Scheduler: scheduler, Slots: 3, Brackets: []Bracket{ladder(18, 10, 3)}}
	p.schedule(Needs{Trials: 18})
	sched, err := NewScheduler(p)
	if err != nil {
		t.Fatal(err)
	}
	return New(st, sched, 3)
}

// trained is how a decision ends: the fourth trial fails, and some are stopped by their
// rule. It adds to the trial's curve.
func trained(d Decision, curves map[string][]Point) Outcome {
	score := func(x float64) float64 { return 1 + bowlScore(d.Config) + 2/math.Sqrt(x) }
	o := Outcome{Score: score(d.Resource), Failed: trialNumber(d.Trial) == 4}
	for k := 1; d.Stop != nil && k <= 6 && !o.Stopped; k++ {
		x := d.Stop.From + (d.Stop.Horizon-d.Stop.From)*float64(k)/6
		curves[d.Trial] = append(curves[d.Trial], Point{x, score(x) + 0.1})
		o.Why = d.Stop.Judge(curves[d.Trial])
		o.Curve, o.Stopped = curves[d.Trial], o.Why != ""
	}
	return o
}

// The order in which trials finish changes nothing under any scheduler, whether trials
// fail, stop by their rule, or end.
func TestSchedulersDoNotDependOnArrival(t *testing.T) {
	for _, name := range Schedulers() {
		var want []string
		for shuffle := range uint64(5) {
			s := eighteen(t, "tpe", name)
			rng := rand.New(rand.NewPCG(shuffle, 7))
			var got []string
			var open []Decision
			curves := map[string][]Point{}
			for !s.Done() {
				ds, err := s.Next()
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range ds {
					rule, err := json.Marshal(d.Stop)
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, fmt.Sprintf("%d %s %s %v %s %s %s", d.Seq, d.Action, d.Trial, d.Resource, d.Config.Key(), rule, d.Inherit))
				}
				if open = append(open, ds...); len(open) == 0 {
					continue
				}
				i := rng.IntN(len(open))
				d := open[i]
				open = slices.Delete(open, i, i+1)
				if err := s.Report(d.Seq, trained(d, curves)); err != nil {
					t.Fatal(err)
				}
			}
			if want == nil {
				want = got
			}
			if !slices.Equal(got, want) {
				t.Fatalf("%s, arrival order %d:\n%s\nwant\n%s", name, shuffle, strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
	}
}

// A search that learns by arrival is made again from its decisions and orders, whatever
// order its results come in then, and goes on after them.
func TestArrivalIsRepeated(t *testing.T) {
	for _, name := range Schedulers() {
		for _, strategy := range []string{"tpe", "evolutionary", "dehb"} {
			begin := func() *Search {
				s := eighteen(t, strategy, name)
				s.ByArrival()
				return s
			}
			for seed := range uint64(4) {
				rng := rand.New(rand.NewPCG(seed, 7))
				s := begin()
				var made, open []Decision
				var orders []Order
				outcomes := map[int]Outcome{}
				curves := map[string][]Point{}
				for steps := 0; !s.Done(); steps++ {
					switch {
					case steps == 8:
						s.Widen(5)
					case steps%9 == 4:
						trial := fmt.Sprintf("t%03d", 1+rng.IntN(len(s.order)))
						if o, err := s.Order(Order{Kind: Stop, Trial: trial}); err == nil {
							orders = append(orders, o)
						}
					}
					ds, err := s.Next()
					if err != nil {
						t.Fatal(err)
					}
					made, open = append(made, ds...), append(open, ds...)
					for range rng.IntN(3) { // sometimes two results arrive between decisions
						if len(open) == 0 {
							break
						}
						i := rng.IntN(len(open))
						d := open[i]
						open = slices.Delete(open, i, i+1)
						outcomes[d.Seq] = trained(d, curves)
						if err := s.Report(d.Seq, outcomes[d.Seq]); err != nil {
							t.Fatal(err)
						}
					}
				}
				again := begin()
				again.Repeat(made, orders)
				var repeated []Decision
				for !again.Done() {
					ds, err := again.Next()
					if err != nil {
						t.Fatal(err)
					}
					for _, d := range slices.Backward(ds) {
						if err := again.Report(d.Seq, outcomes[d.Seq]); err != nil {
							t.Fatal(err)
						}
					}
					if repeated = append(repeated, ds...); len(ds) == 0 && !again.Done() {
						t.Fatalf("%s under %s, seed %d: %d of %d decisions, and nothing more", strategy, name, seed, len(repeated), len(made))
					}
				}
				for i, d := range repeated {
					got, want := fmt.Sprintf("%+v", d), fmt.Sprintf("%+v", made[i])
					if d.Stop != nil && made[i].Stop != nil {
						a, _ := json.Marshal(d)
						b, _ := json.Marshal(made[i])
						got, want = string(a), string(b)
					}
					if got != want {
						t.Fatalf("%s under %s, seed %d, decision %d:\n%s\nwant\n%s", strategy, name, seed, i, got, want)
					}
				}
				if len(repeated) != len(made) {
					t.Fatalf("%s under %s, seed %d: %d decisions of %d", strategy, name, seed, len(repeated), len(made))
				}
			}
		}
	}
}

// By arrival nobody waits behind a long trial; in the order of decisions all do.
func TestArrivalKeepsSlotsBusy(t *testing.T) {
	for _, arrival := range []bool{false, true} {
		st, err := NewStrategy("random", bowl(t), Options{Seed: 3})
		if err != nil {
			t.Fatal(err)
		}
		s := New(st, NewASHA(ASHAConfig{Trials: 40, Resources: []float64{1, 3}, Eta: 3}), 4)
		if arrival {
			s.ByArrival()
		}
		ended := 0
		for {
			ds, err := s.Next()
			if err != nil {
				t.Fatal(err)
			}
			if len(ds) == 0 {
				break
			}
			for _, d := range ds {
				if d.Seq == 0 {
					continue // it trains on and on
				}
				ended++
				if err := s.Report(d.Seq, Outcome{Score: bowlScore(d.Config)}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if arrival != (ended > 40) || !arrival && ended != 3 {
			t.Errorf("by arrival %t: %d decisions ended beside a long one", arrival, ended)
		}
	}
}
