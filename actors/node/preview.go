package node

import (
	"context"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/telemetry"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Outlook is what a build would do.
type Outlook struct {
	Devices []device.Device `json:"devices"`
	Plan    search.Plan     `json:"plan"`
	Seconds Forecast        `json:"seconds"` // of the clock
	Odds    search.Odds     `json:"odds"`    // of what the search finds
	First   space.Config    `json:"first_trial"`
	Cost    *train.Cost     `json:"first_cost,omitempty"` // of generating with the first trial's model, as foretold; of jobs that ask for it
	Space   []Range         `json:"space"`
	Graph   []job.Stage     `json:"graph"`
}

// Range is a dimension in words.
type Range struct {
	Name  string `json:"name"`
	Range string `json:"range"`
}

// Preview plans a job on text of so many bytes without starting it: it matches
// the hardware and times it for three seconds.
func Preview(ctx context.Context, spec job.Spec, bytes int64, fallback bool) (Outlook, error) {
	var o Outlook
	crew, _, err := hire(ctx, spec, Options{AllowFallback: fallback, AllowSteps: true}, device.Auto)
	if err != nil {
		return o, err
	}
	defer crew.close()
	o.Devices, o.Graph = crew.devices, job.StagesOf(spec)
	cfg := DataConfig(spec)
	n := search.Needs{
		WallClock: spec.Budget.WallClock.D().Seconds(), Trials: spec.Budget.Trials, MaxTokens: spec.Budget.Tokens,
		Scheduler: spec.Scheduler, Slots: len(o.Devices), Corpus: int64(float64(bytes) * (1 - cfg.ValidFraction - cfg.TestFraction)), HeldOut: int64(float64(bytes) * cfg.TestFraction),
	}
	begin := time.Now()
	pacer, err := crew.pacer(ctx, engine.Precision(spec.Precision), 3)
	if err != nil {
		return o, err
	}
	n.Pace = pacer.ofSize(spec, n.Corpus)
	n.Spent = min(time.Since(begin).Seconds(), 1, 0.01*n.WallClock) // a build times the machine for less
	if o.Plan, err = search.MakePlan(n); err != nil {
		return o, &job.FieldError{Path: "budget.wall_clock", Msg: err.Error()}
	}
	o.Plan.Rate = n.Pace(o.Plan.Params, 1).Rate() // of budgets that don't ask for it too
	l := space.Limits{
		MinMatrix: o.Plan.MinParams, MaxMatrix: o.Plan.MaxParams, MaxVocab: maxVocabFor(n.Corpus), Context: spec.MaxSeqLength, Epochs: o.Plan.Epochs,
		MaxContext: int(max(16, int64(float64(bytes)*cfg.ValidFraction)/8)), MaxBytes: crew.memory, Threads: crew.threads,
	}
	if spec.Timed() {
		if o.Plan.TokenTimes, err = timeTokens(ctx, spec.ServingThreads(), o.Plan.MaxParams); err != nil {
			return o, err
		}
	}
	v := serving{spec: spec, times: o.Plan.TokenTimes, tokenizer: func(vocab int) int64 { return typicalEntry * int64(vocab) }}
	sp, first, err := Space(l, spec, o.Plan, n.Corpus, v)
	if err != nil {
		return o, err
	}
	o.First, o.Plan.BaseWidth = first, first.Int(space.Dim)
	if o.Odds, err = o.Plan.Odds(min(max(20_000/o.Plan.SearchTrials, 10), 400), spec.Seed); err != nil {
		return o, err
	}
	if spec.Costed() && len(first) > 0 {
		c := v.foretold(space.Arch(first))
		o.Cost = &c
	}
	o.Seconds = Forecast{Search: o.Plan.SearchSeconds, Final: o.Plan.FinalSeconds, Total: n.WallClock}
	if o.Plan.Unit != search.Seconds {
		past, err := telemetry.ReadPast(spec.WarmStart)
		if err != nil {
			return o, err
		}
		s, err := newSearch(spec, sp, first, past, o.Plan, n.Slots)
		if err != nil {
			return o, err
		}
		config := func(c space.Config) train.Config { return configOf(spec, o.Plan, c) }
		if o.Seconds, err = pacer.forecast(o.Plan, s, config, float64(bytes)*cfg.ValidFraction/2, float64(n.HeldOut)/2); err != nil { // about two bytes a token
			return o, err
		}
	}
	for _, d := range sp.Dimensions() {
		r := d.String()
		if when := d.Condition(); when != "" {
			r += " " + when
		}
		o.Space = append(o.Space, Range{d.Name, r})
	}
	return o, nil
}
