//go:build amd64 && !purego

package kernel

import "golang.org/x/sys/cpu"

func detect() simd {
	switch {
	case hasAVX512 && mayUseTiles():
		return amx
	case hasAVX512:
		return avx512
	case cpu.X86.HasAVX2 && cpu.X86.HasFMA && cpu.X86.HasF16C:
		return avx2
	}
	return generic
}

// hasAVX512 tells that the CPU has the parts of AVX-512 that are used, and AVX2.
var hasAVX512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512DQ && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VL && cpu.X86.HasAVX2 && cpu.X86.HasFMA && cpu.X86.HasF16C

var hasBF16 = cpu.X86.HasAVX512BF16

// hasByteDots tells that dot products of bytes are the CPU's own.
func hasByteDots() bool { return level >= avx512 && cpu.X86.HasAVX512VNNI }

func dotTile(bits, mr int, c *float32, a, q *byte, scale *uint16, lda, ldc, blocks, n, acc int) {
	dotBlocksAVX512(bits, mr, c, a, q, scale, lda, ldc, blocks, n, acc)
}

func dotRows(bits, mr int, c *float32, a, q *byte, scale *uint16, lda, blocks int) {
	switch {
	case bits == 8 && mr == 4:
		dotRows8x4AVX2(c, a, q, scale, lda, blocks)
	case bits == 8 && mr == 2:
		dotRows8x2AVX2(c, a, q, scale, lda, blocks)
	case bits == 8:
		dotRows8x1AVX2(c, a, q, scale, lda, blocks)
	case mr == 4:
		dotRows4x4AVX2(c, a, q, scale, lda, blocks)
	case mr == 2:
		dotRows4x2AVX2(c, a, q, scale, lda, blocks)
	default:
		dotRows4x1AVX2(c, a, q, scale, lda, blocks)
	}
}

func roundBlocks(dst *byte, src *float32, blocks, shift int) {
	if level >= avx512 {
		roundBlocksAVX512(dst, src, blocks, shift)
		return
	}
	roundBlocksAVX2(dst, src, blocks, shift)
}

func unpack(bits int, dst *float32, q *byte, scale *uint16, blocks, second int) {
	switch {
	case level >= avx512 && bits == 8:
		unpack8AVX512(dst, q, scale, blocks, second)
	case level >= avx512:
		unpack4AVX512(dst, q, scale, blocks, second)
	case bits == 8:
		unpack8AVX2(dst, q, scale, blocks, second)
	default:
		unpack4AVX2(dst, q, scale, blocks, second)
	}
}

func unpack16(dst *float32, q *byte, rows, second int) {
	if level >= avx512 {
		unpack16AVX512(dst, q, rows, second)
		return
	}
	unpack16AVX2(dst, q, rows, second)
}

func tilePairs(mr int, c, a, b *float32, rsa, csa, ldc, k, n, acc int) {
	tilePairsAVX512(mr, c, a, b, rsa, csa, ldc, k, n, acc)
}

func peakPairs(n int) { peakPairsAVX512(n) }

func peak(n int) {
	if level >= avx512 {
		peakAVX512(n)
		return
	}
	peakAVX2(n)
}

func roundPairs(dst, src *float32, n int) { roundPairsAVX512(dst, src, n) }

func packPairsN(dst, b *float32, ldb, k int) { packPairsNAVX512(dst, b, ldb, k) }

func interleavePairs(dst, x, y *float32, n int) { interleavePairsAVX512(dst, x, y, n) }

func tile(mr int, c, a, b *float32, rsa, csa, ldc, k, n, acc int) {
	if level >= avx512 {
		tileAVX512(mr, c, a, b, rsa, csa, ldc, k, n, acc)
		return
	}
	tileAVX2(mr, c, a, b, rsa, csa, ldc, k, n, acc)
}

func tileHalves(mr int, c, a *float32, b *byte, rsa, ldc, k, n, acc int) {
	if level >= avx512 {
		tileHalvesAVX512(mr, c, a, b, rsa, 4, ldc, k, n, acc)
		return
	}
	tileHalvesAVX2(mr, c, a, b, rsa, 4, ldc, k, n, acc)
}

func packT(dst, b *float32, ldb, k int) {
	if level >= avx512 {
		packTAVX512(dst, b, ldb, k)
		return
	}
	packTAVX2(dst, b, ldb, k)
}

func packN(dst, b *float32, ldb, k int) {
	if level >= avx512 {
		packNAVX512(dst, b, ldb, k)
		return
	}
	packNAVX2(dst, b, ldb, k)
}

func add(dst, a *float32, n int) {
	if level >= avx512 {
		addAVX512(dst, a, n)
		return
	}
	addAVX2(dst, a, n)
}

func addTo(dst, a, b *float32, n int) {
	if level >= avx512 {
		addToAVX512(dst, a, b, n)
		return
	}
	addToAVX2(dst, a, b, n)
}

func axpy(dst, x *float32, n int, s float32) {
	if level >= avx512 {
		axpyAVX512(dst, x, n, s)
		return
	}
	axpyAVX2(dst, x, n, s)
}

func scale(x *float32, n int, s float32) {
	if level >= avx512 {
		scaleAVX512(x, n, s)
		return
	}
	scaleAVX2(x, n, s)
}

func mulScale(dst, x, g *float32, n int, s float32) {
	if level >= avx512 {
		mulScaleAVX512(dst, x, g, n, s)
		return
	}
	mulScaleAVX2(dst, x, g, n, s)
}

func dot(a, b *float32, n int) float32 {
	if level >= avx512 {
		return dotAVX512(a, b, n)
	}
	return dotAVX2(a, b, n)
}

func dot3(a, b, c *float32, n int) float32 {
	if level >= avx512 {
		return dot3AVX512(a, b, c, n)
	}
	return dot3AVX2(a, b, c, n)
}

func maximum(x *float32, n int) float32 {
	if level >= avx512 {
		return maximumAVX512(x, n)
	}
	return maximumAVX2(x, n)
}

func expSum(dst, x *float32, n int, scale, shift float32) float32 {
	if level >= avx512 {
		return expSumAVX512(dst, x, n, scale, shift)
	}
	return expSumAVX2(dst, x, n, scale, shift)
}

func softmaxGrad(dp, p *float32, n int, d, scale float32) {
	if level >= avx512 {
		softmaxGradAVX512(dp, p, n, d, scale)
		return
	}
	softmaxGradAVX2(dp, p, n, d, scale)
}

func normGrad(dx, dg, dy, g, x *float32, n int, rstd, coef float32) {
	if level >= avx512 {
		normGradAVX512(dx, dg, dy, g, x, n, rstd, coef)
		return
	}
	normGradAVX2(dx, dg, dy, g, x, n, rstd, coef)
}

func swiglu(dst, gate, up *float32, n int) {
	if level >= avx512 {
		swigluAVX512(dst, gate, up, n)
		return
	}
	swigluAVX2(dst, gate, up, n)
}

func swigluGrad(dgate, dup, d, gate, up *float32, n int) {
	if level >= avx512 {
		swigluGradAVX512(dgate, dup, d, gate, up, n)
		return
	}
	swigluGradAVX2(dgate, dup, d, gate, up, n)
}

func adamw(p, g, m, v, c *float32, n int) {
	if level >= avx512 {
		adamwAVX512(p, g, m, v, c, n)
		return
	}
	adamwAVX2(p, g, m, v, c, n)
}

func rope(x, cos, sin *float32, heads, n int, sign float32) {
	if level >= avx512 {
		ropeAVX512(x, cos, sin, heads, n, sign)
		return
	}
	ropeAVX2(x, cos, sin, heads, n, sign)
}

func dropout(x *float32, n int, first, key, limit uint32, scale float32) {
	if level >= avx512 {
		dropoutAVX512(x, n, first, key, limit, scale)
		return
	}
	dropoutAVX2(x, n, first, key, limit, scale)
}
