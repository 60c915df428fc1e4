package ring

import (
	"fmt"
	"unsafe"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// DType is an element type.
type DType uint8

// Element types. Sums of the half-width ones are taken in float32 and rounded
// once, to nearest even.
const (
	F32 DType = iota
	BF16
	F16
)

func (d DType) String() string {
	switch d {
	case F32:
		return "f32"
	case BF16:
		return "bf16"
	case F16:
		return "f16"
	}
	return fmt.Sprintf("dtype %d", uint8(d))
}

// Size is the length of an element, bytes.
func (d DType) Size() int {
	if d == F32 {
		return 4
	}
	return 2
}

// Buffer is one contiguous piece of memory that a collective reads and overwrites
// in place. The ring owns it from the call on to the end of the collective (for
// Reduce: of Wait); nobody else may touch it meanwhile. It is host memory, or where
// Device is set a GPU's, which only a ring of NCCL takes.
type Buffer struct {
	Data  []float32 // of F32
	Half  []uint16  // of BF16 and F16
	DType DType

	Device uintptr // address in the memory of the rank's GPU (Config.GPU); 0: Data or Half
	N      int     // elements at Device
	// Stream is the CUDA stream whose work so far fills Device; the sum begins after
	// it. 0 is the default stream. When the collective has returned the sum is
	// there for every stream.
	Stream uintptr
}

// Len is the number of elements.
func (b Buffer) Len() int {
	if b.Device != 0 {
		return b.N
	}
	if b.DType == F32 {
		return len(b.Data)
	}
	return len(b.Half)
}

// Slice is the part from ≤ i < to of the elements.
func (b Buffer) Slice(from, to int) Buffer {
	switch {
	case b.Device != 0:
		b.Device, b.N = b.Device+uintptr(from*b.DType.Size()), to-from
	case b.DType == F32:
		b.Data = b.Data[from:to:to]
	default:
		b.Half = b.Half[from:to:to]
	}
	return b
}

func (b Buffer) bytes() []byte {
	if b.Device != 0 || b.Len() == 0 {
		return nil
	}
	if b.DType == F32 {
		return unsafe.Slice((*byte)(unsafe.Pointer(&b.Data[0])), 4*len(b.Data))
	}
	return unsafe.Slice((*byte)(unsafe.Pointer(&b.Half[0])), 2*len(b.Half))
}

func floats(b []byte) []float32 {
	if len(b) == 0 {
		return nil
	}
	return unsafe.Slice((*float32)(unsafe.Pointer(&b[0])), len(b)/4)
}

func halves(b []byte) []uint16 {
	if len(b) == 0 {
		return nil
	}
	return unsafe.Slice((*uint16)(unsafe.Pointer(&b[0])), len(b)/2)
}

// Share is the part lo ≤ i < hi of n elements that belongs to a rank in
// ReduceScatter and AllGather: equal parts of a multiple of 32 elements, the last
// ones shorter or empty.
func Share(n, rank, world int) (lo, hi int) {
	chunk := ((n+world-1)/world + 31) &^ 31
	return min(rank*chunk, n), min((rank+1)*chunk, n)
}

// piece is how much of each operand is summed at a time, so that what was just
// written is still in the cache when it is needed again.
const piece = 32 << 10

// adder sums buffers of one element type in the order they are given. It is
// owned by one goroutine.
type adder struct{ acc []float32 }

// sum writes the sum of all of from to all of to. All are of one length; a
// destination may be one of the operands, it may not overlap one in part.
func (a *adder) sum(dt DType, to, from [][]byte) {
	n := len(from[0])
	if dt == F32 && len(to) == 2 && len(from) == 2 {
		// Two ranks: each element is read once and written once on each side.
		kernel.AddTwo(floats(to[0]), floats(to[1]), floats(from[0]), floats(from[1]))
		return
	}
	if dt == F32 && len(to) == 1 && len(from) == 2 {
		kernel.AddTo(floats(to[0]), floats(from[0]), floats(from[1]))
		return
	}
	if a.acc == nil {
		a.acc = make([]float32, piece/2)
	}
	for lo := 0; lo < n; lo += piece {
		hi := min(lo+piece, n)
		acc := a.acc[:(hi-lo)/dt.Size()]
		switch dt {
		case F32:
			if len(from) == 1 {
				copy(acc, floats(from[0][lo:hi]))
			} else {
				kernel.AddTo(acc, floats(from[0][lo:hi]), floats(from[1][lo:hi]))
				for _, f := range from[2:] {
					kernel.Add(acc, floats(f[lo:hi]))
				}
			}
			for _, t := range to {
				copy(floats(t[lo:hi]), acc)
			}
		case BF16:
			kernel.DecodeBF16(acc, halves(from[0][lo:hi]))
			for _, f := range from[1:] {
				kernel.AddBF16(acc, halves(f[lo:hi]))
			}
			kernel.EncodeBF16(halves(to[0][lo:hi]), acc)
		case F16:
			kernel.DecodeF16(acc, halves(from[0][lo:hi]))
			for _, f := range from[1:] {
				kernel.AddF16(acc, halves(f[lo:hi]))
			}
			kernel.EncodeF16(halves(to[0][lo:hi]), acc)
		}
		if dt != F32 {
			for _, t := range to[1:] {
				copy(t[lo:hi], to[0][lo:hi])
			}
		}
	}
}
