package ring_test

import (
	"fmt"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/gpu/ring/ringtest"
)

func TestHosts(t *testing.T) {
	for backend, want := range map[string]string{ring.Auto: ring.Hierarchical, ring.TCP: ring.TCP} {
		t.Run(backend, func(t *testing.T) { ringtest.LossOnHosts(t, backend, want+": ") })
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
