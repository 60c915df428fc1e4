package kernel

import "math"

// What collectives need: a sum with two destinations, and the half-width formats
// that travel. bf16 is float32's upper half, f16 is IEEE binary16; both round to
// nearest, ties to even, and a NaN stays a (quiet) NaN.

// wide is the number of elements that one round of the wire kernels takes; what
// is left over is done by the portable form.
const wide = 16

// rounds calls f with where a stretch for the assembly starts and how long it is,
// until fewer than wide of n elements are left, and returns where those start.
func rounds(n int, f func(i, m int)) int {
	i := 0
	if level != generic {
		for n-i >= wide {
			m := min(block, (n-i)&^(wide-1))
			f(i, m)
			i += m
		}
	}
	return i
}

// AddTwo computes d = e = a + b; d and e may be a or b.
func AddTwo(d, e, a, b []float32) {
	n := len(d)
	e, a, b = e[:n], a[:n], b[:n]
	i := rounds(n, func(i, m int) { addTwo(&d[i], &e[i], &a[i], &b[i], m) })
	for ; i < n; i++ {
		x := a[i] + b[i]
		d[i], e[i] = x, x
	}
}

// EncodeBF16 rounds src to bf16.
func EncodeBF16(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	i := rounds(len(src), func(i, m int) { encodeBF16(&dst[i], &src[i], m) })
	for ; i < len(src); i++ {
		dst[i] = toBF16(src[i])
	}
}

// DecodeBF16 widens src exactly.
func DecodeBF16(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	i := rounds(len(src), func(i, m int) { decodeBF16(&dst[i], &src[i], m) })
	for ; i < len(src); i++ {
		dst[i] = fromBF16(src[i])
	}
}

// AddBF16 computes dst += src in float32.
func AddBF16(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	i := rounds(len(src), func(i, m int) { addBF16(&dst[i], &src[i], m) })
	for ; i < len(src); i++ {
		dst[i] += fromBF16(src[i])
	}
}

// EncodeF16 rounds src to f16; what is too large becomes infinite.
func EncodeF16(dst []uint16, src []float32) {
	dst = dst[:len(src)]
	i := rounds(len(src), func(i, m int) { encodeF16(&dst[i], &src[i], m) })
	for ; i < len(src); i++ {
		dst[i] = ToHalf(src[i])
	}
}

// DecodeF16 widens src exactly.
func DecodeF16(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	i := rounds(len(src), func(i, m int) { decodeF16(&dst[i], &src[i], m) })
	for ; i < len(src); i++ {
		dst[i] = FromHalf(src[i])
	}
}

// AddF16 computes dst += src in float32.
func AddF16(dst []float32, src []uint16) {
	dst = dst[:len(src)]
	i := rounds(len(src), func(i, m int) { addF16(&dst[i], &src[i], m) })
	for ; i < len(src); i++ {
		dst[i] += FromHalf(src[i])
	}
}

func toBF16(x float32) uint16 {
	b := math.Float32bits(x)
	if x != x {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}

func fromBF16(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// ToHalf is the nearest f16, ties to even; what is too large becomes infinite.
func ToHalf(x float32) uint16 {
	b := math.Float32bits(x)
	sign := uint16(b >> 16 & 0x8000)
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000: // NaN
		return sign | 0x7e00 | uint16(b>>13&0x3ff)
	case b >= 0x477ff000: // rounds to 2^16 or is larger
		return sign | 0x7c00
	case b >= 0x38800000: // normal
		b -= 112 << 23
		return sign | uint16((b+0xfff+b>>13&1)>>13)
	}
	// Subnormal: the value in units of 2^-24; the scaling is exact.
	return sign | uint16(math.RoundToEven(float64(math.Float32frombits(b))*(1<<24)))
}

// FromHalf widens an f16 exactly.
func FromHalf(h uint16) float32 {
	sign, exp, frac := uint32(h&0x8000)<<16, uint32(h>>10&31), uint32(h&0x3ff)
	switch {
	case exp == 31 && frac != 0:
		return math.Float32frombits(sign | 0x7fc00000 | frac<<13)
	case exp == 31:
		return math.Float32frombits(sign | 0x7f800000)
	case exp == 0: // exact
		return math.Float32frombits(sign | math.Float32bits(float32(frac)/(1<<24)))
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}
