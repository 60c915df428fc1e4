package kernel

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// levels runs f once for every level that this CPU has.
func levels(t *testing.T, f func(t *testing.T)) {
	was := level
	t.Cleanup(func() { level = was })
	for l := generic; l <= detect(); l++ {
		level = l
		t.Run(Level(), f)
	}
	level = was
}

func random(r *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		x[i] = float32(r.NormFloat64())
	}
	return x
}

// product is the obvious reference, in float64.
func product(op Op, m, n, k int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, acc bool) {
	for i := range m {
		for j := range n {
			var s float64
			if acc {
				s = float64(c[i*ldc+j])
			}
			for p := range k {
				x, y := a[min(i*lda+p, len(a)-1)], b[min(p*ldb+j, len(b)-1)]
				if op == TN {
					x = a[p*lda+i]
				}
				if op == NT {
					y = b[j*ldb+p]
				}
				s += float64(x) * float64(y)
			}
			c[i*ldc+j] = float32(s)
		}
	}
}

func checkClose(t *testing.T, what string, got, want []float32, tol float64) {
	t.Helper()
	for i := range want {
		d := math.Abs(float64(got[i]) - float64(want[i]))
		if !(d <= tol*(1+math.Abs(float64(want[i])))) {
			t.Fatalf("%s: element %d is %g, want %g", what, i, got[i], want[i])
		}
	}
}

func bits(x []float32) []uint32 {
	b := make([]uint32, len(x))
	for i, v := range x {
		b[i] = math.Float32bits(v)
	}
	return b
}

type dims struct{ m, n, k int }

// operands draws matrices of these dimensions, some with gaps between their rows.
func (d dims) operands(r *rand.Rand, op Op) (a, b, c []float32, lda, ldb, ldc int) {
	ra, ca, rb, cb := d.m, d.k, d.k, d.n
	if op == TN {
		ra, ca = ca, ra
	}
	if op == NT {
		rb, cb = cb, rb
	}
	lda, ldb, ldc = ca+d.m%3, cb+d.n%4, d.n+d.k%3
	return random(r, (ra-1)*lda+ca), random(r, (rb-1)*ldb+cb), random(r, (d.m-1)*ldc+d.n), lda, ldb, ldc
}

func TestGemm(t *testing.T) {
	var cases []dims
	for m := 1; m <= 30; m++ {
		cases = append(cases, dims{m, 1 + (m*7)%67, 1 + (m*5)%23})
	}
	for n := 1; n <= 66; n++ {
		cases = append(cases, dims{1 + (n*3)%17, n, 1 + (n*11)%37})
	}
	cases = append(cases, dims{400, 300, 270}, dims{5, 513, 9}, dims{3, 4, 600}, dims{64, 128, 32})
	levels(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		work := make([]float32, WorkLen)
		for _, d := range cases {
			for _, op := range []Op{NN, NT, TN} {
				for _, acc := range []bool{false, true} {
					a, b, c, lda, ldb, ldc := d.operands(r, op)
					want := append([]float32(nil), c...)
					packedC := append([]float32(nil), c...)
					product(op, d.m, d.n, d.k, a, lda, b, ldb, want, ldc, acc)
					Gemm(op, d.m, d.n, d.k, a, lda, b, ldb, c, ldc, acc, work)
					// Gaps between rows must be as they were: want has them too.
					name := fmt.Sprintf("op %d %v acc %v", op, d, acc)
					checkClose(t, name, c, want, 1e-4)
					packed := make([]float32, PackedLen(d.n, d.k))
					Pack(packed, op, d.n, d.k, b, ldb)
					GemmPacked(op == TN, d.m, d.n, d.k, a, lda, packed, d.k, packedC, ldc, acc)
					checkClose(t, name+" packed", packedC, want, 1e-4)
				}
			}
		}
	})
}

func TestGemmBF16(t *testing.T) {
	var cases []dims
	for i := 1; i <= 40; i++ {
		cases = append(cases, dims{i, 1 + (i*7)%67, 1 + (i*5)%41})
	}
	cases = append(cases, dims{400, 300, 270}, dims{5, 513, 9}, dims{3, 4, 1100}, dims{64, 128, 32}, dims{30, 64, 515}, dims{810, 40, 1050})
	levels(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(1, 2))
		work := make([]float32, WorkLen)
		rounded := func(x []float32) []float32 {
			y := make([]float32, len(x))
			for i, v := range x {
				y[i] = RoundBF16(v)
			}
			return y
		}
		for _, d := range cases {
			for _, op := range []Op{NN, NT, TN} {
				for _, acc := range []bool{false, true} {
					a, b, c, lda, ldb, ldc := d.operands(r, op)
					before := append([]float32(nil), c...)
					want := append([]float32(nil), c...)
					product(op, d.m, d.n, d.k, rounded(a), lda, rounded(b), ldb, want, ldc, acc)
					GemmBF16(op, d.m, d.n, d.k, a, lda, b, ldb, c, ldc, acc, work)
					name := fmt.Sprintf("op %d %v acc %v", op, d, acc)
					checkClose(t, name, c, want, 1e-4)

					left, right := make([]float32, LeftLen(d.m, d.k)), make([]float32, PairsLen(d.n, d.k))
					RoundLeft(left, op == TN, d.m, d.k, a, lda)
					PackPairs(right, op, d.n, d.k, b, ldb, work)
					copy(c, before)
					GemmPairs(op == TN, d.m, d.n, d.k, left, right, d.k, c, ldc, acc)
					checkClose(t, name+" in pairs", c, want, 1e-4)

					if op != TN && !acc {
						rows, columns := make([]float32, len(left)), make([]float32, LeftLen(d.k, d.m))
						for i := 0; i < d.m; i += LeftStep {
							RoundBothRows(rows, columns, d.m, i, min(LeftStep, d.m-i), d.k, a[i*lda:], lda)
						}
						across := make([]float32, len(columns))
						RoundLeft(across, true, d.k, d.m, a, lda)
						if !slices.Equal(bits(rows), bits(left)) || !slices.Equal(bits(columns), bits(across)) {
							t.Fatalf("%s: RoundBothRows differ from RoundLeft", name)
						}
					}
				}
			}
		}
	})
}

func TestRoundBF16(t *testing.T) {
	for _, c := range []struct{ x, want float32 }{
		{1, 1},
		{-2.5, -2.5},
		{1 + 1.0/256, 1},
		{1 + 3.0/256, 1 + 4.0/256},
		{1 + 1.0/256 + 1e-6, 1 + 2.0/256},
		{1e-40, 0},
		{float32(math.Inf(1)), float32(math.Inf(1))},
		{math.MaxFloat32, float32(math.Inf(1))},
	} {
		if got := RoundBF16(c.x); got != c.want {
			t.Errorf("RoundBF16(%g) is %g, want %g", c.x, got, c.want)
		}
	}
	if got := RoundBF16(float32(math.NaN())); got == got {
		t.Errorf("RoundBF16(NaN) is %g", got)
	}
}

func TestGemmPackedPrefix(t *testing.T) {
	levels(t, func(t *testing.T) {
		const m, n, k = 20, 70, 40
		r := rand.New(rand.NewPCG(3, 4))
		a, b := random(r, m*k), random(r, k*n)
		packed := make([]float32, PackedLen(n, k))
		Pack(packed, NN, n, k, b, n)
		for _, kn := range []int{1, 7, 33, 40} {
			for _, nn := range []int{1, 31, 32, 50, 70} {
				got, want := make([]float32, m*n), make([]float32, m*n)
				GemmPacked(false, m, nn, kn, a, k, packed, k, got, n, false)
				product(NN, m, nn, kn, a, k, b, n, want, n, false)
				checkClose(t, fmt.Sprintf("k %d n %d", kn, nn), got, want, 1e-4)
			}
		}
	})
}

func TestGemmNoInner(t *testing.T) {
	c := []float32{1, 2, 3, 4}
	Gemm(NN, 2, 1, 0, nil, 1, nil, 1, c, 2, false, nil)
	checkClose(t, "cleared", c, []float32{0, 2, 0, 4}, 0)
}

func BenchmarkGEMM(b *testing.B) {
	for _, d := range []struct{ m, n, k int }{{512, 512, 512}, {2048, 256, 256}, {512, 128, 128}, {512, 352, 128}, {2048, 1024, 256}, {64, 128, 64}, {128, 128, 512}} {
		for op, name := range []string{"NN", "NT", "TN"} {
			b.Run(fmt.Sprintf("%s/%dx%dx%d", name, d.m, d.n, d.k), func(b *testing.B) {
				r := rand.New(rand.NewPCG(1, 2))
				x, y, c := random(r, d.m*d.k), random(r, d.k*d.n), make([]float32, d.m*d.n)
				work := make([]float32, WorkLen)
				lda, ldb := d.k, d.n
				if Op(op) == TN {
					lda = d.m
				}
				if Op(op) == NT {
					ldb = d.k
				}
				for b.Loop() {
					Gemm(Op(op), d.m, d.n, d.k, x, lda, y, ldb, c, d.n, false, work)
				}
				b.ReportMetric(2*float64(d.m)*float64(d.n)*float64(d.k)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}

// BenchmarkGEMMOfSteps times the products of a training step of a model of width
// 384, inner width 1024 and vocabulary 8192, with the strides that they have
// there.
func BenchmarkGEMMOfSteps(b *testing.B) {
	for _, d := range []struct {
		name          string
		op            Op
		m, n, k       int
		lda, ldb, ldc int
		acc           bool
	}{
		{"qkv", NT, 512, 384, 384, 384, 384, 1152, false},
		{"gate", NT, 512, 1024, 384, 384, 384, 2048, false},
		{"down", NT, 512, 384, 1024, 1024, 1024, 384, true},
		{"logits", NT, 128, 8192, 384, 384, 384, 8192, false},
		{"gate-dw", TN, 1024, 384, 512, 2048, 384, 384, true},
		{"gate-dx", NN, 512, 384, 1024, 2048, 384, 384, true},
		{"down-dw", TN, 384, 1024, 512, 384, 1024, 1024, true},
		{"down-dx", NN, 512, 1024, 384, 384, 1024, 1024, false},
		{"logits-dw", TN, 8192, 384, 128, 8192, 384, 384, true},
		{"logits-dx", NN, 128, 384, 8192, 8192, 384, 384, false},
	} {
		r := rand.New(rand.NewPCG(1, 2))
		rowsA, rowsB := d.m, d.k
		if d.op == TN {
			rowsA = d.k
		}
		if d.op == NT {
			rowsB = d.n
		}
		x, y, c := random(r, rowsA*d.lda), random(r, rowsB*d.ldb), make([]float32, d.m*d.ldc)
		work := make([]float32, WorkLen)
		for _, kind := range []string{"f32", "bf16"} {
			if kind == "bf16" && !hasPairs() {
				continue
			}
			b.Run(d.name+"/"+kind, func(b *testing.B) {
				if kind == "bf16" { // the operands are rounded once for several products
					left, right := make([]float32, LeftLen(d.m, d.k)), make([]float32, PairsLen(d.n, d.k))
					RoundLeft(left, d.op == TN, d.m, d.k, x, d.lda)
					PackPairs(right, d.op, d.n, d.k, y, d.ldb, work)
					for b.Loop() {
						GemmPairs(d.op == TN, d.m, d.n, d.k, left, right, d.k, c, d.ldc, d.acc)
					}
				} else {
					for b.Loop() {
						Gemm(d.op, d.m, d.n, d.k, x, d.lda, y, d.ldb, c, d.ldc, d.acc, work)
					}
				}
				b.ReportMetric(2*float64(d.m)*float64(d.n)*float64(d.k)*float64(b.N)/b.Elapsed().Seconds()/1e9, "GFLOP/s")
			})
		}
	}
}
