//go:build libtorch

package torch

import (
	"errors"
	"fmt"
	"strings"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// tensor is libtorch's handle. It is freed by the scope that made it.
type tensor = lib.Ctensor

// Scalar types of libtorch.
const (
	kindInt64   = 4
	kindFloat32 = 6
	kindFloat64 = 7
	kindBF16    = 15
)

// cpu is libtorch's number of the CPU; CUDA's devices are 0 and on.
const cpu = -1

// errMemory marks an allocation that a device refused.
var errMemory = errors.New("device is out of memory")

// deviceFaults are what CUDA's errors are called that no call after them outlives
// in the same process: a launch that failed, a device that vanished.
var deviceFaults = []string{"CUDA error", "CUDNN_STATUS_EXECUTION_FAILED", "CUDNN_STATUS_INTERNAL_ERROR", "CUBLAS_STATUS_EXECUTION_FAILED", "CUBLAS_STATUS_INTERNAL_ERROR", "device-side assert"}

// classify says what an error of libtorch means to a caller.
func classify(text string) error {
	// libtorch appends a stack of C++ frames.
	text, _, _ = strings.Cut(text, "\nException raised from")
	err := fmt.Errorf("libtorch: %s", strings.TrimSpace(text))
	if strings.Contains(text, "out of memory") || strings.Contains(text, "can't allocate memory") {
		return fmt.Errorf("%w: %w", errMemory, err)
	}
	for _, fault := range deviceFaults {
		if strings.Contains(text, fault) {
			return fmt.Errorf("%w: %w", engine.ErrDevice, err)
		}
	}
	return err
}

// scope owns the tensors that it made and remembers the first error: after one,
// operations do nothing. It belongs to one goroutine, locked to its thread,
// since libtorch keeps its error a thread.
type scope struct {
	made []tensor
	err  error
}

// free ends the scope's tensors.
func (s *scope) free() {
	for _, t := range s.made {
		lib.AtFree(t)
	}
	s.made = s.made[:0]
}

// check takes libtorch's error into the scope.
func (s *scope) check() {
	text := lib.TakeError()
	if text == "" || s.err != nil {
		return
	}
	s.err = classify(text)
}

// op runs an operation that makes one tensor.
func (s *scope) op(f func(out *tensor)) tensor {
	if s.err != nil {
		return nil
	}
	var out tensor
	f(&out)
	if s.check(); s.err != nil {
		return nil
	}
	s.made = append(s.made, out)
	return out
}

// scalar runs an operation with a number, which libtorch wants on its heap.
func (s *scope) scalar(v float64, f func(out *tensor, v lib.Cscalar)) tensor {
	return s.op(func(out *tensor) {
		n := lib.AtsFloat(v)
		defer lib.AtsFree(n)
		f(out, n)
	})
}

func (s *scope) zeros(device int, shape ...int64) tensor {
	return s.op(func(o *tensor) { lib.AtgZeros(o, shape, len(shape), kindFloat32, int32(device)) })
}

func (s *scope) view(x tensor, shape ...int64) tensor {
	return s.op(func(o *tensor) { lib.AtgReshape(o, x, shape, len(shape)) })
}

func (s *scope) narrow(x tensor, dim, from, n int) tensor {
	return s.op(func(o *tensor) { lib.AtgNarrow(o, x, int64(dim), int64(from), int64(n)) })
}

func (s *scope) to(x tensor, device int) tensor {
	return s.op(func(o *tensor) { lib.AtgTo(o, x, int32(device)) })
}

func (s *scope) cast(x tensor, kind int32) tensor {
	return s.op(func(o *tensor) { lib.AtgToDtype(o, x, kind, 0, 0) })
}

func (s *scope) transpose(x tensor, a, b int64) tensor {
	return s.op(func(o *tensor) { lib.AtgTranspose(o, x, a, b) })
}

func (s *scope) add(x, y tensor) tensor { return s.op(func(o *tensor) { lib.AtgAdd(o, x, y) }) }
func (s *scope) mul(x, y tensor) tensor { return s.op(func(o *tensor) { lib.AtgMul(o, x, y) }) }

func (s *scope) matmul(x, y tensor) tensor {
	return s.op(func(o *tensor) { lib.AtgMatmul(o, x, y) })
}

func (s *scope) scale(x tensor, v float64) tensor {
	return s.scalar(v, func(o *tensor, n lib.Cscalar) { lib.AtgMulScalar(o, x, n) })
}

func (s *scope) addScalar(x tensor, v float64) tensor {
	return s.scalar(v, func(o *tensor, n lib.Cscalar) { lib.AtgAddScalar(o, x, n) })
}

// leaf is x for autograd to begin at: what was before it is not seen.
func (s *scope) leaf(x tensor) tensor {
	x = s.op(func(o *tensor) { lib.AtgDetach(o, x) })
	return s.op(func(o *tensor) { lib.AtgRequiresGrad_(o, x, 1) })
}

func (s *scope) square(x tensor) tensor { return s.op(func(o *tensor) { lib.AtgSquare(o, x) }) }

func (s *scope) sum(x tensor, kind int32) tensor {
	return s.op(func(o *tensor) { lib.AtgSum(o, x, kind) })
}

// In place.

func (s *scope) addInto(x, y tensor) { s.op(func(o *tensor) { lib.AtgAdd_(o, x, y) }) }
func (s *scope) zero(x tensor)       { s.op(func(o *tensor) { lib.AtgZero_(o, x) }) }

func (s *scope) scaleInto(x tensor, v float64) {
	s.scalar(v, func(o *tensor, n lib.Cscalar) { lib.AtgMulScalar_(o, x, n) })
}

func (s *scope) copyInto(x, y tensor) {
	if s.err == nil {
		lib.AtCopy_(x, y)
		s.check()
	}
}

// value reads a tensor of one element.
func (s *scope) value(x tensor) float64 {
	if s.err != nil {
		return 0
	}
	v := lib.AtDoubleValueAtIndexes(x, nil, 0)
	s.check()
	return v
}
