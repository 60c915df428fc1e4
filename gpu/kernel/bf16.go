package kernel

import "math"

// The products of this file round A and B to bfloat16 (eight bits of mantissa,
// float32's range) and sum in float32. The inner dimension goes in pairs: two
// bf16 share the 32 bits of an element, the even one in the low half, so that
// packed blocks of pairs have the layout of packed floats with half as many rows.

// FastBF16 tells whether GemmBF16 runs on the CPU's own bf16 products, which take
// half as long as float32's. Elsewhere it is a slow reference.
func FastBF16() bool { return level == avx512 && hasBF16 }

// RoundBF16 is the nearest bfloat16, ties to even. Numbers below float32's normal
// range become zero, as they do in the CPU's conversion.
func RoundBF16(x float32) float32 { return math.Float32frombits(bf16(x) << 16) }

// bf16 is toBF16 but for the numbers below the normal range.
func bf16(x float32) uint32 {
	if b := math.Float32bits(x); b&0x7f800000 == 0 {
		return b >> 16 & 0x8000
	}
	return uint32(toBF16(x))
}

func pair(x, y float32) float32 { return math.Float32frombits(bf16(x) | bf16(y)<<16) }

// Block sizes of a product of pairs, in pairs of K and columns of N.
const (
	pairK = 256
	pairN = 512
)

// GemmBF16 is Gemm with both operands rounded to bfloat16.
func GemmBF16(op Op, m, n, k int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, acc bool, work []float32) {
	if m <= 0 || n <= 0 || k <= 0 {
		Gemm(op, m, n, k, a, lda, b, ldb, c, ldc, acc, work)
		return
	}
	_, width := shape()
	kb := 2 * evenly((k+1)/2, pairK, 16)
	nb := evenly(n, pairN, width)
	panels, rest := work[:pairK*pairN], work[pairK*pairN:]
	for k0 := 0; k0 < k; k0 += kb {
		kn := min(kb, k-k0)
		ak := a[offset(op == TN, 0, k0, lda):]
		for n0 := 0; n0 < n; n0 += nb {
			nn := min(nb, n-n0)
			packPairs(panels, op, nn, kn, b[offset(op == NT, k0, n0, ldb):], ldb, rest)
			macroPairs(op == TN, m, nn, kn, ak, lda, panels, c[n0:], ldc, acc || k0 > 0, rest)
		}
	}
}

// packPairs is Pack for a block of k rows that become (k+1)/2 rows of pairs.
func packPairs(dst []float32, op Op, n, k int, b []float32, ldb int, scratch []float32) {
	_, width := shape()
	rows := (k + 1) / 2
	for j0 := 0; j0 < n; j0 += width {
		w := min(width, n-j0)
		panel := dst[j0*rows : j0*rows+rows*width]
		if op == NT {
			for j := range w {
				roundRow(scratch[j*rows:(j+1)*rows], b[(j0+j)*ldb:(j0+j)*ldb+k])
			}
			packTransposed(panel, width, w, rows, scratch, rows)
			continue
		}
		for p := range rows {
			row := panel[p*width : (p+1)*width]
			interleaveRows(row[:w], b, 2*p, k, ldb, j0)
			clear(row[w:])
		}
	}
}

// roundRow writes a row as pairs, the last one with a zero if the row is odd.
func roundRow(dst, row []float32) {
	i := 0
	if n := len(row) &^ 31; n > 0 && FastBF16() {
		roundPairs(&dst[0], &row[0], n)
		i = n
	}
	for ; i+1 < len(row); i += 2 {
		dst[i/2] = pair(row[i], row[i+1])
	}
	if i < len(row) {
		dst[i/2] = pair(row[i], 0)
	}
}

// interleaveRows pairs row i of b[rows, ·] with the next one, or with zeros after
// the last, from column j0 on.
func interleaveRows(dst, b []float32, i, rows, ldb, j0 int) {
	x := b[i*ldb+j0 : i*ldb+j0+len(dst)]
	if i+1 == rows {
		for j, v := range x {
			dst[j] = pair(v, 0)
		}
		return
	}
	y := b[(i+1)*ldb+j0 : (i+1)*ldb+j0+len(dst)]
	j := 0
	if n := len(dst) &^ 15; n > 0 && FastBF16() {
		interleavePairs(&dst[0], &x[0], &y[0], n)
		j = n
	}
	for ; j < len(dst); j++ {
		dst[j] = pair(x[j], y[j])
	}
}

// gatherPairs rounds the [m, k] block at a into dst and returns its strides there.
func gatherPairs(dst []float32, transA bool, m, k int, a []float32, lda int) (rsa, csa int) {
	rows := (k + 1) / 2
	if transA {
		ld := oddLines(m)
		for p := range rows {
			interleaveRows(dst[p*ld:p*ld+m], a, 2*p, k, lda, 0)
		}
		return 1, ld
	}
	ld := oddLines(rows)
	for i := range m {
		roundRow(dst[i*ld:i*ld+rows], a[i*lda:i*lda+k])
	}
	return ld, 1
}

// macroPairs multiplies A by packed panels of pairs, in blocks of M.
func macroPairs(transA bool, m, n, k int, a []float32, lda int, panels []float32, c []float32, ldc int, acc bool, scratch []float32) {
	_ = c[(m-1)*ldc+n-1]
	rows := (k + 1) / 2
	for m0 := 0; m0 < m; m0 += blockM {
		mn := min(blockM, m-m0)
		rsa, csa := gatherPairs(scratch, transA, mn, k, a[offset(transA, m0, 0, lda):], lda)
		tiles(true, mn, n, rows, scratch, rsa, csa, panels, rows, c[m0*ldc:], ldc, acc)
	}
}

// tilePairsGeneric is the reference of the assembly tiles of pairs.
func tilePairsGeneric(mr int, c, a, b []float32, rsa, csa, ldc, k, n int, acc bool) {
	_, width := shape()
	halves := func(v float32) (float32, float32) {
		bits := math.Float32bits(v)
		return fromBF16(uint16(bits)), fromBF16(uint16(bits >> 16))
	}
	for i := range mr {
		for j := range n {
			var sum float32
			for p := range k {
				x0, x1 := halves(a[i*rsa+p*csa])
				y0, y1 := halves(b[p*width+j])
				sum += x0*y0 + x1*y1
			}
			if acc {
				sum += c[i*ldc+j]
			}
			c[i*ldc+j] = sum
		}
	}
}
