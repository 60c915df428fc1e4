package main

import (
	"fmt"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// maker makes one rank's model.
type maker func(c *config) (engine.Model, error)

// newTorch is nil where the build has no libtorch.
var newTorch maker

// maker is the engine that the flags name.
func (c *config) maker() (maker, error) {
	switch {
	case c.engine == "native":
		return newNative, nil
	case c.engine == "torch" && newTorch != nil:
		return newTorch, nil
	case c.engine == "torch":
		return nil, fmt.Errorf("-engine torch needs a build with libtorch: run `autoglm libtorch fit -keep`, or build with its mod file and -tags libtorch")
	}
	return nil, fmt.Errorf("-engine %q is unknown, use native or torch", c.engine)
}

func newNative(c *config) (engine.Model, error) {
	return native.New(c.arch, native.Options{Threads: c.threads, MaxBatch: c.batch, MaxSeq: c.arch.Context, Optimizer: c.optimizer, Precision: c.precision, Seed: 1})
}

// resolved is the precision that runs.
func (c *config) resolved() engine.Precision {
	if c.precision != engine.Auto {
		return c.precision
	}
	if c.engine == "native" && kernel.FastBF16() {
		return engine.BF16
	}
	return engine.F32
}
