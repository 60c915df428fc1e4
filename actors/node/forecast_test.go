package node

import (
	"math"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

var measured = glm.Rates{Product: 5e-12, Attention: 8e-12, Score: 4e-9, Element: 6e-10, Call: 4e-8, Logit: 9e-10, Parameter: 1.2e-9}

// A plan's time follows from the machine's: half the speed, twice the time; and it
// is at least what its devices need for its arithmetic alone.
func TestForecast(t *testing.T) {
	of := func(budget job.Budget, scale float64) (search.Plan, Forecast) {
		t.Helper()
		spec := job.Default()
		spec.Budget = budget
		spec.Resolve()
		r := measured
		for _, x := range []*float64{&r.Product, &r.Attention, &r.Score, &r.Element, &r.Call, &r.Logit, &r.Parameter} {
			*x *= scale
		}
		p := pacer{r, 1}
		n := search.Needs{Trials: budget.Trials, MaxTokens: budget.Tokens, Slots: 2, Corpus: 1e6, HeldOut: 5e4, Pace: p.ofSize(spec, 1e6)}
		plan, err := search.MakePlan(n)
		if err != nil {
			t.Fatal(err)
		}
		sp, first, err := Space(space.Limits{MinMatrix: plan.MinParams, MaxMatrix: plan.MaxParams, MaxVocab: 1024, MaxContext: 512, Threads: 1}, spec, plan, n.Corpus, serving{spec: spec})
		if err != nil {
			t.Fatal(err)
		}
		s, err := newSearch(spec, sp, first, nil, plan, 2)
		if err != nil {
			t.Fatal(err)
		}
		f, err := p.forecast(plan, s, func(c space.Config) train.Config { return configOf(spec, plan, c) }, 2e4, 2e4)
		if err != nil {
			t.Fatal(err)
		}
		return plan, f
	}
	for _, b := range []job.Budget{{Trials: 6}, {Trials: 30}, {Tokens: 2e6}} {
		plan, f := of(b, 1)
		_, slow := of(b, 2)
		if math.Abs(slow.Total/f.Total-2) > 1e-9 || math.Abs(slow.Search/f.Search-2) > 1e-9 {
			t.Errorf("%+v: %+v on a machine, %+v on one of half its speed", b, f, slow)
		}
		if f.Search <= 0 || f.Final <= 0 || f.Total <= f.Search+f.Final {
			t.Errorf("%+v: %+v", b, f)
		}
		if plan.Unit == search.GFLOP {
			cost := 0.0
			for _, b := range plan.Brackets {
				cost += b.Cost()
			}
			if least := cost * 1e9 * measured.Product / 2; f.Search < least || f.Search > 10*least {
				t.Errorf("%+v: the search takes %g s, its products alone %g", b, f.Search, least)
			}
		}
	}
}

// Between the shapes of the ladder the pace goes evenly, on it it is the shape's own.
func TestPaceOfSize(t *testing.T) {
	p := pacer{measured, 1}
	spec := job.Default()
	pace := p.ofSize(spec, 1e6)
	last := math.Inf(1)
	for params := int64(150e3); params < 3e6; params += 50e3 {
		at := pace(params, 1)
		if at.Tokens >= last {
			t.Errorf("%d parameters train %g tokens/s, fewer %g", params, at.Tokens, last)
		}
		last = at.Tokens
		if two := pace(params, 2).Tokens / at.Tokens; two < 1.5 || two > 2 {
			t.Errorf("%d parameters train %g times as fast on two devices", params, two)
		}
	}
	a := glm.Arch{Vocab: vocabFor(1e6), Dim: 128, Layers: 4, Heads: 4, KVHeads: 4, FFN: 384, Context: 128, Tied: true}.WithDefaults()
	own := p.pace(train.Config{Arch: a, BatchTokens: batchTokens, Precision: "auto"}, 1)
	if got := pace(a.MatrixParams(), 1); math.Abs(got.Tokens/own.Tokens-1) > 1e-9 || math.Abs(got.FLOPs/own.FLOPs-1) > 1e-9 {
		t.Errorf("%+v, the shape itself %+v", got, own)
	}
}
