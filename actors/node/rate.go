package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Rate times whole training steps on n devices of threads threads at once, for
// about so many seconds, and returns one device's FLOP/s at the size that a short
// search tries (the slowest counts).
func Rate(ctx context.Context, n, threads int, name string, precision engine.Precision, seconds float64) (float64, error) {
	r, err := Rates(ctx, n, threads, name, precision, seconds)
	if err != nil {
		return 0, err
	}
	return probeRate(threads, precision, r), nil
}

func probeRate(threads int, precision engine.Precision, r glm.Rates) float64 {
	p := glm.Probes(threads, half(precision))[0]
	return p.StepFLOPs(p.Sequences*p.Tokens, p.Tokens) / p.StepSeconds(p.Step, r)
}

func half(p engine.Precision) bool {
	return p == engine.BF16 || p == engine.Auto && kernel.FastBF16()
}

// Rates are what one of n devices costs while all of them train, the slowest's:
// with them glm.Arch.StepSeconds tells how long any shape's step takes.
func Rates(ctx context.Context, n, threads int, name string, precision engine.Precision, seconds float64) (glm.Rates, error) {
	build, err := makerOf(worker.On{Engine: name})
	if err != nil {
		return glm.Rates{}, err
	}
	rates, errs := make([]glm.Rates, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { rates[i], errs[i] = rateOf(ctx, threads, build, precision, seconds) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return glm.Rates{}, err
	}
	slowest := rates[0]
	for _, r := range rates[1:] {
		if probeRate(threads, precision, r) < probeRate(threads, precision, slowest) {
			slowest = r
		}
	}
	return slowest, nil
}

// rateOf times the probes on one device: the first, whose size matters most, for
// half of the time.
func rateOf(ctx context.Context, threads int, build maker, precision engine.Precision, seconds float64) (glm.Rates, error) {
	probes := glm.Probes(threads, half(precision))
	times := make([]float64, len(probes))
	for i, p := range probes {
		share := seconds / 2
		if i > 0 {
			share /= float64(len(probes) - 1)
		}
		t, err := timeProbe(ctx, p, threads, build, precision, share)
		if err != nil {
			return glm.Rates{}, err
		}
		times[i] = t
	}
	return glm.FitRates(probes, times), nil
}

// timeProbe is the mean time of a step, seconds.
func timeProbe(ctx context.Context, p glm.Probe, threads int, build maker, precision engine.Precision, seconds float64) (float64, error) {
	n := p.Sequences * p.Tokens
	cfg := train.Config{Arch: p.Arch, BatchTokens: n, Optimizer: engine.AdamW, Precision: precision}
	m, err := build(cfg, threads, 1)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	b := engine.Batch{B: p.Sequences, T: p.Tokens, Inputs: make([]int32, n), Targets: make([]int32, n), Norm: float64(n)}
	for i := range n {
		b.Inputs[i], b.Targets[i] = int32(i*7%p.Vocab), int32((i+1)*7%p.Vocab)
	}
	steps := 0
	var begin time.Time
	for {
		if err := context.Cause(ctx); err != nil {
			return 0, err
		}
		if _, err := m.Backward(b, nil); err != nil {
			return 0, err
		}
		if _, err := m.Update(engine.DefaultHyper()); err != nil {
			return 0, err
		}
		if begin.IsZero() { // the first step touches the memory
			begin = time.Now()
			continue
		}
		steps++
		if t := time.Since(begin).Seconds(); t >= seconds && steps >= 2 {
			return t / float64(steps), nil
		}
	}
}
