package gguf

import (
	"bytes"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/token/tokentest"
)

// tiny is a bundle of random weights, whose vocabulary has more rows than its tokenizer.
func tiny(t testing.TB, a glm.Arch) *bundle.Bundle {
	t.Helper()
	tok := tokentest.Tiny(t, 310)
	r := rand.New(rand.NewPCG(7, 1))
	layout, _ := a.Layout()
	b := &bundle.Bundle{Arch: a, Tokenizer: tok, Generation: bundle.DefaultGeneration(), ChatTemplate: "{{ messages }}"}
	for _, p := range layout {
		data := make([]float32, p.Elems)
		for i := range data {
			data[i] = float32(r.NormFloat64() * 0.2)
		}
		b.Params = append(b.Params, engine.Tensor{Name: p.Name, Shape: p.Shape, Data: data})
	}
	return b
}

var (
	tied   = glm.Arch{Vocab: 320, Dim: 64, Layers: 2, Heads: 4, KVHeads: 2, FFN: 96, Context: 128, Tied: true, RopeTheta: 5000, NormEps: 1e-5}
	untied = glm.Arch{Vocab: 320, Dim: 64, Layers: 2, Heads: 4, KVHeads: 4, FFN: 96, Context: 128, RopeTheta: 10000, NormEps: 1e-6}
	narrow = glm.Arch{Vocab: 320, Dim: 64, Layers: 1, Heads: 4, KVHeads: 1, FFN: 40, Context: 64, Tied: true, RopeTheta: 10000, NormEps: 1e-5}
)

func write(t testing.TB, b *bundle.Bundle, o Options) (path string, f *File, notes []string) {
	t.Helper()
	f, notes, err := FromBundle(b, o)
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "model.gguf")
	if err := Write(path, f); err != nil {
		t.Fatal(err)
	}
	return path, f, notes
}

func TestRoundTrip(t *testing.T) {
	for name, a := range map[string]glm.Arch{"tied": tied, "untied": untied, "narrow": narrow} {
		b := tiny(t, a)
		for _, typ := range Types() {
			path, f, notes := write(t, b, Options{Type: typ, Name: name})
			if err := Verify(path, b); err != nil {
				t.Errorf("%s %s: %v", name, typ, err)
			}
			if quantised := typ == Q8_0 || typ == Q4_0; (len(notes) > 0) != (quantised && name == "narrow") {
				t.Errorf("%s %s: notes %q", name, typ, notes)
			}
			got, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			if typ == F32 && !bundle.Equal(got, b) {
				t.Errorf("%s: F32 changes the model", name)
			}
			size := int64(0)
			for _, n := range f.Bytes() {
				size += n
			}
			if info, _ := os.Stat(path); info.Size() < size || info.Size() > size+20000 {
				t.Errorf("%s %s: the file has %d bytes, its tensors %d", name, typ, info.Size(), size)
			}
		}
	}
}

func TestTypesOfTensors(t *testing.T) {
	for _, c := range []struct {
		arch         glm.Arch
		name         string
		q8, q4, half Type
	}{
		{tied, "token_embd.weight", Q8_0, Q8_0, BF16},
		{untied, "token_embd.weight", Q8_0, Q4_0, BF16},
		{untied, "output.weight", Q8_0, Q8_0, BF16},
		{tied, "blk.1.attn_q.weight", Q8_0, Q4_0, BF16},
		{tied, "blk.1.ffn_norm.weight", F32, F32, F32},
		{tied, "output_norm.weight", F32, F32, F32},
		{narrow, "blk.0.ffn_down.weight", F16, F16, BF16},
		{narrow, "blk.0.ffn_up.weight", Q8_0, Q4_0, BF16},
	} {
		b := tiny(t, c.arch)
		for typ, want := range map[Type]Type{Q8_0: c.q8, Q4_0: c.q4, BF16: c.half} {
			f, _, err := FromBundle(b, Options{Type: typ})
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, tensor := range f.Tensors {
				if tensor.Name == c.name {
					found = true
					if tensor.Type != want {
						t.Errorf("%s in a file of %s is %s, want %s", c.name, typ, tensor.Type, want)
					}
				}
			}
			if !found {
				t.Errorf("there is no %s", c.name)
			}
		}
	}
}

// Rows of q and k stand as rotary pairs: element i of a half beside element i of the other.
func TestInterleave(t *testing.T) {
	data := []float32{0, 1, 2, 3, 10, 11, 12, 13} // two heads of four rows of one column
	got := interleave(data, 2, 1)
	if want := []float32{0, 2, 1, 3, 10, 12, 11, 13}; !reflect.DeepEqual(got, want) {
		t.Errorf("interleaved %v, want %v", got, want)
	}
	if back := separate(got, 2, 1); !reflect.DeepEqual(back, data) {
		t.Errorf("and back %v", back)
	}
}

func TestBlocks(t *testing.T) {
	x := make([]float32, blockLen)
	x[0], x[1], x[2], x[17] = -8, 4, 0.4, 7.9
	for _, c := range []struct {
		typ  Type
		want []float32 // at 0, 1, 2, 17
	}{{Q4_0, []float32{-8, 4, 0, 7}}, {Q8_0, []float32{-8, 4, 0.375, 7.9}}, {BF16, []float32{-8, 4, 0.4, 7.9}}, {F32, []float32{-8, 4, 0.4, 7.9}}} {
		raw, err := c.typ.encode(nil, x)
		if err != nil || int64(len(raw)) != c.typ.Bytes(blockLen) {
			t.Fatalf("%s: %d bytes, %v", c.typ, len(raw), err)
		}
		got := make([]float32, blockLen)
		c.typ.decode(got, raw)
		for i, at := range []int{0, 1, 2, 17} {
			if math.Abs(float64(got[at]-c.want[i])) > 0.04 {
				t.Errorf("%s: value %d is %g, want %g", c.typ, at, got[at], c.want[i])
			}
		}
		zero := make([]float32, blockLen)
		raw, err = c.typ.encode(nil, zero)
		if err != nil {
			t.Fatal(err)
		}
		c.typ.decode(got, raw)
		if !reflect.DeepEqual(got, zero) {
			t.Errorf("%s of zeros is %v", c.typ, got)
		}
	}
	for typ, large := range map[Type]float32{F16: 70000, Q4_0: 1e6, Q8_0: 1e8} {
		x[3] = large
		if _, err := typ.encode(nil, x); err == nil || !strings.Contains(err.Error(), "too large") {
			t.Errorf("%s of %g: %v", typ, large, err)
		}
	}
}

// No rounding is further off than the type's tolerance, whatever the values.
func TestTolerance(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, typ := range Types() {
		for range 2000 {
			x := make([]float32, blockLen)
			scale := math.Pow(10, r.Float64()*12-8)
			for i := range x {
				x[i] = float32(r.NormFloat64() * scale)
			}
			raw, err := typ.encode(nil, x)
			if err != nil {
				continue // too large
			}
			got := make([]float32, blockLen)
			typ.decode(got, raw)
			if err := compareValues(typ, got, x); err != nil {
				t.Fatalf("%s at scale %g: %v", typ, scale, err)
			}
		}
	}
}

func TestVerifyRefuses(t *testing.T) {
	b := tiny(t, tied)
	path, _, _ := write(t, b, Options{Type: Q8_0})
	for name, spoil := range map[string]func(*bundle.Bundle){
		"shape":    func(b *bundle.Bundle) { b.Arch.RopeTheta++ },
		"template": func(b *bundle.Bundle) { b.ChatTemplate = "" },
		"value":    func(b *bundle.Bundle) { b.Params[2].Data[5] += 0.1 },
		"end":      func(b *bundle.Bundle) { b.Generation.EOS = []int32{5} },
		"token":    func(b *bundle.Bundle) { b.Tokenizer, _ = b.Tokenizer.Truncate(b.Tokenizer.VocabSize() - 1) },
	} {
		other := tiny(t, tied)
		spoil(other)
		if err := Verify(path, other); err == nil {
			t.Errorf("%s: another bundle is verified", name)
		}
	}
	if err := Verify(path, b); err != nil {
		t.Error(err)
	}
}

func TestOtherTokenizers(t *testing.T) {
	b := tiny(t, tied)
	parts := b.Tokenizer.Parts()
	parts.IgnoreMerges = false
	b.Tokenizer, _ = token.FromParts(parts)
	if _, _, err := FromBundle(b, Options{}); err == nil || !strings.Contains(err.Error(), "ignore_merges") {
		t.Errorf("a tokenizer that llama.cpp would read otherwise: %v", err)
	}
	parts.Split, parts.BOS = token.SplitGPT2, -1
	b.Tokenizer, _ = token.FromParts(parts)
	path, _, _ := write(t, b, Options{})
	if err := Verify(path, b); err != nil {
		t.Errorf("GPT-2's: %v", err)
	}
}

func file(t testing.TB, kvs []KV, tensors ...Tensor) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := (&File{kvs, tensors}).write(&buf); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestValuesOfKeys(t *testing.T) {
	kvs := []KV{
		{"a", uint8(1)},
		{"b", int8(-1)},
		{"c", uint16(2)},
		{"d", int16(-2)},
		{"e", uint32(3)},
		{"f", int32(-3)},
		{"g", float32(1.5)},
		{"h", true},
		{"i", "text"},
		{"j", []string{"x", ""}},
		{"k", uint64(4)},
		{"l", int64(-4)},
		{"m", 2.5},
		{"n", []int32{1, -1}},
		{"o", []float32{0.5}},
		{"p", []uint32{9}},
		{"q", []uint8{7}},
	}
	raw := file(t, kvs)
	p, err := Parse(bytes.NewReader(raw), int64(len(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(p.KVs, kvs) {
		t.Errorf("read %v, wrote %v", p.KVs, kvs)
	}
}

func TestParseRefuses(t *testing.T) {
	data := []float32{1, 2, 3, 4}
	good := file(t, []KV{{"key", "v"}}, Tensor{"t", []int{2, 2}, F32, data}, Tensor{"u", []int{4}, F32, data})
	parse := func(b []byte) error {
		_, err := Parse(bytes.NewReader(b), int64(len(b)))
		return err
	}
	if err := parse(good); err != nil {
		t.Fatal(err)
	}
	edit := func(from, to string) []byte { return bytes.Replace(good, []byte(from), []byte(to), 1) }
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"empty":     {nil, "GGUF"},
		"magic":     {edit("GGUF", "GGML"), "GGUF"},
		"version":   {edit("GGUF\x03", "GGUF\x02"), "version 2"},
		"endian":    {edit("GGUF\x03\x00\x00\x00", "GGUF\x00\x00\x00\x03"), "endian"},
		"tensors":   {edit("\x03\x00\x00\x00\x02", "\x03\x00\x00\x00\xff"), "announced"},
		"kind":      {edit("key\x08", "key\x0d"), "kind 13"},
		"length":    {edit("key\x08\x00\x00\x00\x01", "key\x08\x00\x00\x00\xf0"), "announced"},
		"name":      {edit("\x01\x00\x00\x00\x00\x00\x00\x00u", "\x01\x00\x00\x00\x00\x00\x00\x00t"), "twice"},
		"dims":      {edit("t\x02", "t\x09"), "dimensions"},
		"dim":       {edit("u\x01\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00", "u\x01\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\xf0"), "dimension"},
		"type":      {edit("\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x20", "\x04\x00\x00\x00\x00\x00\x00\x00\x63\x00\x00\x00\x20"), "type 99"},
		"offset":    {edit("\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x20", "\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x40"), "begins at"},
		"trailing":  {append(bytes.Clone(good), make([]byte, 32)...), "end at"},
		"truncated": {good[:len(good)-32], "end at"},
	} {
		if bytes.Equal(c.b, good) {
			t.Errorf("%s changes nothing", name)
		}
		if err := parse(c.b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for i := range good { // no end of a file panics
		_ = parse(good[:i])
	}
}

// Spoilt keys are refused by name.
func TestOpenRefuses(t *testing.T) {
	b := tiny(t, tied)
	for _, c := range []struct {
		key   string
		value any // nil removes the key
		want  string
	}{
		{keyArchitecture, "gpt2", "gpt2"},
		{keyDim, uint32(0), "dim"},
		{keyDim, uint32(32), "the keys need [320 32]"},
		{keyFFN, uint32(32), "has shape"},
		{keyDim, int64(64), keyDim},
		{keyLayers, uint32(1 << 30), "layers"},
		{keyLayers, uint32(1), "not part"},
		{keyLayers, uint32(3), "missing"},
		{keyHeads, nil, keyHeads},
		{keyRope, uint32(8), keyRope},
		{keyVocab, uint32(5), keyVocab},
		{keyModel, "llama", keyModel},
		{keyPre, "qwen2", keyPre},
		{keyTypes, []int32{1}, "types"},
		{keyMerges, []string{"ab"}, "no pair"},
		{keyMerges, []string{"a zzz"}, "zzz"},
		{keyEOS, uint32(5000), "5000"},
		{keyBOS, uint32(1 << 31), "id"},
		{keyEps, float32(0), "norm_eps"},
	} {
		f, _, err := FromBundle(b, Options{})
		if err != nil {
			t.Fatal(err)
		}
		var kvs []KV
		for _, kv := range f.KVs {
			if kv.Key == c.key {
				if kv.Value = c.value; c.value == nil {
					continue
				}
			}
			kvs = append(kvs, kv)
		}
		f.KVs = kvs
		path := filepath.Join(t.TempDir(), "m.gguf")
		if err := Write(path, f); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s = %v: %v", c.key, c.value, err)
		}
	}
	path, f, _ := write(t, b, Options{})
	f.Tensors[3].Data[0] = float32(math.NaN())
	if err := Write(path, f); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("NaN: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(file(f, []KV{{"a", uint8(1)}, {"l", []string{"x", "y"}}, {"n", []float32{1}}}, Tensor{"t", []int{2, 32}, Q8_0, make([]float32, 64)}, Tensor{"u", []int{32}, Q4_0, make([]float32, 32)}))
	small, _, err := FromBundle(tiny(f, narrow), Options{Type: Q4_0})
	if err != nil {
		f.Fatal(err)
	}
	var buf bytes.Buffer
	if err := small.write(&buf); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, info := range p.Tensors {
			if _, err := p.Values(info); err != nil {
				t.Fatalf("a tensor of a file that was accepted: %v", err)
			}
		}
		if b, err := p.bundle(); err == nil {
			if err := b.Validate(); err != nil {
				t.Fatalf("an invalid bundle was opened: %v", err)
			}
		}
	})
}

func TestReproducible(t *testing.T) {
	b := tiny(t, tied)
	var last []byte
	for range 2 {
		path, _, _ := write(t, b, Options{Type: Q4_0, Name: "x", License: "apache-2.0"})
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if last != nil && !bytes.Equal(raw, last) {
			t.Error("two writes differ")
		}
		last = raw
	}
}
