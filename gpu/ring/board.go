package ring

import (
	"fmt"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"
)

// board is the memory that ranks of one host share: a lane of counters for each
// rank, and slots to stage data in. Ranks are goroutines of one process, or
// processes that map the same memfd.
//
//	+--------------------+
//	| lane of rank 0     |  arrived, staged, reduced, taken, done; two heads
//	| …                  |
//	| small slots        |  rank × parity × smallSlot
//	| in slots           |  rank × depth × destination × slot
//	| out slots          |  rank × depth × slot
//	+--------------------+
//
// An operation begins when a rank has written its head and raised arrived. What
// is small travels in the small slots: one wait and no second one, since nobody
// can begin operation s+2, which uses the same parity, before all have come to
// s+1 and so have read s. Larger buffers that every rank can reach are summed in
// place, each rank its share, between arrived and done. All others go through
// slots in rounds: stage what others own, reduce what this rank owns, take what
// others have reduced. All ranks see all heads, and so go the same way.
type board struct {
	rank, world int
	names       []int // the ranks' numbers in the ring, where the board is a part of it
	lanes       []lane
	small       []byte
	in, out     []byte
	slot        int

	// reach gives rank r's buffer of an operation where this rank can touch it,
	// nil where it can't.
	reach func(r int, h *head, bytes int) []byte

	// left tells that a rank has said goodbye and will raise nothing any more.
	left func(r int) bool

	stop    *stopper
	end     func(reason error) // ends the ring
	timeout time.Duration
	spin    int
	yield   func()

	round uint32 // staged rounds of all operations so far
	add   adder
	to    [][]byte
	from  [][]byte
	bufs  [][]byte
}

// word is a counter that one rank raises and others wait for, on cache lines of
// its own.
type word struct {
	v       uint32
	waiters uint32
	_       [120]byte
}

// head describes an operation to the other ranks.
type head struct {
	bytes  uint64
	offset uint64 // in the arena
	arena  uint32 // 0: the buffer is in none
	seq    uint32
	root   int32
	bucket int32
	kind   Kind
	dtype  DType
	device bool // the buffer is on a GPU
	_      [29]byte
}

// lane is what one rank writes and all read. Its size is a multiple of 128 bytes.
type lane struct {
	arrived, staged, reduced, taken, done word
	heads                                 [2]head
}

const (
	smallSlot = 64 << 10 // bytes of a small slot
	maxSlot   = 128 << 10
	depth     = 4
)

// tiny is the size up to which even what could be summed in place goes through
// the small slots, bytes.
const tiny = 2 << 10

// smallLimit is the same for what can't. Small operations' slots are read by
// everybody: what a rank may bring shrinks as ranks grow in number.
func smallLimit(world int) int { return min(smallSlot, max(tiny, (128<<10)/world)) }

// slotSize of a world, bytes.
func slotSize(world int) int { return max(4<<10, min(maxSlot, (1<<20)/world)&^4095) }

// boardSize is how much memory a board takes; without slots, operations must be
// small or reachable.
func boardSize(world int, slots bool) int {
	n := world*int(unsafe.Sizeof(lane{})) + world*2*smallSlot
	if slots {
		n += depth * world * (world + 1) * slotSize(world)
	}
	return n
}

// newBoard lays a rank's view over memory of boardSize, zero at the beginning and
// aligned to 128 bytes.
func newBoard(mem []byte, rank, world int, slots bool, timeout time.Duration, stop *stopper) *board {
	b := &board{rank: rank, world: world, stop: stop, timeout: timeout, slot: slotSize(world)}
	b.lanes = unsafe.Slice((*lane)(unsafe.Pointer(&mem[0])), world)
	mem = mem[world*int(unsafe.Sizeof(lane{})):]
	b.small, mem = mem[:world*2*smallSlot], mem[world*2*smallSlot:]
	if slots {
		n := depth * world * world * b.slot
		b.in, b.out = mem[:n], mem[n:n+depth*world*b.slot]
	}
	// While each rank has a core it spins for a good while: to yield early lets two
	// ranks share a core and the other one idle. With more ranks than cores, whoever
	// is waited for needs this one.
	b.spin = 200_000
	if world > runtime.NumCPU() {
		b.spin = 30
	}
	b.yield = runtime.Gosched
	b.bufs = make([][]byte, world)
	b.end = func(reason error) { stop.stop(reason) }
	return b
}

func (b *board) smallOf(rank int, seq uint32) []byte {
	at := (rank*2 + int(seq&1)) * smallSlot
	return b.small[at : at+smallSlot]
}

func (b *board) inOf(rank int, round uint32, dest int) []byte {
	at := ((rank*depth+int(round%depth))*b.world + dest) * b.slot
	return b.in[at : at+b.slot]
}

func (b *board) outOf(rank int, round uint32) []byte {
	at := (rank*depth + int(round%depth)) * b.slot
	return b.out[at : at+b.slot]
}

// raise lets others see that this rank's counter stands at v.
func raise(w *word, v uint32) {
	atomic.StoreUint32(&w.v, v)
	if atomic.LoadUint32(&w.waiters) != 0 {
		futexWake(&w.v)
	}
}

func reached(w *word, want uint32) bool { return int32(atomic.LoadUint32(&w.v)-want) >= 0 }

// wait blocks until a rank's counter has reached want.
func (b *board) wait(w *word, want uint32, rank int, op *Op) error {
	for range b.spin {
		if reached(w, want) {
			return nil
		}
	}
	// Few yields: newer kernels take a whole slice from whoever yields.
	for range 20 {
		b.yield()
		if reached(w, want) {
			return nil
		}
		if b.stop.flag.Load() {
			return b.stop.reason()
		}
	}
	begun := time.Now()
	atomic.AddUint32(&w.waiters, 1)
	defer atomic.AddUint32(&w.waiters, ^uint32(0))
	for {
		v := atomic.LoadUint32(&w.v)
		if int32(v-want) >= 0 {
			return nil
		}
		if b.stop.flag.Load() {
			return b.stop.reason()
		}
		if b.left != nil && b.left(rank) && !reached(w, want) {
			err := &LostError{Rank: b.name(rank), Why: fmt.Sprintf("it left before operation %d (%s, bucket %d)", op.Seq, op.Kind, op.Bucket)}
			b.end(err)
			return err
		}
		if since := time.Since(begun); since > b.timeout {
			err := fmt.Errorf("%w: rank %d did not come to operation %d (%s, bucket %d) within %s", ErrTimeout, b.name(rank), op.Seq, op.Kind, op.Bucket, b.timeout)
			b.end(err)
			return err
		}
		futexWait(&w.v, v, 10*time.Millisecond)
	}
}

func (b *board) all(counter func(*lane) *word, want uint32, op *Op) error {
	for r := range b.lanes {
		if r != b.rank {
			if err := b.wait(counter(&b.lanes[r]), want, r, op); err != nil {
				return err
			}
		}
	}
	return nil
}

func staged(l *lane) *word  { return &l.staged }
func reduced(l *lane) *word { return &l.reduced }
func taken(l *lane) *word   { return &l.taken }
func done(l *lane) *word    { return &l.done }

func (b *board) name(r int) int {
	if b.names == nil {
		return r
	}
	return b.names[r]
}

// check only compares an operation; it counts as one.
func (b *board) check(op *Op) error {
	if b.stop.flag.Load() {
		return b.stop.reason()
	}
	b.lanes[b.rank].heads[op.Seq&1] = head{
		bytes: uint64(op.Bytes()), seq: op.Seq, root: op.Root, bucket: op.Bucket, kind: op.Kind, dtype: op.DType, device: op.onDevice(),
	}
	return b.meet(op)
}

// meet waits until all ranks have come to an operation, and compares them.
func (b *board) meet(op *Op) error {
	raise(&b.lanes[b.rank].arrived, op.Seq)
	for r := range b.lanes {
		if r == b.rank {
			continue
		}
		if err := b.wait(&b.lanes[r].arrived, op.Seq, r, op); err != nil {
			return err
		}
		h := &b.lanes[r].heads[op.Seq&1]
		if err := op.differ(b.name(b.rank), b.name(r), h.kind, h.dtype, h.root, h.bucket, h.bytes); err != nil {
			b.end(err)
			return err
		}
	}
	return nil
}

// do carries an operation out. arena and offset say where its buffer is for
// reach, 0 when it is in none.
func (b *board) do(op *Op, arena uint32, offset uint64) error {
	if b.stop.flag.Load() {
		return b.stop.reason()
	}
	mine := &b.lanes[b.rank]
	mine.heads[op.Seq&1] = head{
		bytes: uint64(len(op.Data)), offset: offset, arena: arena, seq: op.Seq, root: op.Root, bucket: op.Bucket, kind: op.Kind, dtype: op.DType,
	}
	inPlace := arena != 0 || b.in == nil
	small := len(op.Data) <= tiny || !inPlace && len(op.Data) <= smallLimit(b.world)
	if small {
		// What others need of this rank: all of a sum, its own share of a gather.
		lo, hi := 0, len(op.Data)
		if !op.Kind.sums() {
			lo, hi = op.share(b.rank, b.world)
		}
		copy(b.smallOf(b.rank, op.Seq)[lo:hi], op.Data[lo:hi])
	}
	if err := b.meet(op); err != nil {
		return err
	}
	reachable := 0
	if inPlace {
		reachable++
	}
	for r := range b.lanes {
		if r == b.rank {
			b.bufs[r] = op.Data
			continue
		}
		h := &b.lanes[r].heads[op.Seq&1]
		if b.bufs[r] = b.reach(r, h, len(op.Data)); b.bufs[r] != nil {
			reachable++
		}
	}
	switch {
	case len(op.Data) <= tiny || reachable == 0 && small:
		b.fromSmall(op)
		return nil
	case reachable == b.world:
		return b.inPlace(op)
	}
	return b.inRounds(op)
}

func (b *board) fromSmall(op *Op) {
	n := len(op.Data)
	switch {
	case n == 0:
	case op.Kind.sums():
		lo, hi := 0, n
		if op.Kind == ReduceScatter {
			lo, hi = op.share(b.rank, b.world)
		}
		if lo == hi {
			return
		}
		b.from = b.from[:0]
		for r := range b.world {
			b.from = append(b.from, b.smallOf(r, op.Seq)[lo:hi])
		}
		b.to = append(b.to[:0], op.Data[lo:hi])
		b.add.sum(op.DType, b.to, b.from)
	default:
		for r := range b.world {
			lo, hi := op.share(r, b.world)
			if r != b.rank && lo < hi {
				copy(op.Data[lo:hi], b.smallOf(r, op.Seq)[lo:hi])
			}
		}
	}
}

// inPlace works on buffers that every rank can reach.
func (b *board) inPlace(op *Op) error {
	lo, hi := op.share(b.rank, b.world)
	if op.Kind.sums() {
		for ; lo < hi; lo += piece {
			end := min(lo+piece, hi)
			b.from = b.from[:0]
			for _, buf := range b.bufs {
				b.from = append(b.from, buf[lo:end])
			}
			to := b.from
			if op.Kind == ReduceScatter {
				to = b.from[b.rank : b.rank+1]
			}
			b.add.sum(op.DType, to, b.from)
		}
	} else {
		for r, buf := range b.bufs {
			if lo, hi := op.share(r, b.world); r != b.rank {
				copy(op.Data[lo:hi], buf[lo:hi])
			}
		}
	}
	raise(&b.lanes[b.rank].done, op.Seq)
	return b.all(done, op.Seq, op)
}

// inRounds passes the data through the slots.
func (b *board) inRounds(op *Op) error {
	longest := 0
	for r := range b.world {
		lo, hi := op.share(r, b.world)
		longest = max(longest, hi-lo)
	}
	rounds := (longest + b.slot - 1) / b.slot
	mine := &b.lanes[b.rank]
	// part is what round k covers of a rank's share.
	part := func(rank, k int) []byte {
		lo, hi := op.share(rank, b.world)
		return op.Data[min(lo+k*b.slot, hi):min(lo+(k+1)*b.slot, hi)]
	}
	// Three stages, each a round behind the one before it, so that a rank works
	// while another one's part is on its way.
	for k := 0; k < rounds+2; k++ {
		if k < rounds {
			at := b.round + uint32(k)
			if op.Kind.sums() {
				// The slot's last readers were the reducers of depth rounds ago.
				if err := b.all(reduced, at+1-depth, op); err != nil {
					return err
				}
				for r := range b.world {
					if r != b.rank {
						copy(b.inOf(b.rank, at, r), part(r, k))
					}
				}
			}
			raise(&mine.staged, at+1)
		}
		if k >= 1 && k-1 < rounds {
			at := b.round + uint32(k-1)
			if err := b.all(taken, at+1-depth, op); err != nil {
				return err
			}
			own := part(b.rank, k-1)
			out := b.outOf(b.rank, at)[:len(own)]
			if op.Kind.sums() {
				if err := b.all(staged, at+1, op); err != nil {
					return err
				}
				if len(own) > 0 {
					b.from = b.from[:0]
					for r := range b.world {
						if r == b.rank {
							b.from = append(b.from, own)
						} else {
							b.from = append(b.from, b.inOf(r, at, b.rank)[:len(own)])
						}
					}
					b.to = append(b.to[:0], own)
					if op.Kind.gathers() {
						b.to = append(b.to, out)
					}
					b.add.sum(op.DType, b.to, b.from)
				}
			} else {
				copy(out, own)
			}
			raise(&mine.reduced, at+1)
		}
		if k >= 2 {
			at := b.round + uint32(k-2)
			if op.Kind.gathers() {
				for r := range b.world {
					p := part(r, k-2)
					if r == b.rank || len(p) == 0 {
						continue
					}
					if err := b.wait(&b.lanes[r].reduced, at+1, r, op); err != nil {
						return err
					}
					copy(p, b.outOf(r, at))
				}
			}
			raise(&mine.taken, at+1)
		}
	}
	b.round += uint32(rounds)
	return nil
}
