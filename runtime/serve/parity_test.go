package serve

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
)

type loadJob struct {
	Dirs    []string `json:"dirs"`
	Prompts []string `json:"prompts"`
	New     int      `json:"new"`
}

type loadResult struct {
	IDs    [][]int32   `json:"ids"`
	Logits [][]float32 `json:"logits"`
	NewIDs [][]int32   `json:"new_ids"`
	Texts  []string    `json:"texts"`
}

type makeJob struct {
	Dir       string  `json:"dir"`
	Tokenizer string  `json:"tokenizer"`
	Vocab     int     `json:"vocab"`
	Hidden    int     `json:"hidden"`
	Layers    int     `json:"layers"`
	Heads     int     `json:"heads"`
	KVHeads   int     `json:"kv_heads"`
	FFN       int     `json:"ffn"`
	Context   int     `json:"context"`
	Tied      bool    `json:"tied"`
	DType     string  `json:"dtype"`
	Shard     string  `json:"shard,omitempty"`
	Theta     float64 `json:"theta"`
}

// The same weights give the same logits and the same greedy text in
// transformers and here, for bundles that either side wrote.
func TestGeneratesLikeTransformers(t *testing.T) {
	python(t)
	const script = "../../bench/peers/bundle_hf.py"
	tok := tinyTokenizer(t)
	data, err := tok.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), bundle.TokenizerFile)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	vocab := tok.VocabSize() // no padding: transformers would choose from it

	var dirs []string
	jobs := []makeJob{
		{Tied: true, DType: "float32", Theta: 10000},
		{DType: "bfloat16", Theta: 500000, Shard: "30KB"},
		{DType: "float16", Theta: 10000},
	}
	for i := range jobs {
		j := &jobs[i]
		j.Dir, j.Tokenizer = t.TempDir(), file
		j.Vocab, j.Hidden, j.Layers, j.Heads, j.KVHeads, j.FFN, j.Context = vocab, 48, 3, 6, 2, 96, 128
		dirs = append(dirs, j.Dir)
	}
	var done []any
	runPython(t, jobs, &done, script, "make")

	r := rand.New(rand.NewPCG(1, 2))
	for _, tied := range []bool{true, false} {
		a := glm.Arch{Vocab: vocab, Dim: 64, Layers: 2, Heads: 4, KVHeads: 1, FFN: 128, Context: 128, Tied: tied, RopeTheta: 20000, NormEps: 1e-5}
		layout, _ := a.Layout()
		var params engine.StateDict
		for _, p := range layout {
			values := make([]float32, p.Elems)
			for i := range values {
				values[i] = float32(r.NormFloat64() * 0.15)
				if p.Role == glm.Norm {
					values[i]++
				}
			}
			params = append(params, engine.Tensor{Name: p.Name, Shape: p.Shape, Data: values})
		}
		generation := bundle.DefaultGeneration()
		generation.Sample = false
		dir := filepath.Join(t.TempDir(), "bundle")
		if err := bundle.Write(dir, &bundle.Bundle{Arch: a, Params: params, Tokenizer: tok, Generation: generation}); err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}

	prompts := []string{"The quick brown fox", "dog 你好 <|user|> 123\n", "x"}
	const tokens = 64
	var want []loadResult
	runPython(t, loadJob{Dirs: dirs, Prompts: prompts, New: tokens}, &want, script, "load")

	for i, dir := range dirs {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			b, err := bundle.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{Threads: 1, MaxSeqs: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = dec.Close() }()
			for k, prompt := range prompts {
				ids := b.Tokenizer.EncodePrompt(nil, prompt)
				if !slices.Equal(ids, want[i].IDs[k]) {
					t.Fatalf("ids of %q are %v, transformers has %v", prompt, ids, want[i].IDs[k])
				}
				logits, err := dec.Prefill(0, ids)
				if err != nil {
					t.Fatal(err)
				}
				worst := 0.0
				for j, v := range logits {
					worst = max(worst, math.Abs(float64(v-want[i].Logits[k][j])))
				}
				if !(worst <= 1e-4) || len(logits) != len(want[i].Logits[k]) {
					t.Errorf("logits after %q differ by %g", prompt, worst)
				}
				dec.Drop(0)
				req := Defaults(b)
				req.Prompt, req.Special, req.MaxTokens, req.Sampling = prompt, true, tokens, Sampling{}
				res, err := Generate(t.Context(), dec, b.Tokenizer, req, nil)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(res.IDs, want[i].NewIDs[k]) || res.Text != want[i].Texts[k] {
					t.Errorf("%q goes on with %q %v,\nin transformers with %q %v", prompt, res.Text, res.IDs, want[i].Texts[k], want[i].NewIDs[k])
				}
			}
		})
	}
}
