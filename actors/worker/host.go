package worker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// RejoinWithin bounds how long a rank waits for the ring that follows a lost one,
// in a process of its own or in the node's.
const RejoinWithin = 30 * time.Second

// Bounds of what a host waits for.
const (
	stopWithin  = 30 * time.Second // for a run that was told to stop to save and end
	scoreWithin = 24 * time.Hour   // ctx and the child's signs of life end it earlier
	lookWithin  = 30 * time.Second // for NVML: a driver that resets takes its time
)

// Self is the command of a child that is this program.
func Self() *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		exe = os.Args[0]
	}
	return exec.Command(exe, "worker")
}

// Config says how a host starts its child.
type Config struct {
	Command func() *exec.Cmd // that ends up in Serve; nil is Self
	Env     []string         // beside the node's own: CUDA_VISIBLE_DEVICES
	Ping    time.Duration    // between two questions whether it lives; 0 is a second
	Relay   RelayAt          // through which it reaches ranks of other nodes
}

// Host is the node's side of one device's process. One goroutine calls Train,
// Time, Score, Look and Facts; Kill and Close may be called from any.
type Host struct {
	cfg Config
	mu  struct {
		sync.Mutex
		p      *process
		closed bool
	}
}

// NewHost makes a host; the child starts when there is work for it.
func NewHost(cfg Config) *Host {
	if cfg.Command == nil {
		cfg.Command = Self
	}
	if cfg.Ping <= 0 {
		cfg.Ping = pingEvery
	}
	return &Host{cfg: cfg}
}

var errClosing = errors.New("worker: its node is closing")

// child is the process, started when there is none. Loading a libtorch takes
// seconds, in which Kill and Close must not wait.
func (h *Host) child() (*process, error) {
	h.mu.Lock()
	old, closed := h.mu.p, h.mu.closed
	alive := old != nil && old.alive()
	if !alive {
		h.mu.p = nil // nobody else closes it from here on
	}
	h.mu.Unlock()
	switch {
	case closed:
		return nil, errClosing
	case alive:
		return old, nil
	case old != nil:
		old.close()
	}
	p, err := start(h.cfg)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	if closed = h.mu.closed; !closed {
		h.mu.p = p
	}
	h.mu.Unlock()
	if closed {
		p.close()
		return nil, errClosing
	}
	return p, nil
}

// PID is the child's, 0 while there is none.
func (h *Host) PID() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.p == nil || !h.mu.p.alive() {
		return 0
	}
	return h.mu.p.cmd.Process.Pid
}

// Kill ends the child, whatever it does: a call that waits for it returns.
func (h *Host) Kill(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.p != nil {
		h.mu.p.kill(why)
	}
}

// Close ends the child and waits until it is gone.
func (h *Host) Close() {
	h.mu.Lock()
	p := h.mu.p
	h.mu.p, h.mu.closed = nil, true
	h.mu.Unlock()
	if p != nil {
		p.close()
	}
}

// ask sends one question and waits for its answer.
func (h *Host) ask(ctx context.Context, m message, within time.Duration) (message, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	p, err := h.child()
	if err != nil {
		return nil, err
	}
	p.tell(m)
	bound := time.NewTimer(within)
	defer bound.Stop()
	select {
	case answer, ok := <-p.in:
		if !ok {
			return nil, p.reason()
		}
		return answer, nil
	case <-ctx.Done():
		p.kill(context.Cause(ctx)) // its answer would be the next question's
		return nil, context.Cause(ctx)
	case <-bound.C:
		p.kill(fmt.Errorf("it has not answered within %s", within))
		<-p.exited
		return nil, p.reason()
	}
}

// Time measures whole training steps in the child.
func (h *Host) Time(ctx context.Context, t Timing) (glm.Rates, error) {
	within := time.Duration(t.Seconds*float64(time.Second)) + 5*time.Minute // a first step on CUDA loads kernels
	m, err := h.ask(ctx, &timeMsg{Timing: t}, within)
	if err != nil {
		return glm.Rates{}, err
	}
	a, ok := m.(*timedMsg)
	if !ok {
		return glm.Rates{}, h.nonsense(m)
	}
	return a.Rates, a.Failure.Err()
}

// Score scores a checkpoint in the child, for as long as that takes.
func (h *Host) Score(ctx context.Context, s Scoring) (train.Score, error) {
	m, err := h.ask(ctx, &scoreMsg{Scoring: s}, scoreWithin)
	if err != nil {
		return train.Score{}, err
	}
	a, ok := m.(*scoredMsg)
	if !ok {
		return train.Score{}, h.nonsense(m)
	}
	err = a.Failure.Err()
	if errors.Is(err, engine.ErrDevice) {
		h.Kill(err)
	}
	return a.Score, err
}

// Look asks the child for the GPUs that NVML sees.
func (h *Host) Look() (device.Machine, error) {
	m, err := h.ask(context.Background(), &lookMsg{}, lookWithin)
	if err != nil {
		return device.Machine{}, err
	}
	a, ok := m.(*seenMsg)
	if !ok {
		return device.Machine{}, h.nonsense(m)
	}
	return a.Machine, a.Failure.Err()
}

// Facts asks the child what it can compute with.
func (h *Host) Facts(ctx context.Context) (Facts, error) {
	m, err := h.ask(ctx, &askMsg{}, 2*time.Minute)
	if err != nil {
		return Facts{}, err
	}
	a, ok := m.(*factsMsg)
	if !ok {
		return Facts{}, h.nonsense(m)
	}
	return a.Facts, a.Failure.Err()
}

func (h *Host) nonsense(m message) error {
	err := fmt.Errorf("it answered with a %T", m)
	h.Kill(err)
	return fmt.Errorf("worker: %w", err)
}

// Train runs one rank of a task in the child: it is an actors.Executor on a
// device. A child that ends by itself, or whose device fails, is an error that
// is ring.ErrLost; when ctx ends, its cause is returned once the child has saved
// what it keeps, at most stopWithin later.
func (h *Host) Train(ctx context.Context, a *actors.Assign, on On, progress func(train.StepMetrics)) (train.Report, error) {
	if err := context.Cause(ctx); err != nil {
		return train.Report{}, err
	}
	p, err := h.child()
	var stray *strayError
	if errors.As(err, &stray) {
		err = &ring.LostError{Rank: a.Rank, Why: err.Error()}
	}
	if err != nil {
		return train.Report{}, err
	}
	r := &rank{p: p, next: a.Next, broken: a.Broken}
	defer r.end()
	p.tell(&trainMsg{Task: a.Task, On: on, Rank: a.Rank, World: a.World, Epoch: a.Epoch, Relay: h.cfg.Relay})
	r.follow(a)
	return r.run(ctx, progress)
}

// rank is one call of Train.
type rank struct {
	p       *process
	a       *actors.Assign  // the present one
	aborted <-chan struct{} // of its ring; nil once the child knows
	next    <-chan *actors.Assign
	broken  func(epoch uint64, why error)
	meeting sync.WaitGroup
	leave   context.CancelFunc // of the meeting
}

// follow makes an assignment the present one.
func (r *rank) follow(a *actors.Assign) {
	r.a, r.aborted = a, a.Replaced // of a task of one rank
	if a.Ring != nil {
		r.aborted = a.Ring.Done()
	}
}

// meet hands the child's card in, off the caller's goroutine.
func (r *rank) meet(ctx context.Context, m *cardMsg) {
	if r.leave != nil {
		r.leave()
	}
	group := r.a.Ring
	if group == nil || m.Epoch != r.a.Epoch || m.Rank != r.a.Rank {
		r.tell(&cardsMsg{Epoch: m.Epoch, Failure: actors.FailureOf(fmt.Errorf("rank %d has no place in a ring of epoch %d", m.Rank, m.Epoch))})
		return
	}
	ctx, r.leave = context.WithCancel(ctx)
	r.meeting.Go(func() {
		cards, err := group.Meet(ctx, m.Rank, m.Card)
		r.tell(&cardsMsg{Epoch: m.Epoch, Cards: cards, Failure: actors.FailureOf(err)})
	})
}

// tell sends to the child.
func (r *rank) tell(m message) { r.p.tell(m) }

func (r *rank) end() {
	if r.leave != nil {
		r.leave()
	}
	r.meeting.Wait()
}

func (r *rank) run(ctx context.Context, progress func(train.StepMetrics)) (train.Report, error) {
	var next <-chan *actors.Assign // read while the child waits for another ring
	var late, stop <-chan time.Time
	done := ctx.Done()
	for {
		select {
		case m, ok := <-r.p.in:
			if !ok {
				if done == nil {
					return train.Report{}, context.Cause(ctx)
				}
				return train.Report{}, &ring.LostError{Rank: r.a.Rank, Why: r.p.reason().Error()}
			}
			switch m := m.(type) {
			case *progressMsg:
				progress(m.Metrics)
			case *cardMsg:
				r.meet(ctx, m)
			case *rejoinMsg:
				next, late = r.next, time.After(RejoinWithin)
				if r.a.Ring != nil && r.a.Ring.Err() == nil && r.broken != nil {
					r.broken(r.a.Epoch, m.Failure.Err()) // nobody else has noticed
				}
			case *endedMsg:
				return r.ended(ctx, m)
			default:
				r.p.kill(fmt.Errorf("it sent a %T while it trained", m))
			}
		case a := <-next:
			next, late = nil, nil
			r.follow(a)
			r.tell(&nextMsg{Rank: a.Rank, World: a.World, Epoch: a.Epoch})
		case <-late:
			next, late = nil, nil
			r.tell(&nextMsg{Failure: actors.FailureOf(fmt.Errorf("no new ring within %s", RejoinWithin))})
		case <-r.aborted:
			r.aborted = nil
			var why error
			if r.a.Ring != nil {
				why = r.a.Ring.Err()
			}
			r.tell(&abortMsg{Epoch: r.a.Epoch, Failure: actors.FailureOf(why)})
		case <-done:
			done = nil
			stop = time.After(stopWithin)
			r.tell(&stopMsg{Failure: actors.FailureOf(context.Cause(ctx))})
		case <-stop:
			stop = nil
			r.p.kill(fmt.Errorf("it did not stop within %s", stopWithin))
		}
	}
}

// ended reads how the child's run ended.
func (r *rank) ended(ctx context.Context, m *endedMsg) (train.Report, error) {
	err := m.Failure.Err()
	if errors.Is(err, engine.ErrDevice) {
		r.p.kill(err)
		return m.Report, &ring.LostError{Rank: r.a.Rank, Why: err.Error()}
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		if actors.DiskError(err) { // met while it saved
			return m.Report, errors.Join(cause, err)
		}
		return m.Report, cause
	}
	return m.Report, err
}
