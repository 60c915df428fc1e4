package train

import (
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// Config is everything that shapes one model's training.
type Config struct {
	Arch        glm.Arch         `json:"arch" msgpack:"arch"`
	BatchTokens int              `json:"batch_tokens" msgpack:"batch_tokens"` // of one optimiser step
	Optimizer   engine.Optimizer `json:"optimizer" msgpack:"optimizer"`
	Precision   engine.Precision `json:"precision" msgpack:"precision"` // of the products; "" is f32
	LR          float64          `json:"lr" msgpack:"lr"`               // peak rate of AdamW
	MuonLR      float64          `json:"muon_lr" msgpack:"muon_lr"`     // peak rate of Muon's matrices
	WeightDecay float64          `json:"weight_decay" msgpack:"weight_decay"`
	Dropout     float64          `json:"dropout" msgpack:"dropout"`
	Warmup      int              `json:"warmup_steps" msgpack:"warmup_steps"`
	Schedule    string           `json:"schedule" msgpack:"schedule"` // wsd or cosine
	ZLoss       float64          `json:"z_loss" msgpack:"z_loss"`
	Seed        uint64           `json:"seed" msgpack:"seed"`
	// BaseWidth is the width at which LR is meant, see glm.Width; 0 is any: the standard
	// parametrisation.
	BaseWidth int `json:"base_width,omitempty" msgpack:"base_width"`
	// Recompute keeps each layer's input only and computes the other activations
	// again in the backward pass: same bits, less memory, a third more work.
	Recompute bool `json:"recompute,omitempty" msgpack:"recompute"`
}

// FromSpace reads a configuration of the decoder space.
func FromSpace(c space.Config, seed uint64) Config {
	cfg := Config{
		Arch: space.Arch(c), BatchTokens: c.Int(space.Batch), Optimizer: engine.Optimizer(c.Word(space.Optimizer)),
		LR: c.Float(space.LR), WeightDecay: c.Float(space.Decay), Dropout: c.Float(space.Dropout),
		Warmup: c.Int(space.Warmup), Schedule: c.Word(space.Schedule), Seed: seed,
	}
	if v := c.Float(space.MuonLR); !math.IsNaN(v) {
		cfg.MuonLR = v
	}
	return cfg
}

// Sequences is the number of sequences of one optimiser step.
func (c Config) Sequences() int { return max(1, c.BatchTokens/c.Arch.Context) }

// microTokens bounds the tokens of one Backward; larger batches accumulate.
const microTokens = 1 << 16

// MicroBatch is the number of sequences of one Backward on each rank.
func (c Config) MicroBatch(world int) int {
	perRank := (c.Sequences() + world - 1) / world
	return min(perRank, max(1, microTokens/c.Arch.Context))
}

// Segment is a stretch of training, measured in optimiser steps or, where Steps
// is 0, in seconds of training time. Both count from the run's very start.
type Segment struct {
	Steps   int     `json:"steps,omitempty" msgpack:"steps"`
	Seconds float64 `json:"seconds,omitempty" msgpack:"seconds"`
	// DecayFrom is the position at which the rate starts to fall to zero at the
	// segment's end.
	DecayFrom float64 `json:"decay_from" msgpack:"decay_from"`
	// ByTime tells the two apart.
	ByTime bool `json:"by_time" msgpack:"by_time"`
}

// End is the position at which the segment ends.
func (s Segment) End() float64 {
	if s.ByTime {
		return s.Seconds
	}
	return float64(s.Steps)
}

// State is how far a run is. Together with the model's state it continues a run
// exactly.
type State struct {
	Step    int     `json:"step" msgpack:"step"`       // optimiser steps taken
	Seconds float64 `json:"seconds" msgpack:"seconds"` // training time
	Tokens  int64   `json:"tokens" msgpack:"tokens"`   // tokens trained on
	// BestBits is the lowest validation score seen by a run that keeps its best.
	BestBits float64 `json:"best_bits,omitempty" msgpack:"best_bits"`
	BestStep int     `json:"best_step,omitempty" msgpack:"best_step"`
	// Evals is the number of evaluations inside a segment, so that a resumed run
	// evaluates at the same places.
	Evals int `json:"evals,omitempty" msgpack:"evals"`
	// Curve is a trial's learning curve, where its task has a rule.
	Curve []search.Point `json:"curve,omitempty" msgpack:"curve"`
}

// Position in the unit of seg.
func (s State) Position(seg Segment) float64 {
	if seg.ByTime {
		return s.Seconds
	}
	return float64(s.Step)
}

// rate is the share of the peak rate at a step: linear warm-up, then flat until
// DecayFrom, then linearly (wsd) or by half a cosine to zero at the end.
func rate(c Config, step int, pos float64, seg Segment) float64 {
	r := 1.0
	if step < c.Warmup {
		r = float64(step+1) / float64(c.Warmup)
	}
	end := seg.End()
	from := seg.DecayFrom
	if pos <= from || end <= from {
		return r
	}
	x := min(1, (pos-from)/(end-from))
	if c.Schedule == "cosine" {
		return r * (0.5 + 0.5*math.Cos(math.Pi*x))
	}
	return r * (1 - x)
}

// Bytes is the memory of one rank of the native engine.
func (c Config) Bytes(world, threads int) int64 {
	return c.Arch.TrainingBytes(glm.Training{
		Sequences: c.MicroBatch(world), Tokens: c.Arch.Context, Threads: threads, Recompute: c.Recompute,
		BF16: c.Precision == engine.BF16 || c.Precision == engine.Auto && kernel.FastBF16(),
		Muon: c.Optimizer == engine.Muon,
	})
}
