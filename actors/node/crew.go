package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// crew is what a job computes on: its devices, and where work on each is done.
type crew struct {
	devices    []device.Device
	threads    int            // of each device's worker
	on         worker.On      // what computes on each, but for the processors that it is pinned to
	cpus       []int          // to pin threads to, device by device; nil pins none
	hosts      []*worker.Host // of the devices' processes; nil where all compute in this one
	memory     int64          // that one worker may take, bytes; 0 is not known
	processors int            // that the machine has, leased or not
	room       job.Resources  // of the machine, for steps
}

// newCrew shares a machine's devices out. Processes start with their work.
func newCrew(spec job.Spec, m device.Machine, devices []device.Device, o Options) (*crew, error) {
	c := &crew{on: worker.On{Engine: spec.Engine}, threads: 1, devices: devices, processors: m.Count(device.CPU), room: room(m)}
	gpu := len(devices) > 0 && devices[0].Kind == device.GPU
	if gpu {
		c.on = worker.On{Engine: "torch", CUDA: true}
		c.memory = leastFree(devices)
	} else {
		c.devices, c.threads = group(devices)
		if pinned(spec) {
			c.cpus = numbers(devices)
		}
		c.memory = m.MemoryBytes / int64(max(len(c.devices), 1))
	}
	if !isolated(spec, gpu) {
		_, err := makerOf(c.on)
		return c, err
	}
	if spec.Backend == "inproc" {
		return nil, &job.FieldError{Path: "backend", Msg: "inproc joins ranks of one process, and here each has its own; choose auto, shm, unix or tcp"}
	}
	for _, d := range c.devices {
		cfg := worker.Config{Command: o.Worker, Relay: o.Relay}
		if gpu {
			uuid, err := visible(d)
			if err != nil {
				return nil, err
			}
			cfg.Env = []string{"CUDA_VISIBLE_DEVICES=" + uuid}
		}
		c.hosts = append(c.hosts, worker.NewHost(cfg))
	}
	return c, nil
}

// at is what computes on the i-th device.
func (c *crew) at(i int) worker.On {
	on := c.on
	if c.cpus != nil {
		on.CPUs = c.cpus[i*c.threads:][:c.threads]
	}
	return on
}

// processes are the ids of those that compute now. It may be called from any goroutine.
func (c *crew) processes() []int {
	var out []int
	for _, h := range c.hosts {
		if pid := h.PID(); pid != 0 {
			out = append(out, pid)
		}
	}
	return out
}

// pinned tells whether threads are pinned to the processors of a job.
func pinned(spec job.Spec) bool {
	switch spec.Pinning {
	case "always":
		return true
	case "never":
		return false
	}
	return device.Exclusive(os.DirFS("/"))
}

// numbers are the kernel's of processors.
func numbers(ds []device.Device) []int {
	var out []int
	for _, d := range ds {
		n, err := strconv.Atoi(strings.TrimPrefix(d.ID, "cpu:"))
		if err != nil {
			return nil // another source's, which names them otherwise
		}
		out = append(out, n)
	}
	return out
}

// hire makes the crew of a job and leases its devices. GPUs that the machine has
// and that no process can compute on are as those that it lacks: AllowFallback, or
// a constraint of auto, goes on with the CPU.
func hire(ctx context.Context, spec job.Spec, o Options, last device.Kind) (*crew, *device.Held, error) {
	m, ds, held, err := Devices(spec, o, last)
	if err != nil {
		return nil, nil, err
	}
	c, err := newCrew(spec, m, ds, o)
	if err == nil {
		err = c.ready(ctx)
	}
	if err == nil {
		return c, held, nil
	}
	c.close()
	held.Release()
	auto := spec.HardwareConstraint == "" || spec.HardwareConstraint == string(device.Auto)
	if ds[0].Kind != device.GPU || !auto && !(o.AllowFallback && errors.Is(err, device.ErrUnmet)) {
		return nil, nil, err
	}
	unmet := err
	spec.HardwareConstraint = "cpu-any"
	if m, ds, held, err = Devices(spec, o, last); err != nil {
		return nil, nil, err
	}
	if c, err = newCrew(spec, m, ds, o); err != nil {
		held.Release()
		return nil, nil, err
	}
	if o.Fallback != nil {
		o.Fallback(unmet, c.devices)
	}
	return c, held, nil
}

// isolated tells whether ranks compute in processes of their own.
func isolated(spec job.Spec, gpu bool) bool {
	switch spec.Isolation {
	case "process":
		return true
	case "none":
		return false
	}
	return gpu || spec.Engine == "torch"
}

// visible is the name by which CUDA shows a process this GPU alone.
func visible(d device.Device) (string, error) {
	const plain = "GPU-00000000-0000-0000-0000-000000000000"
	if len(d.UUID) == len(plain) && d.UUID[:4] == "GPU-" || len(d.UUID) > 4 && d.UUID[:4] == "MIG-" {
		return d.UUID, nil
	}
	return "", fmt.Errorf("%w: the UUID of %s is not known (%q), and CUDA needs it: build with -tags gpu, which asks NVML", device.ErrUnmet, d.ID, d.UUID)
}

// leastFree is the free memory of the fullest device, 0 where one doesn't say.
func leastFree(ds []device.Device) int64 {
	least := int64(0)
	for i, d := range ds {
		if d.MemoryBytes == 0 {
			return 0
		}
		if free := d.MemoryBytes - d.UsedBytes; i == 0 || free < least {
			least = free
		}
	}
	return least
}

// ready asks the processes of GPUs whether each sees its device.
func (c *crew) ready(ctx context.Context) error {
	if !c.on.CUDA {
		return nil
	}
	return c.each(func(i int) error {
		f, err := c.hosts[i].Facts(ctx)
		d := c.devices[i]
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", d.ID, err)
		case f.Torch == "":
			return fmt.Errorf("%w: %s needs a build with libtorch: %s", device.ErrUnmet, d.ID, needsTorch)
		case f.CUDA != 1:
			return fmt.Errorf("%w: libtorch sees %d CUDA devices where %s (%s, %s) should be: it may be built without CUDA, or for a newer driver (nvidia-smi shows it); another one is taken with: autoglm libtorch fit --libtorch DIR", device.ErrUnmet, f.CUDA, d.ID, d.Model, d.UUID)
		}
		return nil
	})
}

// each runs f for all devices at once and joins the errors.
func (c *crew) each(f func(i int) error) error {
	errs := make([]error, len(c.devices))
	var wg sync.WaitGroup
	for i := range c.devices {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// pacer times training steps on all devices at once, for about so many seconds:
// the slowest counts.
func (c *crew) pacer(ctx context.Context, p engine.Precision, seconds float64) (pacer, error) {
	time := func(i int) (glm.Rates, error) {
		t := worker.Timing{On: c.at(i), Threads: c.threads, Precision: p, Seconds: seconds}
		if c.hosts == nil {
			return rateOf(ctx, t)
		}
		return c.hosts[i].Time(ctx, t)
	}
	rates := make([]glm.Rates, len(c.devices))
	err := c.each(func(i int) (err error) {
		rates[i], err = time(i)
		return err
	})
	if err != nil {
		return pacer{}, err
	}
	return pacer{slowest(rates, c.threads, p), c.threads}, nil
}

// busy is the number of threads that compute in this process: at the most those of
// site.cores where devices have processes of their own, since data is prepared and
// models are scored here all the same.
func (c *crew) busy() int {
	if c.on.CUDA {
		return max(2, min(c.processors, maxWorkers))
	}
	n := len(c.devices) * c.threads
	if c.hosts != nil {
		n = max(2, n)
	}
	return n
}

// close ends the processes.
func (c *crew) close() {
	if c == nil {
		return
	}
	for _, h := range c.hosts {
		h.Close()
	}
}
