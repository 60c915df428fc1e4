package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// probeArch is the shape by which a machine is timed: small, like the models
// that a short search tries.
var probeArch = glm.Arch{Vocab: 512, Dim: 128, Layers: 4, Heads: 4, KVHeads: 4, FFN: 384, Context: 128, Tied: true}.WithDefaults()

// Rate times whole training steps on n devices of threads threads at once and
// returns one device's FLOP/s (the slowest counts).
func Rate(ctx context.Context, n, threads int, name string, precision engine.Precision, seconds float64) (float64, error) {
	build, err := makerOf(worker.On{Engine: name})
	if err != nil {
		return 0, err
	}
	rates, errs := make([]float64, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rates[i], errs[i] = rate(ctx, threads, build, precision, seconds)
		}()
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	slowest := rates[0]
	for _, r := range rates {
		slowest = min(slowest, r)
	}
	return slowest, nil
}

func rate(ctx context.Context, threads int, build maker, precision engine.Precision, seconds float64) (float64, error) {
	cfg := train.Config{Arch: probeArch, BatchTokens: 2048, Optimizer: engine.AdamW, Precision: precision}
	m, err := build(cfg, threads, 1)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	n := cfg.Sequences() * probeArch.Context
	b := engine.Batch{B: cfg.Sequences(), T: probeArch.Context, Inputs: make([]int32, n), Targets: make([]int32, n), Norm: float64(n)}
	for i := range n {
		b.Inputs[i], b.Targets[i] = int32(i*7%500), int32((i+1)*7%500)
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
			return probeArch.FLOPsPerToken(probeArch.Context) * float64(n*steps) / t, nil
		}
	}
}
