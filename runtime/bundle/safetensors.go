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

// WriteSafetensors writes the tensors, sorted by name: as float32, or, those of few
// bits, in the three that compressed-tensors makes of one (packed.go).
func WriteSafetensors(w io.Writer, tensors engine.StateDict) error {
	return writeSafetensors(w, tensors, Float32)
}

// writeSafetensors writes those that have no few bits as d.
func writeSafetensors(w io.Writer, tensors engine.StateDict, d DType) error {
	var parts []part
	for _, t := range tensors {
		if n := t.Elems(); t.Blocks == nil && n != len(t.Data) {
			return fmt.Errorf("safetensors: tensor %q has shape %v but %d values", t.Name, t.Shape, len(t.Data))
		}
		store := d
		if halved(tensors, t) {
			store = Float16
		}
		p, err := partsOf(t, store)
		if err != nil {
			return fmt.Errorf("safetensors: %w", err)
		}
		parts = append(parts, p...)
	}
	head, _, err := header(parts)
	if err != nil {
		return err
	}
	if err := binary.Write(w, binary.LittleEndian, uint64(len(head))); err != nil {
		return err
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	for _, p := range parts {
		if err := p.write(w); err != nil {
			return err
		}
	}
	return nil
}

// Narrow appends values as they are stored, little-endian.
func Narrow(b []byte, values []float32, d DType) ([]byte, error) {
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

// part is one tensor of a file.
type part struct {
	name  string
	dtype string
	shape []int
	write func(io.Writer) error
}

func (p part) bytes() int64 {
	n := dtypeSizes[p.dtype]
	for _, s := range p.shape {
		n *= int64(s)
	}
	return n
}

// partsOf are what a file holds of a tensor.
func partsOf(t engine.Tensor, d DType) ([]part, error) {
	if t.Blocks != nil {
		return packed(t)
	}
	return []part{{t.Name, d.safetensors(), t.Shape, func(w io.Writer) error {
		var buf []byte
		for piece := range slices.Chunk(t.Data, 1<<14) {
			var err error
			if buf, err = Narrow(buf[:0], piece, d); err != nil {
				return fmt.Errorf("safetensors: tensor %q: %w", t.Name, err)
			}
			if _, err := w.Write(buf); err != nil {
				return err
			}
		}
		return nil
	}}}, nil
}

// inPieces writes n values of width bytes, which add appends.
func inPieces(w io.Writer, n, width int, add func(b []byte, i int) []byte) error {
	buf := make([]byte, 0, 1<<16)
	for i := 0; i < n; {
		buf = buf[:0]
		for end := min(n, i+cap(buf)/width); i < end; i++ {
			buf = add(buf, i)
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// header sorts the tensors of a file by name, and is what stands before them; and how
// many bytes follow it.
func header(parts []part) ([]byte, int64, error) {
	slices.SortFunc(parts, func(a, b part) int { return strings.Compare(a.name, b.name) })
	var head bytes.Buffer
	head.WriteString(`{"` + metadataKey + `":{"format":"pt"}`)
	offset := int64(0)
	for i, p := range parts {
		if i > 0 && p.name == parts[i-1].name || p.name == metadataKey {
			return nil, 0, fmt.Errorf("safetensors: tensor %q stands twice", p.name)
		}
		h := tensorHeader{DType: p.dtype, Shape: []int64{}}
		for _, s := range p.shape {
			h.Shape = append(h.Shape, int64(s))
		}
		h.Offsets = [2]int64{offset, offset + p.bytes()}
		offset = h.Offsets[1]
		name, err := json.Marshal(p.name)
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

// WeightsBytes is the size of WeightsFile for models of a shape, in float32.
func WeightsBytes(a glm.Arch) int64 {
	var parts []part
	layout, _ := a.Layout()
	for _, p := range layout {
		parts = append(parts, part{name: p.Name, dtype: "F32", shape: p.Shape})
	}
	head, data, err := header(parts)
	if err != nil {
		panic("bundle: " + err.Error()) // two parameters of one name
	}
	return int64(8+len(head)) + data
}

// ReadSafetensors reads size bytes of r: every tensor, F16 and BF16 widened to
// float32, those of compressed-tensors as blocks, in the order of the file. It refuses
// other types, gaps, overlaps and bytes that belong to no tensor.
func ReadSafetensors(r io.ReaderAt, size int64) (engine.StateDict, error) {
	return tensors{ReaderAt: r, size: size}.read()
}

// tensors is a file of them.
type tensors struct {
	io.ReaderAt
	io.Closer // nil where whoever opened it closes it
	size      int64
	mapped    []byte // all of it, where that lies in memory
}

func (r tensors) read() (engine.StateDict, error) {
	entries, base, err := readHeader(r, r.size)
	if err != nil {
		return nil, fmt.Errorf("safetensors: %w", err)
	}
	byName := make(map[string]tensorEntry, len(entries))
	for _, e := range entries {
		byName[e.name] = e
	}
	out := make(engine.StateDict, 0, len(entries))
	for _, e := range entries {
		t := engine.Tensor{Name: e.name}
		stem, role := split(e.name)
		_, isPart := byName[stem+packedSuffix]
		switch {
		case isPart && role == packedSuffix:
			t, err = readPacked(r, base, stem, byName)
		case isPart && role != "":
			continue // read with its packed one
		case e.DType != "F32" && e.DType != "F16" && e.DType != "BF16":
			err = fmt.Errorf("type %s is not known, only F32, F16 and BF16 are", e.DType)
		default:
			t.Data, err = r.floats(base, e)
			t.Shape = e.shape()
		}
		if err != nil {
			return nil, fmt.Errorf("safetensors: tensor %q: %w", e.name, err)
		}
		out = append(out, t)
	}
	return out, nil
}

type tensorEntry struct {
	tensorHeader
	name string
}

func (e tensorEntry) shape() []int {
	shape := make([]int, len(e.Shape))
	for i, s := range e.Shape {
		shape[i] = int(s)
	}
	return shape
}

var dtypeSizes = map[string]int64{"F32": 4, "F16": 2, "BF16": 2, "I32": 4, "I64": 8}

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
		return fmt.Errorf("type %s is not known, only F32, F16, BF16 and what holds compressed weights are", e.DType)
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

// floats are the file's own memory, where that is possible.
func (r tensors) floats(base int64, e tensorEntry) ([]float32, error) {
	if r.mapped != nil && e.DType == "F32" {
		if x := floatsAt(r.mapped[base+e.Offsets[0] : base+e.Offsets[1]]); x != nil {
			return x, nil
		}
	}
	return readTensor(r, base, e)
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
			dst[i] = kernel.FromHalf(binary.LittleEndian.Uint16(b[2*i:]))
		}
	}
}
