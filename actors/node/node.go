package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

// Options of a node that carries out one job in this process.
type Options struct {
	Dir           string   // of the job: created, or left by an earlier run
	Spec          job.Spec // of a new job; one that the folder's journal holds wins
	Resume        bool     // the folder must hold a job
	AllowFallback bool     // compute on what there is when the hardware asked for isn't
	Events        actors.Events
	Hooks         actors.Hooks
	Log           io.Writer                              // of actor failures; nil drops them
	Fallback      func(asked error, has []device.Device) // told when AllowFallback applied
	Lease         Lease                                  // nil computes beside whoever else does
}

// Lease picks the devices of a request and holds them until Release; it may wait
// for them. Its errors are those of device.Leases.Acquire.
type Lease func(device.Machine, device.Request) ([]device.Device, *device.Held, error)

// Errors that a caller tells apart.
var (
	ErrInterrupted = errors.New("interrupted")
	ErrNoJob       = errors.New("holds no job")
	ErrHasJob      = errors.New("holds a job already")
	ErrInUse       = errors.New("is in use by another build")
)

// Node is one opened job. Its methods are for one goroutine.
type Node struct {
	opts    Options
	log     *journal.File
	state   *journal.State
	site    *site
	devices []device.Device
	held    *device.Held // for the life of the node
	threads int
}

// maxWorkers bounds the workers of one machine: more cores than that are shared
// out to them as threads.
const maxWorkers = 8

// Open locks the folder, reads its journal, and matches the hardware.
func Open(o Options) (*Node, error) {
	if info, err := os.Stat(o.Dir); err == nil && !info.IsDir() {
		return nil, fmt.Errorf("%s is a file; name a folder", o.Dir)
	}
	jdir := filepath.Join(o.Dir, "journal")
	if _, err := os.Stat(filepath.Join(jdir, journal.FileName)); o.Resume && errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s %w; start one with build --out %s", o.Dir, ErrNoJob, o.Dir)
	}
	if !o.Resume {
		if entries, err := os.ReadDir(o.Dir); err == nil && len(entries) > 0 {
			if _, err := os.Stat(filepath.Join(jdir, journal.FileName)); err != nil {
				return nil, fmt.Errorf("%s is not empty and %w that autoglm made; name a new folder", o.Dir, ErrNoJob)
			}
		}
	}
	log, err := journal.OpenFile(jdir)
	if errors.Is(err, journal.ErrInUse) {
		return nil, fmt.Errorf("%s %w; wait for it, or name another folder with --out", o.Dir, ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	n := &Node{opts: o, log: log}
	if err := n.open(); err != nil {
		n.held.Release()
		log.Close()
		return nil, err
	}
	return n, nil
}

func (n *Node) open() error {
	var err error
	if n.state, err = journal.Replayed(n.log); err != nil {
		return err
	}
	if !n.opts.Resume && n.state.Failed != "" && len(n.state.Decisions) == 0 {
		if err := n.clear(); err != nil {
			return err
		}
	}
	spec := n.opts.Spec
	if n.state.Events > 0 {
		if !n.opts.Resume {
			return fmt.Errorf("%s %w; go on with: autoglm resume %s, or name another folder with --out", n.opts.Dir, ErrHasJob, n.opts.Dir)
		}
		spec = n.state.Spec
	} else if n.opts.Resume {
		// Killed before the first event: the job file says what it was to be.
		b, err := os.ReadFile(filepath.Join(n.opts.Dir, "job.json"))
		if err != nil {
			return fmt.Errorf("%s %w; start one with build --out %s", n.opts.Dir, ErrNoJob, n.opts.Dir)
		}
		if err := json.Unmarshal(b, &spec); err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(n.opts.Dir, "job.json"), err)
		}
	}
	if err := spec.Validate(); err != nil {
		return err
	}
	machine, devices, held, err := Devices(spec, n.opts)
	if err != nil {
		return err
	}
	n.held = held
	n.devices, n.threads = group(devices)
	n.site = newSite(n.opts.Dir, spec, n.devices, n.threads, machine.MemoryBytes)
	if err := os.MkdirAll(filepath.Join(n.opts.Dir, "trials"), 0o755); err != nil {
		return err
	}
	return n.site.writeJSON(spec, "job.json")
}

// clear empties a folder whose job failed before it trained anything: there is
// nothing in it to keep.
func (n *Node) clear() error {
	for _, name := range []string{"data", "sample", "trials", "job.json", "leaderboard.json"} {
		if err := os.RemoveAll(filepath.Join(n.opts.Dir, name)); err != nil {
			return err
		}
	}
	n.state = journal.NewState()
	return n.log.Reset()
}

// Devices matches a job's constraint with this machine, and leases what it picks
// if the options say how; with AllowFallback, all CPU cores stand in for what is
// missing.
func Devices(spec job.Spec, o Options) (device.Machine, []device.Device, *device.Held, error) {
	machine, err := device.Inventory()
	if err != nil {
		return machine, nil, nil, err
	}
	if _, err := makerOf(spec.Engine); err != nil {
		return machine, nil, nil, err
	}
	if err := checkBackend(spec.Backend); err != nil {
		return machine, nil, nil, err
	}
	req, err := device.ParseRequest(spec.HardwareConstraint)
	if err != nil {
		return machine, nil, nil, err
	}
	pick := o.Lease
	if pick == nil {
		pick = func(m device.Machine, r device.Request) ([]device.Device, *device.Held, error) {
			ds, err := m.Match(r)
			return ds, nil, err
		}
	}
	var devices []device.Device
	var held *device.Held
	if req.Kind == device.GPU {
		// What the machine lacks comes first; then what this build does.
		if _, err = machine.Match(req); err == nil {
			err = fmt.Errorf("%w: %s asks for GPUs and this machine has %s, but this build of autoglm computes on CPUs only", device.ErrUnmet, req, machine)
		}
	} else {
		devices, held, err = pick(machine, req)
	}
	if errors.Is(err, device.ErrUnmet) && o.AllowFallback {
		unmet := err
		if devices, held, err = pick(machine, device.Request{Kind: device.Auto}); err == nil && o.Fallback != nil {
			o.Fallback(unmet, devices)
		}
	}
	return machine, devices, held, err
}

// group shares cores out to at most maxWorkers workers.
func group(devices []device.Device) ([]device.Device, int) {
	if len(devices) <= maxWorkers {
		return devices, 1
	}
	return devices[:maxWorkers], len(devices) / maxWorkers
}

// processors is Go's share of threads: one for each that computes, and two so
// that actors need not wait until a kernel, which Go can't preempt, is through.
func processors(workers, threads int) int { return workers*threads + 2 }

// State is the job as the journal had it when the folder was opened.
func (n *Node) State() *journal.State { return n.state }

// Devices lists what the job computes on.
func (n *Node) Devices() []device.Device { return n.devices }

// Close unlocks the folder of a node that was not run, and lets its devices go.
func (n *Node) Close() error {
	n.held.Release()
	return n.log.Close()
}

// Run carries the job out. It returns nil when the job is done, ErrInterrupted
// when ctx ended first, else why it failed. The folder is unlocked and the devices
// are free after it.
func (n *Node) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, n.Close()) }()
	workers := len(n.devices)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors(workers, n.threads)))

	w := n.opts.Log
	if w == nil {
		w = io.Discard
	}
	logger := slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelError}))
	system := actor.NewActorSystem(actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger { return logger }), actor.WithDeadLetterRequestLogging(false))
	defer system.Shutdown()

	strategy := actor.NewOneForOneStrategy(10, time.Minute, actor.DefaultDecider)
	pids := make([]*actor.PID, workers)
	for i, d := range n.devices {
		pids[i] = system.Root.Spawn(actors.WorkerProps(d, n.site.execute, n.opts.Hooks, actor.WithGuardian(strategy)))
	}
	type ending struct {
		err         error
		interrupted bool
	}
	ended := make(chan ending, 1)
	var once sync.Once
	events := n.opts.Events
	events.Journal = func(e journal.Event, st *journal.State) {
		n.committed(e, st)
		if n.opts.Events.Journal != nil {
			n.opts.Events.Journal(e, st)
		}
	}
	events.End = func(err error, interrupted bool) {
		once.Do(func() { ended <- ending{err, interrupted} })
	}
	var epoch atomic.Uint64
	start := time.Now()
	supervisor := system.Root.Spawn(actors.SupervisorProps(actors.SupervisorConfig{
		Spec: n.site.spec, Log: n.log, Work: n.site, Workers: pids, Epochs: func() uint64 { return epoch.Add(1) },
		Clock: func() time.Duration { return time.Since(start) }, Now: time.Now, Tick: time.Second, Events: events, Hooks: n.opts.Hooks,
	}, actor.WithGuardian(strategy)))

	var end ending
	select {
	case end = <-ended:
	case <-ctx.Done():
		system.Root.Send(supervisor, &actors.Interrupt{})
		end = <-ended
	}
	_ = system.Root.StopFuture(supervisor).Wait()
	for _, p := range pids {
		_ = system.Root.StopFuture(p).Wait()
	}
	if end.interrupted {
		return ErrInterrupted
	}
	if bad := n.site.badInput(); end.err != nil && bad != nil {
		return bad
	}
	return end.err
}

// committed keeps leaderboard.json true.
func (n *Node) committed(e journal.Event, st *journal.State) {
	switch e.Kind {
	case journal.Decided, journal.TrialEnded, journal.TrialRetried, journal.StageDone, journal.SearchClosed, journal.FinalStarted, journal.FinalEnded, journal.Evaluated:
		// A leaderboard that can't be written now is written after the next event.
		_ = n.site.writeJSON(st.Leaderboard(filepath.Base(n.opts.Dir)), "leaderboard.json")
	}
}
