package node

import (
	"errors"
	"fmt"
	"slices"

	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// maker makes a model to train, of one rank.
type maker = func(c train.Config, threads, world int) (engine.Model, error)

// needsTorch says what to do where a build can't do what is asked for.
const needsTorch = "run `autoglm libtorch fit` and use the autoglm-torch that it makes"

// makerOf is an engine on a device: auto is native on a processor and torch on
// CUDA. The error names what this build lacks.
func makerOf(on worker.On) (maker, error) {
	switch {
	case !slices.Contains(job.Engines(), on.Engine):
		return nil, fmt.Errorf("no such engine: %s", on.Engine)
	case on.CUDA && on.Engine == "native":
		return nil, errNativeGPU
	case (on.Engine == "torch" || on.CUDA) && newTorch == nil:
		return nil, &job.FieldError{Path: "engine", Msg: "torch needs a build with libtorch: " + needsTorch}
	case on.Engine == "torch" || on.CUDA:
		return newTorch(on.CUDA), nil
	}
	return newNative(on.CPUs), nil
}

var errNativeGPU = errors.New("engine native computes on CPUs")

// checkBackend tells what this build or this machine lacks for the backend that a
// job names.
func checkBackend(name string) error {
	if err := ring.Available(name); err != nil {
		return &job.FieldError{Path: "backend", Msg: err.Error()}
	}
	return nil
}

// newNative makes models whose threads are pinned to processors, if any are named.
func newNative(cpus []int) maker {
	return func(c train.Config, threads, world int) (engine.Model, error) {
		return native.New(c.Arch, native.Options{
			Threads: threads, MaxBatch: c.MicroBatch(world), MaxSeq: c.Arch.Context, Dropout: c.Dropout, ZLoss: c.ZLoss, Optimizer: c.Optimizer, Precision: c.Precision, Seed: c.Seed, BaseWidth: c.BaseWidth, Recompute: c.Recompute, CPUs: cpus,
		})
	}
}
