package search

import (
	"math"
	"reflect"
	"testing"
)

func TestOdds(t *testing.T) {
	plan := func(scheduler string, trials int) Plan {
		p, err := MakePlan(Needs{Trials: trials, Slots: 2, Corpus: 1e6, Scheduler: scheduler})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	// Of whole trainings the least share of n is known.
	o, err := plan("none", 10).Odds(2000, 1)
	if err != nil {
		t.Fatal(err)
	}
	if want := 1 - math.Pow(0.5, 0.1); math.Abs(o.Median-want) > 0.008 || math.Abs(o.Whole-want) > 1e-12 {
		t.Errorf("of ten trials the best leaves %.4f, by formula %.4f, want %.4f", o.Median, o.Whole, want)
	}
	if want := 1 - math.Pow(0.1, 0.1); math.Abs(o.Ninety-want) > 0.02 {
		t.Errorf("in nine of ten %.4f, want %.4f", o.Ninety, want)
	}
	for _, name := range Schedulers() {
		p := plan(name, 24)
		o, err := p.Odds(200, 1)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all := 0.0
		for i, e := range o.Ends {
			all += e.Trials
			if i > 0 && e.Resource <= o.Ends[i-1].Resource {
				t.Errorf("%s: ends %v", name, o.Ends)
			}
		}
		if all < 8 || !(o.Median > 0 && o.Median < o.Ninety && o.Ninety < 0.5) {
			t.Errorf("%s: %+v", name, o)
		}
		// Halving pays: more are tried than could be trained to the end.
		if (name == "sha" || name == "asha") && !(o.Median < 0.8*o.Whole) {
			t.Errorf("%s: %.4f, whole trainings %.4f", name, o.Median, o.Whole)
		}
		if again, err := p.Odds(200, 1); err != nil || !reflect.DeepEqual(o, again) {
			t.Errorf("%s: another time %+v, %v", name, again, err)
		}
	}
	if _, err := (Plan{}).Odds(10, 1); err == nil {
		t.Error("an empty plan has odds")
	}
}
