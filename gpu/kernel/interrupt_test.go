package kernel

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// TestInterrupted multiplies on more goroutines than there are processors while
// the world is stopped over and over: the signals that do so, whose frames hold
// the vector and tile registers, and moves between threads leave every bit as it was.
func TestInterrupted(t *testing.T) {
	const m, n, k = 100, 250, 270
	levels(t, func(t *testing.T) {
		if !FastBF16() {
			t.Skip("no assembly that holds its registers for long")
		}
		r := rand.New(rand.NewPCG(5, 6))
		a, b, work := random(r, m*k), random(r, n*k), make([]float32, WorkLen)
		want := make([]float32, m*n)
		GemmBF16(NT, m, n, k, a, k, b, k, want, n, false, work)
		var ended, wrong atomic.Bool
		var wg sync.WaitGroup
		for range 2 * runtime.GOMAXPROCS(0) {
			wg.Go(func() {
				got, work := make([]float32, m*n), make([]float32, WorkLen)
				for !ended.Load() {
					GemmBF16(NT, m, n, k, a, k, b, k, got, n, false, work)
					if !slices.Equal(bits(got), bits(want)) {
						wrong.Store(true)
					}
				}
			})
		}
		for range 100 {
			runtime.GC()
		}
		ended.Store(true)
		wg.Wait()
		if wrong.Load() {
			t.Error("a product that was interrupted differs")
		}
	})
}
