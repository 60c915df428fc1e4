package search

import (
	"math"
	"testing"
)

// What a plan spends is what it was given.
func TestPlanSpendsItsBudget(t *testing.T) {
	for _, wall := range []float64{10, 20, 40, 180, 600, 3600, 36000} {
		for _, slots := range []int{1, 2, 4, 8} {
			p, err := MakePlan(Needs{WallClock: wall, Spent: 2, Slots: slots, Rate: 80e9, Corpus: 1e6, HeldOut: 50e3})
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
	p, err := MakePlan(Needs{WallClock: 180, Spent: 2, Slots: 2, Rate: 80e9, Corpus: 1e6, HeldOut: 50e3})
	if err != nil || p.SearchTrials < 8 || len(p.Brackets[0].Resources) < 2 {
		t.Errorf("three minutes on two cores: %+v, %v", p, err)
	}
}

func TestPlanOfTrialsIgnoresTheMachine(t *testing.T) {
	a, err := MakePlan(Needs{Trials: 12, Slots: 2, Rate: 80e9, Corpus: 1e6})
	if err != nil {
		t.Fatal(err)
	}
	b, err := MakePlan(Needs{Trials: 12, Slots: 2, Rate: 0, Corpus: 1e6, Spent: 99})
	if err != nil {
		t.Fatal(err)
	}
	a.Rate = 0
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
	if _, err := MakePlan(Needs{WallClock: 5, Spent: 3, Slots: 2, Rate: 80e9, Corpus: 1e6, HeldOut: 50e3}); err == nil {
		t.Error("accepted")
	}
}
