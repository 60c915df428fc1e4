package ring

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Kind is which collective an operation is.
type Kind uint8

// Collectives.
const (
	AllReduce     Kind = iota + 1 // every rank ends with the sum
	ReduceScatter                 // each rank ends with its Share of the sum; the rest is undefined
	AllGather                     // every rank ends with each rank's Share
	Broadcast                     // every rank ends with the root's buffer
	Barrier                       // no data
)

func (k Kind) String() string {
	switch k {
	case AllReduce:
		return "all-reduce"
	case ReduceScatter:
		return "reduce-scatter"
	case AllGather:
		return "all-gather"
	case Broadcast:
		return "broadcast"
	case Barrier:
		return "barrier"
	}
	return fmt.Sprintf("collective %d", uint8(k))
}

// Sums tells whether the ranks' buffers are added up.
func (k Kind) Sums() bool { return k.sums() }

func (k Kind) sums() bool    { return k == AllReduce || k == ReduceScatter }
func (k Kind) gathers() bool { return k == AllReduce || k == AllGather || k == Broadcast }

// Op is one collective as one rank sees it. All but Data is the same on every
// rank; transports refuse what is not, naming the rank.
type Op struct {
	Kind   Kind
	DType  DType
	Root   int32  // of Broadcast
	Bucket int32  // the caller's own number, checked for agreement
	Seq    uint32 // counts the operations of a ring, from 1 on
	Data   []byte

	// Of a buffer on a GPU, where Data is nil: address, bytes, and the stream that
	// fills it.
	Device      uintptr
	DeviceBytes int
	Stream      uintptr
}

// Bytes is the length of the operation's buffer, wherever it is.
func (o *Op) Bytes() int {
	if o.Device != 0 {
		return o.DeviceBytes
	}
	return len(o.Data)
}

// onDevice tells whether there is anything of it on a GPU.
func (o *Op) onDevice() bool { return o.Device != 0 && o.DeviceBytes > 0 }

// Share is the part lo ≤ byte < hi of the buffer that a rank brings or ends with:
// of a broadcast all to the root.
func (o *Op) Share(rank, world int) (lo, hi int) { return o.share(rank, world) }

// share is the part of the operation's bytes that a rank owns.
func (o *Op) share(rank, world int) (lo, hi int) {
	if o.Kind == Broadcast {
		if rank == int(o.Root) {
			return 0, o.Bytes()
		}
		return 0, 0
	}
	size := o.DType.Size()
	lo, hi = Share(o.Bytes()/size, rank, world)
	return lo * size, hi * size
}

// Transport carries out the operations of one rank, one after the other. Do
// blocks until the rank's part is done and its buffer holds the result: as long
// as the other ranks take to come, at most Config.Timeout from one sign of
// progress to the next. Abort, which any goroutine may call, makes a running Do
// and all later ones return the first reason within 20 ms.
//
// Every transport sums in rank order, so that all of them give the same bits.
type Transport interface {
	Do(op *Op) error
	Abort(reason error)
	Close() error
}

// Errors of a ring.
var (
	// ErrLost means that a rank died, stopped or was cut off.
	ErrLost = errors.New("rank lost")
	// ErrOutOfStep means that ranks called different collectives.
	ErrOutOfStep = errors.New("ranks are out of step")
	// ErrTimeout means that a rank did not come in time.
	ErrTimeout = errors.New("timed out")
	// ErrOnDevice means that a buffer on a GPU was given to a ring of host memory.
	ErrOnDevice = errors.New("the buffer is on a GPU")
	// ErrClosed means that the ring was closed.
	ErrClosed = errors.New("ring is closed")
)

// LostError is an ErrLost that names the rank.
type LostError struct {
	Rank int
	Why  string
}

func (e *LostError) Error() string { return fmt.Sprintf("rank %d lost: %s", e.Rank, e.Why) }

// Is makes errors.Is(err, ErrLost) true.
func (e *LostError) Is(target error) bool { return target == ErrLost }

// stopper holds the reason for which a rank's ring ended.
type stopper struct {
	flag atomic.Bool
	mu   sync.Mutex
	err  error
	done chan struct{}
}

func newStopper() *stopper { return &stopper{done: make(chan struct{})} }

// stop keeps the first reason.
func (s *stopper) stop(err error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return false
	}
	s.err = err
	s.flag.Store(true)
	close(s.done)
	return true
}

func (s *stopper) reason() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// ended waits a moment for the ring's end: whoever ends it tells why, a little later
// than what is seen of it elsewhere.
func (s *stopper) ended() {
	select {
	case <-s.done:
	case <-time.After(100 * time.Millisecond):
	}
}

// differ is an ErrOutOfStep that says how another rank's operation is not this
// rank's; nil when it is.
func (o *Op) differ(rank, other int, kind Kind, dt DType, root, bucket int32, bytes uint64) error {
	what := ""
	switch {
	case kind != o.Kind:
		what = fmt.Sprintf("rank %d calls %s where rank %d calls %s", other, kind, rank, o.Kind)
	case bucket != o.Bucket:
		what = fmt.Sprintf("rank %d reduces bucket %d where rank %d reduces %d", other, bucket, rank, o.Bucket)
	case dt != o.DType:
		what = fmt.Sprintf("rank %d brings %s to bucket %d, rank %d %s", other, dt, bucket, rank, o.DType)
	case bytes != uint64(o.Bytes()):
		what = fmt.Sprintf("rank %d brings %d elements to bucket %d, rank %d %d", other, bytes/uint64(dt.Size()), bucket, rank, o.Bytes()/o.DType.Size())
	case root != o.Root:
		what = fmt.Sprintf("rank %d broadcasts from rank %d, rank %d from %d", other, root, rank, o.Root)
	default:
		return nil
	}
	return fmt.Errorf("%w in operation %d: %s", ErrOutOfStep, o.Seq, what)
}

// DefaultTimeout bounds a wait for another rank that is alive: long enough for an
// evaluation or a checkpoint between two operations.
const DefaultTimeout = 10 * time.Minute
