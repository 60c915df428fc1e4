package actors

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// GPUWorker owns one device and runs one rank of a task at a time, off its
// mailbox, so that it always answers. State belongs to its mailbox.
type GPUWorker struct {
	device  device.Device
	execute Executor
	across  Across
	hooks   Hooks

	mail    byMail // where its rings meet, for Trials of other nodes
	current *assignment
	pending *Assign // starts when current has ended
}

// Executor runs one rank of a task on the caller's goroutine.
type Executor func(ctx context.Context, a *Assign, progress func(train.StepMetrics)) (train.Report, error)

type assignment struct {
	*Assign // the latest
	cancel  context.CancelCauseFunc
	next    chan *Assign // buffered, 1: the run takes it when its ring has lost a rank
	reports reporter
	done    chan struct{} // closed when the goroutine is through
	over    chan struct{} // of the latest Assign: its Replaced
}

// taskEnded is a worker's own message: its goroutine is through.
type taskEnded struct {
	of     *assignment
	report train.Report
	err    error
}

var (
	errReleased  = errors.New("released")
	errRestarted = errors.New("the worker restarted")
)

// WorkerProps makes the actor of a device. Across is needed where Trials of other
// nodes may have it as one of several ranks.
func WorkerProps(d device.Device, execute Executor, across Across, hooks Hooks, opts ...actor.PropsOption) *actor.Props {
	return actor.PropsFromProducer(func() actor.Actor {
		return &GPUWorker{device: d, execute: execute, across: across, hooks: hooks}
	}, opts...)
}

// Receive implements actor.Actor.
func (w *GPUWorker) Receive(ctx actor.Context) {
	defer func() {
		// A message in whose place the worker fails is gone; an assignment's owner
		// must hear of it, or it would wait for ever.
		if p := recover(); p != nil {
			if a, ok := ctx.Message().(*Assign); ok {
				ctx.Send(a.Owner, &RankEnded{Epoch: a.Epoch, Rank: a.Rank, Err: errRestarted, Lost: true})
			}
			panic(p)
		}
	}()
	w.hooks.receive("gpuworker", ctx.Message())
	switch m := ctx.Message().(type) {
	case *Assign:
		w.assign(ctx, m)
	case *Release:
		w.release(ctx, m.Epoch)
	case *RingCards:
		w.mail.take(m)
	case *Credit:
		if w.current != nil {
			w.current.reports.credit(m)
		}
	case *taskEnded:
		w.ended(ctx, m)
	case *Sick:
		w.abandon(ctx, fmt.Errorf("%s is sick: %s", w.device.ID, m.Why))
		ctx.Stop(ctx.Self())
	case *actor.Restarting, *actor.Stopping:
		w.abandon(ctx, errRestarted)
	}
}

func (w *GPUWorker) assign(ctx actor.Context, a *Assign) {
	switch {
	case w.current == nil:
		w.start(ctx, a)
	case a.Resumes != 0 && a.Resumes == w.current.Epoch:
		w.resume(ctx, a)
	case a.Epoch > w.current.Epoch:
		w.pending = a
		w.release(ctx, w.current.Epoch)
	}
}

func (w *GPUWorker) release(ctx actor.Context, epoch uint64) {
	if p := w.pending; p != nil && p.Epoch == epoch {
		w.pending = nil
		ctx.Send(p.Owner, &RankEnded{Epoch: p.Epoch, Rank: p.Rank, Err: errReleased})
	}
	if w.current == nil || w.current.Epoch != epoch {
		return
	}
	if w.current.Ring != nil {
		w.current.Ring.Abort(errReleased)
	}
	w.current.cancel(errReleased)
}

// resume hands the next ring to the run. A run that has ended meanwhile finds out
// in ended.
func (w *GPUWorker) resume(ctx actor.Context, a *Assign) {
	c := w.current
	if c.Ring != nil {
		c.Ring.Abort(&ring.LostError{Rank: a.Rank, Why: "the ring is formed anew"}) // harmless where it is over
	}
	a = w.joined(ctx, a)
	old := c.over
	c.Assign, c.over = a, make(chan struct{})
	a.Replaced = c.over
	c.reports.begins(a.Epoch)
	select {
	case <-c.next: // never taken: that ring is lost too
	default:
	}
	c.next <- a
	close(old)
}

func (w *GPUWorker) start(ctx actor.Context, a *Assign) {
	run, cancel := context.WithCancelCause(context.Background())
	c := &assignment{cancel: cancel, next: make(chan *Assign, 1), done: make(chan struct{})}
	self, root := ctx.Self(), ctx.ActorSystem().Root
	mine := *w.joined(ctx, a)
	c.over = make(chan struct{})
	mine.Next, mine.Replaced = c.next, c.over
	mine.Broken = func(epoch uint64, why error) {
		root.Send(a.Owner, &RingBroken{Epoch: epoch, Rank: a.Rank, Err: why})
	}
	c.Assign = &mine
	c.reports.send = func(epoch, n uint64, m train.StepMetrics) {
		root.Send(a.Owner, &Progress{Epoch: epoch, Trial: a.Task.Trial, Metrics: m, N: n, From: self})
	}
	c.reports.begins(a.Epoch)
	w.current = c
	go func() {
		defer close(c.done)
		end := &taskEnded{of: c}
		end.report, end.err = w.guarded(run, &mine, c.reports.report)
		root.Send(self, end)
	}()
}

// joined is an assignment with its ring, which one from another node does not bring.
func (w *GPUWorker) joined(ctx actor.Context, a *Assign) *Assign {
	own := *a // the sender's stays as it is
	if a.World > 1 && a.Ring == nil && w.across != nil {
		self, root := ctx.Self(), ctx.ActorSystem().Root
		w.mail.via(func(m *RingCard) {
			m.From = self
			root.Send(a.Owner, m)
		})
		own.Ring = w.across(&own.Task, a.World, a.Epoch, &w.mail)
	}
	return &own
}

// guarded turns a panic of the task into its error.
func (w *GPUWorker) guarded(ctx context.Context, a *Assign, progress func(train.StepMetrics)) (rep train.Report, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic on %s: %v\n%s", w.device.ID, p, debug.Stack())
		}
	}()
	return w.execute(ctx, a, progress)
}

func (w *GPUWorker) ended(ctx actor.Context, m *taskEnded) {
	if w.current != m.of {
		return
	}
	a := w.current
	w.current = nil
	a.cancel(nil)
	select {
	case next := <-a.next:
		if w.pending == nil {
			w.start(ctx, next) // it came too late for the run, whose ring is over: the next one has lost nobody
			return
		}
	default:
	}
	if m.err != nil && a.Ring != nil {
		a.Ring.Abort(m.err) // nobody waits for a rank that is gone
	}
	ctx.Send(a.Owner, &RankEnded{Epoch: a.Epoch, Rank: a.Rank, Report: m.report, Err: m.err, Lost: errors.Is(m.err, ring.ErrLost)})
	if p := w.pending; p != nil {
		w.pending = nil
		w.start(ctx, p)
	}
}

// abandon stops what runs, waits for it, and tells the owners why.
func (w *GPUWorker) abandon(ctx actor.Context, why error) {
	abort := func(a *Assign) {
		if a.Ring != nil {
			a.Ring.Abort(&ring.LostError{Rank: a.Rank, Why: why.Error()})
		}
	}
	lost := func(a *Assign) {
		abort(a)
		ctx.Send(a.Owner, &RankEnded{Epoch: a.Epoch, Rank: a.Rank, Err: why, Lost: true})
	}
	if a := w.current; a != nil {
		w.current = nil
		a.cancel(why)
		abort(a.Assign)
		<-a.done
		lost(a.Assign)
	}
	if w.pending != nil {
		lost(w.pending)
		w.pending = nil
	}
}
