package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sockets is the transport over connections, two for each pair of ranks and
// stream: one a direction. It exchanges directly: every rank sends each other one
// what that one owns, sums what it owns itself, in rank order, and sends the
// result to all. That moves as many bytes as a ring of neighbours does, in two
// steps instead of 2·(world−1), and gives the same bits as shared memory.
//
// What is small goes to all whole, in one message; of more than two ranks through
// rank 0, which takes fewer messages though one delay more. All is read and written
// without blocking by the one goroutine in Do, which spins a little, then
// yields, then polls: a wake-up through the run-time's poller costs more than a
// small message itself.
type sockets struct {
	rank, world int
	peers       []*peer // nil at rank
	mesh        *mesh
	stop        *stopper
	timeout     time.Duration
	spin        int
	inline      int
	piece       int

	op      *Op
	small   bool
	star    bool // a small one goes through rank 0
	summed  bool // … which has made the result
	reduced int  // pieces of this rank's share that are summed
	pieces  int  // … of all
	add     adder
	to      [][]byte
	from    [][]byte
	polls   []unix.PollFd

	running sync.Mutex // held by Do, so that Close frees nothing under it
	closed  bool
}

// inlineBytes is up to where an operation is one message to each rank: it costs
// one delay instead of two, and world−1 times the bytes that are needed.
func inlineBytes(world int) int { return max(4<<10, (256<<10)/world) }

// pieceBytes is the length of a larger operation's messages. Over loopback long
// ones are quickest by far; two of each other rank's wait to be summed.
func pieceBytes(world int) int { return max(64<<10, min(1<<20, (16<<20)/world)) &^ 4095 }

// peer is the connections to one other rank.
type peer struct {
	rank  int
	out   []*outStream
	in    []*inStream
	slots [][]byte // contributions to this rank's share that wait to be summed
	have  []bool   // by slot
	got   int      // bytes of this rank's share received (small: 1 when the message is in)
	want  int
	gotR  int // bytes of the peer's share received
	wantR int
	inl   []byte // a small operation's message
}

// message is what precedes every payload. Every one carries the whole
// description of the operation, so that ranks that are out of step are found at
// the first.
//
//	1 what | 1 kind | 1 dtype | 1 zero | 4 sequence | 4 root | 4 bucket |
//	8 bytes of the operation | 8 offset | 8 length
type message struct {
	what   byte
	kind   Kind
	dtype  DType
	seq    uint32
	root   int32
	bucket int32
	bytes  uint64
	offset uint64
	length uint64
}

const messageSize = 40

// What a message holds.
const (
	whole        = 'w' // a small operation's data, or its share of it
	contribution = 'c' // a piece of the receiver's share
	result       = 'r' // a piece of the sender's share, summed
)

func (m *message) put(b []byte) {
	b[0], b[1], b[2], b[3] = m.what, byte(m.kind), byte(m.dtype), 0
	binary.LittleEndian.PutUint32(b[4:], m.seq)
	binary.LittleEndian.PutUint32(b[8:], uint32(m.root))
	binary.LittleEndian.PutUint32(b[12:], uint32(m.bucket))
	binary.LittleEndian.PutUint64(b[16:], m.bytes)
	binary.LittleEndian.PutUint64(b[24:], m.offset)
	binary.LittleEndian.PutUint64(b[32:], m.length)
}

func (m *message) parse(b []byte) {
	*m = message{
		what: b[0], kind: Kind(b[1]), dtype: DType(b[2]),
		seq: binary.LittleEndian.Uint32(b[4:]), root: int32(binary.LittleEndian.Uint32(b[8:])), bucket: int32(binary.LittleEndian.Uint32(b[12:])),
		bytes: binary.LittleEndian.Uint64(b[16:]), offset: binary.LittleEndian.Uint64(b[24:]), length: binary.LittleEndian.Uint64(b[32:]),
	}
}

// outStream is one connection to write to.
type outStream struct {
	s       stream
	buf     []byte // the message, and a small operation's payload
	sent    int    // of buf and payload
	payload []byte
	active  bool

	nextC, nextR int // next piece to send of the peer's share, and of this rank's
	inlined      bool
}

// inStream is one connection to read from.
type inStream struct {
	s      stream
	buf    []byte // read ahead
	r, w   int
	m      message
	headed bool   // m is parsed
	ready  bool   // … and belongs to the current operation: dst is set
	dst    []byte // where the rest of the payload goes
	slot   int    // of a contribution
}

// newSockets joins ranks over streams: out[r] and in[r] lead to and from rank r.
func newSockets(m *mesh, out, in [][]stream, stop *stopper, cfg *Config) *sockets {
	t := &sockets{rank: cfg.Rank, world: cfg.World, mesh: m, stop: stop, timeout: cfg.Timeout, spin: 300}
	if cfg.World > runtime.NumCPU() {
		t.spin = 2
	}
	t.inline, t.piece = inlineBytes(cfg.World), pieceBytes(cfg.World)
	t.peers = make([]*peer, cfg.World)
	for r := range t.peers {
		if r == cfg.Rank {
			continue
		}
		p := &peer{rank: r, inl: make([]byte, t.inline)}
		for _, s := range out[r] {
			p.out = append(p.out, &outStream{s: s, buf: make([]byte, 0, messageSize+t.inline)})
		}
		for _, s := range in[r] {
			p.in = append(p.in, &inStream{s: s, buf: make([]byte, messageSize+t.inline)})
		}
		p.slots, p.have = make([][]byte, 2*len(p.out)), make([]bool, 2*len(p.out))
		t.peers[r] = p
	}
	return t
}

// Do implements Transport.
func (t *sockets) Do(op *Op) error {
	t.running.Lock()
	defer t.running.Unlock()
	if t.stop.flag.Load() {
		return t.stop.reason()
	}
	t.begin(op)
	idle, waits := 0, 0
	var since time.Time
	for {
		moved, err := t.progress()
		if err != nil {
			t.mesh.abort(err)
			return t.stop.reason()
		}
		if t.complete() {
			return nil
		}
		if moved {
			idle, waits = 0, 0
			continue
		}
		switch idle++; {
		case idle < t.spin:
		case idle < t.spin+20:
			schedYield()
		default:
			if t.stop.flag.Load() {
				return t.stop.reason()
			}
			if waits++; waits == 1 {
				since = time.Now()
			} else if err := t.overdue(since); err != nil {
				t.mesh.abort(err)
				return t.stop.reason()
			}
			t.poll()
		}
	}
}

func (t *sockets) begin(op *Op) {
	t.op, t.small, t.reduced, t.pieces = op, len(op.Data) <= t.inline, 0, 0
	t.star, t.summed = t.small && t.world > 2 && (op.Kind == AllReduce || op.Kind == Barrier), false
	lo, hi := op.share(t.rank, t.world)
	if op.Kind.sums() && !t.small {
		t.pieces = (hi - lo + t.piece - 1) / t.piece
	}
	for _, p := range t.peers {
		if p == nil {
			continue
		}
		p.got, p.want, p.gotR, p.wantR = 0, 0, 0, 0
		plo, phi := op.share(p.rank, t.world)
		switch {
		case t.star && t.rank > 0 && p.rank > 0: // they hear of each other through rank 0
		case t.small:
			p.want = 1
		default:
			if op.Kind.sums() {
				p.want = hi - lo
			}
			if op.Kind.gathers() {
				p.wantR = phi - plo
			}
		}
		clear(p.have)
		for i, o := range p.out {
			o.nextC, o.nextR, o.inlined = i, i, i > 0
		}
	}
}

// complete tells whether this rank's part is done: all is received and summed,
// all is sent.
func (t *sockets) complete() bool {
	for _, p := range t.peers {
		if p == nil {
			continue
		}
		if p.got < p.want || p.gotR < p.wantR {
			return false
		}
		for _, o := range p.out {
			if o.active || t.owes(p, o) {
				return false
			}
		}
	}
	switch {
	case t.star && t.rank > 0:
		copy(t.op.Data, t.peers[0].inl)
	case t.small && !t.summed:
		t.fromInline()
	}
	return t.reduced == t.pieces
}

// owes tells whether a stream has messages to come.
func (t *sockets) owes(p *peer, o *outStream) bool {
	if t.small {
		return !o.inlined && !(t.star && t.rank > 0 && p.rank > 0)
	}
	lo, hi := t.op.share(t.rank, t.world)
	plo, phi := t.op.share(p.rank, t.world)
	return t.op.Kind.gathers() && lo+o.nextR*t.piece < hi || t.op.Kind.sums() && plo+o.nextC*t.piece < phi
}

// fromInline makes the result of a small operation of all ranks' messages.
func (t *sockets) fromInline() {
	op := t.op
	if op.Kind.sums() {
		lo, hi := 0, len(op.Data)
		if op.Kind == ReduceScatter {
			lo, hi = op.share(t.rank, t.world)
		}
		if lo == hi {
			return
		}
		t.from = t.from[:0]
		for r, p := range t.peers {
			if r == t.rank {
				t.from = append(t.from, op.Data[lo:hi])
			} else {
				t.from = append(t.from, p.inl[lo:hi])
			}
		}
		t.to = append(t.to[:0], op.Data[lo:hi])
		t.add.sum(op.DType, t.to, t.from)
		return
	}
	for r, p := range t.peers {
		if r != t.rank {
			lo, hi := op.share(r, t.world)
			copy(op.Data[lo:hi], p.inl[:hi-lo])
		}
	}
}

// progress reads, sums and writes what can be without waiting.
func (t *sockets) progress() (moved bool, err error) {
	for _, p := range t.peers {
		if p == nil {
			continue
		}
		for _, o := range p.out {
			m, err := t.send(p, o)
			if err != nil {
				return false, t.broken(p, err)
			}
			moved = moved || m
		}
		for _, in := range p.in {
			m, err := t.receive(p, in)
			if err != nil {
				return false, t.broken(p, err)
			}
			if m {
				t.mesh.heard(p.rank)
			}
			moved = moved || m
		}
	}
	if t.star && t.rank == 0 && !t.summed && t.allHere() {
		t.fromInline()
		t.summed, moved = true, true
	}
	return t.sumReady() || moved, nil
}

// allHere tells whether every rank's message of a small operation is in.
func (t *sockets) allHere() bool {
	for _, p := range t.peers {
		if p != nil && p.got < p.want {
			return false
		}
	}
	return true
}

// broken turns an error of a connection into the loss of its rank.
func (t *sockets) broken(p *peer, err error) error {
	if errors.Is(err, ErrOutOfStep) {
		return err
	}
	// A rank hangs up when it has lost another one: the reason comes on its control
	// connection.
	select {
	case <-t.stop.done:
		return t.stop.reason()
	case <-time.After(100 * time.Millisecond):
	}
	switch {
	case errors.Is(err, io.EOF) && t.mesh.left(p.rank):
		return &LostError{Rank: p.rank, Why: fmt.Sprintf("it left before operation %d (%s, bucket %d) was over", t.op.Seq, t.op.Kind, t.op.Bucket)}
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return &LostError{Rank: p.rank, Why: "its process ended or its connection broke"}
	}
	return &LostError{Rank: p.rank, Why: "its connection broke: " + err.Error()}
}

// sumReady sums the pieces of this rank's share that all others have sent.
func (t *sockets) sumReady() (moved bool) {
	lo, hi := t.op.share(t.rank, t.world)
	for t.reduced < t.pieces {
		slot := -1
		for _, p := range t.peers {
			if p != nil {
				slot = t.reduced % len(p.slots)
				if !p.have[slot] {
					return moved
				}
			}
		}
		own := t.op.Data[lo+t.reduced*t.piece : min(lo+(t.reduced+1)*t.piece, hi)]
		t.from = t.from[:0]
		for r, p := range t.peers {
			if r == t.rank {
				t.from = append(t.from, own)
			} else {
				t.from = append(t.from, p.slots[slot][:len(own)])
				p.have[slot] = false
			}
		}
		t.to = append(t.to[:0], own)
		t.add.sum(t.op.DType, t.to, t.from)
		t.reduced++
		moved = true
	}
	return moved
}

// next loads a stream with its next message; false when there is none now.
func (t *sockets) next(p *peer, o *outStream) bool {
	op := t.op
	m := message{kind: op.Kind, dtype: op.DType, seq: op.Seq, root: op.Root, bucket: op.Bucket, bytes: uint64(len(op.Data))}
	o.payload = nil
	o.buf = o.buf[:messageSize]
	if t.small {
		if !t.owes(p, o) || t.star && t.rank == 0 && !t.summed {
			return false
		}
		o.inlined = true
		lo, hi := 0, len(op.Data)
		if !op.Kind.sums() {
			lo, hi = op.share(t.rank, t.world)
		}
		m.what, m.offset, m.length = whole, uint64(lo), uint64(hi-lo)
		o.buf = append(o.buf, op.Data[lo:hi]...)
		m.put(o.buf)
		return true
	}
	step := len(p.out)
	if op.Kind.gathers() {
		lo, hi := op.share(t.rank, t.world)
		at := lo + o.nextR*t.piece
		if at < hi && (!op.Kind.sums() || o.nextR < t.reduced) {
			o.nextR += step
			o.payload = op.Data[at:min(at+t.piece, hi)]
			m.what, m.offset, m.length = result, uint64(at), uint64(len(o.payload))
			m.put(o.buf)
			return true
		}
	}
	if op.Kind.sums() {
		lo, hi := op.share(p.rank, t.world)
		if at := lo + o.nextC*t.piece; at < hi {
			o.nextC += step
			o.payload = op.Data[at:min(at+t.piece, hi)]
			m.what, m.offset, m.length = contribution, uint64(at), uint64(len(o.payload))
			m.put(o.buf)
			return true
		}
	}
	return false
}

func (t *sockets) send(p *peer, o *outStream) (moved bool, err error) {
	for {
		if !o.active {
			if !t.next(p, o) {
				return moved, nil
			}
			o.active, o.sent = true, 0
		}
		for o.sent < len(o.buf)+len(o.payload) {
			b := o.buf
			if o.sent < len(b) {
				b = b[o.sent:]
			} else {
				b = o.payload[o.sent-len(o.buf):]
			}
			n, err := o.s.write(b)
			if err != nil {
				return moved, err
			}
			if n == 0 {
				return moved, nil
			}
			o.sent += n
			moved = true
		}
		o.active = false
	}
}

// receive reads from one connection until it would wait.
func (t *sockets) receive(p *peer, in *inStream) (moved bool, err error) {
	for {
		if p.got >= p.want && p.gotR >= p.wantR {
			return moved, nil // what comes now is not for this operation; it may be the end
		}
		if !in.headed {
			if in.w-in.r < messageSize {
				if in.r > 0 {
					in.w = copy(in.buf, in.buf[in.r:in.w])
					in.r = 0
				}
				limit := messageSize // a long payload is not to go through buf
				if t.small {
					limit = len(in.buf)
				}
				n, err := in.s.read(in.buf[in.w:limit])
				if err != nil {
					return moved, err
				}
				if n == 0 {
					return moved, nil
				}
				in.w += n
				moved = true
				if in.w-in.r < messageSize {
					continue
				}
			}
			in.m.parse(in.buf[in.r:])
			in.r += messageSize
			in.headed, in.ready = true, false
		}
		if !in.ready {
			if ok, err := t.place(p, in); err != nil || !ok {
				return moved, err
			}
			in.ready = true
		}
		if n := copy(in.dst, in.buf[in.r:in.w]); n > 0 {
			in.r += n
			in.dst = in.dst[n:]
			moved = true
		}
		for len(in.dst) > 0 {
			n, err := in.s.read(in.dst)
			if err != nil {
				return moved, err
			}
			if n == 0 {
				return moved, nil
			}
			in.dst = in.dst[n:]
			moved = true
		}
		in.headed = false
		switch in.m.what {
		case whole:
			p.got = 1
		case contribution:
			p.have[in.slot] = true
			p.got += int(in.m.length)
		case result:
			p.gotR += int(in.m.length)
		}
	}
}

// place finds where a message's payload goes. It is false when there is no room
// yet: the message is of the next operation, or its piece is too far ahead.
func (t *sockets) place(p *peer, in *inStream) (bool, error) {
	op, m := t.op, &in.m
	if m.seq == op.Seq+1 {
		return false, nil
	}
	if m.seq != op.Seq {
		return false, fmt.Errorf("%w: rank %d sends operation %d where rank %d is at %d", ErrOutOfStep, p.rank, m.seq, t.rank, op.Seq)
	}
	if err := op.differ(t.rank, p.rank, m.kind, m.dtype, m.root, m.bucket, m.bytes); err != nil {
		return false, err
	}
	lo, hi := op.share(t.rank, t.world)
	plo, phi := op.share(p.rank, t.world)
	at, n := int(m.offset), int(m.length)
	switch {
	case m.what == whole && t.small:
		if op.Kind.sums() {
			plo, phi = 0, len(op.Data)
		}
		if at == plo && n == phi-plo {
			in.dst = p.inl[:n]
			return true, nil
		}
	case m.what == contribution && !t.small && op.Kind.sums():
		k := (at - lo) / t.piece
		if at >= lo && (at-lo)%t.piece == 0 && at < hi && n == min(t.piece, hi-at) && k >= t.reduced {
			if k >= t.reduced+len(p.slots) {
				return false, nil
			}
			in.slot = k % len(p.slots)
			if p.slots[in.slot] == nil {
				p.slots[in.slot] = make([]byte, t.piece)
			}
			in.dst = p.slots[in.slot][:n]
			return true, nil
		}
	case m.what == result && !t.small && op.Kind.gathers():
		if at >= plo && (at-plo)%t.piece == 0 && at < phi && n == min(t.piece, phi-at) {
			in.dst = op.Data[at : at+n]
			return true, nil
		}
	}
	return false, fmt.Errorf("%w: rank %d sends a message %q of %d bytes at %d that operation %d (%s of %d bytes) has no place for",
		ErrOutOfStep, p.rank, m.what, n, at, op.Seq, op.Kind, len(op.Data))
}

// overdue names a rank that has left, or that has not moved within the timeout.
func (t *sockets) overdue(since time.Time) error {
	late := time.Since(since) > t.timeout
	for _, p := range t.peers {
		if p == nil || p.got >= p.want && p.gotR >= p.wantR {
			continue
		}
		if late {
			return fmt.Errorf("%w: rank %d did not come to operation %d (%s, bucket %d) within %s", ErrTimeout, p.rank, t.op.Seq, t.op.Kind, t.op.Bucket, t.timeout)
		}
	}
	if late {
		return fmt.Errorf("%w: operation %d (%s, bucket %d) could not be sent within %s", ErrTimeout, t.op.Seq, t.op.Kind, t.op.Bucket, t.timeout)
	}
	return nil
}

// poll waits until a connection is ready, at most 10 ms.
func (t *sockets) poll() {
	t.polls = t.polls[:0]
	for _, p := range t.peers {
		if p == nil {
			continue
		}
		for _, o := range p.out {
			if o.active {
				t.polls = append(t.polls, unix.PollFd{Fd: int32(o.s.fd()), Events: o.s.events(unix.POLLOUT)})
			}
		}
		for _, in := range p.in {
			if (p.got < p.want || p.gotR < p.wantR) && (!in.headed || in.ready) {
				t.polls = append(t.polls, unix.PollFd{Fd: int32(in.s.fd()), Events: in.s.events(unix.POLLIN)})
			}
		}
	}
	limit := unix.Timespec{Nsec: 10e6}
	_, _ = unix.Ppoll(t.polls, &limit, nil)
}

// Abort implements Transport.
func (t *sockets) Abort(reason error) { t.mesh.abort(reason) }

// Close implements Transport.
func (t *sockets) Close() error {
	err := t.mesh.close()
	t.running.Lock()
	defer t.running.Unlock()
	if t.closed {
		return err
	}
	t.closed = true
	for _, p := range t.peers {
		if p == nil {
			continue
		}
		for _, o := range p.out {
			err = errors.Join(err, o.s.close())
		}
		for _, in := range p.in {
			err = errors.Join(err, in.s.close())
		}
	}
	return err
}
