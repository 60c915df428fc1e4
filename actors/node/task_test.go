package node

import (
	"testing"

	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// A curve is measured where it costs little beside the rung, whatever that is counted in.
func TestMeasuringIsAShareOfTheRung(t *testing.T) {
	cfg := train.Config{Arch: space.Arch(space.Config{
		space.Dim: space.Number(64), space.Layers: space.Number(2), space.Heads: space.Number(2), space.KVHeads: space.Number(2), space.FFNRatio: space.Number(3),
		space.Vocab: space.Number(320), space.Context: space.Number(64), space.Tied: space.Word("true"),
	}), BatchTokens: 1024}
	flops := cfg.Arch.FLOPsPerToken(cfg.Arch.Context)
	of := func(p search.Plan, resource, from float64) float64 {
		task := train.Task{Config: cfg, Segment: segment(p, cfg, train.State{}, resource, 0.25), SampleTokens: 1000}
		return measuring(p, task, search.Decision{Resource: resource, From: from})
	}
	for _, p := range []struct {
		plan    search.Plan
		million float64 // resource of 1 024 000 tokens
	}{
		{search.Plan{Unit: search.Tokens}, 1024e3},
		{search.Plan{Unit: search.GFLOP}, 1024e3 * flops / 1e9 * (1 + 1e-9)},
		{search.Plan{Unit: search.Seconds, Rate: 1024e3 * flops}, 1},
	} {
		want := curvePoints * 1000 / 3.0 / 1024e3
		if got := of(p.plan, p.million, 0); got < want*0.999 || got > want*1.001 {
			t.Errorf("%s: %g, want %g", p.plan.Unit, got, want)
		}
		if got := of(p.plan, p.million, p.million/3) / want; got < 1.499 || got > 1.501 {
			t.Errorf("%s: the second rung costs %g times as much, want 1.5", p.plan.Unit, got)
		}
	}
}
