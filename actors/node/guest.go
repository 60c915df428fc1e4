package node

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/device"
)

// Guest is devices of this node at work for a job whose Supervisor is on another. Its
// methods are for one goroutine.
type Guest struct {
	opts Options
	site *site
	crew *crew
	held *device.Held
}

// OpenGuest leases the devices. Of the options it takes Dir, Spec, Lease, Constraint,
// Sources, Worker, Folder, System, Across, Relay, Self, Hooks and Notice.
func OpenGuest(ctx context.Context, o Options) (*Guest, error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	c, held, err := hire(ctx, o.constrained(o.Spec), o, "")
	if err != nil {
		return nil, err
	}
	s := newSite(o.Dir, o.Spec, c)
	s.guest, s.folder = true, o.Folder
	if o.Notice != nil {
		s.notice = o.Notice
	}
	return &Guest{opts: o, site: s, crew: c, held: held}, nil
}

// Devices lists what was leased.
func (g *Guest) Devices() []device.Device { return g.crew.devices }

// Processes is as of a Node.
func (g *Guest) Processes() []int { return g.crew.processes() }

// enlistEvery is between two words to the Supervisor, which may have started anew.
const enlistEvery = 500 * time.Millisecond

// Run has the job's Supervisor use the devices, which the job may have asked for,
// until ctx ends, or the Supervisor is gone, or has not been there within so long, or
// this node can't do its part: its disk is full, or the job's data is not to be had.
// Trainings that run then are stopped, and save. The devices are free after it.
func (g *Guest) Run(ctx context.Context, supervisor *actor.PID, asked bool, patience time.Duration) error {
	defer g.held.Release()
	defer g.crew.close()
	defer share(g.crew.busy())()
	defer g.site.ranks.Wait()
	unfit := make(chan error, 1)
	g.site.unfit = func(err error) {
		select {
		case unfit <- err:
		default:
		}
	}
	root := g.opts.System.Root
	strategy := actor.NewOneForOneStrategy(10, time.Minute, actor.DefaultDecider)
	var pids []*actor.PID
	for i, d := range g.crew.devices {
		pids = append(pids, root.Spawn(actors.WorkerProps(d, g.site.executor(i), g.opts.Across, g.opts.Hooks, actor.WithGuardian(strategy))))
	}
	defer stop(root, pids)
	heard, gone := make(chan struct{}, 1), make(chan struct{})
	clerk := root.Spawn(actors.EnlistProps(supervisor, actors.Enlist{Workers: pids, Asked: asked}, enlistEvery, heard, gone))
	defer func() { _ = root.StopFuture(clerk).Wait() }()
	here := g.site.notice
	g.site.notice = func(text string) {
		here(text)
		root.Send(clerk, &actors.Say{Text: fmt.Sprintf("node %s: %s", g.opts.Self, text)})
	}
	defer watch(g.opts, g.crew, g.site.notice, func(i int, why string) { root.Send(pids[i], &actors.Sick{Why: why}) })()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-heard:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-late.C:
		return fmt.Errorf("the job's supervisor at %s has not answered within %s", supervisor.Address, patience)
	}
	select {
	case <-gone:
		return fmt.Errorf("the job's supervisor at %s is gone", supervisor.Address)
	case err := <-unfit:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
