package gguf

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/runtime/bundle"
)

// Type is how a tensor's values are stored, by ggml's number.
type Type uint32

// Types that are written and read.
//
//	F32, F16, BF16  a value each
//	Q8_0            32 values: a scale d (F16), 32 signed bytes q; the value is d·q
//	Q4_0            32 values: a scale d (F16), 16 bytes; the low half of byte i holds value i,
//	                the high half value i+16; the value is d·(q−8)
const (
	F32  Type = 0
	F16  Type = 1
	Q4_0 Type = 2
	Q8_0 Type = 8
	BF16 Type = 30
)

// blockLen is how many values share a scale in quantised types.
const blockLen = 32

var typeInfos = map[Type]struct {
	name     string
	values   int    // of a block
	bytes    int    // of a block
	fileType uint32 // general.file_type of a file of mostly this type
}{
	F32:  {"F32", 1, 4, 0},
	F16:  {"F16", 1, 2, 1},
	Q4_0: {"Q4_0", blockLen, 18, 2},
	Q8_0: {"Q8_0", blockLen, 34, 7},
	BF16: {"BF16", 1, 2, 32},
}

// Types lists the types from the largest to the smallest.
func Types() []Type { return []Type{F32, BF16, F16, Q8_0, Q4_0} }

func (t Type) String() string {
	if i, ok := typeInfos[t]; ok {
		return i.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// ParseType is the type of that name, in any case.
func ParseType(s string) (Type, error) {
	for _, t := range Types() {
		if strings.EqualFold(s, t.String()) {
			return t, nil
		}
	}
	return 0, fmt.Errorf("type %q is not known; f32, f16, bf16, q8_0 and q4_0 are", s)
}

// Bytes is the size of n values; n is a whole number of blocks.
func (t Type) Bytes(n int) int64 {
	i := typeInfos[t]
	return int64(n/i.values) * int64(i.bytes)
}

// floats are the types that a bundle has too.
var floats = map[Type]bundle.DType{F32: bundle.Float32, F16: bundle.Float16, BF16: bundle.BFloat16}

// encode appends src, a whole number of blocks of finite values, to dst.
func (t Type) encode(dst []byte, src []float32) ([]byte, error) {
	if d, ok := floats[t]; ok {
		dst, err := bundle.Narrow(dst, src, d)
		if err != nil {
			err = fmt.Errorf("%w; take another type", err)
		}
		return dst, err
	}
	for block := range slices.Chunk(src, blockLen) {
		var err error
		if dst, err = t.encodeBlock(dst, block); err != nil {
			return nil, err
		}
	}
	return dst, nil
}

// encodeBlock rounds as ggml's reference does: the scale is kept in float32 while values
// are divided by it, and stored as F16.
func (t Type) encodeBlock(dst []byte, x []float32) ([]byte, error) {
	largest := float32(0) // in magnitude, the first of equals
	for _, v := range x {
		if abs(v) > abs(largest) {
			largest = v
		}
	}
	d := abs(largest) / 127
	if t == Q4_0 {
		d = largest / -8
	}
	inverse := float32(0)
	if d != 0 {
		inverse = 1 / d
	}
	if math.IsInf(float64(inverse), 0) { // the scale is zero as F16
		inverse = 0
	}
	var scale [1]uint16
	kernel.EncodeF16(scale[:], []float32{d})
	if scale[0]&0x7fff >= 0x7c00 {
		return nil, fmt.Errorf("%g is too large for %s; take another type", largest, t)
	}
	dst = binary.LittleEndian.AppendUint16(dst, scale[0])
	if t == Q8_0 {
		for _, v := range x {
			dst = append(dst, byte(int8(math.Round(float64(v*inverse)))))
		}
		return dst, nil
	}
	nibble := func(v float32) byte {
		scaled := float32(v * inverse) // the conversion keeps this and the sum apart where a processor could fuse them
		return byte(min(15, int8(scaled+8.5)))
	}
	for i := range blockLen / 2 {
		dst = append(dst, nibble(x[i])|nibble(x[i+blockLen/2])<<4)
	}
	return dst, nil
}

// decode widens src, a whole number of blocks, into dst.
func (t Type) decode(dst []float32, src []byte) {
	half := make([]uint16, 1)
	scale := make([]float32, 1)
	switch t {
	case F32:
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case F16, BF16:
		half = make([]uint16, len(dst))
		for i := range half {
			half[i] = binary.LittleEndian.Uint16(src[2*i:])
		}
		if t == BF16 {
			kernel.DecodeBF16(dst, half)
		} else {
			kernel.DecodeF16(dst, half)
		}
	case Q8_0:
		for ; len(dst) > 0; dst, src = dst[blockLen:], src[34:] {
			half[0] = binary.LittleEndian.Uint16(src)
			kernel.DecodeF16(scale, half)
			for i := range blockLen {
				dst[i] = scale[0] * float32(int8(src[2+i]))
			}
		}
	case Q4_0:
		for ; len(dst) > 0; dst, src = dst[blockLen:], src[18:] {
			half[0] = binary.LittleEndian.Uint16(src)
			kernel.DecodeF16(scale, half)
			for i := range blockLen / 2 {
				dst[i] = scale[0] * float32(int(src[2+i]&15)-8)
				dst[i+blockLen/2] = scale[0] * float32(int(src[2+i]>>4)-8)
			}
		}
	}
}

// tolerance is the largest difference that storing a block of values, the largest of
// which is amax in magnitude, may make to the value v.
func (t Type) tolerance(v, amax float32) float64 {
	const tiny = 0x1p-24 // the smallest F16
	switch t {
	case F16:
		return math.Max(float64(abs(v))*0x1p-11, tiny)
	case BF16:
		return float64(abs(v))*0x1p-8 + 0x1p-133
	case Q8_0: // half a step, and the scale's own rounding 127 times over
		return float64(amax)*(0.5/127+0x1p-11)*1.01 + 127*tiny
	case Q4_0: // a whole step: what lies opposite the largest is cut from 8 to 7
		return float64(amax)/8*(1+8*0x1p-11)*1.01 + 8*tiny
	}
	return 0
}

func abs(v float32) float32 { return math.Float32frombits(math.Float32bits(v) &^ (1 << 31)) }
