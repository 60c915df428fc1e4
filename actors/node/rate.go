package node

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Rate times whole training steps on n devices of threads threads at once, for
// about so many seconds, and returns one device's FLOP/s at the size that a short
// search tries (the slowest counts).
func Rate(ctx context.Context, n, threads int, name string, precision engine.Precision, seconds float64) (float64, error) {
	c := &crew{devices: make([]device.Device, n), threads: threads, on: worker.On{Engine: name}}
	p, err := c.pacer(ctx, precision, seconds)
	if err != nil {
		return 0, err
	}
	return probeRate(threads, precision, p.rates), nil
}

// probeRate is the FLOP/s of the first probe.
func probeRate(threads int, precision engine.Precision, r glm.Rates) float64 {
	p := glm.Probes(threads, half(precision))[0]
	return p.StepFLOPs(p.Sequences*p.Tokens, p.Tokens) / p.StepSeconds(p.Step, r)
}

func half(p engine.Precision) bool {
	return p == engine.BF16 || p == engine.Auto && kernel.FastBF16()
}

// slowest are the rates of the device that holds the others up.
func slowest(rates []glm.Rates, threads int, p engine.Precision) glm.Rates {
	return slices.MinFunc(rates, func(a, b glm.Rates) int {
		return cmp.Compare(probeRate(threads, p, a), probeRate(threads, p, b))
	})
}

// rateOf are the rates of one device, by which glm.Arch.StepSeconds tells how long
// a step of any shape takes. The first probe, whose size matters most, is timed for
// half of the time; for all of it on libtorch, whose costs are other ones: there
// its rate stands for all shapes.
func rateOf(ctx context.Context, t worker.Timing) (glm.Rates, error) {
	build, err := makerOf(t.On)
	if err != nil {
		return glm.Rates{}, err
	}
	probes := glm.Probes(t.Threads, half(t.Precision))
	if t.On.CUDA || t.On.Engine == "torch" {
		s, err := timeProbe(ctx, probes[0], t.Threads, build, t.Precision, t.Seconds)
		return glm.OneRate(probes[0], s), err
	}
	times := make([]float64, len(probes))
	for i, p := range probes {
		share := t.Seconds / 2
		if i > 0 {
			share /= float64(len(probes) - 1)
		}
		if times[i], err = timeProbe(ctx, p, t.Threads, build, t.Precision, share); err != nil {
			return glm.Rates{}, err
		}
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
