package search

import (
	"math"
	"testing"
)

// flat is the pace on a machine that does so many operations a second whatever the
// model.
func flat(rate float64) func(int64, int) Pace {
	return func(params int64, devices int) Pace {
		flops := 6 * float64(params)
		return Pace{Tokens: rate * float64(devices) / flops, FLOPs: flops}
	}
}

// What a plan spends is what it was given.
func TestPlanSpendsItsBudget(t *testing.T) {
	for _, wall := range []float64{10, 20, 40, 180, 600, 3600, 36000} {
		for _, slots := range []int{1, 2, 4, 8} {
			p, err := MakePlan(Needs{WallClock: wall, Spent: 2, Slots: slots, Pace: flat(80e9), Corpus: 1e6, HeldOut: 50e3})
			if err != nil {
				t.Fatalf("%g s: %v", wall, err)
			}
			if sum := p.SearchSeconds + p.FinalSeconds + p.Reserve + 2; math.Abs(sum-wall) > 1e-6 {
				t.Errorf("%g s on %d slots: the parts sum to %g", wall, slots, sum)
			}
			cost := 0.0
			for _, b := range p.Brackets {
				cost += b.Cost()
			}
			if math.Abs(cost-p.SearchSeconds*float64(slots)) > 1e-6*cost {
				t.Errorf("%g s on %d slots: brackets cost %g, the search has %g", wall, slots, cost, p.SearchSeconds*float64(slots))
			}
			if p.MinParams >= p.Params || p.Params >= p.MaxParams {
				t.Errorf("%g s: sizes %d %d %d", wall, p.MinParams, p.Params, p.MaxParams)
			}
		}
	}
	p, err := MakePlan(Needs{WallClock: 180, Spent: 2, Slots: 2, Pace: flat(80e9), Corpus: 1e6, HeldOut: 50e3})
	if err != nil || p.SearchTrials < 8 || len(p.Brackets[0].Resources) < 2 {
		t.Errorf("three minutes on two cores: %+v, %v", p, err)
	}
}

func TestPlanOfTrialsIgnoresTheMachine(t *testing.T) {
	a, err := MakePlan(Needs{Trials: 12, Slots: 2, Pace: flat(80e9), Corpus: 1e6})
	if err != nil {
		t.Fatal(err)
	}
	b, err := MakePlan(Needs{Trials: 12, Slots: 2, Corpus: 1e6, Spent: 99})
	if err != nil {
		t.Fatal(err)
	}
	if a.SearchTrials != 12 || a.FinalResource != b.FinalResource || a.Params != b.Params || a.Brackets[0].Resources[0] != b.Brackets[0].Resources[0] {
		t.Errorf("%+v\n%+v", a, b)
	}
}

func TestTokensBudgetIsKept(t *testing.T) {
	p, err := MakePlan(Needs{MaxTokens: 5e6, Slots: 2, Corpus: 1e6})
	if err != nil {
		t.Fatal(err)
	}
	spent := p.FinalResource
	for _, b := range p.Brackets {
		spent += b.Cost()
	}
	if spent > 5e6 || spent < 4.9e6 {
		t.Errorf("%g tokens of 5e6", spent)
	}
}

func TestTooSmallABudgetSaysHowMuch(t *testing.T) {
	if _, err := MakePlan(Needs{WallClock: 5, Spent: 3, Slots: 2, Pace: flat(80e9), Corpus: 1e6, HeldOut: 50e3}); err == nil {
		t.Error("accepted")
	}
}

// The model is as large as the final training can feed, at the pace of that size.
func TestPlanGoesByThePaceOfItsSize(t *testing.T) {
	plan := func(pace func(int64, int) Pace) Plan {
		t.Helper()
		p, err := MakePlan(Needs{WallClock: 600, Spent: 2, Slots: 2, Pace: pace, Corpus: 1e6, HeldOut: 50e3})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	// Small models run at a third of the rate of those of a million and more.
	uneven := func(params int64, devices int) Pace {
		return flat(20e9*min(3, max(1, float64(params)/333e3)))(params, devices)
	}
	slow, fast, p := plan(flat(20e9)), plan(flat(60e9)), plan(uneven)
	if slow.Params >= fast.Params {
		t.Fatalf("%d parameters at 20 GFLOP/s, %d at 60", slow.Params, fast.Params)
	}
	if p.Params != fast.Params || math.Abs(p.Rate-60e9) > 1 || math.Abs(p.Epochs-fast.Epochs) > 1e-9 {
		t.Errorf("%d parameters at %g FLOP/s, %g epochs; want what a flat 60e9 gives: %d, %g", p.Params, p.Rate, p.Epochs, fast.Params, fast.Epochs)
	}
	flops := p.Rate * 2 * p.FinalSeconds
	if want := 2.5 * math.Sqrt(flops/120); math.Abs(float64(p.Params)/want-1) > 1e-3 {
		t.Errorf("%d parameters for %g operations, want %g", p.Params, flops, want)
	}
}
