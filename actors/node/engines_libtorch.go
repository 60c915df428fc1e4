//go:build libtorch

package node

import (
	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/torch"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// newTorch trains through libtorch: on the processor, or on the one CUDA device
// that its process sees.
var newTorch = func(cuda bool) maker {
	at := torch.CPU
	if cuda {
		at = 0
	}
	return func(c train.Config, threads, world int) (engine.Model, error) {
		return torch.New(c.Arch, torch.Options{
			Device: at, Threads: threads, MaxBatch: c.MicroBatch(world), MaxSeq: c.Arch.Context, Dropout: c.Dropout, ZLoss: c.ZLoss,
			Optimizer: c.Optimizer, Precision: c.Precision, Seed: c.Seed, BaseWidth: c.BaseWidth,
		})
	}
}

func torchFacts() (worker.Facts, error) {
	return worker.Facts{Torch: "libtorch", CUDA: torch.Devices()}, nil
}
