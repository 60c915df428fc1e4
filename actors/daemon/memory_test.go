package daemon

import (
	"testing"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// What this process has grown by is shared out by devices; the most stays.
func TestMeasure(t *testing.T) {
	h := newHands(nil)
	h.measure()
	if h.idle <= 0 || h.idle != min(h.idle, resident("self")) {
		t.Fatalf("%d bytes when idle", h.idle)
	}
	h.idle = 1
	a, b := &held{}, &held{assignment: assignment{Devices: []string{"cpu:0", "cpu:1", "cpu:2"}}}
	h.running["a"], h.lent["b"] = a, b
	h.measure()
	whole := a.Memory.Host + b.Memory.Host
	if here := resident("self"); whole < here/2 || whole > 2*here || b.Memory.Host < 3*a.Memory.Host-8 || b.Memory.Host > 3*a.Memory.Host+8 {
		t.Errorf("%d and %d bytes of %d", a.Memory.Host, b.Memory.Host, here)
	}
	before := a.Memory
	h.idle = 1 << 60
	h.measure()
	if a.Memory != before {
		t.Errorf("%v, then %v", before, a.Memory)
	}
	a.processes = func() []int { return []int{1, -1} }
	a.Memory.Host = 0
	if h.measure(); a.Memory.Host != resident("1") {
		t.Errorf("%d bytes of a process with %d", a.Memory.Host, resident("1"))
	}
	h.saw(a, &actors.Progress{Metrics: train.StepMetrics{PeakBytes: 7}})
	h.saw(a, &actors.Progress{Metrics: train.StepMetrics{PeakBytes: 5}})
	if a.Memory.GPU != 7 {
		t.Errorf("%d bytes of a GPU", a.Memory.GPU)
	}
}

func TestSteadily(t *testing.T) {
	const gb = 1 << 30
	for _, c := range []struct{ last, now, total, want int64 }{
		{0, 5 * gb, 64 * gb, 5 * gb},
		{5 * gb, 5*gb + gb/2, 64 * gb, 5 * gb},
		{5 * gb, 6 * gb, 64 * gb, 6 * gb},
		{5 * gb, 4 * gb, 64 * gb, 4 * gb},
		{gb, gb + 32<<20, gb, gb},
		{gb, gb - 64<<20, gb, gb - 64<<20},
		{gb, 1, gb, 1},
	} {
		if got := steadily(c.last, c.now, c.total); got != c.want {
			t.Errorf("%d, then %d of %d: %d, want %d", c.last, c.now, c.total, got, c.want)
		}
	}
}

// A returned job keeps the most that was ever measured.
func TestRegistryMemory(t *testing.T) {
	r := newRegistry()
	r.apply(record{Op: opSubmit, Job: &Job{ID: "j1"}})
	for i, m := range []Memory{{Host: 9}, {Host: 4, GPU: 3}} {
		r.apply(record{Op: opAssign, ID: "j1", Epoch: uint64(i + 1)})
		r.apply(record{Op: opReturn, ID: "j1", Epoch: uint64(i + 1), Most: m})
	}
	if m := r.jobs["j1"].Memory; m != (Memory{9, 3}) {
		t.Errorf("%+v", m)
	}
}
