package native

import (
	"os"
	"syscall"
	"unsafe"
)

// newArena is make([]float32, n) in huge pages where the system gives them on
// request: the rows of a product's operands lie on more small pages than the CPU
// keeps translations of.
func newArena(n int) []float32 {
	const huge = 2 << 20
	x := make([]float32, n)
	if 4*n < huge {
		return x
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(&x[0])), 4*n)
	page := os.Getpagesize()
	from := -int(uintptr(unsafe.Pointer(&b[0]))) & (page - 1)
	// It is advice: memory that stays in small pages serves as well, only slower.
	syscall.Madvise(b[from:from+(len(b)-from)&^(page-1)], syscall.MADV_HUGEPAGE) //nolint:errcheck
	return x
}
