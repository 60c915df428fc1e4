package kernel

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
)

// TestFlush: between Flush and End subnormal operands and results are 0, before and
// after they are what they are.
func TestFlush(t *testing.T) {
	if detect() == generic {
		t.Skip("no assembly: nothing is flushed")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const small = 0x1p-126 // the smallest normal number
	halved := func() (results, operands float32) {
		x, y := slices.Repeat([]float32{small}, 40), slices.Repeat([]float32{small / 2}, 40)
		Scale(x, 0.5)
		Scale(y, 0x1p40)
		return x[0], y[0]
	}
	levels(t, func(t *testing.T) {
		for range 2 {
			if r, o := halved(); r != small/2 || o != 0x1p-87 {
				t.Fatalf("without Flush subnormals are %g and %g, want %g and %g", r, o, small/2, 0x1p-87)
			}
			f := Flush()
			r, o := halved()
			f.End()
			if r != 0 || o != 0 {
				t.Fatalf("under Flush subnormals are %g and %g, want 0", r, o)
			}
		}
	})
}

// TestFlushKeepsNormalNumbers: what every kernel makes of normal numbers is the same to the
// bit.
func TestFlushKeepsNormalNumbers(t *testing.T) {
	const n = 1000
	draw := func() (x [5][]float32) {
		rng := rand.New(rand.NewPCG(1, 2))
		for i := range x {
			x[i] = random(rng, n)
		}
		return x
	}
	work := make([]float32, WorkLen)
	type kernel struct {
		name string
		run  func(x [5][]float32) float32
	}
	kernels := []kernel{
		{"Gemm", func(x [5][]float32) float32 { Gemm(NT, 30, 20, 33, x[0], 33, x[1], 33, x[2], 20, true, work); return 0 }},
		{"GemmBF16", func(x [5][]float32) float32 {
			GemmBF16(NT, 30, 20, 33, x[0], 33, x[1], 33, x[2], 20, true, work)
			return 0
		}},
	}
	for _, v := range vectors {
		kernels = append(kernels, kernel{v.name, v.run})
	}
	levels(t, func(t *testing.T) {
		for _, k := range kernels {
			want, got := draw(), draw()
			plain := k.run(want)
			f := Flush()
			flushed := k.run(got)
			f.End()
			if plain != flushed {
				t.Errorf("%s returns %g, under Flush %g", k.name, plain, flushed)
			}
			for i := range want {
				if !slices.Equal(want[i], got[i]) {
					t.Errorf("%s makes something else of slice %d under Flush", k.name, i)
				}
			}
		}
	})
}
