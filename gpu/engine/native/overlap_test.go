package native

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// watcher is a GradientSync that keeps what it is given and how much of the pass
// was over by then.
type watcher struct {
	t       *testing.T
	m       *Model
	copies  [][]float32
	views   [][]float32
	unended int // buckets that came before all threads had finished layer 0
	busy    bool
}

func (w *watcher) Reduce(bucket int, g ring.Buffer) {
	if w.busy {
		w.t.Error("calls of Reduce overlap")
	}
	w.busy = true
	if bucket != len(w.copies) {
		w.t.Errorf("bucket %d came as number %d", bucket, len(w.copies))
	}
	if w.m.over.mu.done[0] < w.m.job.active {
		w.unended++
	}
	w.copies = append(w.copies, slices.Clone(g.Data))
	w.views = append(w.views, g.Data)
	w.busy = false
}

func (w *watcher) Wait() error { return nil }

// TestOverlap: buckets come from the arena's end to its beginning, each when
// nothing more is added to it, the first ones while the pass still runs, and the
// gradient has the bits that it has without a sync.
func TestOverlap(t *testing.T) {
	tokens, most, counts := 200, 3, []int{1, 2, 7}
	if testing.Short() {
		tokens, most, counts = 24, 2, []int{1, 3}
	}
	for _, tied := range []bool{true, false} {
		for threads := 1; threads <= most; threads++ {
			for _, sequences := range counts {
				t.Run(fmt.Sprintf("tied %v, %d threads, %d sequences", tied, threads, sequences), func(t *testing.T) {
					a := arch(128, 4, 4, 2, 160, 300, tied)
					a.Context = tokens
					o := Options{MaxBatch: 7, Threads: threads, Dropout: 0.1}
					plain, m := build(t, a, o), build(t, a, o)
					r := rand.New(rand.NewPCG(8, 8))
					w := &watcher{t: t, m: m}
					for i := range 2 { // the second adds to the first
						b := randomBatch(r, sequences, tokens, 300, true)
						want, err := plain.Backward(b, nil)
						if err != nil {
							t.Fatal(err)
						}
						var sync engine.GradientSync
						if i == 1 {
							sync = w
						}
						if loss, err := m.Backward(b, sync); err != nil || loss != want {
							t.Fatalf("loss %g, without a sync %g, %v", loss, want, err)
						}
					}
					if !slices.Equal(m.grads, plain.grads) {
						t.Error("a sync changes the gradient's bits")
					}
					end := m.size
					for i, v := range w.views {
						end -= len(v)
						if &v[0] != &m.grads[end] {
							t.Fatalf("bucket %d does not begin at element %d", i, end)
						}
						if !slices.Equal(v, w.copies[i]) {
							t.Errorf("bucket %d was handed over before it was final", i)
						}
					}
					if end != 0 {
						t.Errorf("elements 0 to %d were in no bucket", end)
					}
					if w.unended < 2 {
						t.Errorf("%d of %d buckets came before the pass was over", w.unended, len(w.views))
					}
				})
			}
		}
	}
}

// TestUseGradients: the gradient lives in the caller's memory, with the same bits.
func TestUseGradients(t *testing.T) {
	a := arch(16, 2, 2, 2, 24, 19, true)
	plain, m := build(t, a, Options{MaxBatch: 4, Threads: 2}), build(t, a, Options{MaxBatch: 4, Threads: 2})
	b := randomBatch(rand.New(rand.NewPCG(8, 8)), 4, 6, 19, false)
	if _, err := m.Backward(b, nil); err != nil { // dropped
		t.Fatal(err)
	}
	mem := make([]float32, m.size)
	for i := range mem {
		mem[i] = 7
	}
	if err := m.UseGradients(mem[1:]); err == nil {
		t.Error("memory that is too short was taken")
	}
	if err := m.UseGradients(mem); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, x := range []*Model{plain, m} {
			if _, err := x.Backward(b, nil); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(mem, plain.grads) {
			t.Fatal("the caller's memory does not hold the gradient")
		}
		for _, x := range []*Model{plain, m} {
			if _, err := x.Update(engine.DefaultHyper()); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(m.params, plain.params) {
			t.Fatal("an update from the caller's memory gives other parameters")
		}
	}
	if err := m.UseGradients(nil); err != nil || &m.grads[0] == &mem[0] || len(m.grads) != m.size {
		t.Errorf("own memory: %v", err)
	}
	if err := build(t, a, Options{Inference: true}).UseGradients(mem); err == nil {
		t.Error("an inference model took gradients")
	}
}
