package gguf

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
)

// Info is a tensor of a file that was parsed.
type Info struct {
	Name   string
	Shape  []int // the contiguous dimension last
	Type   Type
	offset int64 // in the file
	values int
}

// Parsed is a file's table of contents. Its values are read by Values.
type Parsed struct {
	KVs     []KV
	Tensors []Info
	r       io.ReaderAt
}

// Limits that no model comes near.
const (
	maxName  = 1 << 16
	maxDims  = 4 // as in ggml
	minEntry = 8 // bytes that the shortest pair or tensor takes
)

// Parse reads the table of size bytes of r and checks that the data is all there.
func Parse(r io.ReaderAt, size int64) (*Parsed, error) {
	p := &parser{r: bufio.NewReaderSize(io.NewSectionReader(r, 0, size), 1<<16), left: size}
	out := &Parsed{r: r}
	if err := p.file(out, size); err != nil {
		return nil, fmt.Errorf("gguf: %w", err)
	}
	return out, nil
}

// Get is the value of a key, nil where there is none.
func (f *Parsed) Get(key string) any {
	for _, kv := range f.KVs {
		if kv.Key == key {
			return kv.Value
		}
	}
	return nil
}

// Values reads a tensor, widened to float32.
func (f *Parsed) Values(t Info) ([]float32, error) {
	raw := make([]byte, t.Type.Bytes(t.values))
	if _, err := f.r.ReadAt(raw, t.offset); err != nil {
		return nil, fmt.Errorf("gguf: tensor %q: %w", t.Name, err)
	}
	out := make([]float32, t.values)
	t.Type.decode(out, raw)
	return out, nil
}

// parser reads forward; left is what the file still holds.
type parser struct {
	r    io.Reader
	left int64
}

// bytes reads n bytes; n is held against what the file has left before anything is
// allocated.
func (p *parser) bytes(n uint64) ([]byte, error) {
	if n > uint64(p.left) {
		return nil, fmt.Errorf("%d bytes are announced where the file has %d left", n, p.left)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(p.r, b); err != nil {
		return nil, err
	}
	p.left -= int64(n)
	return b, nil
}

func number[T any](p *parser) (v T, err error) {
	b, err := p.bytes(uint64(binary.Size(v)))
	if err != nil {
		return v, err
	}
	_, err = binary.Decode(b, binary.LittleEndian, &v)
	return v, err
}

func (p *parser) string() (string, error) {
	n, err := number[uint64](p)
	if err != nil {
		return "", err
	}
	b, err := p.bytes(n)
	return string(b), err
}

func (p *parser) name() (string, error) {
	s, err := p.string()
	if err == nil && (len(s) == 0 || len(s) >= maxName) {
		err = fmt.Errorf("a name of %d bytes", len(s))
	}
	return s, err
}

func (p *parser) file(out *Parsed, size int64) error {
	head, err := p.bytes(4)
	if err != nil || string(head) != magic {
		return errors.New("the file doesn't begin with GGUF")
	}
	v, err := number[uint32](p)
	switch {
	case err != nil:
		return err
	case v == bits.ReverseBytes32(version):
		return errors.New("the file is big endian; only little endian is known")
	case v != version:
		return fmt.Errorf("version %d, only %d is known", v, version)
	}
	tensors, err := number[uint64](p)
	if err != nil {
		return err
	}
	pairs, err := number[uint64](p)
	if err != nil {
		return err
	}
	if most := uint64(p.left) / minEntry; tensors > most || pairs > most {
		return fmt.Errorf("%d tensors and %d keys are announced in %d bytes", tensors, pairs, size)
	}
	if err := p.pairs(out, pairs); err != nil {
		return err
	}
	return p.tensors(out, tensors, size)
}

func (p *parser) pairs(out *Parsed, n uint64) error {
	seen := map[string]bool{}
	for i := range n {
		key, err := p.name()
		if err != nil {
			return fmt.Errorf("key %d: %w", i, err)
		}
		if seen[key] {
			return fmt.Errorf("key %q stands twice", key)
		}
		seen[key] = true
		kind, err := number[uint32](p)
		if err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
		v, err := p.value(kind)
		if err != nil {
			return fmt.Errorf("key %q: %w", key, err)
		}
		out.KVs = append(out.KVs, KV{key, v})
	}
	if a := out.Get("general.alignment"); a != nil && a != uint32(alignment) {
		return fmt.Errorf("general.alignment is %v, only %d is known", a, alignment)
	}
	return nil
}

func (p *parser) value(kind uint32) (any, error) {
	switch kind {
	case kindUint8:
		return number[uint8](p)
	case kindInt8:
		return number[int8](p)
	case kindUint16:
		return number[uint16](p)
	case kindInt16:
		return number[int16](p)
	case kindUint32:
		return number[uint32](p)
	case kindInt32:
		return number[int32](p)
	case kindFloat32:
		return number[float32](p)
	case kindUint64:
		return number[uint64](p)
	case kindInt64:
		return number[int64](p)
	case kindFloat64:
		return number[float64](p)
	case kindBool:
		b, err := number[uint8](p)
		if err == nil && b > 1 {
			err = fmt.Errorf("a truth value is %d", b)
		}
		return b == 1, err
	case kindString:
		return p.string()
	case kindList:
		return p.list()
	}
	return nil, fmt.Errorf("kind %d of value is not known", kind)
}

func (p *parser) list() (any, error) {
	kind, err := number[uint32](p)
	if err != nil {
		return nil, err
	}
	n, err := number[uint64](p)
	if err != nil {
		return nil, err
	}
	switch kind {
	case kindUint8:
		return numbers[uint8](p, n)
	case kindInt8:
		return numbers[int8](p, n)
	case kindUint16:
		return numbers[uint16](p, n)
	case kindInt16:
		return numbers[int16](p, n)
	case kindUint32:
		return numbers[uint32](p, n)
	case kindInt32:
		return numbers[int32](p, n)
	case kindFloat32:
		return numbers[float32](p, n)
	case kindUint64:
		return numbers[uint64](p, n)
	case kindInt64:
		return numbers[int64](p, n)
	case kindFloat64:
		return numbers[float64](p, n)
	case kindBool:
		raw, err := p.bytes(n)
		out := make([]bool, len(raw))
		for i, b := range raw {
			out[i] = b != 0
		}
		return out, err
	case kindString:
		if n > uint64(p.left)/8 {
			return nil, fmt.Errorf("a list of %d strings where the file has %d bytes left", n, p.left)
		}
		out := make([]string, n)
		for i := range out {
			if out[i], err = p.string(); err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("a list of kind %d is not known", kind)
}

func numbers[T any](p *parser, n uint64) ([]T, error) {
	var one T
	hi, size := bits.Mul64(n, uint64(binary.Size(one)))
	if hi != 0 {
		return nil, fmt.Errorf("a list of %d values", n)
	}
	b, err := p.bytes(size)
	if err != nil {
		return nil, err
	}
	out := make([]T, n)
	_, err = binary.Decode(b, binary.LittleEndian, out)
	return out, err
}

func (p *parser) tensors(out *Parsed, n uint64, size int64) error {
	seen := map[string]bool{}
	end := int64(0) // of the tensors so far, from the beginning of the data
	for i := range n {
		name, err := p.name()
		if err != nil {
			return fmt.Errorf("tensor %d: %w", i, err)
		}
		if seen[name] {
			return fmt.Errorf("tensor %q stands twice", name)
		}
		seen[name] = true
		t, err := p.tensor(name, &end)
		if err != nil {
			return fmt.Errorf("tensor %q: %w", name, err)
		}
		out.Tensors = append(out.Tensors, t)
	}
	base := size - p.left
	base += padding(base)
	for i := range out.Tensors {
		out.Tensors[i].offset += base
	}
	if base+end != size && (len(out.Tensors) > 0 || p.left > 0) {
		return fmt.Errorf("tensors end at byte %d, the file has %d", base+end, size)
	}
	return nil
}

func (p *parser) tensor(name string, end *int64) (Info, error) {
	t := Info{Name: name}
	dims, err := number[uint32](p)
	if err != nil {
		return t, err
	}
	if dims == 0 || dims > maxDims {
		return t, fmt.Errorf("%d dimensions", dims)
	}
	t.Shape = make([]int, dims)
	count := uint64(1)
	for i := range t.Shape {
		d, err := number[uint64](p)
		if err != nil {
			return t, err
		}
		hi, lo := bits.Mul64(count, d)
		if d == 0 || hi != 0 || lo > math.MaxInt64/64 {
			return t, fmt.Errorf("dimension %d is %d", i, d)
		}
		count = lo
		t.Shape[len(t.Shape)-1-i] = int(d)
	}
	kind, err := number[uint32](p)
	if err != nil {
		return t, err
	}
	t.Type = Type(kind)
	info, ok := typeInfos[t.Type]
	if !ok {
		return t, fmt.Errorf("type %d is not known; F32, F16, BF16, Q8_0 and Q4_0 are", kind)
	}
	if row := t.Shape[len(t.Shape)-1]; row%info.values != 0 {
		return t, fmt.Errorf("rows of %d values in blocks of %d", row, info.values)
	}
	offset, err := number[uint64](p)
	if err != nil {
		return t, err
	}
	if offset != uint64(*end) {
		return t, fmt.Errorf("begins at %d, the one before it ends at %d", offset, *end)
	}
	t.offset, t.values = *end, int(count)
	bytes := t.Type.Bytes(t.values)
	if *end += bytes + padding(bytes); *end < 0 {
		return t, errors.New("the tensors are too large")
	}
	return t, nil
}
