package bundle

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// Weights of few bits are stored as compressed-tensors' pack-quantized format has them
// (https://github.com/vllm-project/compressed-tensors), in three tensors for one:
//
//	X.weight_packed  I32 [rows, cols·bits/32]  integers + 2^(bits−1), the first in the lowest bits
//	X.weight_scale   F16 [rows, cols/group]    of each group of values
//	X.weight_shape   I64 [2]                   rows, cols
const (
	weightSuffix = "weight"
	packedSuffix = "weight_packed"
	scaleSuffix  = "weight_scale"
	shapeSuffix  = "weight_shape"
)

// split cuts a part's name into its module's, with the point, and its role there; the
// role is "" for a tensor that is whole.
func split(name string) (stem, role string) {
	for _, suffix := range []string{packedSuffix, scaleSuffix, shapeSuffix} {
		if stem, ok := strings.CutSuffix(name, "."+suffix); ok {
			return stem + ".", suffix
		}
	}
	return name, ""
}

// packed are a tensor's three parts.
func packed(t engine.Tensor) ([]part, error) {
	b := t.Blocks
	stem, ok := strings.CutSuffix(t.Name, weightSuffix)
	switch {
	case !ok:
		return nil, fmt.Errorf("tensor %q is of %d bits; only names that end with %q can be", t.Name, b.Bits, weightSuffix)
	case b.Cols%b.Group != 0:
		return nil, fmt.Errorf("tensor %q has rows of %d values; those of few bits must have a multiple of %d, since that many share a scale", t.Name, b.Cols, b.Group)
	}
	per, same := 32/b.Bits, b.Group/kernel.BlockLen
	return []part{
		{stem + packedSuffix, "I32", []int{b.Rows, b.Cols / per}, func(w io.Writer) error {
			return inPieces(w, len(b.Q)/per, 4, func(out []byte, i int) []byte {
				var word uint32
				for j, q := range b.Q[i*per : (i+1)*per] {
					word |= uint32(int(q)+1<<(b.Bits-1)) << (j * b.Bits)
				}
				return binary.LittleEndian.AppendUint32(out, word)
			})
		}},
		{stem + scaleSuffix, "F16", []int{b.Rows, b.Cols / b.Group}, func(w io.Writer) error {
			return inPieces(w, len(b.Scale)/same, 2, func(out []byte, i int) []byte { return binary.LittleEndian.AppendUint16(out, b.Scale[i*same]) })
		}},
		{stem + shapeSuffix, "I64", []int{2}, func(w io.Writer) error {
			return binary.Write(w, binary.LittleEndian, []int64{int64(b.Rows), int64(b.Cols)})
		}},
	}, nil
}

// readPacked reads the parts of a module's weight.
func readPacked(r io.ReaderAt, base int64, stem string, entries map[string]tensorEntry) (engine.Tensor, error) {
	t := engine.Tensor{Name: stem + weightSuffix}
	ints, scales, shape := entries[stem+packedSuffix], entries[stem+scaleSuffix], entries[stem+shapeSuffix]
	switch {
	case ints.DType != "I32" || len(ints.Shape) != 2:
		return t, fmt.Errorf("is %s of shape %v, want I32 with two dimensions", ints.DType, ints.Shape)
	case scales.DType != "F16" || len(scales.Shape) != 2 || scales.Shape[0] != ints.Shape[0]:
		return t, fmt.Errorf("%s beside it is %q of shape %v, want F16 [%d, …]", scaleSuffix, scales.DType, scales.Shape, ints.Shape[0])
	case shape.DType != "I64" || !slices.Equal(shape.Shape, []int64{2}):
		return t, fmt.Errorf("%s beside it is %q of shape %v, want I64 [2]", shapeSuffix, shape.DType, shape.Shape)
	}
	var size [16]byte
	if _, err := r.ReadAt(size[:], base+shape.Offsets[0]); err != nil {
		return t, err
	}
	rows, cols := int64(binary.LittleEndian.Uint64(size[:])), int64(binary.LittleEndian.Uint64(size[8:]))
	// Neither can be larger than the tensors that the file does hold.
	bits := int64(8)
	if cols == 8*ints.Shape[1] {
		bits = 4
	}
	group := cols / max(1, scales.Shape[1])
	if rows != ints.Shape[0] || cols != 32/bits*ints.Shape[1] || cols != group*scales.Shape[1] || group%kernel.BlockLen != 0 {
		return t, fmt.Errorf("%s is [%d, %d], but there are integers %v and scales %v: only 8 and 4 bits in groups of a multiple of %d are known", shapeSuffix, rows, cols, ints.Shape, scales.Shape, kernel.BlockLen)
	}
	b := kernel.NewBlocks(int(bits), int(rows), int(cols))
	b.Group = max(int(group), kernel.BlockLen)
	words := make([]byte, ints.Offsets[1]-ints.Offsets[0])
	if _, err := r.ReadAt(words, base+ints.Offsets[0]); err != nil {
		return t, err
	}
	if bits == 8 {
		for i := range b.Q {
			b.Q[i] = int8(int(words[i]) - 128)
		}
	} else {
		for i := range b.Q {
			b.Q[i] = int8(int(words[i/2]>>(i%2*4)&15) - 8)
		}
	}
	halves := make([]byte, scales.Offsets[1]-scales.Offsets[0])
	if _, err := r.ReadAt(halves, base+scales.Offsets[0]); err != nil {
		return t, err
	}
	for i := range b.Scale {
		b.Scale[i] = binary.LittleEndian.Uint16(halves[2*(i/(b.Group/kernel.BlockLen)):])
	}
	t.Shape, t.Blocks = []int{b.Rows, b.Cols}, b
	return t, nil
}

// quantization is config.json's quantization_config.
type quantization struct {
	Method  string                `json:"quant_method"`
	Format  string                `json:"format"`
	Status  string                `json:"quantization_status"`
	Groups  map[string]quantGroup `json:"config_groups"`
	Ignore  []string              `json:"ignore"`
	KVCache json.RawMessage       `json:"kv_cache_scheme,omitempty"`
}

type quantGroup struct {
	Targets []string        `json:"targets"`
	Format  string          `json:"format,omitempty"`
	Weights *quantWeights   `json:"weights"`
	Inputs  json.RawMessage `json:"input_activations"`
	Outputs json.RawMessage `json:"output_activations"`
}

type quantWeights struct {
	Bits      int    `json:"num_bits"`
	Type      string `json:"type"`
	Symmetric bool   `json:"symmetric"`
	Strategy  string `json:"strategy"`
	GroupSize int    `json:"group_size"`
	Dynamic   bool   `json:"dynamic"`
}

const (
	compressedTensors = "compressed-tensors"
	packQuantized     = "pack-quantized"
)

// quantizationOf describes the tensors that have few bits; nil where none has.
func quantizationOf(a glm.Arch, params engine.StateDict) *quantization {
	groups := map[string]quantGroup{}
	layout, _ := a.Layout()
	ignore := []string{}
	for i, t := range params {
		module := strings.TrimSuffix(t.Name, "."+weightSuffix)
		if t.Blocks == nil {
			if layout[i].Role != glm.Norm {
				ignore = append(ignore, module)
			}
			continue
		}
		name := fmt.Sprintf("int%d_%d", t.Blocks.Bits, t.Blocks.Group)
		g, ok := groups[name]
		if !ok {
			g = quantGroup{Format: packQuantized, Weights: &quantWeights{Bits: t.Blocks.Bits, Type: "int", Symmetric: true, Strategy: "group", GroupSize: t.Blocks.Group}}
		}
		g.Targets = append(g.Targets, module)
		groups[name] = g
	}
	if len(groups) == 0 {
		return nil
	}
	return &quantization{Method: compressedTensors, Format: packQuantized, Status: "compressed", Groups: groups, Ignore: ignore}
}

// halved tells which float tensors of a model with weights of few bits are stored with
// half precision: those whose values that holds exactly.
func halved(params engine.StateDict, t engine.Tensor) bool {
	few := func(t engine.Tensor) bool { return t.Blocks != nil }
	return slices.ContainsFunc(params, few) && !slices.ContainsFunc(t.Data, func(v float32) bool {
		return kernel.FromHalf(kernel.ToHalf(v)) != v
	})
}

// checkQuantization refuses weights of few bits that are not of our kind. Which tensors
// are is seen by what the file holds.
func checkQuantization(data json.RawMessage) error {
	var q quantization
	if err := json.Unmarshal(data, &q); err != nil {
		return fmt.Errorf("quantization_config: %w", err)
	}
	null := func(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }
	switch {
	case q.Method != compressedTensors || q.Format != packQuantized:
		return fmt.Errorf("quantization_config is of method %q and format %q; only %s in format %s is known", q.Method, q.Format, compressedTensors, packQuantized)
	case !null(q.KVCache):
		return errors.New("quantization_config has a kv_cache_scheme, which is not known")
	}
	for name, g := range q.Groups {
		w := g.Weights
		switch {
		case w == nil || w.Type != "int" || !w.Symmetric || w.Dynamic || w.Strategy != "group" || w.GroupSize%kernel.BlockLen != 0 || w.Bits != 8 && w.Bits != 4:
			return fmt.Errorf("quantization_config, %s: only symmetric int weights of 8 or 4 bits in groups of a multiple of %d are known", name, kernel.BlockLen)
		case !null(g.Inputs) || !null(g.Outputs):
			return fmt.Errorf("quantization_config, %s: schemes for activations are not known", name)
		}
	}
	return nil
}
