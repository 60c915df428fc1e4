package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/telemetry"
)

// Options of a node that carries out one job in this process.
type Options struct {
	Dir           string   // of the job: created, or left by an earlier run
	Spec          job.Spec // of a new job; one that the folder's journal holds wins
	Resume        bool     // the folder must hold a job
	AllowFallback bool     // compute on what there is when the hardware asked for isn't
	AllowSteps    bool     // the job may run programs of its user's
	Events        actors.Events
	Hooks         actors.Hooks
	Log           io.Writer                              // of actor failures; nil drops them
	Fallback      func(asked error, has []device.Device) // told when AllowFallback applied, or auto could not have its GPUs
	Notice        func(text string)                      // told what the job outlived, from any goroutine: a process that died, a device that turned sick; may be nil
	Lease         Lease                                  // nil computes beside whoever else does
	Sources       func() []device.Source                 // of the machine; nil is Sources
	Worker        func() *exec.Cmd                       // makes a device's process; nil is this program's own
	Look          time.Duration                          // between two looks at the health of the devices; 0 is 5 s

	// Journal is the job's, kept elsewhere; nil is a file in the folder, which then
	// also locks it. With one the job begins or goes on as it says, and the files of the
	// data and of steps are those of Spec, since a folder may move between machines.
	Journal journal.Log
	Folder  Folder // Dir, as other nodes have it; nil: it is this machine's alone

	// Of a job whose workers may be of several nodes:
	System     *actor.ActorSystem // that reaches them, and outlives the job; nil is the job's own
	Name       string             // of the Supervisor's actor in it
	Across     actors.Across      // see actors.TrialConfig
	Relay      worker.RelayAt     // through which devices' processes reach those of others
	Self       string             // this node's name, in what it says to a job's user as a guest
	Constraint string             // what to compute on here; the spec's hardware_constraint when empty
}

// Folder keeps a job's folder beyond this machine. Its methods may be called from any
// goroutine.
type Folder interface {
	// Pull brings here what other nodes have added.
	Pull(ctx context.Context) error
	// Keep is called after each stage, before its end is committed: what the folder
	// then holds must outlive this machine.
	Keep(ctx context.Context) error
	// Begin is called before a rank of a training begins here, Renew when it goes on in
	// another epoch, End once it has ended. The first rank names the trials that it goes
	// on from; what any node has left of them comes here, and earlier epochs keep
	// nothing more. With keep End keeps the trial's folder, unless there is a later epoch.
	Begin(ctx context.Context, trial string, epoch uint64, from []string) error
	Renew(trial string, epoch uint64)
	End(ctx context.Context, trial string, keep bool) error
}

// alone is a folder of this machine only.
type alone struct{}

func (alone) Pull(context.Context) error                            { return nil }
func (alone) Keep(context.Context) error                            { return nil }
func (alone) Begin(context.Context, string, uint64, []string) error { return nil }
func (alone) Renew(string, uint64)                                  {}
func (alone) End(context.Context, string, bool) error               { return nil }

// Lease picks the devices of a request and holds them until Release; with wait it
// may wait for them. Its errors are those of device.Leases.Acquire.
type Lease func(m device.Machine, r device.Request, wait bool) ([]device.Device, *device.Held, error)

// Errors that a caller tells apart.
var (
	ErrInterrupted = errors.New("interrupted")
	ErrNoJob       = errors.New("holds no job")
	ErrHasJob      = errors.New("holds a job already")
	ErrInUse       = errors.New("is in use by another build")
	ErrNoTrial     = errors.New("keeps no model of trial")
)

// Node is one opened job. Its methods are for one goroutine.
type Node struct {
	opts  Options
	log   journal.Log
	state *journal.State
	site  *site
	crew  *crew
	held  *device.Held // for the life of the node

	supervisor atomic.Pointer[mailbox] // while Run does
}

// mailbox is where an actor is written to.
type mailbox struct {
	root *actor.RootContext
	pid  *actor.PID
}

// maxWorkers bounds the workers of one machine: more cores than that are shared
// out to them as threads.
const maxWorkers = 8

// Open locks the folder, reads its journal, and matches the hardware.
func Open(o Options) (*Node, error) {
	if o.Journal != nil {
		if err := os.MkdirAll(o.Dir, 0o755); err != nil {
			return nil, errors.Join(err, o.Journal.Close())
		}
		return (&Node{opts: o, log: o.Journal}).opened()
	}
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
	return (&Node{opts: o, log: log}).opened()
}

func (n *Node) opened() (*Node, error) {
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

func (n *Node) open() error {
	var err error
	if n.state, err = journal.Replayed(n.log); err != nil {
		return err
	}
	if file, ok := n.log.(*journal.File); ok && !n.opts.Resume && n.state.Failed != "" && len(n.state.Decisions) == 0 {
		if err := n.clear(file); err != nil {
			return err
		}
	}
	spec := n.opts.Spec
	if n.opts.Journal != nil {
		if n.state.Events > 0 {
			own := spec
			spec = n.state.Spec
			spec.Data.Files, spec.Data.Valid, spec.Steps = own.Data.Files, own.Data.Valid, own.Steps
		}
	} else if n.state.Events > 0 {
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
	before := readRan(n.opts.Dir)
	if n.crew, n.held, err = hire(context.Background(), n.opts.constrained(spec), n.opts, before.Kind); err != nil {
		return err
	}
	n.site = newSite(n.opts.Dir, spec, n.crew)
	n.site.notice = n.notice
	if n.site.past = n.state.Past; n.state.Events == 0 { // later the journal has them
		if n.site.past, err = telemetry.ReadPast(spec.WarmStart); err != nil {
			return err
		}
	}
	if n.opts.Folder != nil {
		n.site.folder = n.opts.Folder
	}
	if n.opts.Sources != nil {
		n.site.sources = n.opts.Sources
	}
	if err := os.MkdirAll(filepath.Join(n.opts.Dir, "trials"), 0o755); err != nil {
		return err
	}
	if err := n.site.writeJSON(ranOn(n.crew), ranName); err != nil {
		return err
	}
	return n.site.writeJSON(spec, "job.json")
}

// constrained is a spec with the hardware that is asked for here.
func (o *Options) constrained(spec job.Spec) job.Spec {
	spec.HardwareConstraint = cmp.Or(o.Constraint, spec.HardwareConstraint)
	return spec
}

// clear empties a folder whose job failed before it trained anything: there is
// nothing in it to keep.
func (n *Node) clear(log *journal.File) error {
	for _, name := range []string{"data", "sample", "trials", job.StepsDir, "job.json", ranName, "leaderboard.json"} {
		if err := os.RemoveAll(filepath.Join(n.opts.Dir, name)); err != nil {
			return err
		}
	}
	n.state = journal.NewState()
	return log.Reset()
}

// group shares cores out to at most maxWorkers workers.
func group(devices []device.Device) ([]device.Device, int) {
	if len(devices) <= maxWorkers {
		return devices, 1
	}
	return devices[:maxWorkers], len(devices) / maxWorkers
}

// shared is Go's share of threads while jobs run in this process.
var shared struct {
	sync.Mutex
	busy   int // threads that compute
	before int // the share without jobs
}

// processors is Go's share of threads: one for each that computes, and two so
// that actors need not wait until a kernel, which Go can't preempt, is through.
func processors(busy int) int { return busy + 2 }

// share makes room for so many threads more that compute, until the function that it
// returns is called.
func share(busy int) func() {
	add := func(n int) {
		shared.Lock()
		defer shared.Unlock()
		if shared.busy == 0 {
			shared.before = runtime.GOMAXPROCS(0)
		}
		if shared.busy += n; shared.busy == 0 {
			runtime.GOMAXPROCS(shared.before)
			return
		}
		runtime.GOMAXPROCS(processors(shared.busy))
	}
	add(busy)
	return func() { add(-busy) }
}

// stop stops workers, all at once, and waits for them.
func stop(root *actor.RootContext, pids []*actor.PID) {
	var ends []*actor.Future
	for _, p := range pids {
		ends = append(ends, root.StopFuture(p))
	}
	for _, e := range ends {
		_ = e.Wait()
	}
}

// notice tells the user what the job outlived.
func (n *Node) notice(text string) {
	if n.opts.Notice != nil {
		n.opts.Notice(text)
	}
}

// State is the job as the journal had it when the folder was opened.
func (n *Node) State() *journal.State { return n.state }

// Devices lists what the job computes on.
func (n *Node) Devices() []device.Device { return n.crew.devices }

// Processes are the ids of the processes of its own that compute for the job now, none
// where all do in this one. It may be called from any goroutine.
func (n *Node) Processes() []int { return n.crew.processes() }

// Close unlocks the folder of a node that was not run, ends its processes and
// lets its devices go.
func (n *Node) Close() error {
	n.crew.close()
	n.held.Release()
	return n.log.Close()
}

// Run carries the job out. It returns nil when the job is done, ErrInterrupted
// when ctx ended first, else why it failed. The folder is unlocked and the devices
// are free after it.
func (n *Node) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, n.Close()) }()
	defer share(n.crew.busy())()

	system := n.opts.System
	if system == nil {
		system = NewSystem(n.opts.Log)
		defer system.Shutdown()
	}

	strategy := actor.NewOneForOneStrategy(10, time.Minute, actor.DefaultDecider)
	pids := make([]*actor.PID, len(n.crew.devices))
	for i, d := range n.crew.devices {
		pids[i] = system.Root.Spawn(actors.WorkerProps(d, n.site.executor(i), n.opts.Across, n.opts.Hooks, actor.WithGuardian(strategy)))
	}
	defer watch(n.opts, n.crew, n.notice, func(i int, why string) { system.Root.Send(pids[i], &actors.Sick{Why: why}) })()
	type ending struct {
		err         error
		interrupted bool
	}
	ended := make(chan ending, 1)
	var once sync.Once
	board := newBoard(n.site, n.opts.Dir)
	events := n.opts.Events
	events.Journal = func(e journal.Event, st *journal.State) {
		board.committed(e, st)
		if n.opts.Events.Journal != nil {
			n.opts.Events.Journal(e, st)
		}
	}
	events.Notice = n.notice
	events.End = func(err error, interrupted bool) {
		once.Do(func() { ended <- ending{err, interrupted} })
	}
	var epoch atomic.Uint64
	start := time.Now()
	props := actors.SupervisorProps(actors.SupervisorConfig{
		Spec: n.site.spec, Past: n.site.past, Log: n.log, Work: n.site, Workers: pids,
		TrialConfig: actors.TrialConfig{Epochs: func() uint64 { return epoch.Add(1) }, Across: n.opts.Across, Hooks: n.opts.Hooks},
		Room:        n.crew.room, Clock: func() time.Duration { return time.Since(start) }, Now: time.Now, Tick: time.Second, Events: events,
	}, actor.WithGuardian(strategy))
	name := cmp.Or(n.opts.Name, "supervisor")
	supervisor, err := system.Root.SpawnNamed(props, name)
	if err != nil {
		return fmt.Errorf("actor %s: %w", name, err)
	}
	n.supervisor.Store(&mailbox{system.Root, supervisor})
	defer n.supervisor.Store(nil)
	if n.opts.Journal == nil {
		done, err := n.listen()
		if err != nil {
			n.notice(fmt.Sprintf("the search can't be steered from another terminal: %v", err))
		} else {
			defer done()
		}
	}

	var end ending
	select {
	case end = <-ended:
	case <-ctx.Done():
		system.Root.Send(supervisor, &actors.Interrupt{})
		end = <-ended
	}
	_ = system.Root.StopFuture(supervisor).Wait()
	board.flush()
	stop(system.Root, pids)
	if end.interrupted {
		return ErrInterrupted
	}
	if bad := n.site.badInput(); end.err != nil && bad != nil {
		return bad
	}
	return end.err
}

// NewSystem makes an actor system that writes failures of actors to w, which may be nil.
func NewSystem(w io.Writer) *actor.ActorSystem {
	if w == nil {
		w = io.Discard
	}
	logger := slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelError}))
	return actor.NewActorSystem(actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger { return logger }), actor.WithDeadLetterRequestLogging(false))
}
