package node

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// A soup is made of trials of the winner's shape that descend from where it descends from,
// the best of them, but for those that failed or that a user stopped.
func TestKin(t *testing.T) {
	config := func(dim float64) space.Config {
		return space.Config{
			space.Dim: space.Number(dim), space.Layers: space.Number(2), space.Heads: space.Number(2), space.KVHeads: space.Number(2), space.FFNRatio: space.Number(3),
			space.Vocab: space.Number(320), space.Context: space.Number(64), space.Tied: space.Word("true"), space.LR: space.Number(1e-3),
			space.Batch: space.Number(64), space.Warmup: space.Number(1), space.Schedule: space.Word("wsd"),
		}
	}
	st := journal.NewState()
	st.Plan, st.Winner = &search.Plan{}, "fork"
	for i, d := range []struct {
		trial, parent string
		dim           float64
		bits          float64 // 0: it failed
	}{
		{"first", "", 64, 2.2},
		{"other", "", 64, 1.9},
		{"fork", "first", 64, 1.8},
		{"grown", "fork", 128, 1.9},
		{"child", "grown", 64, 2.0},
		{"broken", "first", 64, 0},
		{"halted", "first", 64, 1.9},
		{"2nd", "first", 64, 2.1},
		{"3rd", "first", 64, 2.3},
	} {
		st.Decisions = append(st.Decisions, search.Decision{Seq: i, Trial: d.trial, Action: search.Start, Inherit: d.parent, Config: config(d.dim)})
		st.Outcomes[i] = journal.TrialReport{Trial: d.trial, Seq: i, Bits: d.bits, Failed: d.bits == 0}
	}
	st.Orders = append(st.Orders, search.Order{Kind: search.Stop, Trial: "halted"})
	s := newSite("", job.Default(), &crew{threads: 1})
	var got []string
	for _, dir := range s.kin(*st, trialConfig(s.spec, *st.Plan, begun(*st, "fork")).Arch) {
		got = append(got, filepath.Base(dir))
	}
	if want := []string{"fork", "child", "2nd", "first"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

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
