package gguf

import (
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// Open reads a file of llama's architecture as a bundle, its weights widened to float32.
func Open(path string) (*bundle.Bundle, error) {
	f, parsed, err := parseFile(path)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { _ = f.Close() }()
	b, err := parsed.bundle()
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return b, nil
}

func parseFile(path string) (*os.File, *Parsed, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		var p *Parsed
		if p, err = Parse(f, info.Size()); err == nil {
			return f, p, nil
		}
	}
	return nil, nil, errors.Join(err, f.Close())
}

// keys takes typed values out of a file and keeps the first thing that is wrong.
type keys struct {
	f   *Parsed
	err error
}

func need[T any](k *keys, key string) T {
	v, ok := k.f.Get(key).(T)
	if !ok && k.err == nil {
		k.err = fmt.Errorf("key %s is %T, must be %T", key, k.f.Get(key), v)
	}
	return v
}

// or is a value that may be missing.
func or[T any](k *keys, key string, otherwise T) T {
	if k.f.Get(key) == nil {
		return otherwise
	}
	return need[T](k, key)
}

func (f *Parsed) bundle() (*bundle.Bundle, error) {
	k := &keys{f: f}
	if a := need[string](k, keyArchitecture); k.err == nil && a != "llama" {
		return nil, fmt.Errorf("%s is %q, only llama is known", keyArchitecture, a)
	}
	b := &bundle.Bundle{Arch: k.arch(), Generation: k.generation(), ChatTemplate: or(k, keyTemplate, "")}
	parts := k.parts()
	if k.err != nil {
		return nil, k.err
	}
	if err := b.Arch.Validate(); err != nil {
		return nil, err
	}
	for _, key := range []string{keyRope, keyKeyLen, keyValueLen} {
		want := b.Arch.HeadDim()
		if v := or(k, key, uint32(want)); k.err != nil || int64(v) != int64(want) {
			return nil, fmt.Errorf("key %s is %d, must be %d", key, v, want)
		}
	}
	var err error
	if b.Tokenizer, err = token.FromParts(parts); err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	if err := b.Validate(); err != nil {
		return nil, err
	}
	return b, f.params(b)
}

func (k *keys) arch() glm.Arch {
	n := func(key string) int { return int(need[uint32](k, key)) }
	heads := n(keyHeads)
	a := glm.Arch{
		Vocab: len(need[[]string](k, keyTokens)), Dim: n(keyDim), Layers: n(keyLayers), Heads: heads,
		KVHeads: int(or(k, keyKVHeads, uint32(heads))), FFN: n(keyFFN), Context: n(keyContext), Tied: true,
		RopeTheta: short(or(k, keyRopeBase, float32(glm.DefaultRopeTheta))), NormEps: short(need[float32](k, keyEps)),
	}
	if v := or(k, keyKeyLen, uint32(0)); v != 0 {
		a = a.WithHead(int(v))
	}
	for _, t := range k.f.Tensors {
		a.Tied = a.Tied && t.Name != tensorName("lm_head.weight")
	}
	if v := or(k, keyVocab, uint32(a.Vocab)); k.err == nil && int64(v) != int64(a.Vocab) {
		k.err = fmt.Errorf("key %s is %d, the file has %d tokens", keyVocab, v, a.Vocab)
	}
	return a
}

// short is the shortest decimal number that is v: 1e-5, not 9.99999974e-06.
func short(v float32) float64 {
	f, _ := strconv.ParseFloat(strconv.FormatFloat(float64(v), 'g', -1, 32), 64) // what FormatFloat wrote
	return f
}

func (k *keys) generation() bundle.Generation {
	id := func(key string) int32 { return int32(or(k, key, uint32(math.MaxUint32))) } // -1 for none
	g := bundle.Generation{BOS: id(keyBOS), Pad: id(keyPad), Temperature: 1, TopP: 1, RepetitionPenalty: 1}
	for _, key := range []string{keyEOS, keyEOT} {
		if e := id(key); e >= 0 && !slices.Contains(g.EOS, e) {
			g.EOS = append(g.EOS, e)
		}
	}
	return g
}

// parts is the vocabulary without the rows that no token has.
func (k *keys) parts() token.Parts {
	p := token.Parts{IgnoreMerges: true, BOS: -1}
	if m := need[string](k, keyModel); k.err == nil && m != "gpt2" {
		k.err = fmt.Errorf("key %s is %q, only gpt2 (byte-level BPE) is known", keyModel, m)
	}
	switch pre := need[string](k, keyPre); {
	case pre == preGPT2:
		p.Split, p.IgnoreMerges = token.SplitGPT2, false
	case k.err == nil && pre != preLlama3:
		k.err = fmt.Errorf("key %s is %q, only %s and %s are known", keyPre, pre, preLlama3, preGPT2)
	}
	if or(k, keyAddBOS, p.IgnoreMerges) {
		p.BOS = int32(need[uint32](k, keyBOS))
	}
	tokens, types := need[[]string](k, keyTokens), need[[]int32](k, keyTypes)
	if k.err == nil && len(tokens) != len(types) {
		k.err = fmt.Errorf("%d tokens have %d types", len(tokens), len(types))
	}
	merges := need[[]string](k, keyMerges)
	if k.err != nil {
		return p
	}
	kinds := map[int32]token.Kind{tokenNormal: token.Normal, tokenControl: token.Special, tokenUser: token.Added}
	used := 0
	p.Pieces = make([]token.Piece, len(tokens))
	for id, text := range tokens {
		if kind, ok := kinds[types[id]]; ok {
			p.Pieces[id], used = token.Piece{Text: text, Kind: kind}, id+1
		}
	}
	p.Pieces = p.Pieces[:used]
	for i, m := range merges {
		left, right, ok := strings.Cut(m, " ")
		if !ok {
			k.err = fmt.Errorf("merge %d, %q, is no pair", i, m)
			return p
		}
		p.Merges = append(p.Merges, [2]string{left, right})
	}
	return p
}

// params reads every parameter of the architecture, and refuses a missing, misshapen or
// further tensor.
func (f *Parsed) params(b *bundle.Bundle) error {
	byName := map[string]Info{}
	for _, t := range f.Tensors {
		byName[t.Name] = t
	}
	if n := b.Arch.Layers; n > len(f.Tensors) { // before a layout is made of a number that the file claims
		return fmt.Errorf("%d layers in %d tensors", n, len(f.Tensors))
	}
	layout, _ := b.Arch.Layout()
	for _, p := range layout {
		name := tensorName(p.Name)
		t, ok := byName[name]
		if !ok {
			return fmt.Errorf("tensor %q %v is missing", name, p.Shape)
		}
		if !slices.Equal(t.Shape, p.Shape) {
			return fmt.Errorf("tensor %q has shape %v, the keys need %v", name, t.Shape, p.Shape)
		}
		delete(byName, name)
		data, err := f.Values(t)
		if err != nil {
			return err
		}
		for i, v := range data {
			if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
				return fmt.Errorf("tensor %q is %g at %d: the file is damaged", name, v, i)
			}
		}
		if heads := rotated(b.Arch, p.Name); heads > 0 {
			data = separate(data, heads, b.Arch.Dim)
		}
		b.Params = append(b.Params, engine.Tensor{Name: p.Name, Shape: p.Shape, Data: data})
	}
	for name := range byName {
		return fmt.Errorf("tensor %q is not part of the model that the keys describe", name)
	}
	return nil
}

// Verify reads a file that was written of the bundle, and refuses whatever is not as the
// bundle has it: shape, tokens, template, a value further off than its type's rounding.
func Verify(path string, b *bundle.Bundle) error {
	got, err := Open(path)
	if err == nil {
		err = compare(path, got, b)
	}
	if err != nil {
		return fmt.Errorf("verify %s: %w", path, err)
	}
	return nil
}

func compare(path string, got, want *bundle.Bundle) error {
	switch {
	case rounded(got.Arch) != rounded(want.Arch):
		return fmt.Errorf("the shape is %+v, not %+v", got.Arch, want.Arch)
	case got.ChatTemplate != want.ChatTemplate:
		return errors.New("the chat template is another one")
	case !reflect.DeepEqual(got.Tokenizer.Parts(), want.Tokenizer.Parts()):
		return errors.New("the tokenizer is another one")
	case len(want.Generation.EOS) > 0 && !slices.Contains(got.Generation.EOS, want.Generation.EOS[0]):
		return fmt.Errorf("texts end with %v, not %v", got.Generation.EOS, want.Generation.EOS)
	}
	f, parsed, err := parseFile(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	types := map[string]Type{}
	for _, t := range parsed.Tensors {
		types[t.Name] = t.Type
	}
	for i, p := range want.Params {
		if err := compareValues(types[tensorName(p.Name)], got.Params[i].Data, p.Floats()); err != nil {
			return fmt.Errorf("tensor %q: %w", tensorName(p.Name), err)
		}
	}
	return nil
}

// rounded is a shape whose numbers are as precise as the file's.
func rounded(a glm.Arch) glm.Arch {
	a.RopeTheta, a.NormEps = float64(float32(a.RopeTheta)), float64(float32(a.NormEps))
	return a
}

func compareValues(t Type, got, want []float32) error {
	for begin := 0; begin < len(want); begin += blockLen {
		end := min(begin+blockLen, len(want))
		amax := float32(0)
		for _, v := range want[begin:end] {
			amax = max(amax, abs(v))
		}
		for i := begin; i < end; i++ {
			if d := math.Abs(float64(got[i]) - float64(want[i])); d > t.tolerance(want[i], amax) {
				return fmt.Errorf("value %d is %g, not %g, which is more than %s rounds by", i, got[i], want[i], t)
			}
		}
	}
	return nil
}
