package ring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// hierarchy is the transport over several hosts: shared memory inside each, or for
// buffers on GPUs NCCL (onGPUs), and a connection between the first ranks of
// neighbouring ones.
//
//	host 0: ranks 0 1 2      host 1: ranks 3 4      host 2: rank 5
//	        [shm]  ──── partial sums ──▶ [shm] ──── partial sums ──▶
//	               ◀──── totals ────────       ◀──── totals ────────
//
// A sum goes down the chain of hosts and its total comes back up, in pieces, so
// that all hosts work at once. Each link carries the buffer once a direction, as
// much as a ring of the hosts would; a host adds its ranks to what comes from
// above in their order, in float32. So the bits are those of every other transport
// where the ranks of each host are consecutive; where they are not, the sum is
// taken host by host, and is still the same on all ranks. What comes late by this
// is the latency: two messages a host.
type hierarchy struct {
	rank, world int
	hosts       [][]int
	host        int   // of this rank
	mine        []int // ranks of this host
	mesh        *mesh
	stop        *stopper
	timeout     time.Duration
	local       *shared // nil where the rank is alone
	gpus        *onGPUs // nil where buffers are in host memory alone
	seq         uint32  // of the local operations
	up, down    *link   // of the first rank of a host; nil at the ends
	piece       int     // the longest, in elements
	wide        [][]float32

	running sync.Mutex // held by Do and alloc, so that Close frees nothing under them
	closed  bool
	wg      sync.WaitGroup
}

// relayPiece is the longest that a sum's pieces are, in elements.
const relayPiece = 256 << 10

// pieceOf is how long the pieces of a sum of n elements are: sixteen or more, so
// that both directions of each link are busy, unless that makes them so short that
// what is done for each counts.
func (t *hierarchy) pieceOf(n int) int {
	return min(t.piece, max(16<<10, (n/16+1023)&^1023))
}

// relay is a rank's connections to the neighbouring hosts' first ranks.
type relay struct {
	up, down     int // their numbers; -1 is none
	toUp, toDown net.Conn
}

func (r *relay) close() {
	for _, c := range []net.Conn{r.toUp, r.toDown} {
		if c != nil {
			c.Close()
		}
	}
}

// neighbours are the ranks that a rank exchanges sums with; -1 is none.
func neighbours(hosts [][]int, rank int) (up, down int) {
	up, down = -1, -1
	for i, ranks := range hosts {
		if ranks[0] != rank {
			continue
		}
		if i > 0 {
			up = hosts[i-1][0]
		}
		if i+1 < len(hosts) {
			down = hosts[i+1][0]
		}
	}
	return up, down
}

func newHierarchy(ctx context.Context, m *mesh, hosts [][]int, gpus bool, l *links, stop *stopper, cfg *Config) (*hierarchy, error) {
	t := &hierarchy{rank: cfg.Rank, world: cfg.World, hosts: hosts, mesh: m, stop: stop, timeout: cfg.Timeout, piece: relayPiece}
	for i, ranks := range hosts {
		for _, r := range ranks {
			if r == cfg.Rank {
				t.host, t.mine = i, ranks
			}
		}
	}
	if len(t.mine) > 1 {
		var err error
		if t.local, err = newShared(m, t.mine, true, stop, cfg); err != nil {
			return nil, err
		}
		t.local.board.end = m.abort // the other hosts don't see the board
		// Most waits are for the network, and long.
		t.local.board.spin = min(t.local.board.spin, 1000)
	}
	if gpus {
		var err error
		if t.gpus, err = newOnGPUs(ctx, t, cfg); err != nil {
			if t.local != nil {
				err = errors.Join(err, t.local.unmap())
			}
			return nil, err
		}
	}
	if l.relay.toUp != nil {
		t.up = newLink(l.relay.up, l.relay.toUp, t)
	}
	if l.relay.toDown != nil {
		t.down = newLink(l.relay.down, l.relay.toDown, t)
	}
	return t, nil
}

// Do implements Transport.
func (t *hierarchy) Do(op *Op) error {
	t.running.Lock()
	defer t.running.Unlock()
	if t.stop.flag.Load() {
		return t.stop.reason()
	}
	err := t.check(op)
	if err == nil {
		switch {
		case op.onDevice():
			err = t.gpus.do(op)
		case op.Kind.sums(), op.Kind == Barrier:
			err = t.sum(op, t.gatherPiece, t.totalPiece)
		default:
			err = t.spread(op)
		}
	}
	for _, l := range []*link{t.up, t.down} {
		if err == nil && l != nil {
			err = l.flush(op)
		}
	}
	if err != nil {
		t.mesh.abort(err)
		return t.stop.reason()
	}
	return nil
}

// check compares the operation inside the host; between hosts every message says
// what it is of.
func (t *hierarchy) check(op *Op) error {
	if t.local == nil {
		return nil
	}
	t.seq++
	o := *op
	o.Seq = t.seq
	b := t.local.board
	if err := b.check(&o); err != nil {
		return err
	}
	for r := range b.lanes {
		if h := &b.lanes[r].heads[o.Seq&1]; h.device != op.onDevice() {
			where := map[bool]string{true: "on its GPU", false: "in host memory"}
			return fmt.Errorf("%w in operation %d: rank %d brings a buffer %s to bucket %d, rank %d one %s",
				ErrOutOfStep, op.Seq, b.name(r), where[h.device], op.Bucket, t.rank, where[op.onDevice()])
		}
	}
	return nil
}

// inside carries out a part of an operation between the ranks of this host.
func (t *hierarchy) inside(kind Kind, dt DType, root int, b []byte, op *Op) error {
	if t.local == nil {
		return nil
	}
	t.seq++
	return t.local.Do(&Op{Kind: kind, DType: dt, Root: int32(root), Bucket: op.Bucket, Seq: t.seq, Data: b})
}

// sum is AllReduce, ReduceScatter and Barrier, in pieces from byte lo to hi of the
// buffer: gather sends a piece's sum so far on, total brings the total.
func (t *hierarchy) sum(op *Op, gather func(op *Op, lo, hi, slot int) error, total func(op *Op, lo, hi, slot int) error) error {
	size := op.DType.Size()
	n := op.Bytes() / size
	piece := t.pieceOf(n)
	pieces := max(1, (n+piece-1)/piece)
	// Totals lag so far behind partial sums that all hosts are busy.
	lag := len(t.hosts) + 1
	for k := range pieces + lag {
		if k < pieces {
			if err := gather(op, k*piece*size, min((k+1)*piece, n)*size, k%(lag+1)); err != nil {
				return err
			}
		}
		if k < lag || t.last() {
			continue
		}
		if err := total(op, (k-lag)*piece*size, min((k-lag+1)*piece, n)*size, (k-lag)%(lag+1)); err != nil {
			return err
		}
	}
	return nil
}

// last tells whether sums are whole on this host, behind all others.
func (t *hierarchy) last() bool { return t.host == len(t.hosts)-1 }

// gatherPiece adds this host's ranks to the sum that comes from above, and sends
// it on: down, or from the last host back up as the total.
func (t *hierarchy) gatherPiece(op *Op, lo, hi, slot int) error {
	b := op.Data[lo:hi]
	acc := t.widen(op.DType, b, slot)
	raw := Buffer{Data: acc}.bytes()
	if t.up != nil {
		above := t.wideOf(len(t.hosts) + 2)[:len(acc)]
		if err := t.up.read(op, contribution, lo, Buffer{Data: above}.bytes()); err != nil {
			return err
		}
		kernel.Add(acc, above)
	}
	if err := t.inside(AllReduce, F32, 0, raw, op); err != nil {
		return err
	}
	if !t.last() {
		if t.down != nil {
			return t.down.write(op, contribution, lo, raw)
		}
		return nil
	}
	narrow(op.DType, b, acc)
	if t.up != nil {
		return t.up.write(op, result, lo, b)
	}
	return nil
}

// totalPiece brings the total from below to this host's ranks and up.
func (t *hierarchy) totalPiece(op *Op, lo, hi, _ int) error {
	b := op.Data[lo:hi]
	if t.down != nil {
		if err := t.down.read(op, result, lo, b); err != nil {
			return err
		}
	}
	if t.up != nil {
		if err := t.up.write(op, result, lo, b); err != nil {
			return err
		}
	}
	return t.inside(Broadcast, op.DType, 0, b, op)
}

// widen is a piece in float32: itself, or in the room of its slot.
func (t *hierarchy) widen(dt DType, b []byte, slot int) []float32 {
	if dt == F32 {
		return floats(b)
	}
	acc := t.wideOf(slot)[:len(b)/2]
	if dt == BF16 {
		kernel.DecodeBF16(acc, halves(b))
	} else {
		kernel.DecodeF16(acc, halves(b))
	}
	return acc
}

// narrow rounds what widen gave.
func narrow(dt DType, b []byte, acc []float32) {
	switch dt {
	case BF16:
		kernel.EncodeBF16(halves(b), acc)
	case F16:
		kernel.EncodeF16(halves(b), acc)
	}
}

// wideOf is room for a piece in float32. A piece that is on its way keeps its own
// until its total has come back.
func (t *hierarchy) wideOf(slot int) []float32 {
	for len(t.wide) <= slot {
		t.wide = append(t.wide, nil)
	}
	if t.wide[slot] == nil {
		t.wide[slot] = make([]float32, t.piece)
	}
	return t.wide[slot]
}

// spread is AllGather and Broadcast: what ranks bring goes from host to host, down
// and up, whole.
func (t *hierarchy) spread(op *Op) error {
	for i, r := range t.mine {
		if lo, hi := op.share(r, t.world); lo < hi {
			if err := t.inside(Broadcast, op.DType, i, op.Data[lo:hi], op); err != nil {
				return err
			}
		}
	}
	if err := t.exchange(op, op.Data); err != nil {
		return err
	}
	for _, p := range t.parts(op, func(h int) bool { return h != t.host }) {
		if err := t.inside(Broadcast, op.DType, 0, op.Data[p.lo:p.hi], op); err != nil {
			return err
		}
	}
	return nil
}

// part is a range of an operation's bytes.
type part struct{ lo, hi int }

// parts are what the ranks of those hosts bring, in rank order.
func (t *hierarchy) parts(op *Op, of func(host int) bool) (out []part) {
	at := make([]int, t.world) // host by rank
	for i, ranks := range t.hosts {
		for _, r := range ranks {
			at[r] = i
		}
	}
	for r := range t.world {
		if lo, hi := op.share(r, t.world); lo < hi && of(at[r]) {
			out = append(out, part{lo, hi})
		}
	}
	return out
}

// exchange completes the operation's bytes, of which this host has its ranks', on the
// first rank of each host.
func (t *hierarchy) exchange(op *Op, b []byte) error {
	of := func(is func(host int) bool) (out [][]byte) {
		for _, p := range t.parts(op, is) {
			out = append(out, b[p.lo:p.hi])
		}
		return out
	}
	if t.up != nil {
		if err := t.up.read(op, contribution, 0, of(func(h int) bool { return h < t.host })...); err != nil {
			return err
		}
	}
	if t.down != nil {
		if err := t.down.write(op, contribution, 0, of(func(h int) bool { return h <= t.host })...); err != nil {
			return err
		}
		if err := t.down.read(op, result, 0, of(func(h int) bool { return h > t.host })...); err != nil {
			return err
		}
	}
	if t.up != nil {
		return t.up.write(op, result, 0, of(func(h int) bool { return h >= t.host })...)
	}
	return nil
}

// alloc implements allocator: memory that the host's ranks share.
func (t *hierarchy) alloc(bytes int, _ uint32) ([]byte, error) {
	if t.local == nil {
		return Buffer{Data: make([]float32, (bytes+3)/4)}.bytes()[:bytes:bytes], nil
	}
	t.running.Lock()
	defer t.running.Unlock()
	t.seq++
	o := Op{Kind: Barrier, Seq: t.seq}
	if err := t.local.board.check(&o); err != nil { // the number is the arena's
		return nil, err
	}
	return t.local.alloc(bytes, t.seq)
}

// Abort implements Transport.
func (t *hierarchy) Abort(reason error) { t.mesh.abort(reason) }

// Close implements Transport.
func (t *hierarchy) Close() error {
	err := t.gpus.depart()
	err = errors.Join(err, t.mesh.close()) // what runs returns
	t.running.Lock()
	defer t.running.Unlock()
	if t.closed {
		return err
	}
	t.closed = true
	err = errors.Join(err, t.gpus.free(false))
	for _, l := range []*link{t.up, t.down} {
		if l != nil {
			l.conn.Close()
			close(l.queue)
		}
	}
	t.wg.Wait()
	if t.local != nil {
		err = errors.Join(err, t.local.Close())
	}
	return err
}

// link is a connection to a neighbouring host. The goroutine in Do reads it; one
// of its own writes, so that a sum goes on while a piece is sent.
type link struct {
	peer    int
	conn    net.Conn
	t       *hierarchy
	queue   chan parcel
	pending sync.WaitGroup

	mu  sync.Mutex
	err error
}

// parcel is a message and its payload.
type parcel struct {
	head [messageSize]byte
	body [][]byte
}

func newLink(peer int, conn net.Conn, t *hierarchy) *link {
	l := &link{peer: peer, conn: conn, t: t, queue: make(chan parcel, 64)}
	t.wg.Go(l.send)
	t.wg.Go(func() {
		<-t.stop.done
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	return l
}

// within gives what follows its bound. After the ring's end there is none left.
func (l *link) within(set func(time.Time) error) error {
	if err := set(time.Now().Add(l.t.timeout)); err != nil {
		return err
	}
	if l.t.stop.flag.Load() {
		return l.t.stop.reason()
	}
	return nil
}

func (l *link) send() {
	for p := range l.queue {
		l.mu.Lock()
		err := l.err
		l.mu.Unlock()
		if err == nil {
			bufs := append(net.Buffers{p.head[:]}, p.body...)
			if err = l.within(l.conn.SetWriteDeadline); err == nil {
				_, err = bufs.WriteTo(l.conn)
			}
			if err != nil {
				l.mu.Lock()
				l.err = err
				l.mu.Unlock()
			}
		}
		l.pending.Done()
	}
}

// write hands a message over to be sent; its payload must stay as it is until
// flush, or until the other side has answered to it.
func (l *link) write(op *Op, what byte, at int, body ...[]byte) error {
	m := message{what: what, kind: op.Kind, dtype: op.DType, seq: op.Seq, root: op.Root, bucket: op.Bucket, bytes: uint64(op.Bytes()), offset: uint64(at)}
	for _, b := range body {
		m.length += uint64(len(b))
	}
	p := parcel{body: body}
	m.put(p.head[:])
	l.pending.Add(1)
	select {
	case l.queue <- p:
		return nil
	case <-l.t.stop.done:
		l.pending.Done()
		return l.t.stop.reason()
	}
}

// flush waits until all is sent: as long as one write may take.
func (l *link) flush(op *Op) error {
	l.pending.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.broken(op, l.err)
}

// read takes the next message, which has to be that one.
func (l *link) read(op *Op, what byte, at int, body ...[]byte) error {
	var head [messageSize]byte
	err := l.within(l.conn.SetReadDeadline)
	if err == nil {
		_, err = io.ReadFull(l.conn, head[:])
	}
	if err != nil {
		return l.broken(op, err)
	}
	var m message
	m.parse(head[:])
	if m.seq != op.Seq {
		return fmt.Errorf("%w: rank %d sends operation %d where rank %d is at %d", ErrOutOfStep, l.peer, m.seq, l.t.rank, op.Seq)
	}
	if err := op.differ(l.t.rank, l.peer, m.kind, m.dtype, m.root, m.bucket, m.bytes); err != nil {
		return err
	}
	length := 0
	for _, b := range body {
		length += len(b)
	}
	if m.what != what || m.offset != uint64(at) || m.length != uint64(length) {
		return fmt.Errorf("%w: rank %d sends a message %q of %d bytes at %d that operation %d (%s of %d bytes) has no place for",
			ErrOutOfStep, l.peer, m.what, m.length, m.offset, op.Seq, op.Kind, op.Bytes())
	}
	for _, b := range body {
		if _, err := io.ReadFull(l.conn, b); err != nil {
			return l.broken(op, err)
		}
	}
	return nil
}

// broken turns an error of the connection into the loss of its rank.
func (l *link) broken(op *Op, err error) error {
	if err == nil {
		return nil
	}
	// Whoever hangs up tells why before, on its control connection.
	if !l.t.mesh.left(l.peer) {
		l.t.stop.ended()
	}
	if l.t.stop.flag.Load() {
		return l.t.stop.reason()
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: rank %d did not come to operation %d (%s, bucket %d) within %s", ErrTimeout, l.peer, op.Seq, op.Kind, op.Bucket, l.t.timeout)
	case l.t.mesh.left(l.peer):
		return &LostError{Rank: l.peer, Why: fmt.Sprintf("it left before operation %d (%s, bucket %d) was over", op.Seq, op.Kind, op.Bucket)}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return &LostError{Rank: l.peer, Why: "its process ended or its connection broke"}
	}
	return &LostError{Rank: l.peer, Why: "its connection broke: " + err.Error()}
}
