package ddp

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var shape = glm.Arch{Vocab: 300, Dim: 64, Layers: 2, Heads: 2, KVHeads: 1, FFN: 96, Context: 16, Tied: true}.WithDefaults()

// together runs a function on each rank of a ring.
func together(t testing.TB, world int, f func(r int, c *ring.Comm) error) {
	t.Helper()
	g := ring.NewGroup(world, 1)
	errs := make([]error, world)
	var wg sync.WaitGroup
	for r := range world {
		wg.Go(func() {
			if errs[r] = f(r, g.Rank(r)); errs[r] != nil {
				g.Abort(errs[r])
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// buckets hands a gradient over from its end, as engines do.
func buckets(grad []float32, size int, d *Reducer) {
	for b, end := 0, len(grad); end > 0; b++ {
		from := max(0, end-size)
		d.Reduce(b, ring.Buffer{Data: grad[from:end]})
		end = from
	}
}

// noisy is a gradient with structure: a low-rank part and noise.
func noisy(n, step, rank int) []float32 {
	state := uint64(step)<<32 | uint64(rank)<<8 | 1
	g := make([]float32, n)
	for i := range g {
		state = state*6364136223846793005 + 1442695040888963407
		g[i] = float32(i%61-30)/30*float32(i/61%53-26)/26 + float32(int32(state>>32))*(0.1/(1<<31))
	}
	return g
}

// At every level all ranks end with the same bits, and over many steps the sum of
// what was applied follows the sum of the true gradients: nothing is lost for
// good.
func TestLevels(t *testing.T) {
	layout, size := shape.Layout()
	for _, mode := range Modes() {
		for world := 1; world <= 3; world++ {
			for _, beside := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/%d/%v", mode, world, beside), func(t *testing.T) {
					const steps = 40
					got := make([][]float32, world)
					var wire int64
					together(t, world, func(r int, c *ring.Comm) error {
						d, err := New(c, Config{Mode: mode, Layout: layout, Size: size, Beside: beside, Shared: true})
						if err != nil {
							return err
						}
						defer d.Close()
						got[r] = make([]float32, size)
						for s := range steps {
							g := noisy(size, s, r)
							buckets(g, 20_000, d)
							if err := d.Wait(); err != nil {
								return err
							}
							if err := d.Commit(uint64(s + 1)); err != nil {
								return err
							}
							for i := range g {
								got[r][i] += g[i]
							}
							if s == 0 && r == 0 {
								wire = d.TakeWire()
							}
						}
						return nil
					})
					want := make([]float64, size)
					for s := range steps {
						for r := range world {
							for i, v := range noisy(size, s, r) {
								want[i] += float64(v)
							}
						}
					}
					var off, all float64
					for i, w := range want {
						off += (float64(got[0][i]) - w) * (float64(got[0][i]) - w)
						all += w * w
					}
					bound := map[string]float64{"none": 1e-5, "bf16": 3e-3, "int8": 1e-3, "powersgd": 0.15, Auto: 1e-5}[mode]
					if e := math.Sqrt(off / all); !(e < bound) {
						t.Errorf("the applied sum is off by %.2g of its norm, want below %g", e, bound)
					}
					for r := 1; r < world; r++ {
						if !slices.Equal(got[r], got[0]) {
							t.Errorf("rank %d holds other bits than rank 0", r)
						}
					}
					if ratio := float64(wire) / float64(4*size); mode == "powersgd" && ratio > 0.5 || mode == "bf16" && ratio != 0.5 {
						t.Errorf("%s sends %.2f of the plain bytes", mode, ratio)
					}
				})
			}
		}
	}
}

func TestInt8(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.SliceOfN(rapid.Float32(), 1, 400).Draw(t, "x")
		code := make([]uint16, (int8Bytes(len(x))+1)/2)
		rest, y := make([]float32, len(x)), make([]float32, len(x))
		encodeInt8(code, x, rest)
		decodeInt8(y, code)
		for at := 0; at < len(x); at += block {
			m := min(block, len(x)-at)
			top := 0.0
			for _, v := range x[at : at+m] {
				top = max(top, math.Abs(float64(v)))
			}
			for i := at; i < at+m; i++ {
				if d := math.Abs(float64(x[i]) - float64(y[i])); d > top/127*0.5001+4e-36 {
					t.Fatalf("%g came out as %g in a block up to %g", x[i], y[i], top)
				}
				if float64(rest[i]) != 0 && math.Abs(float64(x[i]-y[i])-float64(rest[i])) > top*1e-6 {
					t.Fatalf("%g − %g is kept as %g", x[i], y[i], rest[i])
				}
			}
		}
	})
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1)), float32(math.Inf(-1))} {
		x := []float32{1, bad, 3}
		code, rest, y := make([]uint16, 4), make([]float32, 3), make([]float32, 3)
		encodeInt8(code, x, rest)
		decodeInt8(y, code)
		if y[1] == y[1] && !math.IsInf(float64(y[1]), 0) || rest[0] != 0 || rest[1] != 0 {
			t.Errorf("%g came out as %g and left %v", bad, y[1], rest)
		}
	}
}

// A diverged gradient is seen as one behind every level.
func TestNaNComesThrough(t *testing.T) {
	layout, size := shape.Layout()
	for _, mode := range Modes() {
		together(t, 2, func(r int, c *ring.Comm) error {
			d, err := New(c, Config{Mode: mode, Layout: layout, Size: size})
			if err != nil {
				return err
			}
			defer d.Close()
			g := noisy(size, 0, r)
			if r == 1 {
				g[700] = float32(math.NaN())
			}
			buckets(g, 20_000, d)
			if err := d.Wait(); err != nil {
				return err
			}
			if !slices.ContainsFunc(g, func(v float32) bool { return v != v }) {
				return fmt.Errorf("%s: rank %d does not see it", mode, r)
			}
			return nil
		})
	}
}

// The choice is a function of what was measured: an exposed sum goes up level by
// level, a hidden one stays, and an error beyond the bound goes down and rests.
func TestChoice(t *testing.T) {
	k := &bucket{n: 1 << 18, world: 2, low: &lowRank{ps: 1 << 12}}
	run := func(agreements int, exposed, err float64) {
		for range agreements {
			if to := k.decide(exposed, 1e-3, err, 1e-3); to != k.level {
				k.set(to)
			}
		}
	}
	run(50, 0, 0)
	if k.level != None {
		t.Fatalf("a hidden sum is sent as %s", k.level)
	}
	run(patience-1, 0.08, 0)
	if k.level != None {
		t.Fatalf("%s after one agreement", k.level)
	}
	run(20, 0.08, 0.005)
	if k.level != PowerSGD {
		t.Fatalf("an exposed sum is sent as %s", k.level)
	}
	run(1, 0.08, 1.5)
	if k.level != Int8 {
		t.Fatalf("an encoding that misses everything is kept at %s", k.level)
	}
	run(resting-1, 0.08, 0.005)
	if k.level != Int8 {
		t.Fatalf("%s so soon after a fall", k.level)
	}
	run(3, 0.08, 0.005)
	if k.level != PowerSGD {
		t.Fatalf("%s after the rest", k.level)
	}
	k.measured.moved = true
	run(1, 0.08, 0.5)
	if k.level != Int8 {
		t.Fatalf("a norm that shifts fast is sent as %s", k.level)
	}
	// What is left to save is less than what the level loses.
	k = &bucket{n: 1 << 18, world: 2, low: &lowRank{ps: 1 << 12}}
	for range 100 {
		if to := k.decide(0.08, 1e-3, 0.005, 0.2); to != k.level {
			k.set(to)
		}
	}
	if k.level != Int8 {
		t.Fatalf("%s where powersgd saves less than half of the step", k.level)
	}
	// A fast ring: encoding would cost more than it saves.
	k = &bucket{n: 1 << 18, world: 2, low: &lowRank{ps: 1 << 12}}
	run(100, 1e-4, 0)
	if k.level != None {
		t.Fatalf("%s where the sum takes 0.1 ms", k.level)
	}
}

// slow is a ring on which bytes take time: of the caller's clock, so that it needs
// a link no more than the test does.
type slow struct {
	Ring
	sent int
}

func (s *slow) Reduce(n int, b ring.Buffer) { s.sent += b.Len() * b.DType.Size(); s.Ring.Reduce(n, b) }
func (s *slow) Wait() error                 { s.pay(); return s.Ring.Wait() }

func (s *slow) AllReduce(b ring.Buffer) error {
	s.sent += b.Len() * b.DType.Size()
	s.pay()
	return s.Ring.AllReduce(b)
}

func (s *slow) AllGather(b ring.Buffer) error {
	s.sent += b.Len() * b.DType.Size() / 2
	s.pay()
	return s.Ring.AllGather(b)
}

// pay takes 10 ns a byte: 100 MB/s.
func (s *slow) pay() {
	time.Sleep(time.Duration(s.sent) * 10)
	s.sent = 0
}

// On a slow ring auto ends with few bytes, the same on every rank, and says why.
func TestAutoRisesOnASlowRing(t *testing.T) {
	layout, size := shape.Layout()
	var decided []Decision
	var levels [2]string
	together(t, 2, func(r int, c *ring.Comm) error {
		d, err := New(&slow{Ring: c}, Config{Mode: Auto, Layout: layout, Size: size, Beside: true, Decide: func(x Decision) { decided = append(decided, x) }})
		if err != nil {
			return err
		}
		defer d.Close()
		for s := range 60 {
			buckets(noisy(size, s, r), 20_000, d)
			if err := d.Commit(uint64(s + 1)); err != nil {
				return err
			}
		}
		levels[r] = d.Levels()
		return nil
	})
	if levels[0] == "" || levels[0] != levels[1] {
		t.Errorf("ranks end at %q and %q", levels[0], levels[1])
	}
	for _, d := range decided {
		if d.To == "bf16" && (d.Exposed <= 0 || d.Ratio != 0.5 || d.Reason == "") {
			t.Errorf("a decision without grounds: %+v", d)
		}
	}
}

func TestUnknownMode(t *testing.T) {
	if _, err := New(nil, Config{Mode: "zip"}); err == nil {
		t.Error("zip is taken")
	}
}

// Memory of a GPU is refused: what encodes runs in the host's.
func TestDeviceMemory(t *testing.T) {
	d, err := New(ring.NewGroup(2, 1).Rank(0), Config{Mode: "bf16", Size: 8, Layout: []glm.Param{{Name: "a", Shape: []int{8}, Elems: 8}}})
	if err != nil {
		t.Fatal(err)
	}
	d.Reduce(0, ring.Buffer{Device: 0x1000, N: 8})
	if err := d.Wait(); err == nil || !strings.Contains(err.Error(), "GPU's memory") {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
