//go:build amd64 && !purego

package kernel

// mxcsr is the control register of the thread's vector arithmetic.
func mxcsr() uint32
func setMXCSR(v uint32)

func flush() (before uint32) {
	const (
		operands = 1 << 6  // DAZ: denormals are zeros
		results  = 1 << 15 // FTZ: flush to zero
	)
	before = mxcsr()
	setMXCSR(before | operands | results)
	return before
}

func unflush(before uint32) { setMXCSR(before) }
