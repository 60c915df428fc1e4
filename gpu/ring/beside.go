package ring

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// beside is the transport over a Library. Every rank announces an operation to all
// others and begins it when all have announced the same: so who is out of step or
// never comes is named, and a library that would hang, or end the process, is not
// even called. On one host the ranks announce it on a board in shared memory, which
// takes about a microsecond; over several ones on the mesh, for a message's delay.
// A barrier is nothing else.
//
// Where the library sums in an order of its own the bits are not those of the
// other transports, but they are the same on all ranks.
type beside struct {
	rank    int
	mesh    *mesh
	stop    *stopper
	timeout time.Duration
	halves  bool
	lib     Collectives
	board   *shared // nil where the ranks are on several hosts
	wide    []float32

	running sync.Mutex // held by Do, so that Close frees nothing under it
	failed  bool       // an operation has not ended as it should
	closed  bool
}

func newBeside(ctx context.Context, l Library, m *mesh, cards []card, stop *stopper, cfg *Config) (_ *beside, err error) {
	t := &beside{rank: cfg.Rank, mesh: m, stop: stop, timeout: cfg.Timeout, halves: l.Halves}
	if apart := hosts(cards); len(apart) == 1 && sharing(cards, apart[0]) {
		if t.board, err = newShared(m, apart[0], false, stop, cfg); err != nil {
			return nil, err
		}
		t.board.board.end = m.abort
	}
	ranks := make([]int, cfg.World)
	for r := range ranks {
		ranks[r] = r
	}
	if t.lib, err = l.join(ctx, ranks, m, stop, cfg); err != nil {
		if t.board != nil {
			err = errors.Join(err, t.board.unmap())
		}
		return nil, err
	}
	return t, nil
}

// address is this process's own address as the others see it: of a connection, or where
// those are another process's, as its endpoint tells it.
func (m *mesh) address(e *Endpoint) string {
	for _, p := range m.peers {
		if p == nil {
			continue
		}
		if a, ok := p.conn.LocalAddr().(*net.TCPAddr); ok {
			return a.IP.String()
		}
	}
	at, _, _ := strings.Cut(e.cfg.Advertise, "/")
	if host, _, err := net.SplitHostPort(at); err == nil {
		return host
	}
	return "127.0.0.1" // all are on this host
}

// opHead is an operation as another rank announces it.
//
//	1 kind | 1 dtype | 2 zero | 4 root | 4 bucket | 8 bytes
type opHead struct {
	seq    uint32
	kind   Kind
	dtype  DType
	root   int32
	bucket int32
	bytes  uint64
}

const opHeadSize = 20

func (o *Op) head() string {
	var b [opHeadSize]byte
	b[0], b[1] = byte(o.Kind), byte(o.DType)
	binary.LittleEndian.PutUint32(b[4:], uint32(o.Root))
	binary.LittleEndian.PutUint32(b[8:], uint32(o.Bucket))
	binary.LittleEndian.PutUint64(b[12:], uint64(o.Bytes()))
	return string(b[:])
}

func parseOpHead(seq uint64, text string) (opHead, error) {
	if len(text) != opHeadSize || seq>>32 != 0 {
		return opHead{}, fmt.Errorf("%w: an operation is announced in %d bytes, not in %d", ErrOutOfStep, len(text), opHeadSize)
	}
	b := []byte(text)
	return opHead{
		seq: uint32(seq), kind: Kind(b[0]), dtype: DType(b[1]), root: int32(binary.LittleEndian.Uint32(b[4:])),
		bucket: int32(binary.LittleEndian.Uint32(b[8:])), bytes: binary.LittleEndian.Uint64(b[12:]),
	}, nil
}

// Do implements Transport.
func (t *beside) Do(op *Op) error {
	t.running.Lock()
	defer t.running.Unlock()
	if t.stop.flag.Load() {
		return t.stop.reason()
	}
	if t.closed {
		return ErrClosed
	}
	if err := t.agree(op); err != nil {
		return t.fail(err)
	}
	if op.Kind == Barrier || op.Bytes() == 0 {
		return nil
	}
	if err := t.carry(op); err != nil {
		t.failed = true
		// A library often sees first that a rank is gone; which one comes on the mesh.
		if !errors.Is(err, ErrTimeout) {
			t.stop.ended()
		}
		return t.fail(fmt.Errorf("operation %d (%s, bucket %d): %w", op.Seq, op.Kind, op.Bucket, err))
	}
	return nil
}

func (t *beside) fail(err error) error {
	t.mesh.abort(err)
	return t.stop.reason()
}

// agree announces an operation and waits until all have announced the same.
func (t *beside) agree(op *Op) error {
	if t.board != nil {
		return t.board.board.check(op)
	}
	t.mesh.tellAll(frameOp, uint64(op.Seq), op.head())
	limit := time.NewTimer(t.timeout)
	defer limit.Stop()
	for r, p := range t.mesh.peers {
		if p == nil {
			continue
		}
		select {
		case h, ok := <-p.ops:
			if !ok {
				return t.mesh.departed(r, fmt.Sprintf("came to operation %d (%s, bucket %d)", op.Seq, op.Kind, op.Bucket))
			}
			if h.seq != op.Seq {
				return fmt.Errorf("%w: rank %d announces operation %d where rank %d is at %d", ErrOutOfStep, r, h.seq, t.rank, op.Seq)
			}
			if err := op.differ(t.rank, r, h.kind, h.dtype, h.root, h.bucket, h.bytes); err != nil {
				return err
			}
		case <-t.stop.done:
			return t.stop.reason()
		case <-limit.C:
			return fmt.Errorf("%w: rank %d did not come to operation %d (%s, bucket %d) within %s", ErrTimeout, r, op.Seq, op.Kind, op.Bucket, t.timeout)
		}
	}
	return nil
}

// carry has the library do it.
func (t *beside) carry(op *Op) error {
	if t.halves || op.DType == F32 || !op.Kind.sums() || op.Device != 0 {
		return t.lib.Do(op)
	}
	h := halves(op.Data)
	if cap(t.wide) < len(h) {
		t.wide = make([]float32, len(h))
	}
	w := t.wide[:len(h)]
	wide := *op
	wide.DType, wide.Data = F32, Buffer{Data: w}.bytes()
	decode, encode := kernel.DecodeBF16, kernel.EncodeBF16
	if op.DType == F16 {
		decode, encode = kernel.DecodeF16, kernel.EncodeF16
	}
	decode(w, h)
	if err := t.lib.Do(&wide); err != nil {
		t.wide = nil // the library may still hold it
		return err
	}
	encode(h, w)
	return nil
}

// Abort implements Transport.
func (t *beside) Abort(reason error) { t.mesh.abort(reason) }

// Close implements Transport.
func (t *beside) Close() error {
	// What the library holds is freed before the goodbye: while all live, it may
	// still talk to the others.
	ended := !t.stop.flag.Load()
	if !ended {
		t.running.Lock()
		defer t.running.Unlock()
		return errors.Join(t.free(false), t.mesh.close())
	}
	if t.running.TryLock() {
		err := t.free(!t.failed)
		t.running.Unlock()
		return errors.Join(err, t.mesh.close())
	}
	err := t.mesh.close() // what runs returns
	t.running.Lock()
	defer t.running.Unlock()
	return errors.Join(err, t.free(false))
}

func (t *beside) free(ended bool) error {
	if t.closed {
		return nil
	}
	t.closed = true
	err := t.lib.Close(ended)
	if t.board != nil {
		err = errors.Join(err, t.board.unmap())
	}
	return err
}
