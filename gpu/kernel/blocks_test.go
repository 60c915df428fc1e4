package kernel

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func TestHalf(t *testing.T) {
	for _, c := range []struct {
		h    uint16
		want float64
	}{{0, 0}, {0x3c00, 1}, {0xc000, -2}, {0x7bff, 65504}, {1, 0x1p-24}, {0x0400, 0x1p-14}, {0x3555, 0.333251953125}, {0x7c00, math.Inf(1)}, {0x83ff, -1023 * 0x1p-24}} {
		if got := float64(FromHalf(c.h)); got != c.want {
			t.Errorf("%#x is %g, want %g", c.h, got, c.want)
		}
	}
	if !math.IsNaN(float64(FromHalf(0x7e00))) || !math.Signbit(float64(FromHalf(0x8000))) || ToHalf(float32(math.NaN()))&0x7fff != 0x7e00 {
		t.Error("NaN or -0")
	}
	for h := range uint16(0x7c00) {
		x, next := FromHalf(h), FromHalf(h+1)
		if h == 0x7bff {
			next = 65536
		}
		middle := x + (next-x)/2
		even := h + h&1
		for _, c := range []struct {
			x    float32
			want uint16
		}{{x, h}, {-x, h | 0x8000}, {middle, even}, {math.Nextafter32(middle, 0), h}, {math.Nextafter32(middle, next), h + 1}} {
			if got := ToHalf(c.x); got != c.want {
				t.Fatalf("%g becomes %#x, want %#x", c.x, got, c.want)
			}
		}
	}
}

func blocks(t testing.TB, bits, rows, cols int, w []float32) *Blocks {
	t.Helper()
	b, err := RoundBlocks(bits, BlockLen, rows, cols, w)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundBlocks(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	const rows, cols = 7, 75
	w := random(r, rows*cols)
	clear(w[:40])
	for _, c := range []struct {
		bits int
		rms  float64 // of a normal number's error
	}{{8, 0.006}, {4, 0.1}} {
		b := blocks(t, c.bits, rows, cols, w)
		got := make([]float32, len(w))
		b.Floats(got, 0, rows)
		var sum float64
		for i := range w {
			sum += math.Pow(float64(got[i]-w[i]), 2)
		}
		if rms := math.Sqrt(sum / float64(len(w))); rms > c.rms {
			t.Errorf("%d bits are wrong by %.4f in the mean", c.bits, rms)
		}
		again := blocks(t, c.bits, rows, cols, got)
		if c.bits == 8 && (!slices.Equal(again.Q, b.Q) || !slices.Equal(again.Scale, b.Scale)) {
			t.Error("what was rounded is rounded once more to something else")
		}
	}
	if _, err := RoundBlocks(8, BlockLen, 1, 2, []float32{1, 1e7}); err == nil || !strings.Contains(err.Error(), "1e+07") {
		t.Errorf("a number too large for its scale: %v", err)
	}
	tiny := blocks(t, 8, 1, 2, []float32{1e-30, 0})
	if tiny.Scale[0] != 0 || tiny.Q[0] != 0 {
		t.Error("a number too small for its scale is not 0")
	}
}

// Every level gives the bits that the portable form gives, for a row whatever the rows
// beside it, and these are the product of what was rounded.
func TestGemmInt8(t *testing.T) {
	type result struct {
		records []byte
		c       []float32
	}
	want := map[string]result{}
	levels(t, func(t *testing.T) {
		for _, width := range []int{8, 4} {
			for _, d := range []dims{{1, 1, 1}, {1, 33, 32}, {2, 64, 96}, {5, 31, 100}, {7, 70, 64}, {13, 16, 300}} {
				for _, acc := range []bool{false, true} {
					name := fmt.Sprint(width, d, acc)
					r := rand.New(rand.NewPCG(3, uint64(d.k)))
					lda, ldc := d.k+3, d.n+2
					a, w, c := random(r, d.m*lda), random(r, d.n*d.k), random(r, d.m*ldc)
					clear(a[:min(d.k, 40)])
					rounded := blocks(t, width, d.n, d.k, w)
					half := d.n / 2 // two matrices in one
					parts := []*Blocks{{Bits: width, Group: BlockLen, Rows: half, Cols: d.k}, {Bits: width, Group: BlockLen, Rows: d.n - half, Cols: d.k}}
					s := blocksOf(d.k)
					parts[0].Q, parts[0].Scale = rounded.Q[:half*d.k], rounded.Scale[:half*s]
					parts[1].Q, parts[1].Scale = rounded.Q[half*d.k:], rounded.Scale[half*s:]
					b := NarrowBlocks(parts...)
					if got := len(b.q) + 2*len(b.scale); got != NarrowBytes(width, d.n, d.k) {
						t.Errorf("%s: %d bytes, %d by estimate", name, got, NarrowBytes(width, d.n, d.k))
					}
					one := slices.Clone(c)
					records := make([]byte, RecordsLen(d.m, d.k))
					RoundRecords(records, width, d.m, d.k, a, lda)
					GemmInt8(d.m, records, b, c, ldc, acc)
					if level == generic {
						want[name] = result{records, c}
						reference := slices.Clone(one)
						widened := make([]float32, len(w))
						rounded.Floats(widened, 0, d.n)
						back := slices.Clone(a)
						for i := range d.m {
							for j := range d.k {
								record := records[i*RecordsLen(1, d.k)+j/BlockLen*recordBytes:]
								back[i*lda+j] = float32(int8(record[j%BlockLen])) * math.Float32frombits(getUint(record[recordScale:]))
								if !(math.Abs(float64(back[i*lda+j]-a[i*lda+j])) < 0.02) {
									t.Fatalf("%s: %g is rounded to %g", name, a[i*lda+j], back[i*lda+j])
								}
							}
						}
						product(NT, d.m, d.n, d.k, back, lda, widened, d.k, reference, ldc, acc)
						checkClose(t, name, c, reference, 1e-4)
						row := make([]float32, d.k)
						for j := range d.n {
							if b.Row(row, j); !slices.Equal(row, widened[j*d.k:(j+1)*d.k]) {
								t.Fatalf("%s: row %d read back is another one", name, j)
							}
						}
					}
					if !bytes.Equal(records, want[name].records) {
						t.Errorf("%s: activations are rounded to something else", name)
					}
					if !slices.Equal(bits(c), bits(want[name].c)) {
						t.Errorf("%s: other bits than the portable form's", name)
					}
					for i := range d.m {
						GemmInt8(1, records[i*RecordsLen(1, d.k):], b, one[i*ldc:], ldc, acc)
					}
					if !slices.Equal(bits(c), bits(one)) {
						t.Errorf("%s: rows by themselves give other bits", name)
					}
				}
			}
		}
	})
}

func TestGemmNarrow(t *testing.T) {
	levels(t, func(t *testing.T) {
		work := make([]float32, WorkLen)
		for _, width := range []int{16, 8, 4} {
			for _, d := range []dims{{1, 1, 1}, {1, 33, 32}, {3, 64, 96}, {9, 31, 100}, {17, 70, 600}} {
				r := rand.New(rand.NewPCG(4, uint64(d.k)))
				a, w := random(r, d.m*d.k), random(r, d.n*d.k)
				var b *Narrow
				widened := make([]float32, len(w))
				if width == 16 {
					b = NarrowBF16(d.n, d.k, w)
					for i, v := range w {
						widened[i] = RoundBF16(v)
					}
				} else {
					rounded := blocks(t, width, d.n, d.k, w)
					rounded.Floats(widened, 0, d.n)
					b = NarrowBlocks(rounded)
				}
				row := make([]float32, d.k)
				for j := range d.n {
					if b.Row(row, j); !slices.Equal(row, widened[j*d.k:(j+1)*d.k]) {
						t.Fatalf("%d bits: row %d read back is another one", width, j)
					}
				}
				c := random(r, d.m*d.n)
				want, one := slices.Clone(c), slices.Clone(c)
				for i := range work {
					work[i] = float32(math.NaN())
				}
				GemmNarrow(d.m, a, d.k, b, c, d.n, true, work)
				product(NT, d.m, d.n, d.k, a, d.k, widened, d.k, want, d.n, true)
				checkClose(t, fmt.Sprint(width, d), c, want, 1e-4)
				for i := range d.m {
					GemmNarrow(1, a[i*d.k:], d.k, b, one[i*d.n:], d.n, true, work)
				}
				if !slices.Equal(bits(c), bits(one)) {
					t.Errorf("%d bits %v: rows by themselves give other bits", width, d)
				}
			}
		}
	})
}

func BenchmarkBlocks(b *testing.B) {
	const n, k = 1024, 384
	r := rand.New(rand.NewPCG(1, 1))
	w := random(r, n*k)
	work := make([]float32, WorkLen)
	for _, m := range []int{1, 8, 64} {
		a, c := random(r, m*k), make([]float32, m*n)
		rate := func(b *testing.B) {
			b.ReportMetric(float64(m)*n*k*float64(b.N)/b.Elapsed().Seconds()/1e9, "GMAC/s")
		}
		b.Run(fmt.Sprintf("f32/m=%d", m), func(b *testing.B) {
			p := make([]float32, PackedLen(n, k))
			Pack(p, NT, n, k, w, k)
			for b.Loop() {
				GemmPacked(false, m, n, k, a, k, p, k, c, n, false)
			}
			rate(b)
		})
		for _, width := range []int{16, 8, 4} {
			p := NarrowBF16(n, k, w)
			if width < 16 {
				p = NarrowBlocks(blocks(b, width, n, k, w))
				b.Run(fmt.Sprintf("int%d/m=%d", width, m), func(b *testing.B) {
					records := make([]byte, RecordsLen(m, k))
					for b.Loop() {
						RoundRecords(records, width, m, k, a, k)
						GemmInt8(m, records, p, c, n, false)
					}
					rate(b)
				})
			}
			b.Run(fmt.Sprintf("%d-bit weights/m=%d", width, m), func(b *testing.B) {
				for b.Loop() {
					GemmNarrow(m, a, k, p, c, n, false, work)
				}
				rate(b)
			})
		}
	}
}

// The largest sums that there can be are exact.
func TestGemmInt8Extremes(t *testing.T) {
	levels(t, func(t *testing.T) {
		for bits, ends := range map[int][2]int8{8: {-128, 127}, 4: {-8, 7}} {
			const m, n, k = 7, 33, 96
			for _, end := range ends {
				b := NewBlocks(bits, n, k)
				for i := range b.Q {
					b.Q[i] = end
				}
				for i := range b.Scale {
					b.Scale[i] = ToHalf(1)
				}
				a := make([]float32, m*k)
				for i := range a {
					a[i] = 127
					if i/k%2 == 1 {
						a[i] = -127
					}
				}
				records, c := make([]byte, RecordsLen(m, k)), make([]float32, m*n)
				RoundRecords(records, bits, m, k, a, k)
				GemmInt8(m, records, NarrowBlocks(b), c, n, false)
				for i, got := range c {
					if want := a[i/n*k] * float32(end) * k; got != want {
						t.Fatalf("%d bits of %d: row %d gives %g, want %g", bits, end, i/n, got, want)
					}
				}
			}
		}
	})
}
