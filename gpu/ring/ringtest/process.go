package ringtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// Faults of real processes: a test binary starts itself as ranks.

const (
	childEnv = "AUTOGLM_RING_CHILD" // names the backend in a process that is a rank
	gpuEnv   = "AUTOGLM_RING_GPU"   // has it a GPU, for which host memory stands
	casesEnv = "AUTOGLM_RING_CASES" // how many Cases it takes, where it trains nothing
)

// OnGPU is an environment in which ranks have GPUs, on a stand-in whose memory is the
// host's.
const OnGPU = gpuEnv + "=1"

// Conforming is one in which ranks take so many Cases, print "conforms" and end.
func Conforming(cases int) string { return fmt.Sprintf("%s=%d", casesEnv, cases) }

// Child is one rank, where Start has made this process one: it sums, commits, and
// goes on with those that are left. What it has seen it prints, a line a fact.
// TestMain calls it first and returns when it is true.
func Child() bool {
	backend := os.Getenv(childEnv)
	if backend == "" {
		return false
	}
	if err := trainLike(backend); err != nil {
		fmt.Println("end", strings.ReplaceAll(err.Error(), "\n", "; "))
		os.Exit(3)
	}
	return true
}

// config is a child's place, by its environment.
func config(backend string) (ring.Config, error) {
	cfg, err := ring.FromEnv(os.Getenv)
	if err != nil {
		return cfg, err
	}
	cfg.Epoch, cfg.Backend, cfg.FormTimeout, cfg.Timeout = 1, backend, 20*time.Second, 20*time.Second
	for name, d := range map[string]*time.Duration{
		"AUTOGLM_RING_SUSPECT": &cfg.Suspect, "AUTOGLM_RING_TIMEOUT": &cfg.Timeout, "AUTOGLM_RING_FORM": &cfg.FormTimeout,
	} {
		if s := os.Getenv(name); s != "" {
			if *d, err = time.ParseDuration(s); err != nil {
				return cfg, err
			}
		}
	}
	if backend == ring.NCCL || os.Getenv(gpuEnv) != "" {
		cfg.GPU = &ring.GPU{Ordinal: cfg.Rank}
	}
	if addr := os.Getenv("AUTOGLM_RING_LISTEN"); addr != "" {
		ep, err := ring.NewEndpoint(ring.EndpointConfig{Address: addr})
		if err != nil {
			return cfg, err
		}
		cfg.Endpoint = ep
	}
	return cfg, nil
}

// conform is one rank of a conformance test between processes.
func conform(c *ring.Comm, count string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	for i, k := range Cases(7, n, 400_000) {
		if err := Run(c, k, How{Loose: true, Device: c.Devices() && i%3 > 0}); err != nil {
			return err
		}
	}
	fmt.Println("conforms", c.Rank(), c.World(), c.Backend())
	return c.Close()
}

// trainLike adds each step's sums up in a state, as a training does: sums, commit,
// update.
func trainLike(backend string) error {
	cfg, err := config(backend)
	if err != nil {
		return err
	}
	c, err := ring.Form(context.Background(), cfg)
	if err != nil {
		return err
	}
	fmt.Println("formed", c.Rank(), c.World(), c.Epoch(), c.Backend(), os.Getpid())
	fmt.Println("choice", c.Choice())
	if s := os.Getenv(casesEnv); s != "" {
		return conform(c, s)
	}
	const n = 300_000
	state := make([]float32, n)
	grads := make([]float32, n)
	small := make([]float32, 40)
	for step := uint64(1); ; step++ {
		for {
			for i := range grads {
				grads[i] = float32(step % 7)
			}
			for i := range small {
				small[i] = 1
			}
			c.Reduce(0, ring.Buffer{Data: small})
			b := ring.Buffer{Data: grads}
			if c.Devices() && os.Getenv(gpuEnv) != "" {
				b = ring.Buffer{Device: uintptr(unsafe.Pointer(&grads[0])), N: n}
			}
			c.Reduce(1, b)
			err := c.Wait()
			if err == nil {
				err = c.Commit(step)
			}
			if err == nil {
				break
			}
			if errors.Is(err, ring.ErrOutOfStep) {
				return err
			}
			fmt.Println("broken", time.Now().UnixNano(), strings.ReplaceAll(err.Error(), "\n", "; "))
			var lost *ring.LostError
			if errors.As(err, &lost) {
				fmt.Println("lost", lost.Rank, time.Now().UnixNano())
			}
			world := c.World()
			next, err := c.Reform(context.Background())
			if err != nil {
				return err
			}
			fmt.Println("reformed", next.Rank(), next.World(), next.Epoch(), time.Now().UnixNano())
			committed := next.Committed()
			if c = next; committed >= step {
				// Another rank has committed this step, so the sums here are whole: apply
				// them, with the world that made them.
				if small[0] != float32(world) {
					return fmt.Errorf("step %d was committed by another rank, and the sum here is %g of %d ranks", step, small[0], world)
				}
				break
			}
		}
		// Divided by the ranks that took part, so that the state does not tell them.
		for i := range state {
			state[i] += grads[i] / small[0]
		}
		if state[0] != state[n-1] {
			return fmt.Errorf("step %d: state %g and %g", step, state[0], state[n-1])
		}
		if step%8 == 0 {
			fmt.Println("step", step, state[0], time.Now().UnixNano())
		}
	}
}

// Proc is a rank seen from the test.
type Proc struct {
	Cmd  *exec.Cmd
	line chan string
}

// Start makes the test's binary the ranks of a ring, over loopback. They end with
// the test.
func Start(t testing.TB, backend string, world int, env ...string) []*Proc {
	t.Helper()
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().(*net.TCPAddr)
	l.Close()
	procs := make([]*Proc, world)
	for r := range procs {
		procs[r] = StartRank(t, Rank{Rank: r, World: world, Backend: backend, Master: addr.String(), Env: env})
	}
	return procs
}

// Rank says how StartRank starts a rank.
type Rank struct {
	Rank, World int
	Backend     string
	Master      string   // host:port
	Env         []string // more of it
	Prefix      []string // a command that runs the binary
}

// StartRank makes the test's binary one rank.
func StartRank(t testing.TB, r Rank) *Proc {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	host, port, err := net.SplitHostPort(r.Master)
	if err != nil {
		t.Fatal(err)
	}
	argv := append(append([]string{}, r.Prefix...), self, "-test.run=^$")
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(append(os.Environ(), r.Env...), childEnv+"="+r.Backend, fmt.Sprintf("RANK=%d", r.Rank), fmt.Sprintf("WORLD_SIZE=%d", r.World),
		"MASTER_ADDR="+host, "MASTER_PORT="+port, "GOMAXPROCS=2")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &Proc{Cmd: cmd, line: make(chan string, 100_000)}
	go p.read(out)
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		for range p.line {
		}
	})
	return p
}

func (p *Proc) read(r io.Reader) {
	for s := bufio.NewScanner(r); s.Scan(); {
		p.line <- s.Text()
	}
	close(p.line)
}

// Await reads lines until one begins with that word, 30 seconds at the most, and
// gives its fields.
func (p *Proc) Await(t testing.TB, word string) []string {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-p.line:
			if !ok {
				t.Fatalf("the process ended before it said %q", word)
			}
			f := strings.Fields(line)
			if len(f) == 0 {
				continue
			}
			if f[0] == word {
				return f
			} else if f[0] == "end" {
				t.Fatalf("%s (waiting for %q)", line, word)
			}
		case <-limit:
			t.Fatalf("30 s without %q", word)
		}
	}
}

// Nanos reads a time that a rank has printed.
func Nanos(t testing.TB, s string) time.Time {
	t.Helper()
	var n int64
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return time.Unix(0, n)
}

// Loss kills one of four ranks, then stops one of the three: the others know who it
// is, in 50 ms and in a second, and go on in a new ring, all with one state.
func Loss(t *testing.T, backend string, env ...string) {
	procs := Start(t, backend, 4, env...)
	for _, p := range procs {
		p.Await(t, "step")
	}
	for i, how := range []struct {
		name   string
		signal os.Signal
		victim int
		within time.Duration
	}{{"killed", syscall.SIGKILL, 2, 50 * time.Millisecond}, {"stopped", syscall.SIGSTOP, 0, time.Second}} {
		at := time.Now()
		if err := procs[how.victim].Cmd.Process.Signal(how.signal); err != nil {
			t.Fatal(err)
		}
		procs = append(procs[:how.victim:how.victim], procs[how.victim+1:]...)
		var known, stands time.Duration
		sums := map[string]string{}
		for _, p := range procs {
			f := p.Await(t, "lost")
			if f[1] != fmt.Sprint(how.victim) {
				t.Errorf("lost rank %s, %s was %d", f[1], how.name, how.victim)
			}
			known = max(known, Nanos(t, f[2]).Sub(at))
			if f = p.Await(t, "reformed"); f[2] != fmt.Sprint(3-i) {
				t.Errorf("a new ring of %s ranks, %d are left", f[2], 3-i)
			}
			stands = max(stands, Nanos(t, f[4]).Sub(at))
			f = p.Await(t, "step")
			if old, ok := sums[f[1]]; ok && old != f[2] {
				t.Fatalf("after step %s one rank holds %s, another %s", f[1], old, f[2])
			}
			sums[f[1]] = f[2]
		}
		t.Logf("rank %d %s: all know after %s, a new ring stands after %s", how.victim, how.name, known, stands)
		if known > how.within {
			t.Errorf("%s rank: known after %s, want %s", how.name, known, how.within)
		}
	}
}

// StartOnHosts makes the test's binary the ranks of a ring over hosts: at says on
// which each is. What they choose begins with choice.
func StartOnHosts(t *testing.T, backend, choice string, at []int, env ...string) ([]*Proc, []Host) {
	t.Helper()
	hosts := Hosts(t, 1+slices.Max(at))
	procs := make([]*Proc, len(at))
	for r, h := range at {
		procs[r] = StartRank(t, Rank{
			Rank: r, World: len(at), Backend: backend, Master: hosts[0].Address + ":29500", Prefix: hosts[h].Prefix,
			Env: append([]string{"AUTOGLM_RING_LISTEN=" + hosts[h].Address + ":0"}, env...),
		})
	}
	for _, p := range procs {
		if got := strings.Join(p.Await(t, "choice")[1:], " "); !strings.HasPrefix(got, choice) {
			t.Errorf("%s, want %s", got, choice)
		}
	}
	return procs, hosts
}

// LossOnHosts has five ranks on three hosts: a host loses its network, then a host's
// first rank is killed, then the first of all is stopped. Each time the others know
// who it is and go on in a new ring, with one state. What they choose first begins
// with choice.
func LossOnHosts(t *testing.T, backend, choice string, env ...string) {
	procs, hosts := StartOnHosts(t, backend, choice, []int{0, 0, 1, 1, 2}, env...)
	for _, p := range procs {
		p.Await(t, "step")
	}
	for _, how := range []struct {
		name   string
		do     func(p *Proc) error
		victim int
		within time.Duration
	}{
		{"disconnected", func(*Proc) error { hosts[2].Disconnect(t); return nil }, 4, time.Second},
		{"killed", func(p *Proc) error { return p.Cmd.Process.Kill() }, 2, 50 * time.Millisecond},
		{"stopped", func(p *Proc) error { return p.Cmd.Process.Signal(syscall.SIGSTOP) }, 0, time.Second},
	} {
		began := time.Now()
		if err := how.do(procs[how.victim]); err != nil {
			t.Fatal(err)
		}
		if how.name == "disconnected" {
			cut := procs[how.victim]
			t.Cleanup(func() {
				if line := strings.Join(cut.Await(t, "end"), " "); !strings.Contains(line, "too few ranks are left: 1 of 5") {
					t.Errorf("the disconnected rank: %s", line)
				}
			})
		}
		procs = append(procs[:how.victim:how.victim], procs[how.victim+1:]...)
		var known, stands time.Duration
		sums := map[string]string{}
		for _, p := range procs {
			f := p.Await(t, "lost")
			if f[1] != fmt.Sprint(how.victim) {
				t.Errorf("lost rank %s, %s was %d", f[1], how.name, how.victim)
			}
			known = max(known, Nanos(t, f[2]).Sub(began))
			if f = p.Await(t, "reformed"); f[2] != fmt.Sprint(len(procs)) {
				t.Fatalf("a new ring of %s ranks, %d are left", f[2], len(procs))
			}
			stands = max(stands, Nanos(t, f[4]).Sub(began))
			f = p.Await(t, "step")
			if old, ok := sums[f[1]]; ok && old != f[2] {
				t.Fatalf("after step %s one rank holds %s, another %s", f[1], old, f[2])
			}
			sums[f[1]] = f[2]
		}
		t.Logf("rank %d %s: all know after %s, a new ring stands after %s", how.victim, how.name, known, stands)
		if known > how.within {
			t.Errorf("rank %d %s: known after %s, want %s", how.victim, how.name, known, how.within)
		}
	}
}
