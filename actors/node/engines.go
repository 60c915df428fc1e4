package node

import (
	"fmt"
	"slices"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// maker makes a model to train, of one rank.
type maker func(c train.Config, threads, world int) (engine.Model, error)

// makerOf is the engine that a job names; auto is native. The error names what
// this build lacks.
func makerOf(name string) (maker, error) {
	switch {
	case name == "torch" && newTorch != nil:
		return newTorch, nil
	case name == "torch":
		return nil, &job.FieldError{Path: "engine", Msg: "torch needs a build with libtorch: run `autoglm libtorch fit` and use the autoglm-torch that it makes"}
	case !slices.Contains(job.Engines(), name):
		return nil, fmt.Errorf("no such engine: %s", name)
	}
	return newNative, nil
}

func newNative(c train.Config, threads, world int) (engine.Model, error) {
	return native.New(c.Arch, native.Options{
		Threads: threads, MaxBatch: c.MicroBatch(world), MaxSeq: c.Arch.Context, Dropout: c.Dropout, ZLoss: c.ZLoss, Optimizer: c.Optimizer, Precision: c.Precision, Seed: c.Seed, Recompute: c.Recompute,
	})
}
