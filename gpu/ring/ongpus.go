package ring

import (
	"context"
	"errors"
	"fmt"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// onGPUs is what a hierarchy does with buffers on GPUs: NCCL sums and copies between
// those of a host, and what goes to other hosts passes through the host memory of
// the host's first rank.
//
//	host 0: GPUs 0 1 2            host 1: GPUs 3 4
//	        [nccl] ▶ host memory ─── partial sums ──▶ + ◀ [nccl]
//	        [nccl] ◀ host memory ◀── totals ────────────▶ [nccl]
//
// A host's sum is NCCL's, in its order; the hosts' sums are added in float32, from
// the first host to the last, and the total is made once: so all ranks hold the
// same bits, though not those of the other transports. Operations are compared
// before, on the host's board: NCCL is called only where all of its ranks call.
type onGPUs struct {
	t      *hierarchy
	lib    Stager // nil once it was freed
	failed bool   // an operation of it has not ended well
	slots  [][]byte
	whole  []byte // of an operation that does not go in pieces
}

func newOnGPUs(ctx context.Context, t *hierarchy, cfg *Config) (*onGPUs, error) {
	l, _ := library(NCCL)
	c, err := l.join(ctx, t.mine, t.mesh, t.stop, cfg)
	if err != nil {
		return nil, err
	}
	lib, ok := c.(Stager)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s moves nothing to host memory", NCCL), c.Close(true))
	}
	return &onGPUs{t: t, lib: lib}, nil
}

// first tells whether this rank speaks for its host.
func (g *onGPUs) first() bool { return g.t.rank == g.t.mine[0] }

// do carries an operation out. The hierarchy's lock is held.
func (g *onGPUs) do(op *Op) error {
	if g.lib == nil {
		return ErrClosed
	}
	if op.Kind.sums() {
		return g.t.sum(op, g.gather, g.total)
	}
	return g.spread(op)
}

// between has NCCL carry out a part of an operation between the host's ranks.
func (g *onGPUs) between(kind Kind, op *Op, root, lo, hi int) error {
	return g.seen(op, g.lib.Do(&Op{
		Kind: kind, DType: op.DType, Root: int32(root), Bucket: op.Bucket, Seq: op.Seq,
		Device: op.Device + uintptr(lo), DeviceBytes: hi - lo, Stream: op.Stream,
	}))
}

func (g *onGPUs) toHost(op *Op, b []byte, lo int) error {
	return g.seen(op, g.lib.ToHost(b, op.Device+uintptr(lo)))
}

func (g *onGPUs) toDevice(op *Op, lo int, b []byte) error {
	return g.seen(op, g.lib.ToDevice(op.Device+uintptr(lo), b))
}

// seen gives an error of the library its place. That often comes before it is known
// which rank is gone.
func (g *onGPUs) seen(op *Op, err error) error {
	if err == nil {
		return nil
	}
	g.failed = true
	if !errors.Is(err, ErrTimeout) {
		g.t.stop.ended()
	}
	return fmt.Errorf("operation %d (%s, bucket %d): %w", op.Seq, op.Kind, op.Bucket, err)
}

// gather is the hierarchy's gatherPiece.
func (g *onGPUs) gather(op *Op, lo, hi, slot int) error {
	t := g.t
	if err := g.between(AllReduce, op, 0, lo, hi); err != nil || len(t.hosts) == 1 {
		return err
	}
	if g.first() {
		if err := g.pass(op, lo, hi, slot); err != nil {
			return err
		}
	}
	if t.last() {
		return g.between(Broadcast, op, 0, lo, hi)
	}
	return nil
}

// pass adds the host's sum of a piece to what comes from above and sends it on.
func (g *onGPUs) pass(op *Op, lo, hi, slot int) error {
	t := g.t
	var above []float32
	if t.up != nil {
		above = t.wideOf(len(t.hosts) + 2)[:(hi-lo)/op.DType.Size()]
		if err := t.up.read(op, contribution, lo, Buffer{Data: above}.bytes()); err != nil {
			return err
		}
	}
	// What went up from this slot has come there: the host above reads it before it
	// sends the piece that was just read.
	b := g.slotOf(slot)[:hi-lo]
	if err := g.toHost(op, b, lo); err != nil {
		return err
	}
	acc := t.widen(op.DType, b, slot)
	if above != nil {
		kernel.Add(acc, above)
	}
	if !t.last() {
		return t.down.write(op, contribution, lo, Buffer{Data: acc}.bytes())
	}
	narrow(op.DType, b, acc)
	if err := t.up.write(op, result, lo, b); err != nil {
		return err
	}
	return g.toDevice(op, lo, b)
}

// total is the hierarchy's totalPiece.
func (g *onGPUs) total(op *Op, lo, hi, slot int) error {
	t := g.t
	if g.first() {
		b := g.slotOf(slot)[:hi-lo]
		if err := t.down.read(op, result, lo, b); err != nil {
			return err
		}
		if t.up != nil {
			if err := t.up.write(op, result, lo, b); err != nil {
				return err
			}
		}
		if err := g.toDevice(op, lo, b); err != nil {
			return err
		}
	}
	return g.between(Broadcast, op, 0, lo, hi)
}

// slotOf is room for a piece of a sum in host memory.
func (g *onGPUs) slotOf(slot int) []byte {
	for len(g.slots) <= slot {
		g.slots = append(g.slots, nil)
	}
	if g.slots[slot] == nil {
		g.slots[slot] = make([]byte, 4*g.t.piece)
	}
	return g.slots[slot]
}

// spread is AllGather and Broadcast.
func (g *onGPUs) spread(op *Op) error {
	t := g.t
	for i, r := range t.mine {
		if lo, hi := op.share(r, t.world); lo < hi {
			if err := g.between(Broadcast, op, i, lo, hi); err != nil {
				return err
			}
		}
	}
	foreign := t.parts(op, func(h int) bool { return h != t.host })
	if g.first() {
		if len(g.whole) < op.Bytes() {
			g.whole = make([]byte, op.Bytes())
		}
		b := g.whole[:op.Bytes()]
		for _, p := range t.parts(op, func(h int) bool { return h == t.host }) {
			if err := g.toHost(op, b[p.lo:p.hi], p.lo); err != nil {
				return err
			}
		}
		if err := t.exchange(op, b); err != nil {
			return err
		}
		for _, p := range foreign {
			if err := g.toDevice(op, p.lo, b[p.lo:p.hi]); err != nil {
				return err
			}
		}
	}
	for _, p := range foreign {
		if err := g.between(Broadcast, op, 0, p.lo, p.hi); err != nil {
			return err
		}
	}
	return nil
}

// depart frees the library before the goodbye: while all live, it may still talk to
// the others. Where an operation runs in a ring that has not ended, only the goodbye
// ends it.
func (g *onGPUs) depart() error {
	if g == nil {
		return nil
	}
	ended := g.t.stop.flag.Load()
	if ended {
		g.t.running.Lock()
	} else if !g.t.running.TryLock() {
		return nil
	}
	defer g.t.running.Unlock()
	return g.free(!ended && !g.failed)
}

// free gives the library up. The hierarchy's lock is held.
func (g *onGPUs) free(ended bool) error {
	if g == nil || g.lib == nil {
		return nil
	}
	lib := g.lib
	g.lib = nil
	return lib.Close(ended)
}
