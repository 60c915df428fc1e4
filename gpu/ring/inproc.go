package ring

import (
	"unsafe"
)

// Group is a ring whose ranks are goroutines of one process. Its methods are
// safe for concurrent use.
type Group struct {
	world int
	epoch uint64
	stop  *stopper
	mem   []byte
	bufs  [][2][]byte // by rank and parity of the operation
}

// NewGroup makes a ring of world ranks in this process.
func NewGroup(world int, epoch uint64) *Group {
	mem := make([]byte, boardSize(world, false)+128)
	if off := uintptr(unsafe.Pointer(&mem[0])) & 127; off != 0 {
		mem = mem[128-off:]
	}
	return &Group{world: world, epoch: epoch, stop: newStopper(), mem: mem, bufs: make([][2][]byte, world)}
}

// Rank gives rank r's end, 0 ≤ r < world. It is called once for each rank.
func (g *Group) Rank(r int) *Comm {
	t := &local{group: g, board: newBoard(g.mem, r, g.world, false, DefaultTimeout, g.stop)}
	t.board.reach = func(r int, h *head, _ int) []byte { return g.bufs[r][h.seq&1] }
	return newComm(r, g.world, g.epoch, t, g.stop, DefaultTimeout, false)
}

// Abort ends the ring: every operation, running or to come, returns the first
// reason.
func (g *Group) Abort(reason error) { g.stop.stop(reason) }

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
