//go:build libtorch

package main

import (
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/torch"
)

func init() {
	newTorch = func(c *config) (engine.Model, error) {
		return torch.New(c.arch, torch.Options{Device: torch.CPU, Threads: c.threads, MaxBatch: c.batch, MaxSeq: c.arch.Context, Optimizer: c.optimizer, Precision: c.precision, Seed: 1})
	}
}
