package ring_test

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/gpu/ring/ringtest"
)

// Five ranks on three hosts: a host loses its network, then a host's first rank is
// killed, then the first of all is stopped. Each time the others know who it is and go on in a new ring,
// with one state.
func TestHosts(t *testing.T) {
	for _, backend := range []string{ring.Auto, ring.TCP} {
		t.Run(backend, func(t *testing.T) {
			hosts := ringtest.Hosts(t, 3)
			at := []int{0, 0, 1, 1, 2}
			procs := make([]*ringtest.Proc, len(at))
			for r, h := range at {
				procs[r] = ringtest.StartRank(t, ringtest.Rank{
					Rank: r, World: len(at), Backend: backend, Master: hosts[0].Address + ":29500", Prefix: hosts[h].Prefix,
					Env: []string{"AUTOGLM_RING_LISTEN=" + hosts[h].Address + ":0"},
				})
			}
			want := map[string]string{ring.Auto: ring.Hierarchical, ring.TCP: ring.TCP}[backend]
			for _, p := range procs {
				if f := p.Await(t, "formed"); f[4] != want {
					t.Errorf("backend %s", f[4])
				}
			}
			for _, p := range procs {
				p.Await(t, "step")
			}
			for _, how := range []struct {
				name   string
				do     func(p *ringtest.Proc) error
				victim int
				within time.Duration
			}{
				{"disconnected", func(*ringtest.Proc) error { hosts[2].Disconnect(t); return nil }, 4, time.Second},
				{"killed", func(p *ringtest.Proc) error { return p.Cmd.Process.Kill() }, 2, 50 * time.Millisecond},
				{"stopped", func(p *ringtest.Proc) error { return p.Cmd.Process.Signal(syscall.SIGSTOP) }, 0, time.Second},
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
					known = max(known, ringtest.Nanos(t, f[2]).Sub(began))
					if f = p.Await(t, "reformed"); f[2] != fmt.Sprint(len(procs)) {
						t.Fatalf("a new ring of %s ranks, %d are left", f[2], len(procs))
					}
					stands = max(stands, ringtest.Nanos(t, f[4]).Sub(began))
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
		})
	}
}

// Between two hosts of two ranks each, a hierarchical sum sends the buffer once a
// direction and a flat one twice; where the network is what limits them that is
// what they take.
func TestHierarchySendsLess(t *testing.T) {
	perStep, seconds := map[string]float64{}, map[string]float64{}
	for _, backend := range []string{ring.Hierarchical, ring.TCP} {
		hosts := ringtest.Hosts(t, 2)
		for _, h := range hosts {
			h.Limit(t, "100mbit")
		}
		procs := make([]*ringtest.Proc, 4)
		for r := range procs {
			h := hosts[r/2]
			procs[r] = ringtest.StartRank(t, ringtest.Rank{
				Rank: r, World: len(procs), Backend: backend, Master: hosts[0].Address + ":29500", Prefix: h.Prefix, Env: []string{"AUTOGLM_RING_LISTEN=" + h.Address + ":0"},
			})
		}
		first := procs[0].Await(t, "step")
		began := hosts[0].Sent(t)
		var last []string
		for range 2 {
			last = procs[0].Await(t, "step")
		}
		sent := hosts[0].Sent(t) - began
		var from, to float64
		if _, err := fmt.Sscan(first[1]+" "+last[1], &from, &to); err != nil {
			t.Fatal(err)
		}
		perStep[backend] = float64(sent) / (to - from)
		seconds[backend] = ringtest.Nanos(t, last[3]).Sub(ringtest.Nanos(t, first[3])).Seconds() / (to - from)
		for _, p := range procs {
			if err := p.Cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("1.2 MB of gradients over 100 Mbit/s, a step: %.0f bytes and %.1f ms hierarchical, %.0f bytes and %.1f ms flat",
		perStep[ring.Hierarchical], 1e3*seconds[ring.Hierarchical], perStep[ring.TCP], 1e3*seconds[ring.TCP])
	if perStep[ring.Hierarchical] > 0.65*perStep[ring.TCP] {
		t.Error("a hierarchical sum should send half as much")
	}
	if seconds[ring.Hierarchical] > 0.85*seconds[ring.TCP] {
		t.Error("a hierarchical sum should take little more than half as long")
	}
}
