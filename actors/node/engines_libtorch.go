//go:build libtorch

package node

import (
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/torch"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// newTorch trains through libtorch, so far on the CPU alone: no request for GPUs
// is met yet.
var newTorch maker = func(c train.Config, threads, world int) (engine.Model, error) {
	return torch.New(c.Arch, torch.Options{
		Device: torch.CPU, Threads: threads, MaxBatch: c.MicroBatch(world), MaxSeq: c.Arch.Context, Dropout: c.Dropout, ZLoss: c.ZLoss,
		Optimizer: c.Optimizer, Precision: c.Precision, Seed: c.Seed,
	})
}
