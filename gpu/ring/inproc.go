package ring

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
	"unsafe"
)

// InProcess is the backend of a Group whose ranks share memory without more ado.
const InProcess = "inproc"

// Group is a ring of ranks that are goroutines, of one process or of several. Its
// methods are safe for concurrent use.
type Group struct {
	world   int
	epoch   uint64
	backend string
	stop    *stopper

	// Of InProcess.
	mem  []byte
	bufs [][2][]byte // by rank and parity of the operation

	// Of the others.
	over GroupConfig
	meet Rendezvous
	mu   sync.Mutex
	ends []*Comm
}

// GroupConfig is of a Group some of whose ranks are other processes'.
type GroupConfig struct {
	Backend    string // see Config
	World      int
	Epoch      uint64
	Rendezvous Rendezvous                // nil: the ranks, or who speaks for them, meet here, by Meet
	Endpoint   func() (*Endpoint, error) // for each rank of this process, which closes it; nil is one of loopback
	Suspect    time.Duration             // see Config
	Plaintext  bool                      // see Config.PlaintextCollectives
}

// NewGroupAcross makes a ring that has some of its ranks in this process.
func NewGroupAcross(cfg GroupConfig) *Group {
	g := &Group{world: cfg.World, epoch: cfg.Epoch, backend: cfg.Backend, stop: newStopper(), over: cfg, meet: cfg.Rendezvous}
	if g.backend == "" {
		g.backend = Auto
	}
	if g.meet == nil {
		g.meet = new(Meeting)
	}
	return g
}

// NewGroup makes a ring of world ranks in this process.
func NewGroup(world int, epoch uint64) *Group {
	mem := make([]byte, boardSize(world, false)+128)
	if off := uintptr(unsafe.Pointer(&mem[0])) & 127; off != 0 {
		mem = mem[128-off:]
	}
	return &Group{world: world, epoch: epoch, backend: InProcess, stop: newStopper(), mem: mem, bufs: make([][2][]byte, world), meet: new(Meeting)}
}

// NewGroupOver is NewGroup by another backend: the ranks join as processes would.
// Auto and "" are InProcess. It opens what the backend needs, on loopback only.
func NewGroupOver(backend string, world int, epoch uint64) *Group {
	if backend == InProcess || backend == Auto || backend == "" {
		return NewGroup(world, epoch)
	}
	return NewGroupAcross(GroupConfig{Backend: backend, World: world, Epoch: epoch, Suspect: time.Minute}) // they live and die together
}

// Join gives rank r's end, 0 ≤ r < world, once for each rank; close it when it is
// no longer needed. By other backends than InProcess it returns when all ranks
// have called it.
func (g *Group) Join(ctx context.Context, r int) (*Comm, error) {
	if g.backend == InProcess {
		return g.Rank(r), nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-g.stop.done:
			cancel(g.stop.reason())
		case <-ctx.Done():
		}
	}()
	cfg := Config{
		Rank: r, World: g.world, Epoch: g.epoch, Backend: g.backend, Rendezvous: g.meet, Suspect: g.over.Suspect,
		PlaintextCollectives: g.over.Plaintext,
	}
	if g.over.Endpoint != nil {
		var err error
		if cfg.Endpoint, err = g.over.Endpoint(); err != nil {
			return nil, err
		}
		cfg.OwnEndpoint = true
	}
	c, err := Form(ctx, cfg)
	if err != nil {
		g.stop.stop(err)
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if reason := g.stop.reason(); reason != nil {
		return nil, errors.Join(reason, c.Close())
	}
	g.ends = append(g.ends, c)
	return c, nil
}

// Rank gives rank r's end of an InProcess ring, 0 ≤ r < world, once for each rank.
func (g *Group) Rank(r int) *Comm {
	t := &local{group: g, board: newBoard(g.mem, r, g.world, false, DefaultTimeout, g.stop)}
	t.board.reach = func(r int, h *head, _ int) []byte { return g.bufs[r][h.seq&1] }
	c := newComm(r, g.world, g.epoch, t, g.stop, false)
	c.backend = InProcess
	return c
}

// Abort ends the ring: every operation, running or to come, returns the first
// reason.
func (g *Group) Abort(reason error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.stop.stop(reason) {
		for _, c := range g.ends {
			c.Abort(reason)
		}
	}
}

// Done is closed when the ring has been aborted; Err then says why.
func (g *Group) Done() <-chan struct{} { return g.stop.done }

// Err is the reason of Abort, nil before.
func (g *Group) Err() error { return g.stop.reason() }

// Meet is the rendezvous of ranks that are processes of their own: who speaks for
// one of them hands its card in and gets all cards. Abort ends it.
func (g *Group) Meet(ctx context.Context, rank int, card []byte) ([][]byte, error) {
	if rank < 0 || rank >= g.world {
		return nil, fmt.Errorf("rank %d of a world of %d", rank, g.world)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-g.stop.done:
			cancel(g.stop.reason())
		case <-ctx.Done():
		}
	}()
	return g.meet.Join(ctx, rank, g.world, g.epoch, card)
}

// local is the in-process transport.
type local struct {
	group *Group
	board *board
}

// Do implements Transport.
func (t *local) Do(op *Op) error {
	t.group.bufs[t.board.rank][op.Seq&1] = op.Data
	return t.board.do(op, 0, 0)
}

// Abort implements Transport.
func (t *local) Abort(reason error) { t.group.Abort(reason) }

// Close implements Transport.
func (t *local) Close() error { return nil }
