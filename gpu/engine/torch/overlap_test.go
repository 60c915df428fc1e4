//go:build libtorch

package torch

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/enginetest"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// watcher is a GradientSync that keeps what it is given.
type watcher struct {
	views, copies [][]float32
	came          func() // with each bucket; may be nil
}

func (w *watcher) Reduce(bucket int, g ring.Buffer) {
	if w.came != nil {
		w.came()
	}
	w.views, w.copies = append(w.views, g.Data), append(w.copies, slices.Clone(g.Data))
}

func (w *watcher) Wait() error { return nil }

// check holds what came against the gradient: all of it, from its end to its
// beginning, and nothing before it was final.
func (w *watcher) check(t *testing.T, m *Model) {
	t.Helper()
	end := m.size
	for i, v := range w.views {
		end -= len(v)
		if &v[0] != &m.grads.host[end] {
			t.Fatalf("bucket %d does not begin at element %d", i, end)
		}
		if !slices.Equal(v, w.copies[i]) {
			t.Errorf("bucket %d was handed over before it was final", i)
		}
	}
	if end != 0 {
		t.Errorf("elements 0 to %d were in no bucket", end)
	}
}

// whole is the gradient of a batch through autograd's whole graph.
func whole(t *testing.T, m *Model, b engine.Batch) []float32 {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	lib.AtGradSetEnabled(1)
	defer lib.AtGradSetEnabled(0)
	lib.SetSeed(int64(b.Seed))
	var s scope
	defer s.free()
	objective, _ := m.loss(&s, &piece{Batch: b, to: b.B, mode: training}, nil)
	out := make([]float32, m.size)
	for i, g := range s.backward(objective, m.order) {
		g = s.op(func(o *tensor) { lib.AtgContiguous(o, g) })
		if s.err != nil {
			break
		}
		p := m.layout[i]
		copy(out[p.Offset:], unsafe.Slice((*float32)(lib.AtDataPtr(g)), p.Elems))
	}
	if s.err != nil {
		t.Fatal(s.err)
	}
	return out
}

// TestOverlap: buckets come while the layers below are still to be computed, and the
// gradient has the bits that autograd's whole graph gives, with or without a sync.
func TestOverlap(t *testing.T) {
	for _, tied := range []bool{true, false} {
		for _, precision := range []engine.Precision{engine.F32, engine.BF16} {
			for _, dropout := range []float64{0, 0.1} {
				t.Run(fmt.Sprintf("tied %v, %s, dropout %g", tied, precision, dropout), func(t *testing.T) {
					a := glm.Arch{Vocab: 300, Dim: 128, Layers: 4, Heads: 4, KVHeads: 2, FFN: 160, Context: 24, Tied: tied}
					o := Options{Device: CPU, MaxBatch: 3, Seed: 2, Dropout: dropout, Precision: precision, ZLoss: 1e-3}
					m, plain := build(t, a, o), build(t, a, o)
					r := rand.New(rand.NewPCG(8, 8))
					want := make([]float32, m.size)
					next := len(m.parts) - 1 // the part whose backward pass has begun
					m.refuse = func(_, part int) bool { next = part; return false }
					w := &watcher{}
					var during []int // of each bucket: the part that was through when it came
					w.came = func() { during = append(during, next) }
					for i := range 3 { // the last one hands over
						b := enginetest.Batch(r, 3, 24, a.Vocab, true)
						b.Seed = uint64(i)
						for k, g := range whole(t, m, b) {
							want[k] += g
						}
						var sync engine.GradientSync
						if i == 2 {
							sync = w
						}
						loss, err := m.Backward(b, sync)
						if err != nil {
							t.Fatal(err)
						}
						if got, err := plain.Backward(b, nil); err != nil || got != loss {
							t.Fatalf("loss %g, %v; with a sync %g", got, err, loss)
						}
					}
					if !slices.Equal(m.grads.host, want) || !slices.Equal(plain.grads.host, want) {
						t.Error("the cut graph gives other bits")
					}
					w.check(t, m)
					if !slices.IsSortedFunc(during, func(a, b int) int { return b - a }) || during[0] < 3 || during[len(during)-1] != 0 {
						t.Errorf("buckets came behind the parts %v, of %d", during, len(m.parts)-1)
					}
				})
			}
		}
	}
}
