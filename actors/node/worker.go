package node

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/device"
)

// ServeWorker is the whole of a worker process: what `autoglm worker` runs. The
// caller ends the process when it returns.
func ServeWorker() error {
	// Ctrl-C and a service manager's SIGTERM reach the whole group: the node stops
	// its workers itself, once they have saved.
	signal.Ignore(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGXFSZ)
	conn, err := worker.Inherited()
	if err != nil {
		return err
	}
	return worker.Serve(conn, Ability())
}

// Ability is what this build's workers can do.
func Ability() worker.Ability {
	a := worker.Ability{
		Model: func(on worker.On) (maker, error) { return makerOf(on) },
		Time:  rateOf,
		Facts: torchFacts,
	}
	if device.HasNVML {
		a.GPUs = device.NVMLSource
	}
	return a
}

// Torch says what engine torch could compute on, as a process of this build sees
// it; nothing in a build without it.
func Torch(ctx context.Context) (worker.Facts, error) {
	if newTorch == nil {
		return worker.Facts{}, nil
	}
	h := worker.NewHost(worker.Config{})
	defer h.Close()
	return h.Facts(ctx)
}

// Sources are this machine's and this build's: processors, then GPUs, through
// NVML in a process of its own where the build has it.
func Sources() []device.Source {
	s := device.Sources()
	if device.HasNVML {
		last := len(s) - 1
		s[last] = worker.NewSource(worker.NewHost(worker.Config{}), s[last])
	}
	return s
}

// Inventory is what Sources see.
func Inventory() (device.Machine, error) { return Scan(nil) }

// Scan looks at sources; nil is Sources.
func Scan(sources func() []device.Source) (device.Machine, error) {
	if sources == nil {
		sources = Sources
	}
	all := sources()
	defer func() {
		for _, s := range all {
			s.Close()
		}
	}()
	return device.Scan(all...)
}
