package ring

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// transports are all ways to join ranks, for tests that hold for each.
var transports = []string{"inproc", SHM, "registered", Unix, TCP, "tcp 3 streams", "tls", Hierarchical, "hierarchical tls", "hierarchical alone", "library", "library afar"}

// formed joins world ranks in this process.
func formed(t testing.TB, transport string, world int, change func(*Config)) []*Comm {
	t.Helper()
	comms := make([]*Comm, world)
	if transport == "inproc" {
		g := NewGroup(world, 1)
		for r := range comms {
			comms[r] = g.Rank(r)
		}
	} else {
		meet := &Meeting{}
		errs := make([]error, world)
		var wg sync.WaitGroup
		for r := range world {
			cfg := Config{Rank: r, World: world, Epoch: 1, Backend: transport, Rendezvous: meet, Timeout: 20 * time.Second, FormTimeout: 20 * time.Second}
			cfg.Suspect = 10 * time.Second // a busy machine is no dead one
			switch transport {
			case "registered":
				cfg.Backend = SHM
			case "tcp 3 streams":
				cfg.Backend, cfg.Streams = TCP, 3
			case "tls":
				cfg.Backend = TCP
				ep := tlsEndpoint(t)
				t.Cleanup(func() { ep.Close() })
				cfg.Endpoint = ep
			case Hierarchical, "hierarchical tls", "hierarchical alone":
				cfg.Backend = Hierarchical
				ep := onHost(t, r, transport)
				t.Cleanup(func() { ep.Close() })
				cfg.Endpoint = ep
			case "library":
				cfg.Backend = testLibrary
			case "library afar":
				cfg.Backend = testLibrary
				ep := onHost(t, r, transport)
				t.Cleanup(func() { ep.Close() })
				cfg.Endpoint = ep
			}
			if change != nil {
				change(&cfg)
			}
			wg.Go(func() { comms[r], errs[r] = Form(t.Context(), cfg) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { closeAll(t, comms) })
	return comms
}

func closeAll(t testing.TB, comms []*Comm) {
	var wg sync.WaitGroup
	for _, c := range comms {
		wg.Go(func() {
			if err := c.Close(); err != nil {
				t.Errorf("close rank %d: %v", c.Rank(), err)
			}
		})
	}
	wg.Wait()
}

// onAll runs f on each rank's goroutine.
func onAll(comms []*Comm, f func(c *Comm) error) []error {
	errs := make([]error, len(comms))
	var wg sync.WaitGroup
	for r, c := range comms {
		wg.Go(func() { errs[r] = f(c) })
	}
	wg.Wait()
	return errs
}

// Many buckets in a row, handed over while others are on their way, with ranks
// that run ahead of each other.
func TestReduceAndWait(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			const world, buckets, steps = 3, 7, 20
			comms := formed(t, transport, world, nil)
			errs := onAll(comms, func(c *Comm) error {
				size := func(b int) int { return 1 << (2 * b) * 5 } // 5 … 20480 … elements
				for step := range steps {
					var bufs [][]float32
					for b := range buckets {
						d := make([]float32, size(b))
						for i := range d {
							d[i] = float32((c.Rank() + 1) * (step + b + i%3))
						}
						bufs = append(bufs, d)
						c.Reduce(b, Buffer{Data: d})
					}
					if err := c.Wait(); err != nil {
						return err
					}
					for b, d := range bufs {
						for i, x := range d {
							if x != float32(6*(step+b+i%3)) {
								return fmt.Errorf("step %d bucket %d element %d: %g", step, b, i, x)
							}
						}
					}
					if err := c.Commit(uint64(step + 1)); err != nil {
						return err
					}
				}
				if c.Committed() != steps {
					return fmt.Errorf("committed %d", c.Committed())
				}
				return nil
			})
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestAbortWakesEveryRank(t *testing.T) {
	for _, transport := range transports {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			comms := formed(t, transport, 3, nil)
			reason := errors.New("no more")
			errs := make(chan error, 2)
			for _, c := range comms[:2] {
				go func() {
					c.Reduce(0, Buffer{Data: make([]float32, 100_000)})
					errs <- c.Wait()
				}()
			}
			comms[2].Abort(reason)
			for range 2 {
				if err := <-errs; err == nil || !strings.Contains(err.Error(), reason.Error()) {
					t.Fatalf("got %v", err)
				}
			}
			if err := comms[2].AllReduce(Buffer{Data: make([]float32, 100)}); !errors.Is(err, reason) {
				t.Fatalf("after the end: %v", err)
			}
		})
	}
}

func TestDisagreementNamesTheRank(t *testing.T) {
	for _, transport := range transports {
		for name, second := range map[string]func(*Comm) error{
			"another bucket":     func(c *Comm) error { c.Reduce(1, Buffer{Data: make([]float32, 8)}); return c.Wait() },
			"another length":     func(c *Comm) error { return c.AllReduce(Buffer{Data: make([]float32, 9)}) },
			"another type":       func(c *Comm) error { return c.AllReduce(Buffer{Half: make([]uint16, 8), DType: BF16}) },
			"another collective": func(c *Comm) error { return c.AllGather(Buffer{Data: make([]float32, 8)}) },
		} {
			t.Run(transport+" "+name, func(t *testing.T) {
				t.Parallel()
				comms := formed(t, transport, 2, nil)
				errs := onAll(comms, func(c *Comm) error {
					if c.Rank() == 0 {
						return c.AllReduce(Buffer{Data: make([]float32, 8)})
					}
					return second(c)
				})
				for r, err := range errs {
					if err == nil {
						t.Fatalf("rank %d did not see it", r)
					}
					if !strings.Contains(err.Error(), "rank 0") || !strings.Contains(err.Error(), "rank 1") || !strings.Contains(err.Error(), "out of step") {
						t.Errorf("rank %d: %v", r, err)
					}
				}
			})
		}
	}
}

// A rank that leaves is named by whoever would need it.
func TestGoodbye(t *testing.T) {
	for _, transport := range transports {
		if transport == "inproc" {
			continue // its ranks end with Abort
		}
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			comms := formed(t, transport, 3, nil)
			errs := onAll(comms, func(c *Comm) error {
				if err := c.AllReduce(Buffer{Data: make([]float32, 50_000)}); err != nil {
					return fmt.Errorf("too early: %w", err)
				}
				if c.Rank() == 1 {
					return c.Close()
				}
				return c.AllReduce(Buffer{Data: make([]float32, 50_000)})
			})
			var lost *LostError
			for _, r := range []int{0, 2} {
				if !errors.Is(errs[r], ErrLost) || !errors.As(errs[r], &lost) {
					t.Errorf("rank %d: %v", r, errs[r])
				}
			}
		})
	}
}

// A living rank that never comes ends the wait at its bound.
func TestTimeout(t *testing.T) {
	for _, transport := range transports {
		if transport == "inproc" {
			continue
		}
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			comms := formed(t, transport, 2, func(c *Config) { c.Timeout = 50 * time.Millisecond })
			err := comms[0].AllReduce(Buffer{Data: make([]float32, 5)})
			if !errors.Is(err, ErrTimeout) || !strings.Contains(err.Error(), "rank 1 did not come") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		second func(*Config)
		want   string
	}{
		"world":       {func(c *Config) { c.World = 3 }, "world of"},
		"rank":        {func(c *Config) { c.Rank = 0 }, "rank 0"},
		"model":       {func(c *Config) { c.Fingerprint = "d64" }, "would train something else"},
		"backend":     {func(c *Config) { c.Backend = TCP }, "asks for backend"},
		"streams":     {func(c *Config) { c.Streams = 2 }, "streams"},
		"no backend":  {func(c *Config) { c.Backend = "carrier pigeon" }, "there are"},
		"beyond":      {func(c *Config) { c.Rank = 2 }, "ranks count from 0"},
		"never comes": {func(c *Config) { c.Rendezvous = &Meeting{} }, "did not come"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			meet := &Meeting{}
			var errs [2]error
			var wg sync.WaitGroup
			for r := range 2 {
				cfg := Config{Rank: r, World: 2, Epoch: 1, Rendezvous: meet, Fingerprint: "d32", FormTimeout: 300 * time.Millisecond}
				if r == 1 {
					c.second(&cfg)
				}
				wg.Go(func() {
					comm, err := Form(t.Context(), cfg)
					if err == nil {
						err = comm.Close()
					}
					errs[r] = err
				})
			}
			wg.Wait()
			if err := errors.Join(errs[:]...); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
}

// Auto goes by where the ranks and their buffers are, and never leaves TLS for a
// plaintext library; what is forced says why it can't be.
func TestChoose(t *testing.T) {
	near, far := card{Host: "a", Unix: "@x", TCP: "1"}, card{Host: "b", Unix: "@y", TCP: "2"}
	gpu, lacking, guarded, allowed, gpuFar, fast, fastFar := near, near, near, near, far, near, far
	gpu.GPU, lacking.GPU, lacking.Lacks = true, true, "no NCCL here"
	guarded.GPU, guarded.Secured = true, true
	allowed.GPU, allowed.Secured, allowed.Plaintext = true, true, true
	gpuFar.GPU, fast.GPU, fast.RDMA, fastFar.GPU, fastFar.RDMA = true, true, true, true, true
	inside := "hierarchical with nccl inside each host: "
	for _, c := range []struct {
		backend string
		cards   []card
		want    string
	}{
		{Auto, []card{near, near}, SHM},
		{Auto, []card{near, far}, TCP},
		{Auto, []card{near, near, far}, Hierarchical},
		{Auto, []card{far, near, near}, Hierarchical},
		{Auto, []card{near, far, near}, TCP}, // they would be summed in another order
		{Hierarchical, []card{near, far, near}, Hierarchical},
		{Hierarchical, []card{near, near}, Hierarchical},
		{Auto, []card{{Host: "a", TCP: "1"}, {Host: "a", TCP: "2"}, far}, TCP},
		{Auto, []card{gpu, gpu}, NCCL},
		{Auto, []card{gpu, near}, SHM + ": all ranks are on one host; no nccl: rank 1 has no GPU"},
		{Auto, []card{gpu, lacking}, SHM + ": all ranks are on one host; no nccl: rank 1: no NCCL here"},
		{Auto, []card{guarded, guarded}, SHM + ": all ranks are on one host; no nccl: it neither encrypts nor authenticates, and rank 0's endpoint has TLS; plaintext_collectives: true allows it"},
		{Auto, []card{allowed, allowed}, NCCL},
		{Auto, []card{gpu, gpuFar}, NCCL + ": each rank is on a host of its own"},
		{Auto, []card{gpu, gpu, gpuFar}, inside + "several ranks share a host, and no RDMA joins the hosts"},
		{Auto, []card{fast, fast, fastFar}, NCCL + ": RDMA joins the hosts"},
		{Auto, []card{fast, fast, gpuFar}, inside},
		{Auto, []card{gpu, gpuFar, gpu}, NCCL + ": ranks that share a host don't follow on each other"},
		{Auto, []card{gpu, gpu, far}, Hierarchical + ": several ranks share a host; no nccl: rank 2 has no GPU"},
		{Hierarchical, []card{gpu, gpu, gpuFar}, inside + "as asked for"},
		{Hierarchical, []card{fast, gpuFar, fast}, inside},
		{Hierarchical, []card{gpu, gpu, far}, Hierarchical + ": as asked for"},
		{Hierarchical, []card{guarded, guarded}, Hierarchical + ": as asked for"},
		{NCCL, []card{gpu, near}, "rank 1 has none"},
		{NCCL, []card{gpu, lacking}, "rank 1: no NCCL here"},
		{NCCL, []card{guarded, gpu}, "rank 0's endpoint has TLS"},
		{MPI, []card{near, guarded}, "rank 1's endpoint has TLS"},
		{Gloo, []card{allowed, allowed}, Gloo},
		{TCP, []card{near, guarded}, "rank 1's endpoint has TLS and rank 0's has none"},
		{Auto, []card{near, {Host: "a", TCP: "3"}}, TCP},
		{SHM, []card{near, far}, "rank 1 is on another"},
		{Unix, []card{near, near}, Unix},
		{TCP, []card{near, {Host: "a"}}, "rank 1 does not listen"},
	} {
		how, err := choose(c.backend, c.cards)
		got := how.String()
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s over %v: %s, want %s", c.backend, c.cards, got, c.want)
		}
	}
}

func TestMaster(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	join := func(rank, world int, limit time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		cards, err := (&Master{Address: addr}).Join(ctx, rank, world, 1, []byte{byte(rank)})
		if err != nil {
			return err
		}
		for r, c := range cards {
			if len(c) != 1 || c[0] != byte(r) {
				return fmt.Errorf("cards %v", cards)
			}
		}
		return nil
	}
	errs := make(chan error, 8)
	go func() { errs <- join(0, 3, 20*time.Second) }()
	if err := join(5, 3, 20*time.Second); err == nil || !strings.Contains(err.Error(), "RANK 5 does not fit") {
		t.Errorf("rank 5: %v", err)
	}
	if err := join(1, 4, 20*time.Second); err == nil || !strings.Contains(err.Error(), "WORLD_SIZE 4 does not fit") {
		t.Errorf("world 4: %v", err)
	}
	// Two processes come as rank 2; one of them is refused, before or after.
	for range 2 {
		go func() { errs <- join(2, 3, 20*time.Second) }()
	}
	if err := <-errs; err == nil || !strings.Contains(err.Error(), "two processes were started with RANK 2") {
		t.Errorf("a second rank 2: %v", err)
	}
	go func() { errs <- join(1, 3, 20*time.Second) }()
	for range 3 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if err := join(0, 3, 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "ranks 1, 2 did not come") {
		t.Errorf("nobody comes: %v", err)
	}
	if err := join(1, 3, 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "rank 0 at "+addr) {
		t.Errorf("no master: %v", err)
	}
}

func TestFromEnv(t *testing.T) {
	for _, c := range []struct{ env, want string }{
		{"RANK=1 WORLD_SIZE=4 MASTER_ADDR=10.0.0.1 MASTER_PORT=1234", "1 4 10.0.0.1:1234"},
		{"RANK=0 WORLD_SIZE=2 MASTER_ADDR=h MASTER_PORT=29500 TORCHELASTIC_USE_AGENT_STORE=True", "0 2 h:29501"},
		{"OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4", "3 4 127.0.0.1:29500"},
		{"SLURM_PROCID=0 SLURM_NTASKS=1 SLURM_LAUNCH_NODE_IPADDR=fe80::1", "0 1 [fe80::1]:29500"},
		{"RANK=4 WORLD_SIZE=4", "ranks count from 0 to 3"},
		{"RANK=1", "set both"},
		{"RANK=x WORLD_SIZE=4", "no number"},
		{"RANK=0 WORLD_SIZE=1 MASTER_PORT=http", "no port"},
		{"", "no rank in the environment"},
	} {
		env := map[string]string{}
		for _, kv := range strings.Fields(c.env) {
			k, v, _ := strings.Cut(kv, "=")
			env[k] = v
		}
		cfg, err := FromEnv(func(k string) string { return env[k] })
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = fmt.Sprint(cfg.Rank, cfg.World, " ", cfg.Rendezvous.(*Master).Address)
			got = strings.ReplaceAll(got, "  ", " ")
		}
		if !strings.Contains(got, c.want) {
			t.Errorf("%s: %s, want %s", c.env, got, c.want)
		}
	}
}

// Ranks that are processes of their own meet through whoever speaks for them, and
// Abort ends that.
func TestGroupMeet(t *testing.T) {
	g := NewGroup(2, 7)
	got := make(chan error, 1)
	go func() {
		cards, err := g.Meet(t.Context(), 1, []byte("b"))
		if err == nil && (string(cards[0]) != "a" || string(cards[1]) != "b") {
			err = fmt.Errorf("cards %q", cards)
		}
		got <- err
	}()
	if cards, err := g.Meet(t.Context(), 0, []byte("a")); err != nil || string(cards[1]) != "b" {
		t.Errorf("%q, %v", cards, err)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	if _, err := g.Meet(t.Context(), 2, nil); err == nil {
		t.Error("rank 2 of 2 met the others")
	}
	g = NewGroup(2, 8)
	go func() {
		_, err := g.Meet(t.Context(), 0, []byte("a"))
		got <- err
	}()
	g.Abort(&LostError{Rank: 1, Why: "gone"})
	<-g.Done()
	if err := <-got; !errors.Is(err, ErrLost) || !errors.Is(g.Err(), ErrLost) {
		t.Errorf("%v, %v", err, g.Err())
	}
}
