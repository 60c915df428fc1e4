package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// Devices matches a job's constraint with this machine, and leases what it picks
// if the options say how; with AllowFallback, all CPU cores stand in for what is
// missing. A job that may compute on either kind goes by the load: see
// job.Placement; last is where it went before, if it did.
func Devices(spec job.Spec, o Options, last device.Kind) (device.Machine, []device.Device, *device.Held, error) {
	machine, err := Scan(o.Sources)
	if err != nil {
		return machine, nil, nil, err
	}
	req, err := device.ParseRequest(spec.HardwareConstraint)
	if err != nil {
		return machine, nil, nil, err
	}
	if err := checkSteps(spec, o.AllowSteps, room(machine)); err != nil {
		return machine, nil, nil, err
	}
	if o.Worker == nil { // another program's ability is its own to tell
		if err := checkBackend(spec.Backend); err != nil {
			return machine, nil, nil, err
		}
	}
	pick := o.Lease
	if pick == nil {
		pick = func(m device.Machine, r device.Request, _ bool) ([]device.Device, *device.Held, error) {
			ds, err := m.Match(r)
			return ds, nil, err
		}
	}
	cuda := newTorch != nil || o.Worker != nil // another program's ability is its own to tell
	if req.Kind == device.Auto && cuda && spec.Engine != "native" && spec.Isolation != "none" {
		quiet, kind := spec.Placement.Policy().Place(machine, last)
		if kind == device.GPU {
			ds, held, err := pick(quiet, device.Request{Kind: device.GPU}, false)
			if err == nil || !errors.Is(err, device.ErrUnmet) && !errors.Is(err, device.ErrBusy) {
				return machine, ds, held, err
			}
		}
	}
	if req.Kind == device.GPU {
		err = gpusFor(spec, machine, req, cuda)
	} else {
		_, err = makerOf(worker.On{Engine: spec.Engine})
	}
	var devices []device.Device
	var held *device.Held
	if err == nil {
		devices, held, err = pick(machine, req, true)
	}
	if errors.Is(err, device.ErrUnmet) && o.AllowFallback {
		unmet := err
		if devices, held, err = pick(machine, device.Request{Kind: device.Auto}, true); err == nil && o.Fallback != nil {
			o.Fallback(unmet, devices)
		}
	}
	return machine, devices, held, err
}

// gpusFor refuses a request for GPUs that can't be met: what the machine lacks
// comes first, then what this build does.
func gpusFor(spec job.Spec, m device.Machine, req device.Request, cuda bool) error {
	if _, err := m.Match(req); err != nil {
		if m.Count(device.GPU) == 0 && len(m.Notes) > 0 {
			err = fmt.Errorf("%w (%s)", err, strings.Join(m.Notes, "; "))
		}
		return err
	}
	switch {
	case spec.Engine == "native":
		return &job.FieldError{Path: "engine", Msg: fmt.Sprintf("native computes on CPUs and hardware_constraint is %s; engine auto or torch computes on GPUs", req)}
	case spec.Isolation == "none":
		return &job.FieldError{Path: "isolation", Msg: fmt.Sprintf("GPUs are computed on in processes of their own, and hardware_constraint is %s; leave isolation out", req)}
	case !cuda:
		return fmt.Errorf("%w: %s asks for GPUs and this machine has %s, but this build of autoglm computes on CPUs only: %s", device.ErrUnmet, req, m, needsTorch)
	}
	return nil
}

// ran is OUT/devices.json: what the job computes on, so that resume knows where it
// went before.
type ran struct {
	Kind    device.Kind     `json:"kind"`
	Devices []device.Device `json:"devices"` // in the order of the ring
}

const ranName = "devices.json"

func ranOn(c *crew) ran {
	r := ran{Kind: device.CPU, Devices: c.devices}
	if c.on.CUDA {
		r.Kind = device.GPU
	}
	return r
}

// readRan is what an earlier run left; Auto where there is none that can be read.
func readRan(dir string) ran {
	r := ran{Kind: device.Auto}
	b, err := os.ReadFile(filepath.Join(dir, ranName))
	if err != nil || json.Unmarshal(b, &r) != nil {
		return ran{Kind: device.Auto}
	}
	return r
}

// watch looks at the health of a crew's devices while the job runs: one that turns
// sick loses its process, if it has one, and sick hears why. The function that it
// returns ends the watch.
func watch(o Options, c *crew, notice func(text string), sick func(i int, why string)) func() {
	mine := map[string]int{}
	for i, d := range c.devices {
		mine[d.UUID] = i
	}
	every := o.Look
	if every <= 0 {
		every = 5 * time.Second
	}
	sources := o.Sources
	switch {
	case sources != nil:
	case c.on.CUDA:
		sources = Sources
	default: // nobody need ask for GPUs
		sources = func() []device.Source { return []device.Source{device.NewProcFS(os.DirFS("/"))} }
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		all := sources()
		defer func() {
			for _, s := range all {
				s.Close()
			}
		}()
		_ = device.Watch(ctx, every, device.Events{Sick: func(d device.Device) {
			if i, ok := mine[d.UUID]; ok {
				if c.hosts != nil {
					c.hosts[i].Kill(fmt.Errorf("%s is sick: %s", d.ID, d.Sick))
				}
				notice(fmt.Sprintf("%s is taken out: %s; going on without it", d.ID, d.Sick))
				sick(i, d.Sick)
			}
		}}, all...)
	}()
	return func() {
		cancel()
		<-done
	}
}
