package bundle

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/token/tokentest"
)

const template = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"

func tinyTokenizer(t testing.TB) *token.Tokenizer {
	t.Helper()
	return tokentest.Tiny(t, 320)
}

// randomParams fills the layout with normal numbers of deviation 0.2, gains near 1.
func randomParams(a glm.Arch, seed uint64) engine.StateDict {
	r := rand.New(rand.NewPCG(seed, 1))
	layout, _ := a.Layout()
	var s engine.StateDict
	for _, p := range layout {
		data := make([]float32, p.Elems)
		for i := range data {
			data[i] = float32(r.NormFloat64() * 0.2)
			if p.Role == glm.Norm {
				data[i]++
			}
		}
		s = append(s, engine.Tensor{Name: p.Name, Shape: p.Shape, Data: data})
	}
	return s
}

func tinyBundle(t testing.TB, tied bool) *Bundle {
	a := glm.Arch{Vocab: 320, Dim: 32, Layers: 2, Heads: 4, KVHeads: 2, FFN: 64, Context: 128, Tied: tied, RopeTheta: 5000, NormEps: 1e-5}
	return &Bundle{
		Arch: a, Params: randomParams(a, 3), Tokenizer: tinyTokenizer(t), Generation: DefaultGeneration(), ChatTemplate: template,
		Eval: json.RawMessage(`{"bits_per_byte": 2.5}`),
		Card: Card{
			Name: "Tiny", License: "apache-2.0", Languages: []string{"en"}, Task: "text-generation", Seed: 42, Job: "0a1b", Trial: "t007",
			Data:     []DataSource{{Name: "a|b.txt", Files: 1, Bytes: 100, SHA256: "abc", Cleaning: []CleaningCount{{"empty", 3}}}},
			Search:   SearchSummary{Strategy: "tpe", Trials: 12, Budget: "3m", Objective: "bits_per_byte"},
			Training: TrainingSummary{Steps: 10, Tokens: 1000, Seconds: 3},
			Scores:   []Score{{"bits per byte", 2.5, "held-out tail"}}, Versions: []Version{{"autoglm", "dev"}},
		},
	}
}

func TestWriteOpen(t *testing.T) {
	for _, tied := range []bool{true, false} {
		b := tinyBundle(t, tied)
		dir := filepath.Join(t.TempDir(), "out", "bundle")
		if err := Write(dir, b); err != nil {
			t.Fatal(err)
		}
		got, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if !Equal(b, got) || got.ChatTemplate != template || string(got.Eval) != string(b.Eval) || !reflect.DeepEqual(got.Card, b.Card) {
			t.Error("the opened bundle is another one")
		}
		if fmt.Sprint(got.Generation) != fmt.Sprint(b.Generation) {
			t.Errorf("generation %+v, want %+v", got.Generation, b.Generation)
		}
	}
}

// contents maps every file of a folder to its bytes.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]string{}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m[e.Name()] = string(data)
	}
	return m
}

func TestWriteIsReproducibleAndReplaces(t *testing.T) {
	root := t.TempDir()
	b := tinyBundle(t, true)
	one, two := filepath.Join(root, "one"), filepath.Join(root, "two")
	for _, dir := range []string{one, two, two} { // the third replaces
		if err := Write(dir, b); err != nil {
			t.Fatal(err)
		}
	}
	x, y := contents(t, one), contents(t, two)
	for name := range x {
		if x[name] != y[name] {
			t.Errorf("%s differs between two writes", name)
		}
	}
	want := []string{ConfigFile, GenerationFile, WeightsFile, TokenizerFile, TokenizerConfigFile, SpecialTokensFile, ChatTemplateFile, CardFile, CardDataFile, EvalFile}
	if len(x) != len(want) {
		t.Errorf("%d files, want %d", len(x), len(want))
	}
	for _, name := range want {
		if x[name] == "" {
			t.Errorf("%s is missing or empty", name)
		}
	}
	b.Params = randomParams(b.Arch, 4)
	b.ChatTemplate = ""
	if err := Write(two, b); err != nil {
		t.Fatal(err)
	}
	z := contents(t, two)
	if z[WeightsFile] == x[WeightsFile] || z[ChatTemplateFile] != "" {
		t.Error("the older bundle is still there")
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 2 {
		t.Errorf("temporary folders are left: %v %v", left, err)
	}
}

// Weights of 16 bits read back as they were rounded, and the folder says what they are.
func TestDTypes(t *testing.T) {
	for d, bits := range map[DType]float64{Float16: 11, BFloat16: 8} {
		b := tinyBundle(t, true)
		b.DType = d
		dir := filepath.Join(t.TempDir(), "b")
		if err := Write(dir, b); err != nil {
			t.Fatal(err)
		}
		c := contents(t, dir)
		if !strings.Contains(c[ConfigFile], `"torch_dtype": "`+string(d)) || !strings.Contains(c[CardFile], "no biases), "+string(d)) {
			t.Errorf("%s is not in %s or %s", d, ConfigFile, CardFile)
		}
		if n := int64(len(c[WeightsFile])); n > WeightsBytes(b.Arch)/2+2000 {
			t.Errorf("%s: %d bytes", d, n)
		}
		got, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range b.Params {
			for j, v := range p.Data {
				if w := got.Params[i].Data[j]; math.Abs(float64(w-v)) > math.Abs(float64(v))*math.Pow(2, -bits)+0x1p-24 {
					t.Fatalf("%s: %g became %g", d, v, w)
				}
			}
		}
		b.Params[3].Data[0] = 3.4e38
		if err := Write(dir, b); err == nil || !strings.Contains(err.Error(), "too large") {
			t.Errorf("%s of 3.4e38: %v", d, err)
		}
	}
}

// A card that somebody else wrote stays as it is.
func TestForeignCard(t *testing.T) {
	root := t.TempDir()
	one, two := filepath.Join(root, "one"), filepath.Join(root, "two")
	if err := Write(one, tinyBundle(t, true)); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(one, CardDataFile)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(one, CardFile), []byte("# Theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := Open(one)
	if err != nil {
		t.Fatal(err)
	}
	if err := Write(two, b); err != nil {
		t.Fatal(err)
	}
	if c := contents(t, two); c[CardFile] != "# Theirs" || c[CardDataFile] != "" {
		t.Errorf("the card is %q, its data %q", c[CardFile], c[CardDataFile])
	}
}

func TestWriteRefuses(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thesis.txt"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Write(dir, tinyBundle(t, true)); err == nil || !strings.Contains(err.Error(), "no bundle") {
		t.Errorf("overwrote a folder: %v", err)
	}
	for name, c := range map[string]struct {
		spoil func(*Bundle)
		want  string
	}{
		"missing":    {func(b *Bundle) { b.Params = b.Params[1:] }, "embed_tokens"},
		"unexpected": {func(b *Bundle) { b.Params = append(b.Params, engine.Tensor{Name: "model.bias"}) }, "model.bias"},
		"twice":      {func(b *Bundle) { b.Params = append(b.Params, b.Params[1]) }, "twice"},
		"shape":      {func(b *Bundle) { b.Params[2].Shape = []int{16, 64} }, "q_proj"},
		"nan":        {func(b *Bundle) { b.Params[1].Data[3] = float32(math.NaN()) }, "input_layernorm"},
		"inf":        {func(b *Bundle) { b.Params[1].Data[3] = float32(math.Inf(-1)) }, "input_layernorm"},
		"eos":        {func(b *Bundle) { b.Generation.EOS = []int32{999} }, "999"},
		"vocab":      {func(b *Bundle) { b.Arch.Vocab = 256 }, "320"},
		"eval":       {func(b *Bundle) { b.Eval = json.RawMessage("{") }, "eval.json"},
		"tokenizer":  {func(b *Bundle) { b.Tokenizer = nil }, "tokenizer"},
		"dtype":      {func(b *Bundle) { b.DType = "int8" }, "int8"},
		"topp":       {func(b *Bundle) { b.Generation.TopP = 2 }, "top_p"},
	} {
		b := tinyBundle(t, true)
		c.spoil(b)
		out := filepath.Join(t.TempDir(), "b")
		if err := Write(out, b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v", name, err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: a folder was left", name)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "b")
	if err := Write(dir, tinyBundle(t, true)); err != nil {
		t.Fatal(err)
	}
	good := contents(t, dir)
	for _, c := range []struct{ file, from, to, want string }{
		{ConfigFile, `"model_type": "llama"`, `"model_type": "glm"`, "glm"},
		{ConfigFile, `LlamaForCausalLM`, `LlamaModel`, "LlamaModel"},
		{ConfigFile, `"attention_bias": false`, `"attention_bias": true`, "attention_bias"},
		{ConfigFile, `"mlp_bias": false`, `"mlp_bias": true`, "mlp_bias"},
		{ConfigFile, `"silu"`, `"gelu"`, "gelu"},
		{ConfigFile, `"rope_type": "default"`, `"rope_type": "llama3"`, "llama3"},
		{ConfigFile, `"use_cache": true`, `"rope_scaling": {"type": "linear", "factor": 2}`, "linear"},
		{ConfigFile, `"use_cache": true`, `"quantization_config": {"bits": 4}`, "compressed-tensors"},
		{ConfigFile, `"use_cache": true`, `"partial_rotary_factor": 0.5`, "partial_rotary_factor"},
		{ConfigFile, `"head_dim": 8`, `"head_dim": 0`, "head_dim"},
		{ConfigFile, `"head_dim": 8`, `"head_dim": 16`, "q_proj"},
		{ConfigFile, `"num_attention_heads": 4`, `"num_attention_heads": 0`, "heads"},
		{ConfigFile, `"num_hidden_layers": 2`, `"num_hidden_layers": 3`, "layers.2"},
		{ConfigFile, `"num_hidden_layers": 2`, `"num_hidden_layers": 1`, "layers.1"},
		{ConfigFile, `"intermediate_size": 64`, `"intermediate_size": 32`, "gate_proj"},
		{ConfigFile, `"tie_word_embeddings": true`, `"tie_word_embeddings": false`, "lm_head"},
		{ConfigFile, `"vocab_size": 320`, `"vocab_size": 300`, "320"},
		{ConfigFile, `{`, ``, ConfigFile},
		{GenerationFile, `"eos_token_id": 0`, `"eos_token_id": 5000`, "5000"},
		{TokenizerFile, `"type": "BPE"`, `"type": "WordPiece"`, "WordPiece"},
		{WeightsFile, `F32`, `F64`, "F64"},
		{WeightsFile, `model.norm.weight`, `model.morn.weight`, "model.norm.weight"},
	} {
		bad := strings.Replace(good[c.file], c.from, c.to, 1)
		if bad == good[c.file] {
			t.Errorf("%s is not in %s", c.from, c.file)
			continue
		}
		write := func(s string) {
			if err := os.WriteFile(filepath.Join(dir, c.file), []byte(s), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write(bad)
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %s: error is %v", c.file, c.to, err)
		}
		write(good[c.file])
	}
	if _, err := Open(dir); err != nil {
		t.Errorf("the good files are refused: %v", err)
	}
	if _, err := Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a bundle") {
		t.Errorf("an empty folder: %v", err)
	}
}

func TestOpenShards(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "b")
	b := tinyBundle(t, false)
	if err := Write(dir, b); err != nil {
		t.Fatal(err)
	}
	weightMap := map[string]string{}
	for i, part := range []engine.StateDict{b.Params[:7], b.Params[7:]} {
		name := fmt.Sprintf("model-%05d-of-00002.safetensors", i+1)
		var buf bytes.Buffer
		if err := WriteSafetensors(&buf, part); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), buf.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, p := range part {
			weightMap[p.Name] = name
		}
	}
	if err := os.Remove(filepath.Join(dir, WeightsFile)); err != nil {
		t.Fatal(err)
	}
	index := func() {
		data, _ := json.Marshal(map[string]any{"weight_map": weightMap})
		if err := os.WriteFile(filepath.Join(dir, WeightsIndexFile), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	index()
	got, err := Open(dir)
	if err != nil || !Equal(got, b) {
		t.Fatalf("shards: %v", err)
	}
	weightMap["model.norm.weight"] = "../model.safetensors"
	index()
	if _, err := Open(dir); err == nil {
		t.Error("a shard outside of the folder is read")
	}
}

// file builds a safetensors file from a header and a number of data bytes.
func file(header string, data int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(b, header...), make([]byte, data)...)
}

func TestSafetensorsRefuses(t *testing.T) {
	read := func(b []byte) error {
		_, err := ReadSafetensors(bytes.NewReader(b), int64(len(b)))
		return err
	}
	if err := read(file(`{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"b":{"dtype":"BF16","shape":[],"data_offsets":[4,6]}}   `, 6)); err != nil {
		t.Errorf("a good file: %v", err)
	}
	for name, b := range map[string][]byte{
		"short":     {1, 2, 3},
		"header":    binary.LittleEndian.AppendUint64(nil, 1<<60),
		"list":      file(`[]`, 0),
		"trailing":  file(`{}`, 4),
		"after":     file(`{} x`, 0),
		"twice":     file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}`, 4),
		"gap":       file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`, 8),
		"overlap":   file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}`, 12),
		"shape":     file(`{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}`, 4),
		"negative":  file(`{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,-4]}}`, 0),
		"overflow":  file(`{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}`, 0),
		"dtype":     file(`{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}`, 8),
		"truncated": file(`{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}`, 8),
		"unclosed":  file(`{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}`, 4),
	} {
		if read(b) == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}

func FuzzSafetensors(f *testing.F) {
	var buf bytes.Buffer
	if err := WriteSafetensors(&buf, engine.StateDict{{Name: "b", Shape: []int{2, 1}, Data: []float32{1, 2}}, {Name: "a", Shape: []int{1}, Data: []float32{3}}}); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add(file(`{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}`, 4))
	for _, bits := range []int{8, 4} {
		few, err := kernel.RoundBlocks(bits, 64, 2, 64, make([]float32, 128))
		if err != nil {
			f.Fatal(err)
		}
		buf.Reset()
		if err := WriteSafetensors(&buf, engine.StateDict{{Name: "a.weight", Shape: []int{2, 64}, Blocks: few}, {Name: "b", Shape: []int{1}, Data: []float32{0.5}}}); err != nil {
			f.Fatal(err)
		}
		f.Add(slices.Clone(buf.Bytes()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ReadSafetensors(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := WriteSafetensors(&out, s); err != nil {
			if strings.Contains(err.Error(), "twice") {
				return
			}
			t.Fatal(err)
		}
		if _, err := ReadSafetensors(bytes.NewReader(out.Bytes()), int64(out.Len())); err != nil {
			t.Fatalf("what was read is refused when written again: %v", err)
		}
	})
}

func FuzzConfig(f *testing.F) {
	data, err := marshal(makeConfig(glm.Arch{Vocab: 320, Dim: 32, Layers: 2, Heads: 4, KVHeads: 2, FFN: 64, Context: 128}.WithDefaults(), DefaultGeneration(), Float32))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"model_type":"llama","eos_token_id":[1,2],"rope_scaling":null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if a, _, err := parseConfig(data); err == nil && a.Validate() != nil {
			t.Fatal("an invalid shape is accepted")
		}
	})
}

func TestCard(t *testing.T) {
	b := tinyBundle(t, true)
	b.Card.Summary, b.Card.Name = "What it is.", "A name\nwith a break"
	text := b.Card.markdown(b)
	parts := strings.SplitN(text, "---\n", 3)
	var front struct {
		License  string
		Language []string
		Tags     []string
		Library  string `yaml:"library_name"`
	}
	if err := yaml.Unmarshal([]byte(parts[1]), &front); err != nil {
		t.Fatal(err)
	}
	if front.License != "apache-2.0" || len(front.Language) != 1 || front.Library != "transformers" || len(front.Tags) != 2 {
		t.Errorf("front matter %+v", front)
	}
	for _, want := range []string{"# A name with a break\n", `| a\|b.txt | 1 | 100 | abc |`, "empty 3", "tpe search, 12 trials, budget 3m", "| bits per byte | 2.5 |", "Seed 42. Trial t007. Job 0a1b", "## Limits", "apache-2.0"} {
		if !strings.Contains(text, want) {
			t.Errorf("the card lacks %q:\n%s", want, text)
		}
	}
	empty := Card{}.markdown(b)
	if strings.Contains(empty, "license:") || !strings.Contains(empty, "Not measured") {
		t.Errorf("an empty card claims something:\n%s", empty)
	}
}
