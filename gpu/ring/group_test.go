package ring

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The sum equals the serial one, taken in rank order, bit for bit, on every rank.
func TestSumsEqualTheSerialSum(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		world := rapid.IntRange(1, 6).Draw(rt, "world")
		lengths := rapid.SliceOfN(rapid.IntRange(0, 70000), 1, 4).Draw(rt, "lengths")
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		data := make([][][]float32, world)
		want := make([][]float32, len(lengths))
		for b, n := range lengths {
			want[b] = make([]float32, n)
		}
		for r := range world {
			data[r] = make([][]float32, len(lengths))
			for b, n := range lengths {
				data[r][b] = make([]float32, n)
				for i := range n {
					x := float32(rng.NormFloat64())
					data[r][b][i] = x
					if r == 0 {
						want[b][i] = x
					} else {
						want[b][i] += x
					}
				}
			}
		}
		g := NewGroup(world, 1)
		errs := make([]error, world)
		var wg sync.WaitGroup
		for r := range world {
			wg.Add(1)
			go func() {
				defer wg.Done()
				m := g.Rank(r)
				for b := range lengths {
					m.Reduce(b, Buffer{Data: data[r][b]})
				}
				errs[r] = m.Wait()
			}()
		}
		wg.Wait()
		for r := range world {
			if errs[r] != nil {
				rt.Fatal(errs[r])
			}
			for b := range lengths {
				for i, x := range data[r][b] {
					if x != want[b][i] {
						rt.Fatalf("rank %d bucket %d element %d: %g, want %g", r, b, i, x, want[b][i])
					}
				}
			}
		}
	})
}

func TestAbortWakesEveryRank(t *testing.T) {
	g := NewGroup(3, 7)
	errs := make(chan error, 2)
	for r := range 2 {
		go func() {
			m := g.Rank(r)
			m.Reduce(0, Buffer{Data: make([]float32, 100)})
			errs <- m.Wait()
		}()
	}
	lost := errors.New("rank 2 is gone")
	g.Abort(lost)
	for range 2 {
		if err := <-errs; !errors.Is(err, lost) {
			t.Fatalf("got %v", err)
		}
	}
	m := g.Rank(2)
	m.Reduce(0, Buffer{Data: make([]float32, 100)})
	if err := m.Wait(); !errors.Is(err, lost) {
		t.Fatalf("after the end: %v", err)
	}
}

func TestDisagreementNamesTheRank(t *testing.T) {
	for name, second := range map[string]struct {
		bucket, n int
	}{"another bucket": {1, 8}, "another length": {0, 9}} {
		t.Run(name, func(t *testing.T) {
			g := NewGroup(2, 1)
			a, b := g.Rank(0), g.Rank(1)
			a.Reduce(0, Buffer{Data: make([]float32, 8)})
			b.Reduce(second.bucket, Buffer{Data: make([]float32, second.n)})
			if err := b.Wait(); err == nil {
				t.Fatal("accepted")
			} else if want := "rank 1"; !strings.Contains(err.Error(), want) {
				t.Fatalf("%v does not name %s", err, want)
			}
			if err := a.Wait(); err == nil {
				t.Fatal("the other rank did not hear of it")
			}
		})
	}
}
