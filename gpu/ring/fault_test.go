package ring_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/gpu/ring/ringtest"
)

// One of four ranks is killed in the middle of its steps, again and again until
// the last majority is left: all others know it, form a new ring, and none of them
// ever holds a state that another one does not.
func TestKill(t *testing.T) {
	for _, backend := range []string{ring.SHM, ring.Unix, ring.TCP} {
		t.Run(backend, func(t *testing.T) {
			procs := ringtest.Start(t, backend, 4)
			for _, p := range procs {
				p.Await(t, "formed")
			}
			left := procs
			for len(left) > 2 {
				for _, p := range left {
					p.Await(t, "step")
				}
				k := rand.IntN(len(left))
				at := time.Now()
				if err := left[k].Cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				rest := append(append([]*ringtest.Proc(nil), left[:k]...), left[k+1:]...)
				var known, stands, next time.Duration
				for _, p := range rest {
					f := p.Await(t, "lost")
					if f[1] != fmt.Sprint(k) {
						t.Errorf("lost rank %s, killed %d", f[1], k)
					}
					known = max(known, ringtest.Nanos(t, f[2]).Sub(at))
					f = p.Await(t, "reformed")
					if f[2] != fmt.Sprint(len(rest)) {
						t.Fatalf("a new ring of %s ranks, %d are left", f[2], len(rest))
					}
					stands = max(stands, ringtest.Nanos(t, f[4]).Sub(at))
				}
				sums := map[string]string{}
				for _, p := range rest {
					f := p.Await(t, "step")
					next = max(next, ringtest.Nanos(t, f[3]).Sub(at))
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
	for _, backend := range []string{ring.SHM, ring.TCP} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			procs := ringtest.Start(t, backend, 3)
			for _, p := range procs {
				p.Await(t, "step")
			}
			at := time.Now()
			if err := procs[1].Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			for _, p := range []*ringtest.Proc{procs[0], procs[2]} {
				f := p.Await(t, "lost")
				if f[1] != "1" {
					t.Errorf("lost rank %s", f[1])
				}
				t.Logf("known after %s", ringtest.Nanos(t, f[2]).Sub(at))
				p.Await(t, "reformed")
			}
			procs[0].Await(t, "step")
			if err := procs[1].Cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			f := procs[1].Await(t, "end")
			if line := strings.Join(f, " "); !strings.Contains(line, "epoch") {
				t.Errorf("the stopped rank says: %s", line)
			} else {
				t.Log(line)
			}
			procs[2].Await(t, "step")
		})
	}
}
