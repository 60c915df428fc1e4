package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/serve"
)

// gpuDecoders makes decoders on this process's first GPU; nil in a build without libtorch.
var gpuDecoders *gpuEngine

// gpuEngine is what a build with libtorch adds.
type gpuEngine struct {
	count func() int // GPUs that it can compute on
	open  func(a glm.Arch, state engine.StateDict, seqs int) (engine.Decoder, error)
}

// gpuLoad asks the machine's sources for the load of its first GPU. Calls never overlap.
type gpuLoad struct{ sources []device.Source }

// load is 0 to 1; -1 where it isn't known, or the GPU is sick or gone.
func (l *gpuLoad) load() float64 {
	m, err := device.Scan(l.sources...)
	if err != nil {
		return -1
	}
	for _, d := range m.Devices {
		if d.Kind == device.GPU && d.MIG != "slice" {
			if d.Sick != "" {
				return -1
			}
			return d.Load
		}
	}
	return -1
}

func (l *gpuLoad) close() {
	for _, s := range l.sources {
		_ = s.Close()
	}
}

// serveDevices is where serve computes.
type serveDevices struct {
	gpu    *gpuEngine    // nil is the CPU alone
	router *serve.Router // nil is one kind of device alone
	load   gpuLoad
}

func (d *serveDevices) String() string {
	switch {
	case d.gpu == nil:
		return "the CPU"
	case d.router == nil:
		return "the GPU"
	}
	return "the GPU while its load allows, else the CPU"
}

// devices settles where to compute, by the flags, this build and this machine.
func (f *serveFlags) devices(e *gpuEngine) (*serveDevices, error) {
	policy := device.LoadPolicy{Threshold: f.gpuLoad, Hysteresis: f.gpuHysteresis}
	d := &serveDevices{}
	switch device.Kind(f.device) {
	case device.CPU:
		return d, nil
	case device.GPU:
		if e == nil {
			return nil, errors.New("--device gpu: this build can't compute on GPUs; autoglm libtorch fit makes one that can")
		}
		if e.count() == 0 {
			return nil, errors.New("--device gpu: libtorch sees no GPU here; see nvidia-smi, and that this libtorch is CUDA's")
		}
		d.gpu = e
		return d, nil
	case device.Auto:
	default:
		return nil, fmt.Errorf("--device %s: give auto, cpu or gpu", f.device)
	}
	if err := policy.Validate(); err != nil {
		return nil, fmt.Errorf("--gpu-load, --gpu-hysteresis: %w", err)
	}
	if e == nil || e.count() == 0 {
		return d, nil
	}
	d.load.sources = gpuSources()
	var err error
	d.router, err = serve.NewRouter(serve.RouterConfig{
		Load: d.load.load, Policy: policy,
		Failed: func(err error) {
			fmt.Fprintf(os.Stderr, "the GPU failed and is left out until serve is started again: %v\n", err)
		},
	})
	d.gpu = e
	return d, err
}

// gpuSources are what sees GPUs and their load.
func gpuSources() []device.Source {
	all := node.Sources()
	return all[len(all)-1:]
}

// decoder makes one on the GPU, on the CPU by cpu, or on both.
func (d *serveDevices) decoder(a glm.Arch, state engine.StateDict, seqs int, cpu func() (engine.Decoder, error)) (engine.Decoder, error) {
	if d.gpu == nil || d.router != nil && d.router.Failed() != nil {
		return cpu()
	}
	gpu, err := d.gpu.open(a, state, seqs)
	switch {
	case err != nil && d.router != nil:
		fmt.Fprintf(os.Stderr, "warning: the GPU takes no model of this bundle, which the CPU serves alone: %v\n", err)
		return cpu()
	case err != nil || d.router == nil:
		return gpu, err
	}
	dec, err := cpu()
	if err != nil {
		return nil, errors.Join(err, gpu.Close())
	}
	return &serve.Pair{Decoder: dec, GPU: gpu, Router: d.router}, nil
}
