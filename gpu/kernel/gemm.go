package kernel

// Op says how the operands of a product are stored, all row-major.
type Op int

// Operand layouts of C[M,N] = A·B.
const (
	NN Op = iota // A is [M,K], B is [K,N]
	NT           // A is [M,K], B is [N,K]
	TN           // A is [K,M], B is [K,N]
)

// Block sizes of a product, in elements.
const (
	blockK = 256 // of K: a panel of 256×32 floats is 32 KiB
	blockN = 256 // of N: columns packed at once
	blockM = 384 // of M: rows of A that stay in the second-level cache beside them

	// SumRows is over how many rows of B an element of a product is one sum.
	SumRows = blockK

	// WorkLen is the length of the workspace of Gemm and of GemmBF16: a packed
	// block of B and a block of A.
	WorkLen = pairK*pairN + pairM*(pairK+16)
)

// PanelWidth is a number of columns that packs as whole panels at every level.
const PanelWidth = 32

// shape is the tile of the running level: rows, and columns of a panel.
func shape() (rows, width int) {
	switch level {
	case avx512, amx:
		return 14, 32
	case avx2:
		return 6, 16
	}
	return 8, 16
}

// Gemm computes C[M,N] = A·B, or C += A·B when acc is set. lda, ldb and ldc are
// the distances between rows of the operands as they are stored, in elements.
// work holds WorkLen elements; its contents do not matter.
func Gemm(op Op, m, n, k int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, acc bool, work []float32) {
	if m <= 0 || n <= 0 {
		return
	}
	if k <= 0 {
		if !acc {
			for i := range m {
				clear(c[i*ldc : i*ldc+n])
			}
		}
		return
	}
	_, width := shape()
	kb := evenly(k, blockK, 4)
	nb := evenly(n, blockN, width)
	for k0 := 0; k0 < k; k0 += kb {
		kn := min(kb, k-k0)
		ak := a[offset(op == TN, 0, k0, lda):]
		for n0 := 0; n0 < n; n0 += nb {
			nn := min(nb, n-n0)
			Pack(work, op, nn, kn, b[offset(op == NT, k0, n0, ldb):], ldb)
			macro(op == TN, m, nn, kn, ak, lda, work, kn, c[n0:], ldc, acc || k0 > 0, work[blockK*blockN:])
		}
	}
}

// offset is where element (i, j) of a matrix lies, stored as it is or transposed.
func offset(transposed bool, i, j, ld int) int {
	if transposed {
		i, j = j, i
	}
	return i*ld + j
}

// evenly is the block size that cuts n into equal pieces of at most limit, a
// multiple of unit.
func evenly(n, limit, unit int) int {
	pieces := (n + limit - 1) / limit
	return min(limit, ((n+pieces-1)/pieces+unit-1)/unit*unit)
}

// PackedLen is the number of elements that Pack writes for a B of n columns and
// k rows.
func PackedLen(n, k int) int {
	_, width := shape()
	return (n + width - 1) / width * width * k
}

// Pack copies B into panels for GemmPacked: panel p holds columns p·width … of
// all k rows, [k, width], zero beyond n. With NT B is stored [n, k], otherwise
// [k, n].
func Pack(dst []float32, op Op, n, k int, b []float32, ldb int) {
	_, width := shape()
	for j0 := 0; j0 < n; j0 += width {
		w := min(width, n-j0)
		panel := dst[j0*k : j0*k+k*width]
		switch {
		case op == NT:
			packTransposed(panel, width, w, k, b[j0*ldb:], ldb)
		case w == width && level != generic:
			_ = b[(k-1)*ldb+j0+w-1]
			packN(&panel[0], &b[j0], 4*ldb, k)
		default:
			for i := range k {
				row := panel[i*width : (i+1)*width]
				copy(row, b[i*ldb+j0:i*ldb+j0+w])
				clear(row[w:])
			}
		}
	}
}

// packTransposed writes rows 0…w of b[·, k] as columns of panel[k, width].
func packTransposed(panel []float32, width, w, k int, b []float32, ldb int) {
	j := 0
	k8 := k &^ 7
	if level != generic && k8 > 0 {
		_ = b[(w-1)*ldb+k-1]
		for ; j+8 <= w; j += 8 {
			packT(&panel[j], &b[j*ldb], 4*ldb, k8)
			for i := k8; i < k; i++ {
				for r := j; r < j+8; r++ {
					panel[i*width+r] = b[r*ldb+i]
				}
			}
		}
	}
	for ; j < w; j++ {
		row := b[j*ldb : j*ldb+k]
		for i, v := range row {
			panel[i*width+j] = v
		}
	}
	if w < width {
		for i := range k {
			clear(panel[i*width+w : (i+1)*width])
		}
	}
}

// GemmPacked computes C[M,N] (+)= A·B for a B packed with Pack(dst, op, n, rows, …).
// It uses the first k ≤ rows rows of B and its first n columns. A is [M,K] or,
// with transA, [K,M].
func GemmPacked(transA bool, m, n, k int, a []float32, lda int, packed []float32, rows int, c []float32, ldc int, acc bool) {
	if m <= 0 || n <= 0 {
		return
	}
	if k <= 0 {
		panic("kernel: GemmPacked with no inner dimension")
	}
	_, width := shape()
	kb := evenly(k, blockK, 4)
	nb := evenly(n, blockN, width)
	for k0 := 0; k0 < k; k0 += kb {
		kn := min(kb, k-k0)
		ak := a[offset(transA, 0, k0, lda):]
		for n0 := 0; n0 < n; n0 += nb {
			macro(transA, m, min(nb, n-n0), kn, ak, lda, packed[n0*rows+k0*width:], rows, c[n0:], ldc, acc || k0 > 0, nil)
		}
	}
}

// oddLines is a distance between rows of n floats that is an odd number of cache
// lines, so that a column touches all sets of the cache in turn.
func oddLines(n int) int { return (n+15)&^15 | 16 }

// gather copies the [m, k] block at a into dst and returns its rows' distance
// there. Where rows lie a multiple of 2 KiB apart, those of a tile would push each
// other out of the first-level cache.
func gather(dst []float32, m, k int, a []float32, lda int) int {
	ld := oddLines(k)
	for i := range m {
		copy(dst[i*ld:i*ld+k], a[i*lda:i*lda+k])
	}
	return ld
}

// macro multiplies A by packed panels that lie rows·width apart, in blocks of M.
// A is read where it lies, unless scratch is given and its stride is a bad one.
func macro(transA bool, m, n, k int, a []float32, lda int, panels []float32, rows int, c []float32, ldc int, acc bool, scratch []float32) {
	_, width := shape()
	// The furthest elements, checked once for all tiles.
	_ = c[(m-1)*ldc+n-1]
	_ = panels[(n-1)/width*rows*width+k*width-1]
	rsa, csa := lda, 1
	if transA {
		rsa, csa = 1, lda
	}
	_ = a[(m-1)*rsa+(k-1)*csa]
	for m0 := 0; m0 < m; m0 += blockM {
		mn := min(blockM, m-m0)
		block, rsa, csa := a[m0*rsa:], rsa, csa
		if scratch != nil && !transA && lda%512 == 0 {
			rsa = gather(scratch, mn, k, block, lda)
			block = scratch
		}
		tiles(false, mn, n, k, block, rsa, csa, panels, rows, c[m0*ldc:], ldc, sumOf(acc))
	}
}

// sum says what a tile does with what C holds.
type sum int

const (
	fresh sum = iota // C is written
	added            // the product is added to C
	goOn             // each element's sum begins with C's; of whole panels
)

func sumOf(acc bool) sum {
	if acc {
		return added
	}
	return fresh
}

// tiles multiplies a block of A by packed panels, tile by tile; of floats, or of
// pairs, of which k then counts the rows. The caller has checked the bounds.
func tiles(pairs bool, m, n, k int, a []float32, rsa, csa int, panels []float32, rows int, c []float32, ldc int, to sum) {
	mr, width := shape()
	count := (m + mr - 1) / mr
	for j0 := 0; j0 < n; j0 += width {
		w := min(width, n-j0)
		panel := panels[j0*rows:]
		i := 0
		for t := range count {
			// Rows are dealt evenly, so that no tile is left with one or two.
			r := (m*(t+1))/count - (m*t)/count
			out, from := c[i*ldc+j0:], a[i*rsa:]
			switch {
			case pairs && hasPairs():
				tilePairs(r, &out[0], &from[0], &panel[0], 4*rsa, 4*csa, 4*ldc, k, w, int(to))
			case pairs:
				tilePairsGeneric(r, out, from, panel, rsa, csa, ldc, k, w, to == added)
			case level == generic:
				tileGeneric(r, out, from, panel, rsa, csa, ldc, k, w, to)
			default:
				tile(r, &out[0], &from[0], &panel[0], 4*rsa, 4*csa, 4*ldc, k, w, int(to))
			}
			i += r
		}
	}
}

// tileGeneric is the reference of the assembly tiles.
func tileGeneric(mr int, c, a, b []float32, rsa, csa, ldc, k, n int, to sum) {
	_, width := shape()
	var sums [16]float32
	for i := range mr {
		clear(sums[:])
		if to == goOn {
			copy(sums[:], c[i*ldc:i*ldc+n])
		}
		for p := range k {
			x := a[i*rsa+p*csa]
			row := b[p*width : p*width+width]
			for j := range row {
				sums[j] += x * row[j]
			}
		}
		out := c[i*ldc : i*ldc+n]
		for j := range out {
			if to == added {
				out[j] += sums[j]
			} else {
				out[j] = sums[j]
			}
		}
	}
}
