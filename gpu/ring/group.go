package ring

import (
	"fmt"
	"sync"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// Group is a ring of world ranks inside one process. Its methods are safe for
// concurrent use; each Member belongs to one goroutine.
type Group struct {
	world int
	epoch uint64

	mu struct {
		sync.Mutex
		rounds map[int]*round // by position in the members' common order
		err    error
		abort  chan struct{} // closed when err is set
	}
}

// round is one bucket's sum. The world's last arrival finds all buffers there;
// then every rank sums its own share of the elements and copies it to the
// others.
type round struct {
	bucket  int
	bufs    []Buffer
	arrived int
	full    chan struct{} // all buffers are there
	left    int           // shares not summed yet
	done    chan struct{} // all shares are summed
}

// NewGroup makes a ring of world ranks. The epoch stands in errors, so that
// reports of an older ring can be told apart.
func NewGroup(world int, epoch uint64) *Group {
	g := &Group{world: world, epoch: epoch}
	g.mu.rounds = map[int]*round{}
	g.mu.abort = make(chan struct{})
	return g
}

// Rank gives rank r's member, 0 ≤ r < world.
func (g *Group) Rank(r int) *Member { return &Member{group: g, rank: r} }

// Abort ends the ring: every Wait, running or to come, returns the first reason.
func (g *Group) Abort(reason error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.err == nil {
		g.mu.err = fmt.Errorf("ring epoch %d: %w", g.epoch, reason)
		close(g.mu.abort)
	}
}

func (g *Group) err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.err
}

// join puts a buffer into its round.
func (g *Group) join(seq, rank, bucket int, b Buffer) (*round, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.err != nil {
		return nil, g.mu.err
	}
	r := g.mu.rounds[seq]
	if r == nil {
		r = &round{bucket: bucket, bufs: make([]Buffer, g.world), full: make(chan struct{}), left: g.world, done: make(chan struct{})}
		g.mu.rounds[seq] = r
	}
	if r.bucket != bucket {
		return nil, fmt.Errorf("rank %d reduces bucket %d where another rank reduces %d", rank, bucket, r.bucket)
	}
	for _, other := range r.bufs {
		if other.Data != nil && len(other.Data) != len(b.Data) {
			return nil, fmt.Errorf("rank %d brings %d elements to bucket %d, another rank %d", rank, len(b.Data), bucket, len(other.Data))
		}
	}
	r.bufs[rank] = b
	if r.arrived++; r.arrived == g.world {
		close(r.full)
		delete(g.mu.rounds, seq)
	}
	return r, nil
}

func (g *Group) finish(r *round) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.left--; r.left == 0 {
		close(r.done)
	}
}

// Member is one rank's end of the ring. It is owned by one goroutine.
type Member struct {
	group   *Group
	rank    int
	seq     int
	pending []*round
	err     error
}

// Rank is the member's number.
func (m *Member) Rank() int { return m.rank }

// World is the number of ranks.
func (m *Member) World() int { return m.group.world }

// Reduce hands a bucket over. It does not block; errors show at Wait.
func (m *Member) Reduce(bucket int, b Buffer) {
	if m.err != nil {
		return
	}
	r, err := m.group.join(m.seq, m.rank, bucket, b)
	if err != nil {
		m.err = err
		m.group.Abort(err)
		return
	}
	m.seq++
	m.pending = append(m.pending, r)
}

// Wait blocks until every bucket handed over is summed on every rank, or the
// ring is aborted.
func (m *Member) Wait() error {
	if m.err == nil {
		for _, r := range m.pending {
			if m.err = m.sum(r); m.err != nil {
				break
			}
		}
	}
	if m.err == nil {
		for _, r := range m.pending {
			select {
			case <-r.done:
			case <-m.group.mu.abort:
				m.err = m.group.err()
			}
			if m.err != nil {
				break
			}
		}
	}
	m.pending = m.pending[:0]
	return m.err
}

// sum adds this rank's share of the bucket over all ranks, in rank order, and
// writes it back to all.
func (m *Member) sum(r *round) error {
	select {
	case <-r.full:
	case <-m.group.mu.abort:
		return m.group.err()
	}
	world := m.group.world
	n := len(r.bufs[0].Data)
	chunk := ((n+world-1)/world + 15) &^ 15
	lo, hi := min(m.rank*chunk, n), min((m.rank+1)*chunk, n)
	// Pieces that stay in cache while they are added and copied out.
	const piece = 16 << 10
	for ; lo < hi; lo += piece {
		end := min(lo+piece, hi)
		acc := r.bufs[0].Data[lo:end]
		for _, b := range r.bufs[1:] {
			kernel.Add(acc, b.Data[lo:end])
		}
		for _, b := range r.bufs[1:] {
			copy(b.Data[lo:end], acc)
		}
	}
	m.group.finish(r)
	return nil
}
