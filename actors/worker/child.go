package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Ability is what a build's child can do. Nil fields are refused in words.
type Ability struct {
	// Model is train.Env's NewModel on an engine and device.
	Model func(on On) (func(c train.Config, threads, world int) (engine.Model, error), error)
	// Time measures whole training steps.
	Time func(ctx context.Context, t Timing) (glm.Rates, error)
	// Facts says what there is to compute with.
	Facts func() (Facts, error)
	// GPUs is the source that may crash.
	GPUs func() device.Source
}

// Inherited is the child's end of the socket: descriptor 3, which the host hands
// down.
func Inherited() (net.Conn, error) {
	f := os.NewFile(3, "host")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("worker: descriptor 3 is no socket (%w); a node starts workers itself, they are not for the command line", err)
	}
	return c, nil
}

// errDone ends Serve where the process has to end: a device failed under it.
var errDone = errors.New("the process has to end")

// Serve is the child: it answers its host until that hangs up, and returns nil
// then. What still runs is told to stop but not waited for: the caller ends the
// process.
func Serve(conn net.Conn, able Ability) error {
	c := &child{conn: conn, able: able, begun: time.Now(), over: make(chan error, 1)}
	defer conn.Close()
	if err := c.send(&helloMsg{PID: os.Getpid()}); err != nil {
		return err
	}
	go func() { c.end(c.listen()) }()
	return <-c.over
}

// child is the state of one worker process.
type child struct {
	conn  net.Conn
	able  Ability
	begun time.Time
	over  chan error    // buffered, 1: how Serve ends
	gpus  device.Source // of the one task that looks

	out sync.Mutex // one frame at a time
	mu  struct {
		sync.Mutex
		busy bool
		run  *running
	}
}

// running is one piece of training as the listener sees it.
type running struct {
	cancel context.CancelCauseFunc
	next   chan *nextMsg  // buffered, 1
	cards  chan *cardsMsg // buffered, 1

	mu struct {
		sync.Mutex
		rings   map[uint64]*place // by epoch
		aborted map[uint64]error  // epochs whose ring ended, perhaps before it was joined
	}
}

// place is a rank's place in one ring.
type place struct {
	comm   *ring.Comm              // nil while it forms
	cancel context.CancelCauseFunc // of the forming
}

func (c *child) end(err error) {
	select {
	case c.over <- err:
	default:
	}
}

func (c *child) send(m message) error {
	b, err := encode(m)
	if err != nil {
		return err
	}
	c.out.Lock()
	defer c.out.Unlock()
	_, err = c.conn.Write(b)
	return err
}

// listen takes the host's messages. It never waits for what it starts.
func (c *child) listen() error {
	for {
		m, err := readFrame(c.conn)
		if err != nil {
			if run := c.running(); run != nil {
				run.cancel(errors.New("the host hung up"))
			}
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return fmt.Errorf("worker: %w", err)
		}
		switch m := m.(type) {
		case *pingMsg:
			err = c.send(&pongMsg{})
		case *trainMsg:
			err = c.train(m)
		case *timeMsg:
			err = c.task(func() message {
				if c.able.Time == nil {
					return &timedMsg{Failure: actors.FailureOf(errors.New("this worker times nothing"))}
				}
				runtime.GOMAXPROCS(max(m.Timing.Threads, 1) + 2)
				rates, err := c.able.Time(context.Background(), m.Timing)
				return &timedMsg{Rates: rates, Failure: actors.FailureOf(err)}
			})
		case *scoreMsg:
			err = c.task(func() message {
				runtime.GOMAXPROCS(max(m.Scoring.Threads, 1) + 2)
				score, err := c.score(m.Scoring)
				return &scoredMsg{Score: score, Failure: actors.FailureOf(err)}
			})
		case *lookMsg:
			err = c.task(c.look)
		case *askMsg:
			err = c.task(func() message {
				if c.able.Facts == nil {
					return &factsMsg{}
				}
				f, err := c.able.Facts()
				return &factsMsg{Facts: f, Failure: actors.FailureOf(err)}
			})
		case *stopMsg:
			if run := c.running(); run != nil {
				run.cancel(m.Failure.Err())
			}
		case *abortMsg:
			if run := c.running(); run != nil {
				run.abort(m.Epoch, m.Failure.Err())
			}
		case *cardsMsg:
			if run := c.running(); run != nil {
				offer(run.cards, m)
			}
		case *nextMsg:
			if run := c.running(); run != nil {
				offer(run.next, m)
			}
		default:
			err = fmt.Errorf("worker: the host sent a %T", m)
		}
		if err != nil {
			return err
		}
	}
}

// offer replaces what was never taken.
func offer[T any](c chan T, v T) {
	select {
	case <-c:
	default:
	}
	c <- v
}

func (c *child) running() *running {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.run
}

// begin marks the child busy with one thing.
func (c *child) begin(run *running) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.busy {
		return errors.New("worker: the host asks for a second thing before the first has ended")
	}
	c.mu.busy, c.mu.run = true, run
	return nil
}

func (c *child) finish(answer message) {
	c.mu.Lock()
	c.mu.busy, c.mu.run = false, nil
	c.mu.Unlock()
	if err := c.send(answer); err != nil {
		c.end(err)
	}
}

// task does one thing beside the listener and sends its answer.
func (c *child) task(do func() message) error {
	if err := c.begin(nil); err != nil {
		return err
	}
	go func() { c.finish(do()) }()
	return nil
}

func (c *child) score(s Scoring) (train.Score, error) {
	if c.able.Model == nil {
		return train.Score{}, errors.New("this worker scores nothing")
	}
	build, err := c.able.Model(s.On)
	if err != nil {
		return train.Score{}, err
	}
	corpus, err := train.OpenCorpus(s.Corpus)
	if err != nil {
		return train.Score{}, err
	}
	defer corpus.Close()
	tensors, _, err := train.LoadCheckpoint(s.Params)
	if err != nil {
		return train.Score{}, err
	}
	m, err := build(s.Config, s.Threads, 1)
	if err != nil {
		return train.Score{}, err
	}
	defer m.Close()
	if err := m.Load(tensors); err != nil {
		return train.Score{}, err
	}
	windows := max(1, min(s.Windows, s.Config.MicroBatch(1)))
	return train.Sliding(context.Background(), m, corpus, s.Config.Arch.Context, windows, train.Share{})
}

func (c *child) look() message {
	if c.able.GPUs == nil {
		return &seenMsg{Failure: actors.FailureOf(errors.New("this build has no NVML"))}
	}
	if c.gpus == nil {
		c.gpus = c.able.GPUs()
	}
	m, err := c.gpus.Scan()
	return &seenMsg{Machine: m, Failure: actors.FailureOf(err)}
}

// train starts a rank's part of a task. A panic in it ends the process: its
// host sees a lost rank, and nobody goes on with what is left here.
func (c *child) train(m *trainMsg) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	run := &running{cancel: cancel, next: make(chan *nextMsg, 1), cards: make(chan *cardsMsg, 1)}
	run.mu.rings, run.mu.aborted = map[uint64]*place{}, map[uint64]error{}
	if err := c.begin(run); err != nil {
		cancel(nil)
		return err
	}
	runtime.GOMAXPROCS(max(m.Task.Threads, 1) + 2)
	go func() {
		defer cancel(nil)
		rep, err := c.execute(ctx, run, m)
		c.finish(&endedMsg{Report: rep, Failure: actors.FailureOf(err)})
		if errors.Is(err, engine.ErrDevice) {
			c.end(fmt.Errorf("worker: %w: %w", errDone, err))
		}
	}()
	return nil
}

func (c *child) execute(ctx context.Context, run *running, m *trainMsg) (train.Report, error) {
	if c.able.Model == nil {
		return train.Report{}, errors.New("this worker trains nothing")
	}
	build, err := c.able.Model(m.On)
	if err != nil {
		return train.Report{}, err
	}
	defer run.leave()
	at := seat{m.Rank, m.World, m.Epoch}
	enter := func(ctx context.Context) (train.Place, error) {
		for {
			p, err := c.join(ctx, run, m, at)
			if err == nil || !errors.Is(err, ring.ErrLost) {
				return p, err
			}
			// Lost before it stood: this rank waits for the next ring as all others do.
			if at, err = c.next(ctx, run, at.epoch, err); err != nil {
				return p, err
			}
		}
	}
	p, err := enter(ctx)
	if err != nil {
		return train.Report{}, err
	}
	return train.Execute(ctx, m.Task, train.Env{
		Rank: p.Rank, World: p.World, Ring: p.Ring, NewModel: build, Clock: func() time.Duration { return time.Since(c.begun) },
		Metrics: func(s train.StepMetrics) {
			if err := c.send(&progressMsg{Metrics: s}); err != nil {
				run.cancel(err)
			}
		},
		Rejoin: func(ctx context.Context, cause error) (train.Place, error) {
			if at, err = c.next(ctx, run, at.epoch, cause); err != nil {
				return train.Place{}, err
			}
			return enter(ctx)
		},
		Regroup: func() bool { return run.over(at.epoch) },
	})
}

// seat is a rank's number in the ring of an epoch.
type seat struct {
	rank, world int
	epoch       uint64
}

// ring is the place that the seat is in the ring of a training.
func (at seat) ring(m *trainMsg) ring.Config {
	cfg := ring.Config{
		Rank: at.rank, World: at.world, Epoch: at.epoch, Backend: m.Task.Backend, PlaintextCollectives: m.Task.Plaintext,
		Fingerprint: fmt.Sprintf("%s %s", m.Task.Trial, m.Task.Config.Arch),
	}
	// Where all ranks have a GPU, backend auto is NCCL, if all have that too.
	if m.On.CUDA && (cfg.Backend == ring.NCCL || !slice()) {
		cfg.GPU = &ring.GPU{Ordinal: 0} // CUDA_VISIBLE_DEVICES leaves the child this one
	}
	return cfg
}

// next asks the host for the ring that follows a lost one.
func (c *child) next(ctx context.Context, run *running, lost uint64, cause error) (seat, error) {
	if err := c.send(&rejoinMsg{Epoch: lost, Failure: actors.FailureOf(cause)}); err != nil {
		return seat{}, err
	}
	select {
	case m := <-run.next:
		return seat{m.Rank, m.World, m.Epoch}, m.Failure.Err()
	case <-ctx.Done():
		return seat{}, context.Cause(ctx)
	}
}

// join forms the ring of an epoch with the other ranks' processes.
func (c *child) join(ctx context.Context, run *running, m *trainMsg, at seat) (train.Place, error) {
	p := train.Place{Rank: at.rank, World: at.world}
	if at.world <= 1 {
		return p, nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if err := run.enter(at.epoch, cancel); err != nil {
		return p, err
	}
	cfg := at.ring(m)
	cfg.Rendezvous = &asking{c, run}
	comm, err := m.Relay.form(ctx, cfg)
	if err != nil {
		return p, err
	}
	if err := run.formed(at.epoch, comm); err != nil {
		return p, err
	}
	p.Ring = comm
	return p, nil
}

// slice tells whether this process's GPU is a slice of one (MIG): NCCL refuses ranks
// on slices of the same GPU, so that only who asks for it gets it.
func slice() bool { return strings.HasPrefix(os.Getenv("CUDA_VISIBLE_DEVICES"), "MIG-") }

// enter notes that a ring forms; it fails where the ring has ended already.
func (r *running) enter(epoch uint64, cancel context.CancelCauseFunc) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.mu.aborted[epoch]; err != nil {
		return err
	}
	r.mu.rings[epoch] = &place{cancel: cancel}
	return nil
}

func (r *running) formed(epoch uint64, comm *ring.Comm) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.rings[epoch].comm = comm
	if err := r.mu.aborted[epoch]; err != nil {
		comm.Abort(err)
		return err
	}
	return nil
}

// abort ends a ring for this rank, whether it stands, forms or is yet to come.
func (r *running) abort(epoch uint64, why error) {
	if why == nil {
		why = errors.New("aborted")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.aborted[epoch] = why
	switch p := r.mu.rings[epoch]; {
	case p == nil:
	case p.comm != nil:
		p.comm.Abort(why)
	default:
		p.cancel(why)
	}
}

// over tells whether the ring of an epoch has ended.
func (r *running) over(epoch uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.aborted[epoch] != nil
}

// leave closes the rings that this run was in.
func (r *running) leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for epoch, p := range r.mu.rings {
		if p.comm != nil {
			_ = p.comm.Close()
		}
		delete(r.mu.rings, epoch)
	}
}

// asking is the Rendezvous that asks the host.
type asking struct {
	c   *child
	run *running
}

// Join implements ring.Rendezvous.
func (a *asking) Join(ctx context.Context, rank, world int, epoch uint64, card []byte) ([][]byte, error) {
	if err := a.c.send(&cardMsg{Rank: rank, World: world, Epoch: epoch, Card: card}); err != nil {
		return nil, err
	}
	for {
		select {
		case m := <-a.run.cards:
			if m.Epoch != epoch {
				continue // of a ring that is over
			}
			return m.Cards, m.Failure.Err()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
