//go:build amd64 && !purego

package kernel

import (
	"sync"
	"syscall"

	"golang.org/x/sys/cpu"
)

// tileShape is what LDTILECFG reads: palette 1 has eight tiles of up to 16 rows of
// 64 bytes.
type tileShape struct {
	palette uint8
	_       [15]uint8
	bytes   [16]uint16 // of a row
	rows    [16]uint8
}

// newTileShape is the shape of products of two by two tiles whose rows and columns
// of sums are given, in steps of pairs of K; 0 leaves the second ones out.
func newTileShape(m0, m1, n0, n1, pairs int) tileShape {
	s := tileShape{palette: 1}
	set := func(t, rows, columns int) {
		if rows > 0 && columns > 0 {
			s.rows[t], s.bytes[t] = uint8(rows), uint16(4*columns)
		}
	}
	set(0, m0, n0)
	set(1, m0, n1)
	set(2, m1, n0)
	set(3, m1, n1)
	set(4, m0, pairs)
	set(5, m1, pairs)
	set(6, pairs, n0)
	set(7, pairs, n1)
	return s
}

// mayUseTiles asks the kernel, once, to let this process have tile registers:
// their state is large, so that Linux (5.16 and later) gives it on request only.
// It refuses where it does not save them, which is what XCR0 would tell.
var mayUseTiles = sync.OnceValue(func() bool {
	if !cpu.X86.HasAMXTile || !cpu.X86.HasAMXBF16 || !hasBF16 {
		return false
	}
	const requestPermission, tileData = 0x1023, 18
	_, _, refused := syscall.RawSyscall(syscall.SYS_ARCH_PRCTL, requestPermission, tileData, 0)
	return refused == 0
})

// tileProduct multiplies m ≤ tileM rows by packed panels of which k ≤ tileK rows of
// pairs are used; blocks of 32 rows of A lie astep, panels bstep elements apart. No
// call computes longer than a quarter of a millisecond. The caller has checked the
// bounds.
func tileProduct(m, n, k int, a []float32, astep int, b []float32, bstep int, c []float32, ldc int, acc bool) {
	if whole := k / 16; whole > 0 {
		tileSteps(m, n, 16, whole, a, astep, b, bstep, c, ldc, acc)
		acc = true
	}
	if rest := k % 16; rest > 0 {
		tileSteps(m, n, rest, 1, a[(k-rest)*32:], astep, b[(k-rest)*32:], bstep, c, ldc, acc)
	}
}

// tileSteps is tileProduct in steps of at most 16 pairs.
func tileSteps(m, n, pairs, steps int, a []float32, astep int, b []float32, bstep int, c []float32, ldc int, acc bool) {
	flag := 0
	if acc {
		flag = 1
	}
	for i := 0; i < m; {
		blocks, m0, m1 := (m-i)/32, 16, 16
		if blocks == 0 {
			blocks, m0, m1 = 1, min(16, m-i), max(0, m-i-16)
		}
		for j := 0; j < n; {
			panels, n0, n1 := min((n-j)/32, 16), 16, 16
			if panels == 0 {
				panels, n0, n1 = 1, min(16, n-j), max(0, n-j-16)
			}
			s := newTileShape(m0, m1, n0, n1, pairs)
			out, left, right := &c[i*ldc+j], &a[i/32*astep], &b[j/32*bstep]
			switch {
			case m1 > 0 && n1 > 0:
				tiles2x2AMX(&s, out, left, right, 4*astep, 4*ldc, 4*bstep, steps, blocks, panels, flag)
			case m1 > 0:
				tiles2x1AMX(&s, out, left, right, 4*astep, 4*ldc, 4*bstep, steps, blocks, panels, flag)
			case n1 > 0:
				tiles1x2AMX(&s, out, left, right, 4*astep, 4*ldc, 4*bstep, steps, blocks, panels, flag)
			default:
				tiles1x1AMX(&s, out, left, right, 4*astep, 4*ldc, 4*bstep, steps, blocks, panels, flag)
			}
			j += 32 * panels
		}
		i += 32 * blocks
	}
}

func roundTiles(dst, src *float32, n int) { roundTilesAMX(dst, src, n) }

func transposePairs(dst, src *float32, ldd, lds, k int) { transposePairsAMX(dst, src, ldd, lds, k) }

func roundTransposed(dst, src *float32, ldd, lds, k int) { roundTransposedAMX(dst, src, ldd, lds, k) }

func peakTiles(n int) {
	s := newTileShape(16, 16, 16, 16, 16)
	peakTilesAMX(&s, n)
}
