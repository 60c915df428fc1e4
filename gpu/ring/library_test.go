package ring

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// testLibrary is a Library of this process's memory, for what the ring keeps
// beside one.
const testLibrary = "test library"

func init() {
	builds[testLibrary] = "it is in tests alone"
	Register(Library{Name: testLibrary, Mends: true, Check: func() error { return nil }, Join: joinTest})
}

// meetings are the rings of the test library by the name that rank 0 gave them.
var meetings struct {
	sync.Mutex
	last uint32
	m    map[string]*meetingPoint
}

type meetingPoint struct {
	sync.Mutex
	come  map[uint32][][]byte // buffers by operation and rank
	ready map[uint32]chan struct{}
	left  map[uint32]int
}

type testEnd struct {
	Place
	at *meetingPoint
}

func joinTest(p Place) (Collectives, error) {
	name := ""
	meetings.Lock()
	if p.Rank == 0 {
		meetings.last++
		name = string([]byte{byte(meetings.last), byte(meetings.last >> 8), byte(meetings.last >> 16)})
	}
	meetings.Unlock()
	b, err := p.Tell([]byte(name))
	if err != nil {
		return nil, err
	}
	meetings.Lock()
	defer meetings.Unlock()
	if meetings.m == nil {
		meetings.m = map[string]*meetingPoint{}
	}
	at := meetings.m[string(b)]
	if at == nil {
		at = &meetingPoint{come: map[uint32][][]byte{}, ready: map[uint32]chan struct{}{}, left: map[uint32]int{}}
		meetings.m[string(b)] = at
	}
	return &testEnd{p, at}, nil
}

// meet brings a copy of this rank's buffer and gives all.
func (e *testEnd) meet(op *Op) ([][]byte, error) {
	e.at.Lock()
	if e.at.come[op.Seq] == nil {
		e.at.come[op.Seq], e.at.ready[op.Seq], e.at.left[op.Seq] = make([][]byte, e.World), make(chan struct{}), e.World
	}
	all, ready := e.at.come[op.Seq], e.at.ready[op.Seq]
	all[e.Rank] = append([]byte{}, op.Data...)
	if e.at.left[op.Seq]--; e.at.left[op.Seq] == 0 {
		delete(e.at.come, op.Seq)
		close(ready)
	}
	e.at.Unlock()
	select {
	case <-ready:
		return all, nil
	case <-e.Quit:
		return nil, ErrClosed
	case <-time.After(e.Timeout):
		return nil, ErrTimeout
	}
}

func (e *testEnd) Do(op *Op) error {
	if op.Kind.sums() && op.DType != F32 {
		return errors.New("a library without halves was given some")
	}
	all, err := e.meet(op)
	if err != nil {
		return err
	}
	if op.Kind.sums() {
		var a adder
		a.sum(op.DType, [][]byte{op.Data}, all)
		return nil
	}
	for r, b := range all {
		lo, hi := op.Share(r, e.World)
		copy(op.Data[lo:hi], b[lo:hi])
	}
	return nil
}

func (e *testEnd) Close(bool) error { return nil }

func TestAvailable(t *testing.T) {
	for backend, want := range map[string]string{
		Auto: "", "": "", SHM: "", InProcess: "", Hierarchical: "", testLibrary: "",
		"pigeon": `"pigeon" is none`,
	} {
		err := Available(backend)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", backend, err)
		}
	}
	for _, backend := range []string{NCCL, MPI, Gloo} {
		if _, ok := library(backend); ok {
			continue
		}
		if err := Available(backend); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "this build has no "+backend) {
			t.Errorf("%s: %v", backend, err)
		}
		// All ranks are told, by the first that asks.
		errs := make([]error, 2)
		meet := &Meeting{}
		var wg sync.WaitGroup
		for r := range errs {
			wg.Go(func() {
				_, errs[r] = Form(t.Context(), Config{Rank: r, World: 2, Epoch: 1, Backend: backend, Rendezvous: meet, GPU: &GPU{}})
			})
		}
		wg.Wait()
		for _, err := range errs {
			if err == nil || !strings.Contains(err.Error(), "this build has no "+backend) {
				t.Errorf("%s: %v", backend, err)
			}
		}
	}
}

// A ring of host memory refuses a buffer on a GPU, and tells the others.
func TestDeviceBufferIsRefused(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			comms := formed(t, transport, 2, nil)
			errs := onAll(comms, func(c *Comm) error {
				if c.Rank() == 0 {
					return c.AllReduce(Buffer{Device: 4096, N: 8})
				}
				return c.AllReduce(Buffer{Data: make([]float32, 8)})
			})
			for r, err := range errs {
				if err == nil || !strings.Contains(err.Error(), "the buffer is on a GPU") || !strings.Contains(err.Error(), NCCL) {
					t.Errorf("rank %d: %v", r, err)
				}
			}
		})
	}
}

// A library that can't mend a ring says what has to happen instead.
func TestUnmendable(t *testing.T) {
	l, _ := library(testLibrary)
	l.Name, l.Mends = "brittle", false
	builds[l.Name] = builds[testLibrary]
	Register(l)
	comms := formed(t, testLibrary, 3, func(c *Config) { c.Backend = l.Name })
	comms[2].Abort(&LostError{Rank: 1, Why: "it fell over"})
	for _, c := range comms[:2] {
		if err := c.AllReduce(Buffer{Data: make([]float32, 8)}); !errors.Is(err, ErrLost) {
			t.Fatal(err)
		}
		_, err := c.Reform(t.Context())
		if !errors.Is(err, ErrUnmendable) || !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "from the last checkpoint") {
			t.Error(err)
		}
	}
}

// A library's own connections are plain: where the endpoint has TLS it is refused
// unless that is allowed, and auto never takes one.
func TestPlaintextIsRefused(t *testing.T) {
	for _, c := range []struct {
		allow bool
		want  string
	}{{false, "neither encrypts nor authenticates, and rank 0's endpoint has TLS; choose auto, or allow it by the job's plaintext_collectives: true"}, {true, ""}} {
		errs := make([]error, 2)
		meet := &Meeting{}
		var wg sync.WaitGroup
		for r := range errs {
			ep := tlsEndpoint(t)
			t.Cleanup(func() { ep.Close() })
			wg.Go(func() {
				comm, err := Form(t.Context(), Config{Rank: r, World: 2, Epoch: 1, Backend: testLibrary, Rendezvous: meet, Endpoint: ep, PlaintextCollectives: c.allow})
				if err == nil {
					err = comm.Close()
				}
				errs[r] = err
			})
		}
		wg.Wait()
		for _, err := range errs {
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("allowed %t: %v", c.allow, err)
			}
		}
	}
}
