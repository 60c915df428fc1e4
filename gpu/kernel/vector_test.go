package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
)

var lengths = []int{1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 352, 1000, block + 5}

func clone(x []float32) []float32 { return append([]float32(nil), x...) }

// at runs f at a level.
func at(l simd, f func()) {
	was := level
	level = l
	f()
	level = was
}

// vectors are the vector kernels, each on slices of one length.
var vectors = []struct {
	name string
	run  func(x [5][]float32) float32
}{
	{"Add", func(x [5][]float32) float32 { Add(x[0], x[1]); return 0 }},
	{"AddTo", func(x [5][]float32) float32 { AddTo(x[0], x[1], x[2]); return 0 }},
	{"Axpy", func(x [5][]float32) float32 { Axpy(x[0], 0.3, x[1]); return 0 }},
	{"Scale", func(x [5][]float32) float32 { Scale(x[0], 0.3); return 0 }},
	{"MulScale", func(x [5][]float32) float32 { MulScale(x[0], x[1], x[2], 0.7); return 0 }},
	{"Dot", func(x [5][]float32) float32 { return Dot(x[0], x[1]) }},
	{"Dot3", func(x [5][]float32) float32 { return Dot3(x[0], x[1], x[2]) }},
	{"SumSquares", func(x [5][]float32) float32 { return float32(SumSquares(x[0])) }},
	{"Max", func(x [5][]float32) float32 { return Max(x[0]) }},
	{"MaxNegative", func(x [5][]float32) float32 {
		for i := range x[0] {
			x[0][i] = -1 - x[0][i]*x[0][i]
		}
		return Max(x[0])
	}},
	{"ExpSum", func(x [5][]float32) float32 { return ExpSum(x[0], x[1], 0.5, 1.5) }},
	{"SoftmaxGrad", func(x [5][]float32) float32 { SoftmaxGrad(x[0], x[1], 0.2, 0.4); return 0 }},
	{"RMSNorm", func(x [5][]float32) float32 { return RMSNorm(x[0], x[1], x[2], 1e-5) }},
	{"RMSNormGrad", func(x [5][]float32) float32 { RMSNormGrad(x[0], x[1], x[2], x[3], x[4], 0.8); return 0 }},
	{"SwiGLU", func(x [5][]float32) float32 { SwiGLU(x[0], x[1], x[2]); return 0 }},
	{"SwiGLUGrad", func(x [5][]float32) float32 { SwiGLUGrad(x[0], x[1], x[2], x[3], x[4]); return 0 }},
	{"SwiGLUGradInPlace", func(x [5][]float32) float32 { SwiGLUGrad(x[0], x[1], x[2], x[0], x[1]); return 0 }},
	{"AdamW", func(x [5][]float32) float32 {
		for i, v := range x[3] {
			x[3][i] = v * v
		}
		AdamW(x[0], x[1], x[2], x[3], Adam{GradScale: 0.5, LR: 1e-2, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, Step: 3})
		return 0
	}},
	{"Rope", func(x [5][]float32) float32 {
		n := len(x[0])
		heads := 1
		for _, h := range []int{4, 2} {
			if n%(2*h) == 0 {
				heads = h
				break
			}
		}
		half := n / heads / 2
		if half == 0 {
			return 0
		}
		Rope(x[0][:heads*half*2], x[1][:half], x[2][:half], heads, -1)
		return 0
	}},
	{"Dropout", func(x [5][]float32) float32 { Dropout(x[0], 0x123456789abcdef, 0.3); return 0 }},
}

// TestVectors holds every vector kernel, at every level and length, against its
// portable form, with guard elements behind each slice.
func TestVectors(t *testing.T) {
	const guard = 20
	for _, k := range vectors {
		t.Run(k.name, func(t *testing.T) {
			for _, n := range lengths {
				r := rand.New(rand.NewPCG(uint64(n), 7))
				var in [5][]float32
				for i := range in {
					in[i] = random(r, n+guard)
				}
				run := func(l simd) (out [5][]float32, s float32) {
					var view [5][]float32
					for i := range in {
						out[i] = clone(in[i])
						view[i] = out[i][:n]
					}
					at(l, func() { s = k.run(view) })
					return out, s
				}
				want, sum := run(generic)
				for i := range want {
					checkClose(t, "guard", want[i][n:], in[i][n:], 0)
				}
				for l := avx2; l <= detect(); l++ {
					got, s := run(l)
					name := fmt.Sprintf("%s n %d", levelNames[l], n)
					tol := 2e-5 * math.Sqrt(float64(n))
					checkClose(t, name, []float32{s}, []float32{sum}, tol)
					for i := range want {
						checkClose(t, name, got[i], want[i], 1e-5)
						checkClose(t, name+" guard", got[i][n:], in[i][n:], 0)
					}
				}
			}
		})
	}
}

// TestExp holds the exponential against math.Exp over its whole range, in ulp.
func TestExp(t *testing.T) {
	levels(t, func(t *testing.T) {
		var x, y []float32
		for v := -87.0; v < 88.3; v += 0.0137 {
			x = append(x, float32(v))
		}
		y = make([]float32, len(x))
		ExpSum(y, x, 1, 0)
		worst := 0.0
		for i := range x {
			want := math.Exp(float64(x[i]))
			ulp := float64(math.Nextafter32(float32(want), math.MaxFloat32) - float32(want))
			worst = max(worst, math.Abs(float64(y[i])-want)/ulp)
		}
		if worst > 2.5 {
			t.Errorf("worst error %.2f ulp", worst)
		}
		edge := []float32{float32(math.NaN()), float32(math.Inf(-1)), float32(math.Inf(1)), 0}
		ExpSum(edge, edge, 1, 0)
		if edge[0] == edge[0] || edge[1] > 1.3e-38 || edge[2] < 2e38 || edge[3] != 1 {
			t.Errorf("edges %v", edge)
		}
	})
}

func TestDropoutRate(t *testing.T) {
	levels(t, func(t *testing.T) {
		x := make([]float32, 100000)
		for i := range x {
			x[i] = 1
		}
		Dropout(x, 99, 0.25)
		zero := 0
		for _, v := range x {
			if v == 0 {
				zero++
			} else if math.Abs(float64(v)-1/0.75) > 1e-6 {
				t.Fatalf("kept %g", v)
			}
		}
		if zero < 24500 || zero > 25500 {
			t.Errorf("dropped %d of 100000 at 0.25", zero)
		}
	})
}

func TestChooseLevel(t *testing.T) {
	for _, c := range []struct {
		forced     string
		best, want simd
	}{
		{"", avx512, avx512},
		{"generic", avx512, generic},
		{"avx2", avx512, avx2},
		{"avx512", avx2, avx2},
		{"avx512", amx, avx512},
		{"amx", amx, amx},
		{"amx", avx512, avx512},
		{"sse9", avx2, avx2},
	} {
		if got := chooseLevel(c.forced, c.best); got != c.want {
			t.Errorf("forced %q with %v: %v, want %v", c.forced, c.best, got, c.want)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	x, y, work := make([]float32, 64*64), make([]float32, 64*64), make([]float32, WorkLen)
	levels(t, func(t *testing.T) {
		n := testing.AllocsPerRun(5, func() {
			Gemm(NT, 64, 64, 64, x, 64, x, 64, y, 64, false, work)
			GemmBF16(TN, 50, 60, 64, x, 64, x, 64, y, 64, false, work)
			AdamW(x, y, work[:4096], work[4096:8192], Adam{Beta1: 0.9, Beta2: 0.9, Eps: 1, Step: 1})
		})
		if n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}
