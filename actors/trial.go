package actors

import (
	"errors"
	"fmt"
	"slices"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// maxLost is how often a trial forms a new ring after it lost a worker. A loss is
// forgotten once the trial is so many steps further than it was then: what loses a
// worker again and again at one place is the task, and ends it.
const (
	maxLost   = 5
	forgotten = 100
)

// Trial drives one task on a group of workers: it forms the ring, gathers the
// ranks' ends, and forms the next ring when a worker was lost: of those that are
// left, who go on where they are, and of the one that started anew, which gets
// the state from a peer. State belongs to its mailbox.
type Trial struct {
	seq     int
	task    train.Task
	workers []*actor.PID
	cfg     TrialConfig

	epoch  uint64
	group  *ring.Group
	left   int // ranks of this epoch that have not ended
	report train.Report
	err    error // the first reason of this epoch
	isLost bool  // … which was a lost worker
	lost   int
	step   int    // the furthest that was reported
	lostAt int    // … when a worker was lost last
	stop   string // why it is to end at once; "" is not
	growth
}

// TrialConfig is what the Trials of a node have in common.
type TrialConfig struct {
	Epochs func() uint64 // counts up over the node's life
	Across Across        // nil: all workers are of this node
	Hooks  Hooks
}

// TrialProps makes the actor of a task.
func TrialProps(seq int, task train.Task, workers []*actor.PID, cfg TrialConfig) *actor.Props {
	return actor.PropsFromProducer(func() actor.Actor {
		return &Trial{seq: seq, task: task, workers: workers, cfg: cfg}
	})
}

// Receive implements actor.Actor.
func (t *Trial) Receive(ctx actor.Context) {
	t.cfg.Hooks.receive("trial", ctx.Message())
	switch m := ctx.Message().(type) {
	case *actor.Started:
		t.form(ctx)
	case *Progress:
		if m.Epoch == t.epoch {
			t.reached(m.Metrics.Step)
			t.measured(ctx, m.Metrics)
			up := *m
			up.Seq = t.seq
			ctx.Send(ctx.Parent(), &up)
		}
	case *RankEnded:
		if m.Epoch == t.epoch {
			t.ended(ctx, m)
		}
	case *RingBroken:
		if m.Epoch == t.epoch {
			t.replace(ctx, -1, m.Err)
		}
	case *RingCard:
		t.meet(ctx, m)
	case *Grow:
		t.grow(ctx, m.Workers)
	case *StopTrial:
		t.stop = m.Why
		t.release(ctx, errReleased)
	case *actor.Terminated:
		t.gone(ctx, m.Who)
	case *actor.Restarting, *actor.Stopping:
		t.release(ctx, errReleased)
		for _, w := range t.workers {
			ctx.Unwatch(w)
		}
	}
}

// reached notes how far the task is.
func (t *Trial) reached(step int) {
	t.step = max(t.step, step)
	if t.step >= t.lostAt+forgotten {
		t.lost = 0
	}
}

// loses counts a loss.
func (t *Trial) loses() int {
	t.lost++
	t.lostAt = t.step
	return t.lost
}

// form starts a new epoch on all workers, from what is on the disk.
func (t *Trial) form(ctx actor.Context) {
	for _, w := range t.workers {
		ctx.Watch(w)
	}
	t.begin(ctx, 0, -1)
}

// begin starts an epoch. Ranks other than the lost one go on from the epoch that
// it resumes.
func (t *Trial) begin(ctx actor.Context, resumes uint64, lost int) {
	t.epoch = t.cfg.Epochs()
	t.group, t.left, t.err, t.isLost, t.report = nil, len(t.workers), nil, false, train.Report{}
	if len(t.workers) > 1 {
		t.group = t.newGroup(ctx)
	}
	for r, w := range t.workers {
		a := &Assign{Epoch: t.epoch, Rank: r, World: len(t.workers), Ring: t.group, Task: t.task, Owner: ctx.Self()}
		if r != lost {
			a.Resumes = resumes
		}
		ctx.Send(w, a)
	}
}

// newGroup is the ring of an epoch: of this node, or of several.
func (t *Trial) newGroup(ctx actor.Context) *ring.Group {
	if t.cfg.Across != nil && slices.ContainsFunc(t.workers, func(w *actor.PID) bool { return w.Address != ctx.Self().Address }) {
		return t.cfg.Across(&t.task, len(t.workers), t.epoch, nil)
	}
	return ring.NewGroupOver(t.task.Backend, len(t.workers), t.epoch)
}

// meet has a rank of another node meet the others.
func (t *Trial) meet(ctx actor.Context, m *RingCard) {
	if m.Epoch != t.epoch || t.group == nil {
		ctx.Send(m.From, &RingCards{Epoch: m.Epoch, Err: fmt.Errorf("no ring of epoch %d forms: %w", m.Epoch, ring.ErrLost)})
		return
	}
	go meet(ctx.ActorSystem().Root, t.group, m)
}

// replace lets the others go on without waiting for the disk. It tells whether
// it could: not where a rank has ended already, or too many were lost.
func (t *Trial) replace(ctx actor.Context, lost int, why error) bool {
	if t.stop != "" || t.err != nil || t.left < len(t.workers) || t.group == nil || t.lost >= maxLost {
		return false
	}
	t.loses()
	t.group.Abort(&ring.LostError{Rank: max(lost, 0), Why: why.Error()})
	t.begin(ctx, t.epoch, lost)
	return true
}

// gone takes a worker out that will not come back.
func (t *Trial) gone(ctx actor.Context, who *actor.PID) {
	r := slices.IndexFunc(t.workers, who.Equal)
	if r < 0 {
		return
	}
	why := fmt.Errorf("worker %s is gone", who.Id)
	if t.group != nil {
		t.group.Abort(&ring.LostError{Rank: r, Why: why.Error()})
	}
	if len(t.workers) == 1 {
		ctx.Send(ctx.Parent(), &TrialEnded{Seq: t.seq, Report: t.report, Err: why, Gone: true})
		return
	}
	if t.stop != "" {
		t.ended(ctx, &RankEnded{Epoch: t.epoch, Rank: r, Err: why})
		return
	}
	t.workers = slices.Delete(slices.Clone(t.workers), r, r+1)
	t.changed()
	t.loses()
	t.begin(ctx, t.epoch, -1)
}

func (t *Trial) release(ctx actor.Context, reason error) {
	if t.group != nil {
		t.group.Abort(reason)
	}
	for _, w := range t.workers {
		ctx.Send(w, &Release{Epoch: t.epoch})
	}
}

// ended takes one rank's end; the first failure stops the others, and when all
// are through the task has ended or starts anew.
func (t *Trial) ended(ctx actor.Context, m *RankEnded) {
	if m.Lost && t.replace(ctx, m.Rank, m.Err) {
		return
	}
	t.left--
	if m.Rank == 0 {
		t.report = m.Report
	}
	if m.Err != nil && (t.err == nil || m.Lost) {
		if t.err == nil {
			t.release(ctx, m.Err)
		}
		t.err, t.isLost = m.Err, t.isLost || m.Lost
	}
	if t.left > 0 {
		return
	}
	if t.stop != "" {
		rep := t.report
		rep.Stopped = t.stop
		if n := len(rep.State.Curve); t.err != nil && n > 0 {
			rep.Bits = rep.State.Curve[n-1].Score
		}
		ctx.Send(ctx.Parent(), &TrialEnded{Seq: t.seq, Report: rep})
		return
	}
	if t.isLost {
		if t.loses() <= maxLost {
			t.form(ctx)
			return
		}
		t.err = fmt.Errorf("lost a worker %d times: %w", t.lost, t.err)
	}
	ctx.Send(ctx.Parent(), &TrialEnded{Seq: t.seq, Report: t.report, Err: t.err})
}

// retryable tells whether another attempt may end differently.
func retryable(err error) bool {
	return !errors.Is(err, train.ErrDiverged) && !errors.Is(err, train.ErrMemory)
}
