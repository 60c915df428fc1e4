package node

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

// Where work goes that is not training. Scoring the finished model may run on
// either kind of device, and goes by the load of the job's GPUs. Cleaning, the
// tokenizer and the token files are work for processors alone, and so is what a
// model generates: there is no decoder on a GPU. Trials are scored where they are
// trained, since the model is there.

// choice is one of the job's GPUs that a piece of work may go to.
type choice struct {
	gpu int // index among the job's devices
	journal.Placed
}

// choices are the job's GPUs that the policy lets a piece of work to, least load
// first, and what is to be said where the processors take it.
func choices(p device.LoadPolicy, last device.Kind, mine []device.Device, now device.Machine) ([]choice, journal.Placed) {
	var out []choice
	var busy []string
	loads := map[int]float64{}
	for i, d := range mine {
		at := slices.IndexFunc(now.Devices, func(o device.Device) bool { return o.UUID == d.UUID })
		if at < 0 {
			busy = append(busy, d.ID+" has vanished")
			continue
		}
		switch load := now.Devices[at].Load; {
		case now.Devices[at].Sick != "":
			busy = append(busy, fmt.Sprintf("%s is sick: %s", d.ID, now.Devices[at].Sick))
		case p.Next(last, load) != device.GPU:
			busy = append(busy, fmt.Sprintf("%s has a load of %.2f, not under %.2f", d.ID, load, p.Limit(last)))
		default:
			loads[i] = load
			out = append(out, choice{i, journal.Placed{Device: d.ID, Reason: fmt.Sprintf("its load of %.2f is under %.2f", load, p.Limit(last))}})
		}
	}
	slices.SortStableFunc(out, func(a, b choice) int { return cmp.Compare(loads[a.gpu], loads[b.gpu]) })
	return out, journal.Placed{Device: string(device.CPU), Reason: strings.Join(busy, "; ")}
}

// What the driver says of a GPU's load is a mean over as much as the last second,
// in which the job itself may have trained: a GPU that seems busy is looked at
// again for a while.
const (
	fades     = 2 * time.Second
	lookAgain = 250 * time.Millisecond
)

// place settles where the job's next piece of work goes that may run on either
// kind, by the load at this moment: to the first GPU that can do it, else to the
// processors.
func (s *site) place(ctx context.Context) (gpus []choice, cpu journal.Placed) {
	all := s.sources()
	defer func() {
		for _, src := range all {
			src.Close()
		}
	}()
	s.mu.Lock()
	last := s.mu.last
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, fades)
	defer cancel()
	for {
		now, err := device.Scan(all...)
		if err != nil {
			return nil, journal.Placed{Device: string(device.CPU), Reason: fmt.Sprintf("the load of the GPUs is not known: %v", err)}
		}
		gpus, cpu = choices(s.spec.Placement.Policy(), last, s.crew.devices, now)
		if len(gpus) > 0 || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookAgain):
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.last = device.CPU
	if len(gpus) > 0 {
		s.mu.last = device.GPU
	}
	return gpus, cpu
}

// cores is the number of threads that this process may keep busy while nothing
// trains: as many as the job has leased. A job on GPUs has leased no processors; it
// takes those that nobody keeps busy.
func (s *site) cores() int {
	if !s.crew.on.CUDA {
		return len(s.crew.devices) * s.crew.threads
	}
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 1
	}
	return idle(s.crew.processors, string(text))
}

// idle is the number of processors that are left by the load of the last minute,
// at least one.
func idle(processors int, loadavg string) int {
	var busy float64
	if _, err := fmt.Sscan(loadavg, &busy); err != nil {
		return 1
	}
	return max(1, min(processors-int(math.Round(busy)), maxWorkers))
}

// niceness of work that gives way: a tenth of the time that another thread gets
// which wants the same processor.
const niceness = 10

// giveWay does work on a thread that gives way to all others: to those that feed
// GPUs, above all. A panic becomes the error.
func giveWay(f func() error) error {
	done := make(chan error)
	go func() {
		defer close(done)
		// Never unlocked: a thread without privileges can't become urgent again, so it
		// ends with its goroutine.
		runtime.LockOSThread()
		defer func() {
			if p := recover(); p != nil {
				done <- fmt.Errorf("panic: %v\n%s", p, debug.Stack())
			}
		}()
		_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), niceness) // where it is refused the work is done all the same
		done <- f()
	}()
	return <-done
}
