package node

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// What it takes to generate with a model: foretold before a trial, measured after it.

const (
	// tokenTime is for how long a trial's tokens are timed, probeTime those of each shape
	// by which others are foretold.
	tokenTime, probeTime = 250 * time.Millisecond, 60 * time.Millisecond
	// foretoldMargin is by how much a token may be foretold to take longer than allowed
	// before the shape is not tried: the machine was busy, or the shape is an unusual one.
	foretoldMargin = 1.5
	// assumedWatts is what a processor that generates is taken to draw where no counter
	// can be read.
	assumedWatts = 10
	// typicalEntry is how many bytes an entry of the vocabulary takes in tokenizer.json,
	// before there is one.
	typicalEntry = 60
)

// serving foretells what models cost.
type serving struct {
	spec      job.Spec
	times     []glm.TokenTime
	tokenizer func(vocab int) int64 // bytes of its file
}

// serving of the job's own tokenizer.
func (s *site) serving(p search.Plan) serving {
	bytes := map[int]int64{}
	return serving{spec: s.spec, times: p.TokenTimes, tokenizer: func(vocab int) int64 {
		if _, ok := bytes[vocab]; !ok {
			bytes[vocab] = s.tokenizerBytes(vocab)
		}
		return bytes[vocab]
	}}
}

// tokenizerBytes is the size of a vocabulary's tokenizer.json; 0 where the data gives no
// such vocabulary.
func (s *site) tokenizerBytes(vocab int) int64 {
	tok, err := s.tokenizer(vocab)
	if err != nil {
		return 0
	}
	b, err := tok.MarshalJSON()
	if err != nil {
		return 0
	}
	return int64(len(b))
}

// foretold is the cost of a shape: memory and size exactly, the rest by the times of
// other shapes, where there are any.
func (v serving) foretold(a glm.Arch) train.Cost {
	c := train.Cost{Threads: v.spec.ServingThreads(), Size: bundle.WeightsBytes(a) + v.tokenizer(a.Vocab)}
	c.Memory = a.DecodingBytes(glm.F32Weights, 1, c.Threads)
	if len(v.times) > 0 {
		c.Latency = a.TokenSeconds(v.times)
		c.Energy, c.EnergyBy = assumedWatts*c.Latency, assumed
	}
	return c
}

var assumed = fmt.Sprintf("%d W assumed", assumedWatts)

// miss says which bound a shape is known, or all but sure, to miss.
func (v serving) miss(a glm.Arch, b job.Bound) error {
	switch b.Objective {
	case job.Latency:
		if s := a.TokenSeconds(v.times); s > foretoldMargin*b.Limit {
			return fmt.Errorf("a token takes about %s, %s allows %s", job.Amount(job.Latency, s), b.Field, job.Amount(job.Latency, b.Limit))
		}
		return nil
	case job.Size:
		if n := 4 * float64(a.Params()); n > b.Limit { // most shapes need no closer look
			return fmt.Errorf("weights alone take %s, %s allows %s", job.Amount(job.Size, n), b.Field, job.Amount(job.Size, b.Limit))
		}
	}
	if c := v.foretold(a); b.Over(c) > 0 {
		return fmt.Errorf("%s is %s, %s allows %s", b.Objective, job.Amount(b.Objective, job.Value(b.Objective, 0, c)), b.Field, job.Amount(b.Objective, b.Limit))
	}
	return nil
}

// bound adds the job's bounds to a space. The error says which constraints clash where
// nothing holds them all.
func (v serving) bound(sp *space.Space) (*space.Space, error) {
	bounds := v.spec.Bounds()
	if len(bounds) == 0 {
		return sp, nil
	}
	for _, b := range bounds {
		sp = sp.Constrain(func(c space.Config) error {
			a := space.Arch(c)
			if a.Validate() != nil {
				return nil // another constraint's
			}
			return v.miss(a, b)
		})
	}
	_, err := sp.Sample(rand.New(rand.NewPCG(v.spec.Seed, 0)))
	return sp, err
}

// widenFor is how much smaller than the plan's the models may be that several objectives
// have tried.
const widenFor = 8

// widen lets models in that are smaller than the budget feeds, where they may be the
// better ones: of several objectives, or under bounds that larger ones miss.
func (v serving) widen(l *space.Limits, corpus int64) {
	if len(v.spec.Goals()) > 1 {
		l.MinMatrix /= widenFor
	}
	bounds := v.spec.Bounds()
	if len(bounds) == 0 {
		return
	}
	allowed := int64(0)
	for _, s := range sizes {
		a := s.arch(min(vocabFor(corpus), l.MaxVocab), max(l.Context, 64))
		holds := true
		for _, b := range bounds {
			holds = holds && v.miss(a, b) == nil
		}
		if holds {
			allowed = max(allowed, a.MatrixParams())
		}
	}
	l.MinMatrix = min(l.MinMatrix, allowed/4)
}

// timeTokens times the native decoder on shapes up to the plan's largest.
func timeTokens(ctx context.Context, threads int, params int64) ([]glm.TokenTime, error) {
	var out []glm.TokenTime
	for _, a := range glm.TokenProbes(params) {
		layout, size := a.Layout()
		// Zeros take as long as other weights.
		c, err := timed(ctx, a, engine.Parameters(layout, make([]float32, size)), threads, probeTime)
		if err != nil {
			return nil, err
		}
		t := glm.TokenTime{Work: a.TokenWork(), Seconds: c.Latency}
		if n := len(out); n > 0 {
			t.Seconds = max(t.Seconds, out[n-1].Seconds) // others computed beside the smaller one
		}
		out = append(out, t)
	}
	return out, nil
}

// timed measures a token's time and energy.
func timed(ctx context.Context, a glm.Arch, params engine.StateDict, threads int, bound time.Duration) (train.Cost, error) {
	dec, err := native.NewDecoder(a, params, native.DecoderOptions{Threads: threads, MaxSeqs: 1})
	if err != nil {
		return train.Cost{}, err
	}
	defer dec.Close()
	counter, uncounted := device.StartEnergy(os.DirFS("/"))
	begin := time.Now()
	c := train.Cost{Threads: threads}
	if c.Latency, err = serve.Latency(ctx, dec, a, bound); err != nil {
		return c, err
	}
	c.Energy, c.EnergyBy = assumedWatts*c.Latency, assumed
	if uncounted == nil {
		if j, err := counter.Joules(); err == nil && j > 0 {
			c.Energy, c.EnergyBy = j/time.Since(begin).Seconds()*c.Latency, "RAPL, of the whole processor"
		}
	}
	return c, nil
}

// cost is what it takes to generate with what a task has trained, and how wrong that is.
func (s *site) cost(ctx context.Context, t train.Task) (*train.Cost, error) {
	c, err := s.generating(ctx, t)
	if err != nil || !t.Serving.Answers {
		return c, err
	}
	answered := *c
	if answered.Error, answered.Answers, err = s.taskError(ctx, t); err != nil {
		return nil, fmt.Errorf("its answers: %w", err)
	}
	return &answered, nil
}

// generating is what it takes to generate with a task's model. Trials of one shape have
// one cost; the final model is timed anew, when no trial trains beside it.
func (s *site) generating(ctx context.Context, t train.Task) (*train.Cost, error) {
	if t.Serving.Known != nil {
		return t.Serving.Known, nil
	}
	s.timing.Lock()
	defer s.timing.Unlock()
	a := t.Config.Arch
	if c := s.costs[a]; c != nil && !t.Final {
		return c, nil
	}
	c := train.Cost{Threads: t.Serving.Threads}
	if t.Serving.Timed {
		params, _, err := train.LoadCheckpoint(train.BestDir(t.Dir))
		if err != nil {
			return nil, err
		}
		if c, err = timed(ctx, a, params, t.Serving.Threads, tokenTime); err != nil {
			return nil, fmt.Errorf("timing its tokens: %w", err)
		}
	}
	c.Memory, c.Size = a.DecodingBytes(glm.F32Weights, 1, c.Threads), bundle.WeightsBytes(a)+s.tokenizerBytes(a.Vocab)
	s.costs[a] = &c
	return &c, nil
}

// known is the cost of a shape that an ended trial has measured.
func known(st journal.State, a glm.Arch) *train.Cost {
	for _, d := range st.Decisions {
		if r := st.Outcomes[d.Seq]; r.Cost != nil && space.Arch(d.Config) == a {
			return r.Cost
		}
	}
	return nil
}
