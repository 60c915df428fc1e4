package bundle

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/glm"
)

// peer runs bench/peers/bundle_hf.py.
func peer(t *testing.T, verb string, job, result any) {
	t.Helper()
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		const why = "AUTOGLM_PYTHON is unset: no Python with transformers to compare with"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	in, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "../../bench/peers/bundle_hf.py", verb)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("bundle_hf.py: %v\n%s", err, stderr.String())
	}
	if err := json.Unmarshal(out, result); err != nil {
		t.Fatal(err)
	}
}

type loadJob struct {
	Dirs    []string `json:"dirs"`
	Prompts []string `json:"prompts"`
	New     int      `json:"new"`
}

type loadResult struct {
	IDs     [][]int32   `json:"ids"`
	Logits  [][]float32 `json:"logits"`
	Missing []string    `json:"missing"`
	Special []string    `json:"special"`
	Chat    string      `json:"chat"`
}

// transformers loads what we write: every tensor, the same ids, the chat template.
func TestTransformersLoads(t *testing.T) {
	b := tinyBundle(t, true)
	var dirs []string
	for _, d := range []DType{Float32, Float16, BFloat16} {
		b.DType = d
		dirs = append(dirs, filepath.Join(t.TempDir(), "b"))
		if err := Write(dirs[len(dirs)-1], b); err != nil {
			t.Fatal(err)
		}
	}
	prompts := []string{"The quick brown fox", "你好 <|user|>hello\n"}
	var all []loadResult
	peer(t, "load", loadJob{Dirs: dirs, Prompts: prompts}, &all)
	for _, got := range all {
		if len(got.Missing) > 0 {
			t.Errorf("tensors missing or unexpected: %v", got.Missing)
		}
		if !slices.Equal(got.Special, []string{"<|bos|>", "<|endoftext|>", "<|pad|>"}) {
			t.Errorf("special tokens %v", got.Special)
		}
		if want := "<|user|>\nhello\n<|assistant|>\n"; got.Chat != want {
			t.Errorf("chat is %q, want %q", got.Chat, want)
		}
		for i, p := range prompts {
			if want := b.Tokenizer.EncodePrompt(nil, p); !slices.Equal(got.IDs[i], want) {
				t.Errorf("%q: ids %v, want %v", p, got.IDs[i], want)
			}
		}
	}
}

type makeJob struct {
	Dir       string         `json:"dir"`
	Tokenizer string         `json:"tokenizer"`
	Vocab     int            `json:"vocab"`
	Hidden    int            `json:"hidden"`
	Layers    int            `json:"layers"`
	Heads     int            `json:"heads"`
	KVHeads   int            `json:"kv_heads"`
	FFN       int            `json:"ffn"`
	Context   int            `json:"context"`
	Tied      bool           `json:"tied"`
	DType     string         `json:"dtype"`
	Shard     string         `json:"shard,omitempty"`
	Theta     float64        `json:"theta"`
	Extra     map[string]any `json:"extra"`
}

// We open what save_pretrained writes, and refuse what we can't compute.
func TestOpensSavePretrained(t *testing.T) {
	tok := tinyTokenizer(t)
	data, err := tok.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), TokenizerFile)
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name   string
		job    makeJob
		refuse bool
		head   int
	}{
		{name: "tied", job: makeJob{DType: "float32", Tied: true}},
		{name: "bf16", job: makeJob{DType: "bfloat16"}},
		{name: "f16", job: makeJob{DType: "float16", Tied: true}},
		{name: "shards", job: makeJob{DType: "float32", Shard: "30KB"}},
		{name: "biases", job: makeJob{DType: "float32", Extra: map[string]any{"attention_bias": true}}, refuse: true},
		{name: "gelu", job: makeJob{DType: "float32", Extra: map[string]any{"hidden_act": "gelu"}}, refuse: true},
		{name: "headdim", job: makeJob{DType: "float32", Extra: map[string]any{"head_dim": 16}}, head: 16},
	}
	var jobs []makeJob
	for i := range cases {
		j := &cases[i].job
		j.Dir, j.Tokenizer, j.Theta = t.TempDir(), file, 500000
		j.Vocab, j.Hidden, j.Layers, j.Heads, j.KVHeads, j.FFN, j.Context = 320, 32, 2, 4, 2, 64, 128
		jobs = append(jobs, *j)
	}
	var done []any
	peer(t, "make", jobs, &done)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b, err := Open(c.job.Dir)
			if c.refuse {
				if err == nil {
					t.Error("is accepted")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := glm.Arch{Vocab: 320, Dim: 32, Layers: 2, Heads: 4, KVHeads: 2, FFN: 64, Context: 128, Tied: c.job.Tied, RopeTheta: 500000, NormEps: 1e-5}.WithHead(max(8, c.head))
			if b.Arch != want {
				t.Errorf("shape %+v, want %+v", b.Arch, want)
			}
			if b.Generation.BOS != 1 || len(b.Generation.EOS) != 1 || b.Generation.Pad != 2 {
				t.Errorf("generation %+v", b.Generation)
			}
			if got, want := b.Tokenizer.Encode(nil, "The fox"), tok.Encode(nil, "The fox"); !slices.Equal(got, want) {
				t.Errorf("ids %v, want %v", got, want)
			}
		})
	}
}
