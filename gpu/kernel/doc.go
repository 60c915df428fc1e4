// Package kernel is float32 arithmetic on slices: matrix products (of float32, or
// of operands rounded to bfloat16), the vector functions of a transformer, and an
// optimiser's update. It is a leaf: it knows nothing of models.
//
//	work := make([]float32, kernel.WorkLen)
//	// y[M,N] = x[M,K] · w[N,K]ᵀ
//	kernel.Gemm(kernel.NT, m, n, k, x, k, w, k, y, n, false, work)
//
// On amd64 the work is done by assembly for AVX-512 or for AVX2 with FMA,
// whichever the CPU has; elsewhere, and with build tag purego, by portable Go.
// AUTOGLM_SIMD=generic|avx2|avx512|amx forces a lower level; a level above what the
// CPU has is ignored. Level says which one runs. Products of bfloat16 are in
// hardware where AVX-512 has them and a slow reference elsewhere; level amx is AVX-512
// with those products in the CPU's tile registers, where Linux lets the process have
// them. FastBF16 says whether they are faster than float32's.
//
// Weights may be of few bits (Narrow: 16, 8 or 4), for products that widen them panel
// by panel (GemmNarrow) or, of 8 and 4 bits, multiply them with activations rounded to
// 8 (GemmInt8), in the dot products of bytes of AVX-512 VNNI where they are:
//
//	blocks, err := kernel.RoundBlocks(8, 32, n, k, w)  // each 32 values of a row have a scale
//	right := kernel.NarrowBlocks(blocks)
//	kernel.RoundRecords(records, 8, m, k, x, k)
//	kernel.GemmInt8(m, records, right, y, n, false)
//
// Results differ between levels in the last bits (sums associate differently) and
// are bit-identical run to run on one level; those of GemmInt8 are the same at all.
//
// The caller's duties: slices are long enough (a short one panics before any
// assembly runs), operands do not overlap unless the function says so, and one
// call's workspace is not shared with a concurrent call. Nothing here but what makes
// Blocks and Narrow allocates, and nothing starts goroutines or keeps state but for what it knows of the CPU, so that any number of goroutines may call.
//
// Invariant: no single assembly call runs longer than about a millisecond, since
// Go cannot preempt it; long slices are walked in blocks.
//
// Vocabulary: a tile is the block of C that the assembly holds in registers (14×32
// or 6×16; in AMX, whose own tiles are 16×16, two by two of them), a panel is B's
// columns of one tile's width, packed so that the kernel reads it front to back.
//
// The assembly is written by internal/gen (go generate); every function has a
// portable reference beside it, against which it is tested.
package kernel
