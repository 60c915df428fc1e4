package ring

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Backends of other people's libraries. Each is in builds with the tag beside it,
// in a package that registers it.
const (
	NCCL = "nccl" // between GPUs; tag gpu
	MPI  = "mpi"  // OpenMPI or MPICH, in processes that mpirun started; tag gpu
	Gloo = "gloo" // of libtorch; tag libtorch
)

// builds says which build has which library.
var builds = map[string]string{
	NCCL: "build with -tags gpu",
	MPI:  "build with -tags gpu",
	Gloo: "run `autoglm libtorch fit` and use the autoglm-torch that it makes",
}

// ErrUnavailable means that this build or this machine lacks a backend.
var ErrUnavailable = errors.New("backend is not available")

// ErrUnmendable means that the backend can't go on without a lost rank: its
// processes end, and training resumes from a checkpoint in new ones.
var ErrUnmendable = errors.New("this backend can't go on without a lost rank")

// GPU says where a rank's buffers are.
type GPU struct {
	Ordinal int // of CUDA, in this process
}

// Library is a collective library that is not ours. The ring keeps what it lacks
// beside it: which rank is out of step, who is lost, barriers and commits go over
// the ring's own connections, so a library only sums and copies.
type Library struct {
	Name    string
	Devices bool // it works on buffers of GPUs
	Halves  bool // it sums bf16 and f16 itself; otherwise the ring widens them to f32 and back
	Mends   bool // what is left of a broken ring can join anew in the same processes
	// RDMA tells whether it reaches other hosts by more than sockets; nil is no.
	RDMA func() bool
	// Check tells why this machine can't use it; it may be called often.
	Check func() error
	// Join makes a rank's end. All ranks call it together. It returns
	// by Place.Deadline, and soon after Place.Quit is closed.
	Join func(p Place) (Collectives, error)
}

// Place is where a rank stands when it joins a Library.
type Place struct {
	Rank, World int
	GPU         *GPU
	// Address is a host that the other ranks reach this process at.
	Address  string
	Deadline time.Time       // bounds Join
	Timeout  time.Duration   // bounds each operation
	Quit     <-chan struct{} // closed when the ring has ended
	// Tell gives all ranks of the place what its rank 0 passes; the others' arguments don't count. All
	// call it equally often. At most 4096 bytes.
	Tell func(b []byte) ([]byte, error)
}

// Collectives is a rank's end of a Library. One goroutine uses it.
type Collectives interface {
	// Do carries out an operation that all ranks have been seen to call alike, never
	// a barrier and never an empty one. It returns when the result is there; with
	// ErrTimeout after Place.Timeout; and, within the time that the implementation
	// states, after Place.Quit was closed. After an error nothing but Close is called.
	Do(op *Op) error
	// Close frees it. ended tells that every operation of this rank has ended well;
	// otherwise what runs is given up. It is bounded by what the implementation states.
	Close(ended bool) error
}

// Stager is what the end of a Library for GPUs can do besides: move bytes between the
// rank's GPU and host memory, behind the operations that have returned. It is
// bounded as Do is. No length is 0.
type Stager interface {
	Collectives
	ToHost(to []byte, from uintptr) error
	ToDevice(to uintptr, from []byte) error
}

// join makes this rank's end of a library among some ranks of the ring, in
// ascending order.
func (l *Library) join(ctx context.Context, ranks []int, m *mesh, stop *stopper, cfg *Config) (Collectives, error) {
	limit := cfg.FormTimeout
	if d, ok := ctx.Deadline(); ok {
		limit = time.Until(d)
	}
	c, err := l.Join(Place{
		Rank: slices.Index(ranks, cfg.Rank), World: len(ranks), GPU: cfg.GPU, Address: m.address(cfg.Endpoint), Timeout: cfg.Timeout, Quit: stop.done,
		Deadline: time.Now().Add(limit),
		Tell:     func(b []byte) ([]byte, error) { return m.tell(ctx, ranks, b) },
	})
	if err != nil {
		if reason := stop.reason(); reason != nil {
			err = reason
		}
		return nil, fmt.Errorf("%s: %w", l.Name, err)
	}
	return c, nil
}

var libraries struct {
	sync.Mutex
	m map[string]Library
}

// Register makes a Library known, by its name as the backend; packages that hold
// one call it as they are initialised.
func Register(l Library) {
	libraries.Lock()
	defer libraries.Unlock()
	if libraries.m == nil {
		libraries.m = map[string]Library{}
	}
	libraries.m[l.Name] = l
}

func library(name string) (Library, bool) {
	libraries.Lock()
	defer libraries.Unlock()
	l, ok := libraries.m[name]
	return l, ok
}

// Backends lists what Config.Backend may say.
func Backends() []string {
	return append([]string{Auto, SHM, Unix, TCP, Hierarchical}, slices.Sorted(maps.Keys(builds))...)
}

// Available tells why this build or this machine can't use a backend, as an
// ErrUnavailable that says what to do; nil when it can.
func Available(backend string) error {
	how, foreign := builds[backend]
	if !foreign {
		if backend == "" || backend == InProcess || slices.Contains(Backends(), backend) {
			return nil
		}
		return fmt.Errorf("%w: %q is none", ErrUnavailable, backend)
	}
	l, ok := library(backend)
	if !ok {
		return fmt.Errorf("%w: this build has no %s: %s", ErrUnavailable, backend, how)
	}
	if err := l.Check(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrUnavailable, backend, err)
	}
	return nil
}

// plaintext tells whether a backend's own connections are neither encrypted nor
// authenticated, whatever the endpoint does.
func plaintext(backend string) bool { _, ok := builds[backend]; return ok }

// tell implements Place.Tell over the mesh, among some ranks.
func (m *mesh) tell(ctx context.Context, ranks []int, b []byte) ([]byte, error) {
	first := ranks[0]
	if m.rank == first {
		if len(b) > maxText {
			return nil, fmt.Errorf("%d bytes to tell, at most %d travel", len(b), maxText)
		}
		for _, r := range ranks[1:] {
			_ = m.peers[r].send(frameNote, 0, string(b), -1) // whoever can't hear it is lost anyway
		}
		return b, nil
	}
	select {
	case b, ok := <-m.peers[first].note:
		if !ok {
			return nil, m.departed(first, "told how to join")
		}
		return b, nil
	case <-m.stop.done:
		return nil, m.stop.reason()
	case <-ctx.Done():
		return nil, fmt.Errorf("rank %d did not tell how to join: %w", first, context.Cause(ctx))
	}
}

// departed is the reason of a connection's end: the rank's goodbye or its loss.
func (m *mesh) departed(r int, before string) error {
	if m.left(r) {
		return &LostError{Rank: r, Why: "it left before it " + before}
	}
	<-m.stop.done // whoever listens to it says why before it hangs up
	return m.stop.reason()
}
