package bundle

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// compressed is a bundle whose matrices have the bits that a kind of weights gives them.
func compressed(t testing.TB, tied bool, kind glm.Weights) *Bundle {
	t.Helper()
	b := tinyBundle(t, tied)
	layout, _ := b.Arch.Layout()
	for i, p := range layout {
		bits := kind.BitsOf(p.Role)
		if bits > 8 {
			continue
		}
		if p.Role == glm.Embedding { // which transformers takes as floats alone
			for j, v := range b.Params[i].Data {
				b.Params[i].Data[j] = kernel.FromHalf(kernel.ToHalf(v))
			}
			continue
		}
		blocks, err := kernel.RoundBlocks(bits, kernel.BlockLen, p.Shape[0], p.Shape[1], b.Params[i].Data)
		if err != nil {
			t.Fatal(err)
		}
		b.Params[i].Data, b.Params[i].Blocks = nil, blocks
	}
	return b
}

func TestWriteOpenCompressed(t *testing.T) {
	for _, c := range []struct {
		kind glm.Weights
		tied bool
		most float64 // of the size in float32
	}{{glm.Int8, true, 0.42}, {glm.Int8, false, 0.38}, {glm.Int4, true, 0.36}, {glm.Int4, false, 0.33}} { // half of this model is its embedding
		b := compressed(t, c.tied, c.kind)
		dir := filepath.Join(t.TempDir(), "b")
		if err := Write(dir, b); err != nil {
			t.Fatal(err)
		}
		got, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if !Equal(b, got) || got.Readme != b.Readme {
			t.Errorf("%s: the opened bundle is another one", c.kind)
		}
		info, err := os.Stat(filepath.Join(dir, WeightsFile))
		if err != nil {
			t.Fatal(err)
		}
		if ratio := float64(info.Size()-8000) / float64(4*b.Arch.Params()); ratio > c.most {
			t.Errorf("%s: weights have %.3f of their size in float32", c.kind, ratio)
		}
		again := filepath.Join(t.TempDir(), "b")
		if err := Write(again, got); err != nil {
			t.Fatal(err)
		}
		x, y := contents(t, dir), contents(t, again)
		for name := range x {
			if x[name] != y[name] {
				t.Errorf("%s: %s is another after it was read and written", c.kind, name)
			}
		}
	}
}

func TestOpenRefusesCompressed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "b")
	if err := Write(dir, compressed(t, true, glm.Int4)); err != nil {
		t.Fatal(err)
	}
	good := contents(t, dir)
	for _, c := range []struct{ file, from, to, want string }{
		{ConfigFile, `"compressed-tensors"`, `"gptq"`, "gptq"},
		{ConfigFile, `"format": "pack-quantized"`, `"format": "int-quantized"`, "int-quantized"},
		{ConfigFile, `"symmetric": true`, `"symmetric": false`, "symmetric"},
		{ConfigFile, `"group_size": 32`, `"group_size": 48`, "groups of"},
		{ConfigFile, `"input_activations": null`, `"input_activations": {}`, "activations"},
		{WeightsFile, `q_proj.weight_scale`, `q_proj.weight_stale`, "weight_scale"},
		{WeightsFile, `{"dtype":"I64","shape":[2]`, `{"dtype":"I32","shape":[4]`, "I64"},
	} {
		bad := strings.Replace(good[c.file], c.from, c.to, 1)
		if bad == good[c.file] {
			t.Errorf("%s is not in %s", c.from, c.file)
			continue
		}
		path := filepath.Join(dir, c.file)
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: error is %v", c.file, c.to, err)
		}
		if err := os.WriteFile(path, []byte(good[c.file]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	odd, err := kernel.RoundBlocks(8, kernel.BlockLen, 1, 40, make([]float32, 40))
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteSafetensors(&bytes.Buffer{}, engine.StateDict{{Name: "a.weight", Shape: []int{1, 40}, Blocks: odd}}); err == nil || !strings.Contains(err.Error(), "multiple of 32") {
		t.Errorf("rows of 40 values: %v", err)
	}
}

// transformers computes from compressed weights what our decoder computes.
func TestTransformersLoadsCompressed(t *testing.T) {
	var dirs []string
	var bundles []*Bundle
	for _, c := range []struct {
		kind glm.Weights
		tied bool
	}{{glm.Int8, true}, {glm.Int4, false}} {
		b := compressed(t, c.tied, c.kind)
		dir := filepath.Join(t.TempDir(), string(c.kind))
		if err := Write(dir, b); err != nil {
			t.Fatal(err)
		}
		dirs, bundles = append(dirs, dir), append(bundles, b)
	}
	prompts := []string{"The quick brown fox", "dog on the rock"}
	var all []loadResult
	peer(t, "load", loadJob{Dirs: dirs, Prompts: prompts}, &all)
	for i, b := range bundles {
		if len(all[i].Missing) > 0 {
			t.Errorf("%s: tensors missing or unexpected: %v", dirs[i], all[i].Missing)
		}
		floats := slices.Clone(b.Params) // widened, so that the head is what the file says
		for k := range floats {
			floats[k].Data, floats[k].Blocks = b.Params[k].Floats(), nil
		}
		d, err := native.NewDecoder(b.Arch, floats, native.DecoderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for j, p := range prompts {
			want, err := d.Prefill(0, b.Tokenizer.EncodePrompt(nil, p))
			if err != nil {
				t.Fatal(err)
			}
			got := all[i].Logits[j]
			var worst float64
			for k := range min(len(got), len(want)) {
				worst = max(worst, math.Abs(float64(got[k]-want[k])))
			}
			if len(got) != len(want) || !(worst < 1e-3) {
				t.Errorf("%s, %q: %d logits differ by up to %g", filepath.Base(dirs[i]), p, len(got), worst)
			}
			d.Drop(0)
		}
		d.Close()
	}
}

func TestPackedIsPlain(t *testing.T) {
	// The words that compressed-tensors' pack_to_int32 gives.
	b := kernel.NewBlocks(4, 1, 32)
	for i := range b.Q {
		b.Q[i] = int8(i%16 - 8)
	}
	b.Scale[0] = 0x3c00
	parts, err := packed(engine.Tensor{Name: "a.weight", Shape: []int{1, 32}, Blocks: b})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := parts[0].write(&out); err != nil {
		t.Fatal(err)
	}
	want := []byte{0x10, 0x32, 0x54, 0x76, 0x98, 0xba, 0xdc, 0xfe}
	if !slices.Equal(out.Bytes(), slices.Concat(want, want)) {
		t.Errorf("%x", out.Bytes())
	}
}
