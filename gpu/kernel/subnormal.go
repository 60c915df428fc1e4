package kernel

import "runtime"

// Flushing is how a thread took subnormal numbers before Flush.
type Flushing uint32

// Flush keeps the calling goroutine on its thread and has that take numbers of less than
// 2⁻¹²⁶ (2⁻¹⁰²² in float64) for 0, as operands and as results, until End, which the same
// goroutine calls. CPUs compute with them ten and more times as slowly, and a softmax that
// has saturated is full of them; all other numbers come out as they do without. Where there
// is no assembly it does nothing.
func Flush() Flushing {
	runtime.LockOSThread()
	return Flushing(flush())
}

// End sets the thread to what it was before Flush.
func (f Flushing) End() {
	unflush(uint32(f))
	runtime.UnlockOSThread()
}
