package kernel

import "math"

// The products of this file round A and B to bfloat16 (eight bits of mantissa,
// float32's range) and sum in float32. The inner dimension goes in pairs: two
// bf16 share the 32 bits of an element, the even one in the low half, so that
// packed blocks of pairs have the layout of packed floats with half as many rows.

// hasPairs tells that products of pairs are the CPU's own.
func hasPairs() bool { return level >= avx512 && hasBF16 }

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

	// In AMX tiles: pairs of K, of which a panel takes half of the first-level
	// cache, and rows of A, which stay in the second-level cache.
	tileK = 256
	tileM = 512
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
			PackPairs(panels, op, nn, kn, b[offset(op == NT, k0, n0, ldb):], ldb, rest)
			for m0 := 0; m0 < m; m0 += pairM {
				mn := min(pairM, m-m0)
				RoundLeft(rest, op == TN, mn, kn, ak[offset(op == TN, m0, 0, lda):], lda)
				GemmPairs(op == TN, mn, nn, kn, rest, panels, kn, c[m0*ldc+n0:], ldc, acc || k0 > 0)
			}
		}
	}
}

// PairsLen is the number of elements that PackPairs writes for a B of n columns and
// k rows.
func PairsLen(n, k int) int { return PackedLen(n, (k+1)/2) }

// PackPairs is Pack for k rows that become (k+1)/2 rows of pairs, for GemmPairs.
// With NT, scratch holds WorkLen elements.
func PackPairs(dst []float32, op Op, n, k int, b []float32, ldb int, scratch []float32) {
	_, width := shape()
	rows := (k + 1) / 2
	for j0 := 0; j0 < n; j0 += width {
		w := min(width, n-j0)
		panel := dst[j0*rows : j0*rows+rows*width]
		if op == NT {
			if level == amx && w == width && k >= 32 {
				packPairsT(panel, k, b[j0*ldb:], ldb)
				continue
			}
			for p0 := 0; p0 < rows; p0 += pairK {
				pn := min(pairK, rows-p0)
				for j := range w {
					at := (j0 + j) * ldb
					roundRow(scratch[j*pn:(j+1)*pn], b[at+2*p0:at+min(k, 2*(p0+pn))])
				}
				packTransposed(panel[p0*width:(p0+pn)*width], width, w, pn, scratch, pn)
			}
			continue
		}
		p := 0
		if whole := k / 2; w == width && whole > 0 && hasPairs() {
			_ = b[(2*whole-1)*ldb+j0+w-1]
			packPairsN(&panel[0], &b[j0], 4*ldb, whole)
			p = whole
		}
		for ; p < rows; p++ {
			row := panel[p*width : (p+1)*width]
			interleaveRows(row[:w], b, 2*p, k, ldb, j0)
			clear(row[w:])
		}
	}
}

// packPairsT is PackPairs of a whole panel with NT, by 16 rows of b at once.
func packPairsT(panel []float32, k int, b []float32, ldb int) {
	const width = 32
	_ = b[(width-1)*ldb+k-1]
	k32 := k &^ 31
	for j := 0; j < width; j += 16 {
		roundTransposed(&panel[j], &b[j*ldb], 4*width, 4*ldb, k32)
		if k32 < k { // the rest, filled up with zeros
			var in [16 * 32]float32
			for i := range 16 {
				copy(in[i*32:], b[(j+i)*ldb+k32:(j+i)*ldb+k])
			}
			var out [16 * 16]float32
			roundTransposed(&out[0], &in[0], 64, 128, 32)
			for p := range (k - k32 + 1) / 2 {
				copy(panel[(k32/2+p)*width+j:][:16], out[p*16:])
			}
		}
	}
}

// tiled is the length of A's rows of pairs where products are made in AMX tiles. It
// then lies in blocks of 32 rows, these in blocks of 16 pairs: one row after the other
// there, 64 bytes each.
func tiled(pairs int) int { return (pairs + 15) &^ 15 }

// tileSpan is how much of a row roundRows writes before the next row: the blocks of
// 16 pairs that it touches then stay in the first-level cache until they are full.
const tileSpan = 256

// roundRows rounds A [m, k] to tiles.
func roundRows(dst []float32, m, k int, a []float32, lda int) {
	long := tiled((k + 1) / 2)
	k32 := k &^ 31
	for i0 := 0; i0 < m; i0 += 32 {
		mn := min(32, m-i0)
		for k0 := 0; k0 < k32; k0 += tileSpan {
			kn := min(tileSpan, k32-k0)
			for i := range mn {
				at := i0*long + i*16 + k0*16
				row := a[(i0+i)*lda+k0 : (i0+i)*lda+k0+kn]
				_ = dst[at+(kn/32-1)*512+15]
				roundTiles(&dst[at], &row[0], kn)
			}
		}
		if k32 < k {
			for i := range mn {
				at := i0*long + i*16 + k32*16
				roundRow(dst[at:at+(k-k32+1)/2], a[(i0+i)*lda+k32:(i0+i)*lda+k])
			}
		}
	}
}

// roundColumns rounds the transpose of A [k, m] to tiles of rows of long pairs.
func roundColumns(dst []float32, long, m, k int, a []float32, lda int) {
	_, _ = a[(k-1)*lda+m-1], dst[(m-1)/32*32*long+(k-1)/32*512+511]
	for i := 0; i < m; i += 16 {
		at := i/32*32*long + i%32*16
		whole := k &^ 31
		if i+16 > m {
			whole = 0
		}
		if whole > 0 {
			transposePairs(&dst[at], &a[i], 64, 4*lda, whole)
		}
		for k0 := whole; k0 < k; k0 += 32 { // the edges, filled up with zeros
			var in [32 * 16]float32
			mn := min(16, m-i)
			for p := k0; p < min(k, k0+32); p++ {
				copy(in[(p-k0)*16:(p-k0)*16+mn], a[p*lda+i:])
			}
			transposePairs(&dst[at+k0*16], &in[0], 64, 64, 32)
		}
	}
}

// roundRow writes a row as pairs, the last one with a zero if the row is odd.
func roundRow(dst, row []float32) {
	if hasPairs() {
		i := len(row) &^ 31
		if i > 0 {
			roundPairs(&dst[0], &row[0], i)
		}
		if i < len(row) { // the rest, filled up with zeros
			var in [32]float32
			var out [16]float32
			copy(in[:], row[i:])
			roundPairs(&out[0], &in[0], 32)
			copy(dst[i/2:(len(row)+1)/2], out[:])
		}
		return
	}
	i := 0
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
	if n := len(dst) &^ 15; n > 0 && hasPairs() {
		interleavePairs(&dst[0], &x[0], &y[0], n)
		j = n
	}
	for ; j < len(dst); j++ {
		dst[j] = pair(x[j], y[j])
	}
}

// pairM is the most rows of A that GemmPairs keeps in the second-level cache: 28
// tiles of 14.
const pairM = 392

// LeftLen is the number of elements that RoundLeft writes at most.
func LeftLen(m, k int) int {
	pairs := (k + 1) / 2
	if level == amx {
		return (m + 31) &^ 31 * tiled(pairs)
	}
	block := evenly(m, pairM, 14)
	return max(m*oddLines(pairs), (m+block-1)/block*pairs*oddLines(block))
}

// RoundLeft rounds A for GemmPairs: [m, k] or, with transA, [k, m]. Its rows then
// lie an odd number of cache lines apart, so that those of a tile do not push each
// other out of the first-level cache; a transposed A is cut into blocks of rows. For
// AMX both lie in tiles.
func RoundLeft(dst []float32, transA bool, m, k int, a []float32, lda int) {
	if level == amx && transA {
		roundColumns(dst, tiled((k+1)/2), m, k, a, lda)
		return
	}
	if level == amx {
		roundRows(dst, m, k, a, lda)
		return
	}
	pairs := (k + 1) / 2
	if !transA {
		ld := oddLines(pairs)
		for i := range m {
			roundRow(dst[i*ld:i*ld+pairs], a[i*lda:i*lda+k])
		}
		return
	}
	block := evenly(m, pairM, 14)
	ld := oddLines(block)
	for m0 := 0; m0 < m; m0 += block {
		mn := min(block, m-m0)
		for p := range pairs {
			interleaveRows(dst[p*ld:p*ld+mn], a, 2*p, k, lda, m0)
		}
		dst = dst[pairs*ld:]
	}
}

// LeftStep is a number of rows of A that can be rounded by themselves.
const LeftStep = 32

// RoundRows is the part of RoundLeft of A [m, k] that rounds its rows i … i+n, which
// are given; i is a multiple of LeftStep. Whoever makes A's rows has them rounded
// while they are in the cache.
func RoundRows(dst []float32, i, n, k int, rows []float32, lda int) {
	pairs := (k + 1) / 2
	if level == amx {
		roundRows(dst[i*tiled(pairs):], n, k, rows, lda)
		return
	}
	RoundLeft(dst[i*oddLines(pairs):], false, n, k, rows, lda)
}

// RoundBothRows is RoundRows to left and the part of RoundLeft of A's transpose, whose
// rows are A's columns, that those rows of A's m make, to across.
func RoundBothRows(left, across []float32, m, i, n, k int, rows []float32, lda int) {
	RoundRows(left, i, n, k, rows, lda)
	pairs := (m + 1) / 2
	if level == amx {
		roundColumns(across[i*16:], tiled(pairs), k, n, rows, lda)
		return
	}
	block := evenly(k, pairM, 14)
	ld := oddLines(block)
	for k0 := 0; k0 < k; k0 += block {
		kn := min(block, k-k0)
		for p := range (n + 1) / 2 {
			interleaveRows(across[(i/2+p)*ld:(i/2+p)*ld+kn], rows, 2*p, n, lda, k0)
		}
		across = across[pairs*ld:]
	}
}

// GemmPairs computes C[M,N] (+)= A·B for an A of RoundLeft, made with the same m
// and k, and a B of PackPairs, of which it uses the first n columns and the first
// k ≤ rows of its rows.
func GemmPairs(transA bool, m, n, k int, left, right []float32, rows int, c []float32, ldc int, acc bool) {
	if m <= 0 || n <= 0 {
		return
	}
	_, width := shape()
	pairs, stored := (k+1)/2, (rows+1)/2
	if level == amx {
		long := tiled(pairs)
		// The furthest elements, checked once for all tiles.
		_, _ = c[(m-1)*ldc+n-1], left[(m+31)&^31*long-1]
		_ = right[(n-1)/width*width*stored+pairs*width-1]
		kb := evenly(pairs, tileK, 16)
		for k0 := 0; k0 < pairs; k0 += kb {
			for m0 := 0; m0 < m; m0 += tileM {
				tileProduct(min(tileM, m-m0), n, min(kb, pairs-k0), left[m0*long+k0*32:], 32*long, right[k0*width:], stored*width, c[m0*ldc:], ldc, acc || k0 > 0)
			}
		}
		return
	}
	block := evenly(m, pairM, 14)
	rsa, csa := oddLines(pairs), 1
	if transA {
		rsa, csa = 1, oddLines(block)
	}
	kb := evenly(pairs, pairK, 4)
	// The furthest elements, checked once for all tiles.
	_ = c[(m-1)*ldc+n-1]
	_ = right[(n-1)/width*width*stored+pairs*width-1]
	for m0 := 0; m0 < m; m0 += block {
		mn := min(block, m-m0)
		a := left[m0*rsa:]
		if transA {
			a = left[m0/block*pairs*csa:]
		}
		_ = a[(mn-1)*rsa+(pairs-1)*csa]
		for k0 := 0; k0 < pairs; k0 += kb {
			tiles(true, mn, n, min(kb, pairs-k0), a[k0*csa:], rsa, csa, right[k0*width:], stored, c[m0*ldc:], ldc, sumOf(acc || k0 > 0))
		}
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
