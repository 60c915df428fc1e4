//go:build gpu

package nccl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"
	"unsafe"

	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/gpu/ring/ringtest"
)

// why tells why there is no stub to test on.
var why string

func TestMain(m *testing.M) {
	if ringtest.Child() {
		return
	}
	dir, err := os.MkdirTemp("", "nccl")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	stub := filepath.Join(dir, "stub.so")
	if out, err := exec.Command("gcc", "-O2", "-shared", "-fPIC", "-pthread", "-o", stub, filepath.Join("testdata", "stub.c")).CombinedOutput(); err != nil {
		why = fmt.Sprintf("the stub of NCCL is not built (install gcc): %v: %s", err, out)
	}
	os.Setenv(environmentNCCL, stub)
	os.Setenv(environmentCUDA, stub)
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// needStub leaves a test out where there is no compiler.
func needStub(t *testing.T) {
	t.Helper()
	if why == "" {
		return
	}
	if os.Getenv("AUTOGLM_REQUIRE") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func formed(t *testing.T, backend string, world int) []*ring.Comm {
	t.Helper()
	meet := &ring.Meeting{}
	comms := make([]*ring.Comm, world)
	errs := make([]error, world)
	var wg sync.WaitGroup
	for r := range world {
		wg.Go(func() {
			comms[r], errs[r] = ring.Form(t.Context(), ring.Config{
				Rank: r, World: world, Epoch: 1, Backend: backend, Rendezvous: meet, GPU: &ring.GPU{Ordinal: r},
				Timeout: 20 * time.Second, FormTimeout: 20 * time.Second, Suspect: 10 * time.Second,
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for err := range each(comms, (*ring.Comm).Close) {
			t.Error(err)
		}
	})
	return comms
}

// each runs f on every rank at once and gives the errors.
func each(comms []*ring.Comm, f func(*ring.Comm) error) func(func(error) bool) {
	errs := make([]error, len(comms))
	var wg sync.WaitGroup
	for r, c := range comms {
		wg.Go(func() { errs[r] = f(c) })
	}
	wg.Wait()
	return func(yield func(error) bool) {
		for _, err := range errs {
			if err != nil && !yield(err) {
				return
			}
		}
	}
}

// Every collective, on memory of the GPU and on the host's. Where all ranks are on
// GPUs auto picks NCCL.
func TestConformance(t *testing.T) {
	needStub(t)
	for world := 2; world <= 5; world++ {
		comms := formed(t, ring.Auto, world)
		for _, c := range comms {
			if c.Backend() != ring.NCCL || !c.Devices() {
				t.Fatalf("backend %s", c.Backend())
			}
		}
		for i, k := range ringtest.Cases(uint64(world), 60, 400_000) {
			if i%6 == 0 {
				k.N = 64 * world // shares of one length
			}
			if k.Kind == ring.Barrier {
				k.N = 0
			}
			for err := range each(comms, func(c *ring.Comm) error { return ringtest.Run(c, k, ringtest.How{Device: i%2 == 0}) }) {
				t.Fatal(err)
			}
		}
	}
}

// Ranks that are out of step are named before NCCL is asked to do what would hang.
func TestDisagreement(t *testing.T) {
	needStub(t)
	comms := formed(t, ring.Auto, 2)
	n := 0
	for err := range each(comms, func(c *ring.Comm) error {
		return c.AllReduce(ring.Buffer{Data: make([]float32, 8+c.Rank())})
	}) {
		n++
		if !strings.Contains(err.Error(), "rank 0") || !strings.Contains(err.Error(), "rank 1") || !strings.Contains(err.Error(), "out of step") {
			t.Error(err)
		}
	}
	if n != 2 {
		t.Errorf("%d ranks saw it", n)
	}
}

// Inside a host of a hierarchy it is told as well when one rank's buffer is on its GPU
// and another's is not.
func TestDisagreementInsideAHost(t *testing.T) {
	needStub(t)
	comms := formed(t, ring.Hierarchical, 2)
	data := make([]float32, 8)
	n := 0
	for err := range each(comms, func(c *ring.Comm) error {
		if c.Rank() == 0 {
			return c.AllReduce(ring.Buffer{Device: uintptr(unsafe.Pointer(&data[0])), N: 8})
		}
		return c.AllReduce(ring.Buffer{Data: make([]float32, 8)})
	}) {
		n++
		if text := err.Error(); !strings.Contains(text, "out of step") || !strings.Contains(text, "on its GPU") || !strings.Contains(text, "in host memory") {
			t.Error(err)
		}
	}
	if n != 2 {
		t.Errorf("%d ranks saw it", n)
	}
}

// fault is something that goes wrong in one rank's NCCL in the ninth step.
type fault struct {
	what, here, there string // what that rank says, and the others; "" is that a bound ran out
	within            time.Duration
	left              int
}

// check holds what each rank sees of it against that, and that they go on.
func (c *fault) check(t *testing.T, procs []*ringtest.Proc, culprit int) {
	var began time.Time
	for _, p := range procs {
		began = ringtest.Nanos(t, p.Await(t, "step")[3]) // the eighth
	}
	for r, p := range procs {
		if r == culprit && c.left < len(procs) {
			if c.what == "deaf" {
				if line := strings.Join(p.Await(t, "end"), " "); !strings.Contains(line, "end this process") {
					t.Error(line)
				}
			}
			continue
		}
		f := p.Await(t, "broken")
		line := strings.Join(f, " ")
		want := c.there
		if r == culprit {
			want = c.here
		}
		if want == "" {
			want = "timed out" // whose bound runs out first says so
		}
		after := ringtest.Nanos(t, f[1]).Sub(began)
		t.Logf("rank %d, %s after the last whole step: %s", r, after, line)
		if !strings.Contains(line, want) || after > c.within {
			t.Errorf("rank %d: %s after %s, want %q within %s", r, line, after, want, c.within)
		}
		if f = p.Await(t, "reformed"); f[2] != fmt.Sprint(c.left) {
			t.Errorf("a new ring of %s ranks, want %d", f[2], c.left)
		}
		p.Await(t, "step")
	}
}

// What went wrong at rank 1 of three is named, on all ranks, within a bound, and they
// go on in a new communicator.
func TestFaults(t *testing.T) {
	needStub(t)
	for _, c := range []fault{
		{"fail", "ncclAllReduce: internal error", "rank 1 gave up", time.Second, 3},
		{"hang", "", "", 2 * time.Second, 3},
		{"async", "unhandled system error", "rank 1 gave up", time.Second, 3},
		{"stuck", "", "", 2 * time.Second, 3},
		{"abort", "", "rank 1 lost", 50 * time.Millisecond, 2},
		{"deaf", "", "", 2 * time.Second, 2},
	} {
		t.Run(c.what, func(t *testing.T) {
			c.check(t, ringtest.Start(t, ring.NCCL, 3, "AUTOGLM_STUB_NCCL="+c.what+":17@1", "AUTOGLM_RING_TIMEOUT=1s"), 1)
		})
	}
}

// A killed rank is known at once, a stopped one within a second; the others go on.
func TestLoss(t *testing.T) {
	needStub(t)
	ringtest.Loss(t, ring.NCCL)
}

// What is chosen where GPUs share hosts, without RDMA and with it.
const (
	insideHosts = "hierarchical with nccl inside each host: several ranks share a host, and no RDMA joins the hosts"
	overAll     = "nccl: RDMA joins the hosts"
)

// Over several hosts: every collective, on memory of the GPUs and on the hosts', whether
// NCCL is inside each host or over all.
func TestConformanceOnHosts(t *testing.T) {
	needStub(t)
	for _, c := range []struct {
		name, choice string
		at           []int
		env          []string
	}{
		{"inside", insideHosts, []int{0, 0, 1, 1, 2}, []string{"NCCL_NET=Socket"}},
		{"inside, one alone first", insideHosts, []int{0, 1, 1}, []string{"NCCL_NET=Socket"}},
		{"over all", overAll, []int{0, 0, 1}, []string{"NCCL_NET=IB"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			procs, _ := ringtest.StartOnHosts(t, ring.Auto, c.choice, c.at, append(c.env, ringtest.OnGPU, ringtest.Conforming(60))...)
			for _, p := range procs {
				p.Await(t, "conforms")
			}
		})
	}
}

// Ranks that are lost on hosts with NCCL inside, and the ring of those that are left.
func TestLossOnHosts(t *testing.T) {
	needStub(t)
	ringtest.LossOnHosts(t, ring.Auto, insideHosts, ringtest.OnGPU, "NCCL_NET=Socket")
}

// What goes wrong inside NCCL on one host ends the step on all, within a bound, and they
// go on.
func TestFaultsOnHosts(t *testing.T) {
	needStub(t)
	for _, c := range []fault{
		{"fail", "ncclAllReduce: internal error", "rank 3 gave up", time.Second, 4},
		{"hang", "", "", 2 * time.Second, 4},
		{"abort", "", "rank 3 lost", time.Second, 3},
	} {
		t.Run(c.what, func(t *testing.T) {
			// A step is 16 pieces, each summed and handed out.
			procs, _ := ringtest.StartOnHosts(t, ring.Auto, insideHosts, []int{0, 0, 1, 1}, ringtest.OnGPU, "NCCL_NET=Socket", "AUTOGLM_STUB_NCCL="+c.what+":261@3", "AUTOGLM_RING_TIMEOUT=1s")
			c.check(t, procs, 3)
		})
	}
}

// NCCL crosses between hosts where a port of InfiniBand or RoCE is up, unless its own
// variables say otherwise.
func TestRDMA(t *testing.T) {
	const port = "class/infiniband/mlx5_0/ports/1/state"
	up := fstest.MapFS{port: {Data: []byte("4: ACTIVE\n")}}
	for _, c := range []struct {
		sys       fstest.MapFS
		name, set string
		want      bool
	}{
		{fstest.MapFS{}, "", "", false},
		{up, "", "", true},
		{fstest.MapFS{port: {Data: []byte("1: DOWN\n")}}, "", "", false},
		{up, "NCCL_IB_DISABLE", "1", false},
		{up, "NCCL_NET", "Socket", false},
		{fstest.MapFS{}, "NCCL_NET", "AWS Libfabric", true},
	} {
		env := func(name string) string {
			if name == c.name {
				return c.set
			}
			return ""
		}
		if got := rdma(c.sys, env); got != c.want {
			t.Errorf("%v, %s=%s: %t", c.sys, c.name, c.set, got)
		}
	}
}

// A communicator that can't be made is an error on every rank, within the time to
// form a ring.
func TestInit(t *testing.T) {
	needStub(t)
	for what, want := range map[string]string{"init-fail": "internal error", "init-hang": "timed out"} {
		t.Run(what, func(t *testing.T) {
			procs := ringtest.Start(t, ring.NCCL, 2, "AUTOGLM_STUB_NCCL="+what+":1@1", "AUTOGLM_RING_FORM=1s")
			for _, p := range procs {
				line := strings.Join(p.Await(t, "end"), " ")
				t.Log(line)
				if !strings.Contains(line, want) && !strings.Contains(line, "rank 1 gave up") && !strings.Contains(line, "rank 0 gave up") {
					t.Error(line)
				}
			}
		})
	}
}

// What a machine lacks is said, with what to do, before any rank waits.
func TestMissing(t *testing.T) {
	for name, c := range map[string]struct{ nccl, cuda, want string }{
		"driver": {"libnccl.so.2", "/nowhere/libcuda.so.1", "install the driver"},
		"nccl":   {"/nowhere/libnccl.so.2", os.Getenv(environmentCUDA), "install libnccl2"},
		"symbol": {"libc.so.6", os.Getenv(environmentCUDA), "has no ncclGetVersion"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.cuda == os.Getenv(environmentCUDA) {
				needStub(t)
			}
			if _, err := open(c.nccl, c.cuda); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Error(err)
			}
		})
	}
	needStub(t)
	t.Setenv("AUTOGLM_STUB_OLD", "1")
	if _, err := open(os.Getenv(environmentNCCL), os.Getenv(environmentCUDA)); err == nil || !strings.Contains(err.Error(), "2.14 or newer") {
		t.Error(err)
	}
}

// A GPU that is not there is named, on all ranks.
func TestOrdinal(t *testing.T) {
	needStub(t)
	refused(t, "GPU 12 of 8")
	t.Setenv("AUTOGLM_STUB_NO_GPU", "1")
	refused(t, "no CUDA-capable device is detected: is there a GPU")
}

// refused has two ranks form a ring, the second one on a GPU that isn't there.
func refused(t *testing.T, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	meet := &ring.Meeting{}
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for r := range errs {
		wg.Go(func() {
			_, errs[r] = ring.Form(ctx, ring.Config{Rank: r, World: 2, Epoch: 1, Backend: ring.NCCL, Rendezvous: meet, GPU: &ring.GPU{Ordinal: 12 * r}})
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Error(err)
		}
	}
}
