package node

import (
	"cmp"
	"math"
	"slices"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// How long what is to be trained will take, by the rates that the machine was
// measured at.

// pacer foretells steps on devices of one kind.
type pacer struct {
	rates   glm.Rates
	threads int // of a device
}

// step is how long an optimiser step takes that so many devices share.
func (p pacer) step(c train.Config, devices int) float64 {
	return c.Arch.StepSeconds(glm.Step{
		Training: glm.Training{
			Sequences: c.MicroBatch(devices), Tokens: c.Arch.Context, Threads: p.threads, BF16: half(c.Precision),
			Muon: c.Optimizer == engine.Muon, Recompute: c.Recompute,
		},
		Batch: (c.Sequences() + devices - 1) / devices,
	}, p.rates)
}

// pace is search.Pace of one configuration.
func (p pacer) pace(c train.Config, devices int) search.Pace {
	tokens := float64(c.Sequences() * c.Arch.Context)
	return search.Pace{Tokens: tokens / p.step(c, devices), FLOPs: c.Arch.FLOPsPerToken(c.Arch.Context)}
}

// ofSize is search.Needs' Pace for a job on a text of so many bytes: that of the
// shapes that a search starts from, between two of which it goes by the logarithm
// of the size.
func (p pacer) ofSize(spec job.Spec, bytes int64) func(params int64, devices int) search.Pace {
	return func(params int64, devices int) search.Pace {
		context := spec.MaxSeqLength
		if context == 0 {
			context = contextFor(0, params)
		}
		at := func(i int) (search.Pace, float64) {
			a := sizes[i].arch(vocabFor(bytes), context)
			c := train.Config{Arch: a, BatchTokens: batchTokens, Optimizer: engine.AdamW, Precision: engine.Precision(spec.Precision)}
			return p.pace(c, devices), math.Log(float64(a.MatrixParams()))
		}
		// The first shape that is larger, or the last, and the one before it.
		size, i := math.Log(float64(max(params, 1))), 1
		for ; i+1 < len(sizes); i++ {
			if _, s := at(i); s >= size {
				break
			}
		}
		low, from := at(i - 1)
		high, to := at(i)
		x := max(0, (size-from)/(to-from))
		return search.Pace{Tokens: low.Tokens * math.Pow(high.Tokens/low.Tokens, x), FLOPs: low.FLOPs * math.Pow(high.FLOPs/low.FLOPs, x)}
	}
}

// Forecast is how long the parts of a build take, seconds.
type Forecast struct {
	Search float64 `json:"search"`
	Final  float64 `json:"final"`
	Total  float64 `json:"total"`
}

// forecast tells how long a plan in trials or tokens takes. It plays the search
// through, with scores that favour the trials in their order: what the real ones
// would propose is known from the second rung on alone. The final training is that
// of the first trial. Sizes of the parts are in tokens. Reading, cleaning and
// writing are not in it: they are quick beside the training.
func (p pacer) forecast(plan search.Plan, s *search.Search, config func(space.Config) train.Config, valid, heldOut float64) (Forecast, error) {
	var f Forecast
	type trial struct {
		seq int
		end float64
	}
	var running []trial
	var first train.Config
	for {
		next, err := s.Next()
		if err != nil {
			return f, err
		}
		for _, d := range next {
			c := config(d.Config)
			if d.Seq == 0 {
				first = c
			}
			running = append(running, trial{d.Seq, f.Search + p.rung(plan, c, d) + p.scoring(c, min(trialEval, valid), 1)})
		}
		if len(running) == 0 {
			break
		}
		slices.SortStableFunc(running, func(a, b trial) int { return cmp.Compare(a.end, b.end) })
		f.Search = running[0].end
		if err := s.Report(running[0].seq, search.Outcome{Score: 1}); err != nil {
			return f, err
		}
		running = running[1:]
	}
	steps := segment(plan, first, train.State{}, plan.FinalResource, plan.FinalDecay).End()
	f.Final = steps*p.step(first, plan.Slots) + p.scoring(first, (finalEvals+1)*min(finalEval, valid), plan.Slots)
	f.Total = f.Search + f.Final + p.scoring(first, 2*heldOut, plan.Slots) // in windows that overlap by half
	return f, nil
}

// rung is how long a decision's training takes, without its score: one that goes on does
// so from before its rate fell.
func (p pacer) rung(plan search.Plan, c train.Config, d search.Decision) float64 {
	steps := segment(plan, c, train.State{}, d.Resource, plan.CoolOf(d)).End()
	if d.From > 0 {
		before := search.Decision{From: 2*d.From - d.Resource, Resource: d.From} // under pbt; others' cool part is no matter of from
		steps -= segment(plan, c, train.State{}, d.From, plan.CoolOf(before)).DecayFrom
	}
	return steps * p.step(c, 1)
}

// scoring is how long it takes to score so many tokens: a forward pass is a third
// of a training's work.
func (p pacer) scoring(c train.Config, tokens float64, devices int) float64 {
	return tokens / 3 / p.pace(c, devices).Tokens
}
