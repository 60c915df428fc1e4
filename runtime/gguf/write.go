package gguf

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"github.com/open-autoglm/autoglm/runtime/durable"
)

// The format, version 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md),
// little endian:
//
//	4 bytes  "GGUF"
//	u32      3
//	u64      number of tensors
//	u64      number of key-value pairs
//	pairs    key (u64 length, bytes), u32 kind of the value, value; a list is u32 kind, u64 length, values
//	tensors  name (u64 length, bytes), u32 dimensions, u64 for each, the contiguous one first, u32 type, u64 offset
//	zeros    to a multiple of the alignment; offsets count from here
//	data     of each tensor, zeros to a multiple of the alignment
const (
	magic     = "GGUF"
	version   = 3
	alignment = 32 // the default, which needs no general.alignment
)

// Kinds of values.
const (
	kindUint8 uint32 = iota
	kindInt8
	kindUint16
	kindInt16
	kindUint32
	kindInt32
	kindFloat32
	kindBool
	kindString
	kindList
	kindUint64
	kindInt64
	kindFloat64
)

// KV is a key with its value: uint8, int8, uint16, int16, uint32, int32, float32, bool,
// string, uint64, int64, float64, or a slice of one of these.
type KV struct {
	Key   string
	Value any
}

// Tensor is one tensor of a file that is to be written.
type Tensor struct {
	Name  string
	Shape []int // the contiguous dimension last, as in a bundle
	Type  Type
	Data  []float32
}

// File is what is to be written.
type File struct {
	KVs     []KV
	Tensors []Tensor
}

// Bytes is the size of the tensors of each type.
func (f *File) Bytes() map[Type]int64 {
	m := map[Type]int64{}
	for _, t := range f.Tensors {
		m[t.Type] += t.Type.Bytes(len(t.Data))
	}
	return m
}

// Write puts the file at path, whole or not at all.
func Write(path string, f *File) error {
	if err := durable.Write(path, f.write); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func (f *File) write(w io.Writer) error {
	head, err := f.header()
	if err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	var buf []byte
	for _, t := range f.Tensors {
		const piece = 1 << 16 // a whole number of blocks
		for data := t.Data; len(data) > 0; {
			n := min(len(data), piece)
			if buf, err = t.Type.encode(buf[:0], data[:n]); err != nil {
				return fmt.Errorf("tensor %q: %w", t.Name, err)
			}
			if _, err := w.Write(buf); err != nil {
				return err
			}
			data = data[n:]
		}
		if _, err := w.Write(make([]byte, padding(t.Type.Bytes(len(t.Data))))); err != nil {
			return err
		}
	}
	return nil
}

// padding is what n bytes lack to a multiple of the alignment.
func padding(n int64) int64 { return -n & (alignment - 1) }

func (f *File) header() ([]byte, error) {
	le := binary.LittleEndian
	b := le.AppendUint32([]byte(magic), version)
	b = le.AppendUint64(b, uint64(len(f.Tensors)))
	b = le.AppendUint64(b, uint64(len(f.KVs)))
	for _, kv := range f.KVs {
		var err error
		if b, err = appendValue(appendString(b, kv.Key), kv.Value); err != nil {
			return nil, fmt.Errorf("key %q: %w", kv.Key, err)
		}
	}
	offset := int64(0)
	for _, t := range f.Tensors {
		b = appendString(b, t.Name)
		b = le.AppendUint32(b, uint32(len(t.Shape)))
		n := 1
		for i := len(t.Shape) - 1; i >= 0; i-- {
			b = le.AppendUint64(b, uint64(t.Shape[i]))
			n *= t.Shape[i]
		}
		if values := typeInfos[t.Type].values; n != len(t.Data) || values == 0 || t.Shape[len(t.Shape)-1]%values != 0 {
			return nil, fmt.Errorf("tensor %q: %d values of shape %v can't be %s", t.Name, len(t.Data), t.Shape, t.Type)
		}
		b = le.AppendUint32(b, uint32(t.Type))
		b = le.AppendUint64(b, uint64(offset))
		size := t.Type.Bytes(n)
		offset += size + padding(size)
	}
	return append(b, make([]byte, padding(int64(len(b))))...), nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.LittleEndian.AppendUint64(b, uint64(len(s))), s...)
}

func appendValue(b []byte, v any) ([]byte, error) {
	kind := func(k uint32) []byte { return binary.LittleEndian.AppendUint32(b, k) }
	switch v := v.(type) {
	case uint8, int8, uint16, int16, uint32, int32, uint64, int64, float32, float64, bool:
		return binary.Append(kind(scalarKind(v)), binary.LittleEndian, v)
	case string:
		return appendString(kind(kindString), v), nil
	case []string:
		b = appendList(b, kindString, len(v))
		for _, s := range v {
			b = appendString(b, s)
		}
		return b, nil
	case []uint8:
		return binary.Append(appendList(b, kindUint8, len(v)), binary.LittleEndian, v)
	case []int32:
		return binary.Append(appendList(b, kindInt32, len(v)), binary.LittleEndian, v)
	case []uint32:
		return binary.Append(appendList(b, kindUint32, len(v)), binary.LittleEndian, v)
	case []float32:
		return binary.Append(appendList(b, kindFloat32, len(v)), binary.LittleEndian, v)
	}
	return nil, fmt.Errorf("a value of type %T can't be written", v)
}

func appendList(b []byte, kind uint32, n int) []byte {
	b = binary.LittleEndian.AppendUint32(b, kindList)
	b = binary.LittleEndian.AppendUint32(b, kind)
	return binary.LittleEndian.AppendUint64(b, uint64(n))
}

func scalarKind(v any) uint32 {
	switch v.(type) {
	case uint8:
		return kindUint8
	case int8:
		return kindInt8
	case uint16:
		return kindUint16
	case int16:
		return kindInt16
	case uint32:
		return kindUint32
	case int32:
		return kindInt32
	case float32:
		return kindFloat32
	case bool:
		return kindBool
	case uint64:
		return kindUint64
	case int64:
		return kindInt64
	case float64:
		return kindFloat64
	}
	return math.MaxUint32
}
