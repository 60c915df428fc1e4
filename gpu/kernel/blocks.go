package kernel

import (
	"fmt"
	"math"
)

// BlockLen is how many values of a row share a scale.
const BlockLen = 32

// Blocks is a matrix [Rows, Cols] of few bits: in a row each BlockLen values, and what
// is left at its end, have one scale, and a value is that times an integer. The scales
// are of half precision, as GGUF's Q8_0 and Q4_0 have them, so that the same numbers
// go into either file. Where Group is larger so many values have the same one, which a
// file then holds once.
type Blocks struct {
	Bits       int // 8: −128 … 127, or 4: −8 … 7
	Group      int // a multiple of BlockLen
	Rows, Cols int
	Q          []int8   // [Rows, Cols]
	Scale      []uint16 // [Rows, blocks of a row], binary16
}

// blocksOf is how many blocks k values have.
func blocksOf(k int) int { return (k + BlockLen - 1) / BlockLen }

// NewBlocks is room for a matrix.
func NewBlocks(bits, rows, cols int) *Blocks {
	return &Blocks{Bits: bits, Group: BlockLen, Rows: rows, Cols: cols, Q: make([]int8, rows*cols), Scale: make([]uint16, rows*blocksOf(cols))}
}

// Validate reports the first reason why a matrix that came from elsewhere is none.
func (b *Blocks) Validate() error {
	if b.Bits != 8 && b.Bits != 4 || b.Group < BlockLen || b.Group%BlockLen != 0 || b.Rows < 0 || b.Cols < 0 || len(b.Q) != b.Rows*b.Cols || len(b.Scale) != b.Rows*blocksOf(b.Cols) {
		return fmt.Errorf("matrix of %d by %d with %d bits has %d integers and %d scales", b.Rows, b.Cols, b.Bits, len(b.Q), len(b.Scale))
	}
	for i, s := range b.Scale {
		if s&0x7c00 == 0x7c00 {
			return fmt.Errorf("scale %d of a matrix of %d by %d is %g", i, b.Rows, b.Cols, FromHalf(s))
		}
		if n := blocksOf(b.Cols); i%n%(b.Group/BlockLen) > 0 && s != b.Scale[i-1] {
			return fmt.Errorf("scale %d of a matrix in groups of %d is not the one before", i, b.Group)
		}
	}
	if b.Bits == 4 {
		for _, q := range b.Q {
			if q < -8 || q > 7 {
				return fmt.Errorf("matrix of 4 bits holds %d", q)
			}
		}
	}
	return nil
}

// RoundBlocks rounds w [rows, cols] to 8 or 4 bits, in groups of a multiple of BlockLen
// values. Of 8 bits the scale is such that the largest value is ±127. Of 4 it is the one
// of several near the largest value's at −8 that is wrong by least.
func RoundBlocks(bits, group, rows, cols int, w []float32) (*Blocks, error) {
	b := NewBlocks(bits, rows, cols)
	b.Group = group
	n := blocksOf(cols)
	for r := range rows {
		for c := 0; c < cols; c += group {
			from, to := r*cols+c, r*cols+min(cols, c+group)
			x := w[from:to]
			scale := scale8(x)
			if bits == 4 {
				scale = scale4(x)
			}
			if scale&0x7c00 == 0x7c00 {
				return nil, fmt.Errorf("row %d holds values of up to %g, for which a scale of half precision has no room", r, maxAbs(x))
			}
			for i := c / BlockLen; i < min(n, (c+group)/BlockLen); i++ {
				b.Scale[r*n+i] = scale
			}
			roundTo(b.Q[from:to], x, FromHalf(scale), bits)
		}
	}
	return b, nil
}

func maxAbs(x []float32) float32 {
	var m float32
	for _, v := range x {
		m = max(m, float32(math.Abs(float64(v))))
	}
	return m
}

func scale8(x []float32) uint16 { return ToHalf(maxAbs(x) / 127) }

// roundTo rounds x to multiples of a scale.
func roundTo(q []int8, x []float32, scale float32, bits int) {
	lo, hi := -127.0, 127.0
	if bits == 4 {
		lo, hi = -8, 7
	}
	if scale == 0 {
		clear(q)
		return
	}
	for i, v := range x {
		q[i] = int8(min(max(math.RoundToEven(float64(v)/float64(scale)), lo), hi))
	}
}

// scale4 tries scales at which the value furthest from 0 is −8 or a little less or
// more than that.
func scale4(x []float32) uint16 {
	var far float32
	for _, v := range x {
		if math.Abs(float64(v)) > math.Abs(float64(far)) {
			far = v
		}
	}
	best, least := uint16(0), math.Inf(1)
	for step := -8; step <= 8; step++ {
		scale := ToHalf(far / (-8 + 0.2*float32(step)))
		d := FromHalf(scale)
		if d == 0 {
			continue
		}
		wrong, inverse := 0.0, 1/d
		for _, v := range x {
			q := min(max(float32(math.RoundToEven(float64(v*inverse))), -8), 7)
			e := float64(v - d*q)
			wrong += e * e
		}
		if wrong < least {
			best, least = scale, wrong
		}
	}
	return best
}

// Floats writes the values of rows from … to.
func (b *Blocks) Floats(dst []float32, from, to int) {
	n := blocksOf(b.Cols)
	for r := from; r < to; r++ {
		for i := range n {
			scale := FromHalf(b.Scale[r*n+i])
			for c := i * BlockLen; c < min(b.Cols, (i+1)*BlockLen); c++ {
				dst[(r-from)*b.Cols+c] = scale * float32(b.Q[r*b.Cols+c])
			}
		}
	}
}

// Narrow is the B of products y = x·Bᵀ, a matrix [N, K] of 16 (bfloat16), 8 or 4 bits,
// packed as the kernels read it. It is not changed once it is made.
type Narrow struct {
	Bits, N, K int
	q          []byte   // panels of PanelWidth columns
	scale      []uint16 // [panels][blocks][PanelWidth]
}

// NarrowBytes is the memory of a Narrow.
func NarrowBytes(bits, n, k int) int {
	panels := (n + PanelWidth - 1) / PanelWidth
	if bits == 16 {
		return panels * PanelWidth * k * 2
	}
	return panels * blocksOf(k) * (PanelWidth*BlockLen*bits/8 + 2*PanelWidth)
}

// NarrowBF16 rounds w [n, k] to bfloat16.
func NarrowBF16(n, k int, w []float32) *Narrow {
	p := &Narrow{Bits: 16, N: n, K: k, q: make([]byte, NarrowBytes(16, n, k))}
	for j := range n {
		for i := range k {
			at := (j/PanelWidth*k+i)*2*PanelWidth + j%PanelWidth*2
			h := bf16(w[j*k+i])
			p.q[at], p.q[at+1] = byte(h), byte(h>>8)
		}
	}
	return p
}

// NarrowBlocks packs matrices of as many columns and bits, one below the other.
func NarrowBlocks(parts ...*Blocks) *Narrow {
	p := &Narrow{Bits: parts[0].Bits, K: parts[0].Cols}
	for _, b := range parts {
		if b.Bits != p.Bits || b.Cols != p.K {
			panic("kernel: matrices of other bits or columns are packed as one")
		}
		p.N += b.Rows
	}
	blocks := blocksOf(p.K)
	panels := (p.N + PanelWidth - 1) / PanelWidth
	p.q = make([]byte, panels*blocks*p.blockBytes())
	p.scale = make([]uint16, panels*blocks*PanelWidth)
	if p.Bits == 8 { // rows and columns that are not there are 0
		for i := range p.q {
			p.q[i] = 128
		}
	} else {
		for i := range p.q {
			p.q[i] = 0x88
		}
	}
	j := 0
	for _, b := range parts {
		for r := range b.Rows {
			for i := range blocks {
				p.scale[(j/PanelWidth*blocks+i)*PanelWidth+j%PanelWidth] = b.Scale[r*blocks+i]
			}
			row := b.Q[r*b.Cols : (r+1)*b.Cols]
			done := 0
			if p.Bits == 8 {
				done = p.packBytes(j, row)
			}
			for c, v := range row[done:] {
				c += done
				at, shift := p.at(j, c)
				if p.Bits == 8 {
					p.q[at] = byte(int(v) + 128)
				} else {
					p.q[at] = p.q[at]&^(15<<shift) | byte(int(v)+8)<<shift
				}
			}
			j++
		}
	}
	return p
}

// packBytes packs a row's whole blocks, which are B's column j, and returns how many values
// those have.
func (p *Narrow) packBytes(j int, row []int8) int {
	whole := len(row) / BlockLen * BlockLen
	at := j/PanelWidth*blocksOf(p.K)*PanelWidth*BlockLen + j%PanelWidth*4
	for c := 0; c < whole; c += 4 {
		to, from := p.q[at:at+4], row[c:c+4]
		to[0], to[1], to[2], to[3] = byte(from[0])^128, byte(from[1])^128, byte(from[2])^128, byte(from[3])^128
		at += 4 * PanelWidth
	}
	return whole
}

// blockBytes is the length of a panel's block.
func (p *Narrow) blockBytes() int { return PanelWidth * BlockLen * p.Bits / 8 }

// at is where row c of column j lies: the byte, and its bits' place in that.
func (p *Narrow) at(j, c int) (at, shift int) {
	at = (j/PanelWidth*blocksOf(p.K)+c/BlockLen)*p.blockBytes() + j%PanelWidth*4 + c%4
	quad := c % BlockLen / 4
	if p.Bits == 8 {
		return at + quad*4*PanelWidth, 0
	}
	return at + quad/2*4*PanelWidth, quad % 2 * 4
}

// Row writes B's row j, K values.
func (p *Narrow) Row(dst []float32, j int) {
	if p.Bits == 16 {
		for i := range p.K {
			at := (j/PanelWidth*p.K+i)*2*PanelWidth + j%PanelWidth*2
			dst[i] = fromBF16(uint16(p.q[at]) | uint16(p.q[at+1])<<8)
		}
		return
	}
	for i := range p.K {
		at, shift := p.at(j, i)
		scale := FromHalf(p.scale[(j/PanelWidth*blocksOf(p.K)+i/BlockLen)*PanelWidth+j%PanelWidth])
		dst[i] = scale * float32(p.integer(at, shift))
	}
}

func (p *Narrow) integer(at, shift int) int32 {
	if p.Bits == 8 {
		return int32(p.q[at]) - 128
	}
	return int32(p.q[at]>>shift&15) - 8
}

// A row of rounded activations has a record for each block: BlockLen int8, their scale,
// and −offset times their sum, which takes back that weights are stored with an offset.
const (
	recordBytes  = 40
	recordScale  = BlockLen
	recordOffset = BlockLen + 4
)

// RecordsLen is the number of bytes of m rows of k activations for GemmInt8.
func RecordsLen(m, k int) int { return m * blocksOf(k) * recordBytes }

// RoundRecords rounds activations a [m, k], finite ones, for GemmInt8 with weights of
// bits.
func RoundRecords(dst []byte, bits, m, k int, a []float32, lda int) {
	stride := RecordsLen(1, k)
	whole := k / BlockLen
	for i := range m {
		row, out := a[i*lda:i*lda+k], dst[i*stride:(i+1)*stride]
		done := 0
		if whole > 0 && level != generic {
			roundBlocks(&out[0], &row[0], whole, bits-1)
			done = whole
		}
		for ; done < blocksOf(k); done++ {
			roundRecord(out[done*recordBytes:], row[done*BlockLen:min(k, (done+1)*BlockLen)], bits)
		}
	}
}

// tiniest keeps the scale of a block of zeros from being 0.
const tiniest = 0x1p-100

func roundRecord(dst []byte, x []float32, bits int) {
	largest := max(maxAbs(x), tiniest)
	putFloat(dst[recordScale:], largest/127)
	by := float32(127) / largest
	var sum int32
	clear(dst[:BlockLen])
	for i, v := range x {
		q := int32(math.RoundToEven(float64(v * by)))
		dst[i] = byte(q)
		sum += q
	}
	putUint(dst[recordOffset:], uint32(-sum<<(bits-1)))
}

func putUint(b []byte, v uint32) {
	b[0], b[1], b[2], b[3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
}

func getUint(b []byte) uint32 {
	return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
}

func putFloat(b []byte, v float32) { putUint(b, math.Float32bits(v)) }

// GemmInt8 computes C[M,N] (+)= A·Bᵀ for m rows of RoundRecords and a B of 8 or 4 bits.
// Products of a block are summed in integers, exactly, and blocks in float32, in the
// order of the row, one rounding after another: the same bits at every level, and for a
// row whatever rows are computed beside it.
func GemmInt8(m int, records []byte, b *Narrow, c []float32, ldc int, acc bool) {
	if m <= 0 || b.N == 0 {
		return
	}
	blocks := blocksOf(b.K)
	stride := blocks * recordBytes
	// The furthest elements, checked once for all tiles.
	_, _ = records[m*stride-1], c[(m-1)*ldc+b.N-1]
	const tall = 6
	for j := 0; j < b.N; j += PanelWidth {
		n := min(PanelWidth, b.N-j)
		q, scale := b.q[j/PanelWidth*blocks*b.blockBytes():], b.scale[j*blocks:]
		for i := 0; i < m; {
			r := 1
			switch {
			case hasByteDots():
				r = min(tall, m-i)
				flag := 0
				if acc {
					flag = 1
				}
				dotTile(b.Bits, r, &c[i*ldc+j], &records[i*stride], &q[0], &scale[0], stride, 4*ldc, blocks, n, flag)
			default:
				var out [4 * PanelWidth]float32
				if level == generic {
					dotRowGeneric((*[PanelWidth]float32)(out[:]), records[i*stride:], b, q, scale)
				} else {
					r = rowsAtOnce(m - i)
					dotRows(b.Bits, r, &out[0], &records[i*stride], &q[0], &scale[0], stride, blocks)
				}
				for y := range r {
					to := c[(i+y)*ldc+j : (i+y)*ldc+j+n]
					sums := out[y*PanelWidth:][:n]
					if acc {
						for x, v := range sums {
							to[x] += v
						}
					} else {
						copy(to, sums)
					}
				}
			}
			i += r
		}
	}
}

// rowsAtOnce is how many of m rows dotRows takes: 4, 2 or 1.
func rowsAtOnce(m int) int {
	switch {
	case m >= 4:
		return 4
	case m >= 2:
		return 2
	}
	return 1
}

// dotRowGeneric is the reference of the assembly.
func dotRowGeneric(out *[PanelWidth]float32, records []byte, b *Narrow, q []byte, scale []uint16) {
	for i := range blocksOf(b.K) {
		record := records[i*recordBytes : (i+1)*recordBytes]
		by := math.Float32frombits(getUint(record[recordScale:]))
		block := q[i*b.blockBytes() : (i+1)*b.blockBytes()]
		var sum [PanelWidth]int32
		for j := range sum {
			sum[j] = int32(getUint(record[recordOffset:]))
		}
		for quad := 0; quad < len(block)/(4*PanelWidth); quad++ {
			for j := range sum {
				w := block[quad*4*PanelWidth+4*j:][:4]
				if b.Bits == 8 {
					a := record[4*quad:][:4]
					sum[j] += int32(w[0])*int32(int8(a[0])) + int32(w[1])*int32(int8(a[1])) + int32(w[2])*int32(int8(a[2])) + int32(w[3])*int32(int8(a[3]))
					continue
				}
				lo, hi := record[8*quad:][:4], record[8*quad+4:][:4]
				for x, v := range w {
					sum[j] += int32(v&15)*int32(int8(lo[x])) + int32(v>>4)*int32(int8(hi[x]))
				}
			}
		}
		for j := range sum {
			v := float32(float32(sum[j]) * FromHalf(scale[i*PanelWidth+j]))
			v = float32(v * by)
			out[j] += v
		}
	}
}

// GemmNarrow computes C[M,N] (+)= A·Bᵀ with A [m, K] in float32 and B widened to it, a
// panel at a time, in work, which holds WorkLen elements. A row has the same bits
// whatever rows are computed beside it.
func GemmNarrow(m int, a []float32, lda int, b *Narrow, c []float32, ldc int, acc bool, work []float32) {
	if m <= 0 || b.N == 0 {
		return
	}
	if b.Bits == 16 && m <= 2*halfRows && level != generic {
		gemmHalves(m, a, lda, b, c, ldc, acc)
		return
	}
	for k0 := 0; k0 < b.K; k0 += blockK {
		kn := min(blockK, b.K-k0)
		for j := 0; j < b.N; j += PanelWidth {
			n := min(PanelWidth, b.N-j)
			b.widen(work, j, k0, kn)
			rows := kn
			if b.Bits < 16 {
				rows = blocksOf(kn) * BlockLen
			}
			macro(false, m, n, kn, a[k0:], lda, work, rows, c[j:], ldc, acc || k0 > 0, nil)
		}
	}
}

// halfRows is how many rows of A the tiles have that read B as bfloat16.
const halfRows = 4

// gemmHalves is GemmNarrow of few rows and bfloat16, which is widened in registers.
func gemmHalves(m int, a []float32, lda int, b *Narrow, c []float32, ldc int, acc bool) {
	_, width := shape()
	_, _ = c[(m-1)*ldc+b.N-1], a[(m-1)*lda+b.K-1]
	for k0 := 0; k0 < b.K; k0 += blockK {
		kn, flag := min(blockK, b.K-k0), 0
		if acc || k0 > 0 {
			flag = 1
		}
		for j := 0; j < b.N; j += width {
			q := b.q[(j/PanelWidth*b.K+k0)*2*PanelWidth+j%PanelWidth*2:]
			for i := 0; i < m; i += halfRows {
				tileHalves(min(halfRows, m-i), &c[i*ldc+j], &a[i*lda+k0], &q[0], 4*lda, 4*ldc, kn, min(width, b.N-j), flag)
			}
		}
	}
}

// widen writes rows k0 … k0+kn of the columns from j on as float panels. k0 is a
// multiple of BlockLen, and blocks come whole.
func (b *Narrow) widen(dst []float32, j, k0, kn int) {
	_, width := shape()
	if b.Bits == 16 {
		q := b.q[(j/PanelWidth*b.K+k0)*2*PanelWidth:][:kn*2*PanelWidth]
		if level != generic {
			_ = dst[kn*PanelWidth-1]
			unpack16(&dst[0], &q[0], kn, 4*kn*width)
			return
		}
		for i := range kn * PanelWidth {
			k, x := i/PanelWidth, i%PanelWidth
			dst[x/width*kn*width+k*width+x%width] = fromBF16(uint16(q[2*i]) | uint16(q[2*i+1])<<8)
		}
		return
	}
	blocks, at := blocksOf(kn), j/PanelWidth*blocksOf(b.K)+k0/BlockLen
	rows := blocks * BlockLen
	if level != generic {
		_, _, _ = dst[rows*PanelWidth-1], b.q[(at+blocks)*b.blockBytes()-1], b.scale[(at+blocks)*PanelWidth-1]
		unpack(b.Bits, &dst[0], &b.q[at*b.blockBytes()], &b.scale[at*PanelWidth], blocks, 4*rows*width)
		return
	}
	for x := range PanelWidth {
		to := dst[x/width*rows*width+x%width:]
		for i := range rows {
			// The block's own integer, or 0 beyond the matrix.
			lies, shift := b.at(j+x, k0+i)
			to[i*width] = FromHalf(b.scale[(at+i/BlockLen)*PanelWidth+x]) * float32(b.integer(lies, shift))
		}
	}
}
