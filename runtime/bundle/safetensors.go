package bundle

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// The safetensors format (https://github.com/huggingface/safetensors):
//
//	8 bytes   n, length of the header, little endian
//	n bytes   JSON: {"__metadata__": {…}, name: {"dtype", "shape", "data_offsets": [begin, end]}, …}, spaces to fill
//	the rest  the tensors, little endian, without gap or overlap; offsets count from here
const (
	maxHeader   = 100 << 20 // the limit of safetensors itself
	metadataKey = "__metadata__"
)

type tensorHeader struct {
	DType   string   `json:"dtype"`
	Shape   []int64  `json:"shape"`
	Offsets [2]int64 `json:"data_offsets"`
}

// DType is how weights are stored, by the name that config.json has for it.
type DType string

// Types of stored weights; "" is Float32.
const (
	Float32  DType = "float32"
	Float16  DType = "float16"
	BFloat16 DType = "bfloat16"
)

// safetensors is the format's name of the type.
func (d DType) safetensors() string {
	switch d {
	case Float16:
		return "F16"
	case BFloat16:
		return "BF16"
	}
	return "F32"
}

// WriteSafetensors writes the tensors as float32, sorted by name.
func WriteSafetensors(w io.Writer, tensors engine.StateDict) error {
	return writeSafetensors(w, tensors, Float32)
}

func writeSafetensors(w io.Writer, tensors engine.StateDict, d DType) error {
	sorted := slices.Clone(tensors)
	slices.SortFunc(sorted, func(a, b engine.Tensor) int { return strings.Compare(a.Name, b.Name) })
	for _, t := range sorted {
		n := 1
		for _, s := range t.Shape {
			n *= s
		}
		if n != len(t.Data) {
			return fmt.Errorf("safetensors: tensor %q has shape %v but %d values", t.Name, t.Shape, len(t.Data))
		}
	}
	head, _, err := header(sorted, d)
	if err != nil {
		return err
	}
	if err := binary.Write(w, binary.LittleEndian, uint64(len(head))); err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	var buf []byte
	for _, t := range sorted {
		for part := range slices.Chunk(t.Data, 1<<14) {
			if buf, err = narrow(buf[:0], part, d); err != nil {
				return fmt.Errorf("safetensors: tensor %q: %w", t.Name, err)
			}
			if _, err := w.Write(buf); err != nil {
				return err
			}
		}
	}
	return nil
}

// narrow appends values as they are stored.
func narrow(b []byte, values []float32, d DType) ([]byte, error) {
	if d != Float16 && d != BFloat16 {
		for _, v := range values {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
		return b, nil
	}
	stored, infinite := make([]uint16, len(values)), uint16(0x7c00)
	if d == BFloat16 {
		infinite = 0x7f80
		kernel.EncodeBF16(stored, values)
	} else {
		kernel.EncodeF16(stored, values)
	}
	for i, h := range stored {
		if h&0x7fff >= infinite {
			return nil, fmt.Errorf("%g is too large for %s", values[i], d)
		}
		b = binary.LittleEndian.AppendUint16(b, h)
	}
	return b, nil
}

// header is that of tensors sorted by name, and how many bytes follow it.
func header(sorted engine.StateDict, d DType) ([]byte, int64, error) {
	var head bytes.Buffer
	head.WriteString(`{"` + metadataKey + `":{"format":"pt"}`)
	offset := int64(0)
	for i, t := range sorted {
		if i > 0 && t.Name == sorted[i-1].Name || t.Name == metadataKey {
			return nil, 0, fmt.Errorf("safetensors: tensor %q stands twice", t.Name)
		}
		h := tensorHeader{DType: d.safetensors(), Shape: []int64{}}
		n := dtypeSizes[h.DType]
		for _, s := range t.Shape {
			h.Shape = append(h.Shape, int64(s))
			n *= int64(s)
		}
		h.Offsets = [2]int64{offset, offset + n}
		offset = h.Offsets[1]
		name, err := json.Marshal(t.Name)
		if err != nil {
			return nil, 0, err
		}
		body, err := json.Marshal(h)
		if err != nil {
			return nil, 0, err
		}
		fmt.Fprintf(&head, ",%s:%s", name, body)
	}
	head.WriteByte('}')
	for head.Len()%8 != 0 {
		head.WriteByte(' ')
	}
	return head.Bytes(), offset, nil
}

// WeightsBytes is the size of WeightsFile for models of a shape.
func WeightsBytes(a glm.Arch) int64 {
	var tensors engine.StateDict
	layout, _ := a.Layout()
	for _, p := range layout {
		tensors = append(tensors, engine.Tensor{Name: p.Name, Shape: p.Shape})
	}
	slices.SortFunc(tensors, func(a, b engine.Tensor) int { return strings.Compare(a.Name, b.Name) })
	head, data, err := header(tensors, Float32)
	if err != nil {
		panic("bundle: " + err.Error()) // two parameters of one name
	}
	return int64(8+len(head)) + data
}

// ReadSafetensors reads size bytes of r: every tensor, F16 and BF16 widened to
// float32, in the order of the file. It refuses other types, gaps, overlaps and
// bytes that belong to no tensor.
func ReadSafetensors(r io.ReaderAt, size int64) (engine.StateDict, error) {
	entries, base, err := readHeader(r, size)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	out := make(engine.StateDict, 0, len(entries))
	for _, e := range entries {
		data, err := readTensor(r, base, e)
		if err != nil {
			return nil, fmt.Errorf("safetensors: tensor %q: %w", e.name, err)
		}
		shape := make([]int, len(e.Shape))
		for i, s := range e.Shape {
			shape[i] = int(s)
		}
		out = append(out, engine.Tensor{Name: e.name, Shape: shape, Data: data})
	}
	return out, nil
}

type tensorEntry struct {
	tensorHeader
	name string
}

var dtypeSizes = map[string]int64{"F32": 4, "F16": 2, "BF16": 2}

// readHeader is the checked table of tensors by offset, and where the data starts.
func readHeader(r io.ReaderAt, size int64) ([]tensorEntry, int64, error) {
	var prefix [8]byte
	if size < 8 {
		return nil, 0, fmt.Errorf("%d bytes are too few for a header", size)
	}
	if _, err := r.ReadAt(prefix[:], 0); err != nil {
		return nil, 0, err
	}
	n := binary.LittleEndian.Uint64(prefix[:])
	if n > maxHeader || int64(n) > size-8 {
		return nil, 0, fmt.Errorf("header is said to have %d bytes, the file has %d", n, size)
	}
	raw := make([]byte, n)
	if _, err := r.ReadAt(raw, 8); err != nil {
		return nil, 0, err
	}
	entries, err := parseHeader(raw)
	if err != nil {
		return nil, 0, fmt.Errorf("header: %w", err)
	}
	slices.SortStableFunc(entries, func(a, b tensorEntry) int {
		if a.Offsets[0] != b.Offsets[0] {
			return int(min(1, max(-1, a.Offsets[0]-b.Offsets[0])))
		}
		return int(min(1, max(-1, a.Offsets[1]-b.Offsets[1])))
	})
	end := int64(0)
	for _, e := range entries {
		if e.Offsets[0] != end {
			return nil, 0, fmt.Errorf("tensor %q starts at byte %d, not at %d where the one before it ends", e.name, e.Offsets[0], end)
		}
		if err := e.check(); err != nil {
			return nil, 0, fmt.Errorf("tensor %q: %w", e.name, err)
		}
		end = e.Offsets[1]
	}
	base := 8 + int64(n)
	if end != size-base {
		return nil, 0, fmt.Errorf("tensors need %d bytes of data, the file has %d", end, size-base)
	}
	return entries, base, nil
}

func parseHeader(raw []byte) ([]tensorEntry, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := d.Token(); err != nil || tok != json.Delim('{') {
		return nil, errors.New("is not a JSON object")
	}
	var entries []tensorEntry
	seen := map[string]bool{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		name := key.(string)
		if seen[name] {
			return nil, fmt.Errorf("%q stands twice", name)
		}
		seen[name] = true
		if name == metadataKey {
			var m map[string]string
			if err := d.Decode(&m); err != nil {
				return nil, fmt.Errorf("%s: %w", metadataKey, err)
			}
			continue
		}
		e := tensorEntry{name: name}
		if err := d.Decode(&e.tensorHeader); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		entries = append(entries, e)
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if len(bytes.TrimRight(raw[d.InputOffset():], " ")) > 0 {
		return nil, errors.New("bytes after the JSON object")
	}
	return entries, nil
}

// check holds the bytes of a tensor against its shape.
func (e tensorEntry) check() error {
	width, ok := dtypeSizes[e.DType]
	if !ok {
		return fmt.Errorf("type %s is not known, only F32, F16 and BF16 are", e.DType)
	}
	n := uint64(width)
	for _, s := range e.Shape {
		if s < 0 {
			return fmt.Errorf("shape %v is negative", e.Shape)
		}
		hi, lo := bits.Mul64(n, uint64(s))
		if hi != 0 || lo > math.MaxInt64 {
			return fmt.Errorf("shape %v is too large", e.Shape)
		}
		n = lo
	}
	if got := e.Offsets[1] - e.Offsets[0]; got < 0 || uint64(got) != n {
		return fmt.Errorf("shape %v of %s needs %d bytes, data_offsets give %d", e.Shape, e.DType, n, got)
	}
	return nil
}

func readTensor(r io.ReaderAt, base int64, e tensorEntry) ([]float32, error) {
	width := dtypeSizes[e.DType]
	out := make([]float32, (e.Offsets[1]-e.Offsets[0])/width)
	buf := make([]byte, min(int64(len(out))*width, 1<<18))
	at := base + e.Offsets[0]
	for done := 0; done < len(out); {
		n := min(len(out)-done, len(buf)/int(width))
		b := buf[:n*int(width)]
		if _, err := r.ReadAt(b, at); err != nil {
			return nil, err
		}
		at += int64(len(b))
		widen(out[done:done+n], b, e.DType)
		done += n
	}
	return out, nil
}

func widen(dst []float32, b []byte, dtype string) {
	switch dtype {
	case "F32":
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
		}
	case "BF16":
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(b[2*i:])) << 16)
		}
	case "F16":
		for i := range dst {
			dst[i] = half(binary.LittleEndian.Uint16(b[2*i:]))
		}
	}
}

// half widens an IEEE 754 binary16.
func half(h uint16) float32 {
	sign, exp, frac := uint32(h>>15)<<31, uint32(h>>10)&31, uint32(h)&1023
	switch exp {
	case 0: // zero and subnormals: frac · 2⁻²⁴
		f := float32(frac) * 0x1p-24
		return math.Float32frombits(math.Float32bits(f) | sign)
	case 31:
		return math.Float32frombits(sign | 0xff<<23 | frac<<13)
	}
	return math.Float32frombits(sign | (exp+112)<<23 | frac<<13)
}
