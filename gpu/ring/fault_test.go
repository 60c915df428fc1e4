package ring

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Faults of real processes: this test binary starts itself as ranks.

const childEnv = "AUTOGLM_RING_CHILD"

// child is one rank: it sums, commits, and goes on with those that are left. What
// it has seen it prints, a line a fact. true when this process is one.
func child() bool {
	backend := os.Getenv(childEnv)
	if backend == "" {
		return false
	}
	if err := trainLike(backend); err != nil {
		fmt.Println("end", err)
		os.Exit(3)
	}
	return true
}

// trainLike adds the step's number and the old sums' size up in a state, step by
// step, as a training does: sums, commit, update.
func trainLike(backend string) error {
	cfg, err := FromEnv(os.Getenv)
	if err != nil {
		return err
	}
	cfg.Epoch, cfg.Backend, cfg.FormTimeout, cfg.Timeout = 1, backend, 20*time.Second, 20*time.Second
	if s := os.Getenv("AUTOGLM_RING_SUSPECT"); s != "" {
		if cfg.Suspect, err = time.ParseDuration(s); err != nil {
			return err
		}
	}
	c, err := Form(bg, cfg)
	if err != nil {
		return err
	}
	fmt.Println("formed", c.Rank(), c.World(), c.Epoch())
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
			c.Reduce(0, Buffer{Data: small})
			c.Reduce(1, Buffer{Data: grads})
			err := c.Wait()
			if err == nil {
				err = c.Commit(step)
			}
			if err == nil {
				break
			}
			var lost *LostError
			if !errors.As(err, &lost) {
				return err
			}
			fmt.Println("lost", lost.Rank, time.Now().UnixNano())
			world := c.World()
			next, err := c.Reform(bg)
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

// proc is a child seen from the test.
type proc struct {
	cmd  *exec.Cmd
	line chan string
}

func start(t testing.TB, backend string, world int, env ...string) []*proc {
	t.Helper()
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	procs := make([]*proc, world)
	for r := range procs {
		cmd := exec.Command(self, "-test.run=^$")
		cmd.Env = append(append(os.Environ(), env...), childEnv+"="+backend, fmt.Sprintf("RANK=%d", r), fmt.Sprintf("WORLD_SIZE=%d", world),
			"MASTER_ADDR=127.0.0.1", fmt.Sprintf("MASTER_PORT=%d", port), "GOMAXPROCS=2")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		p := &proc{cmd: cmd, line: make(chan string, 100_000)}
		procs[r] = p
		go p.read(out)
		t.Cleanup(func() {
			_ = cmd.Process.Signal(syscall.SIGCONT)
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			for range p.line {
			}
		})
	}
	return procs
}

func (p *proc) read(r io.Reader) {
	for s := bufio.NewScanner(r); s.Scan(); {
		p.line <- s.Text()
	}
	close(p.line)
}

// await reads lines until one begins with that word.
func (p *proc) await(t testing.TB, word string) []string {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-p.line:
			if !ok {
				t.Fatalf("the process ended before it said %q", word)
			}
			if f := strings.Fields(line); f[0] == word {
				return f
			} else if f[0] == "end" && word != "end" {
				t.Fatalf("%s (waiting for %q)", line, word)
			}
		case <-limit:
			t.Fatalf("30 s without %q", word)
		}
	}
}

func nanos(t testing.TB, s string) time.Time {
	t.Helper()
	var n int64
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return time.Unix(0, n)
}

// One of four ranks is killed in the middle of its steps, again and again until
// the last majority is left: all others know it, form a new ring, and none of them
// ever holds a state that another one does not.
func TestKill(t *testing.T) {
	for _, backend := range []string{SHM, Unix, TCP} {
		t.Run(backend, func(t *testing.T) {
			procs := start(t, backend, 4)
			for _, p := range procs {
				p.await(t, "formed")
			}
			left := procs
			for len(left) > 2 {
				for _, p := range left {
					p.await(t, "step")
				}
				k := rand.IntN(len(left))
				at := time.Now()
				if err := left[k].cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				rest := append(append([]*proc(nil), left[:k]...), left[k+1:]...)
				var known, stands, next time.Duration
				for _, p := range rest {
					f := p.await(t, "lost")
					if f[1] != fmt.Sprint(k) {
						t.Errorf("lost rank %s, killed %d", f[1], k)
					}
					known = max(known, nanos(t, f[2]).Sub(at))
					f = p.await(t, "reformed")
					if f[2] != fmt.Sprint(len(rest)) {
						t.Fatalf("a new ring of %s ranks, %d are left", f[2], len(rest))
					}
					stands = max(stands, nanos(t, f[4]).Sub(at))
				}
				sums := map[string]string{}
				for _, p := range rest {
					f := p.await(t, "step")
					next = max(next, nanos(t, f[3]).Sub(at))
					if old, ok := sums[f[1]]; ok && old != f[2] {
						t.Fatalf("after step %s one rank holds %s, another %s", f[1], old, f[2])
					}
					sums[f[1]] = f[2]
				}
				t.Logf("rank %d of %d killed: all know after %s, a new ring stands after %s, steps go on after %s", k, len(left), known, stands, next)
				left = rest
			}
		})
	}
}

// A stopped rank is found by its silence; when it goes on it finds the ring gone
// on without it, and no way back in under its old epoch.
func TestStop(t *testing.T) {
	for _, backend := range []string{SHM, TCP} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			procs := start(t, backend, 3)
			for _, p := range procs {
				p.await(t, "step")
			}
			at := time.Now()
			if err := procs[1].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			for _, p := range []*proc{procs[0], procs[2]} {
				f := p.await(t, "lost")
				if f[1] != "1" {
					t.Errorf("lost rank %s", f[1])
				}
				t.Logf("known after %s", nanos(t, f[2]).Sub(at))
				p.await(t, "reformed")
			}
			procs[0].await(t, "step")
			if err := procs[1].cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			f := procs[1].await(t, "end")
			if line := strings.Join(f, " "); !strings.Contains(line, "epoch") {
				t.Errorf("the stopped rank says: %s", line)
			} else {
				t.Log(line)
			}
			procs[2].await(t, "step")
		})
	}
}
