package kernel

import (
	"math"
	"math/rand/v2"
	"testing"
)

// awkward is a slice of n floats of every kind, NaN and subnormals among them.
func awkward(rng *rand.Rand, n int) []float32 {
	x := make([]float32, n)
	for i := range x {
		switch rng.IntN(4) {
		case 0:
			x[i] = math.Float32frombits(rng.Uint32())
		case 1: // around f16's subnormals and its overflow
			x[i] = float32(math.Ldexp(rng.NormFloat64(), rng.IntN(45)-28))
		case 2: // ties
			x[i] = math.Float32frombits(rng.Uint32()&^0xfff | 0x1000)
		default:
			x[i] = float32(rng.NormFloat64())
		}
	}
	return x
}

func TestAddTwoIsTheSumTwice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 15, 16, 17, 47, 48, 64, 1000, block + 33} {
		a, b := make([]float32, n), make([]float32, n)
		for i := range a {
			a[i], b[i] = float32(rng.NormFloat64()), float32(rng.NormFloat64())
		}
		want := make([]float32, n)
		for i := range want {
			want[i] = a[i] + b[i]
		}
		d, e := make([]float32, n), make([]float32, n)
		AddTwo(d, e, a, b)
		AddTwo(a, b, a, b) // in place
		for i, w := range want {
			if d[i] != w || e[i] != w || a[i] != w || b[i] != w {
				t.Fatalf("n=%d element %d: %g %g %g %g, want %g", n, i, d[i], e[i], a[i], b[i], w)
			}
		}
	}
}

// Every level gives the bits of the portable form.
func TestHalvesAreThePortableBits(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{0, 1, 16, 31, 4096, block + 17} {
		x := awkward(rng, n)
		h, base := make([]uint16, n), make([]float32, n)
		for i := range h {
			h[i] = uint16(rng.Uint32())
			base[i] = float32(rng.NormFloat64())
		}
		for _, f := range []struct {
			name   string
			encode func([]uint16, []float32)
			decode func([]float32, []uint16)
			add    func([]float32, []uint16)
			to     func(float32) uint16
			from   func(uint16) float32
		}{
			{"bf16", EncodeBF16, DecodeBF16, AddBF16, toBF16, fromBF16},
			{"f16", EncodeF16, DecodeF16, AddF16, ToHalf, FromHalf},
		} {
			enc, dec, sum := make([]uint16, n), make([]float32, n), append([]float32(nil), base...)
			f.encode(enc, x)
			f.decode(dec, h)
			f.add(sum, h)
			for i := range n {
				if want := f.to(x[i]); enc[i] != want {
					t.Fatalf("%s of %x: %04x, want %04x", f.name, math.Float32bits(x[i]), enc[i], want)
				}
				if want := f.from(h[i]); math.Float32bits(dec[i]) != math.Float32bits(want) {
					t.Fatalf("%s %04x: %x, want %x", f.name, h[i], math.Float32bits(dec[i]), math.Float32bits(want))
				}
				if want := base[i] + f.from(h[i]); sum[i] != want && want == want {
					t.Fatalf("%s sum %d: %g, want %g", f.name, i, sum[i], want)
				}
			}
		}
	}
}

// The portable forms against arithmetic: all halves survive a round trip, and
// encoding gives a nearest value.
func TestHalvesRoundToNearest(t *testing.T) {
	for i := range 1 << 16 {
		h := uint16(i)
		if x := fromBF16(h); x == x && toBF16(x) != h {
			t.Fatalf("bf16 %04x became %04x", h, toBF16(x))
		}
		if x := FromHalf(h); x == x && ToHalf(x) != h {
			t.Fatalf("f16 %04x became %04x", h, ToHalf(x))
		}
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for range 100000 {
		x := float32(math.Ldexp(rng.NormFloat64(), rng.IntN(40)-26))
		for _, f := range []struct {
			name string
			to   func(float32) uint16
			from func(uint16) float32
		}{{"bf16", toBF16, fromBF16}, {"f16", ToHalf, FromHalf}} {
			h := f.to(x)
			off := math.Abs(float64(f.from(h)) - float64(x))
			for _, other := range []uint16{h - 1, h + 1} {
				o := math.Abs(float64(f.from(other)) - float64(x))
				if o < off || (o == off && h&1 == 1) {
					t.Fatalf("%s of %g: %g, but %g is nearer", f.name, x, f.from(h), f.from(other))
				}
			}
		}
	}
}
