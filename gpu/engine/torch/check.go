//go:build libtorch

package torch

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"
)

// Devices is the number of CUDA devices that libtorch sees in this process.
func Devices() int { return int(lib.AtcCudaDeviceCount()) }

// SelfCheck computes a product and its gradient over memory of this process,
// and makes an error on purpose. The lines say what was seen.
func SelfCheck() (lines []string, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	lib.AtGradSetEnabled(1)
	defer lib.AtGradSetEnabled(0)
	var s scope
	defer s.free()
	memory := []float32{1, 2, 3, 4}
	var pin runtime.Pinner
	pin.Pin(&memory[0])
	defer pin.Unpin()

	blob := s.op(func(o *tensor) { *o = lib.TensorOfBlob(unsafe.Pointer(&memory[0]), []int64{2, 2}, kindFloat32, cpu) })
	s.op(func(o *tensor) { lib.AtgRequiresGrad_(o, blob, 1) })
	total := s.sum(s.matmul(blob, blob), kindFloat32)
	if v := s.value(total); s.err == nil && v != 54 {
		return lines, fmt.Errorf("[[1 2][3 4]]² sums to %g, want 54", v)
	}
	if s.err != nil {
		return lines, s.err
	}
	lines = append(lines, "matmul over shared memory: right")

	grads := s.backward(total, []tensor{blob})
	if s.err != nil {
		return lines, s.err
	}
	got := *(*[4]float32)(lib.AtDataPtr(grads[0]))
	if want := [4]float32{7, 11, 9, 13}; got != want {
		return lines, fmt.Errorf("its gradient is %v, want %v", got, want)
	}
	lines = append(lines, "autograd: right")

	var wrong scope
	defer wrong.free()
	odd := wrong.zeros(cpu, 3, 5)
	wrong.matmul(odd, odd)
	if wrong.err == nil {
		return lines, errors.New("a product of 3×5 by 3×5 gave no error")
	}
	lines = append(lines, "an error of libtorch comes back: "+wrong.err.Error())
	return append(lines, fmt.Sprintf("CUDA devices: %d", lib.AtcCudaDeviceCount())), nil
}
