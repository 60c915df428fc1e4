package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func published(t *testing.T) []recipe {
	t.Helper()
	rs, err := readRecipes(filepath.Join("..", "recipes.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func TestRecipes(t *testing.T) {
	if n := len(published(t)); n != 20 {
		t.Errorf("there are %d recipes, want 20", n)
	}
}

const good = `recipes:
  - {name: a, source: b, layers: 2, dim: 64, heads: 2, ffn: 256, gated: false, context: 64, vocab: 512, tied: true,
     lr: 0.001, batch_tokens: 1024, weight_decay: 0.1, dropout: 0, warmup: 0, schedule: cosine}
`

func TestRecipesRefused(t *testing.T) {
	if _, err := parseRecipes("r.yaml", []byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ old, new, want string }{
		{"layers: 2", "layers: 0", "r.yaml: recipes[0].layers: 0 is not positive"},
		{"lr: 0.001, ", "", "recipes[0].lr: is missing"},
		{"lr: 0.001", "lr: .nan", "recipes[0].lr: NaN"},
		{"lr: 0.001", "rate: 0.001", "field rate not found"},
		{"lr: 0.001", "lr: fast", "cannot unmarshal"},
		{"heads: 2", "heads: 3", "recipes[0].heads: 3 do not divide"},
		{"heads: 2", "heads: 2, kv_heads: 3", "recipes[0].kv_heads"},
		{"source: b, ", "", "recipes[0].source: is missing"},
		{"gated: false, ", "", "recipes[0].gated: is missing"},
		{"schedule: cosine", "schedule: wsd", "recipes[0].decay"},
		{"schedule: cosine", "schedule: steps", "recipes[0].schedule"},
		{"schedule: cosine", "schedule: cosine, optimizer: muon", "recipes[0].muon_lr"},
		{"batch_tokens: 1024", "batch_tokens: 10", "recipes[0].batch_tokens"},
		{good, "recipes: []", "recipes: there are none"},
		{good, "", "recipes: there are none"},
		{good, good + strings.TrimPrefix(good, "recipes:\n"), "recipes[1].name"},
	} {
		_, err := parseRecipes("r.yaml", []byte(strings.Replace(good, tt.old, tt.new, 1)))
		if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "r.yaml: ") {
			t.Errorf("%s: %v, want %q", tt.new, err, tt.want)
		}
	}
}

func FuzzRecipes(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("recipes: [{name: 1, lr: 1e99}]"))
	b := budget{Params: 1e6, MaxParams: 2e6, FLOPs: 1e12, MaxVocab: 512, MaxContext: 256}
	f.Fuzz(func(t *testing.T, text []byte) {
		rs, err := parseRecipes("r.yaml", text)
		if err != nil {
			return
		}
		for _, r := range rs {
			if r.Layers > 100 || r.Dim > 1e4 {
				continue
			}
			if c := fit(r, b, 1).Config; c.Arch.Validate() != nil || c.BatchTokens < c.Arch.Context {
				t.Errorf("%+v becomes %+v", r, c)
			}
		}
	})
}

// Each recipe, fitted to budgets from seconds to hours, is a training that the engine can
// do, near the size that the budget is for.
func TestFit(t *testing.T) {
	for _, b := range []budget{
		{Params: 250e3, MaxParams: 450e3, FLOPs: 6e11, MaxVocab: 512, MaxContext: 256},
		{Params: 1.2e6, MaxParams: 2.2e6, FLOPs: 4e13, MaxVocab: 512, MaxContext: 1024},
		{Params: 20e6, MaxParams: 36e6, FLOPs: 1e16, MaxVocab: 16384, MaxContext: 1024},
	} {
		whole := 0
		for _, r := range published(t) {
			f := fit(r, b, 1)
			a := f.Config.Arch
			if err := a.Validate(); err != nil {
				t.Errorf("%s: %v", r.Name, err)
			}
			if a.MatrixParams() > b.MaxParams || f.Cut && a.MatrixParams() < b.Params/3 {
				t.Errorf("%s: %d parameters in matrices for a budget of %d to %d", r.Name, a.MatrixParams(), b.Params, b.MaxParams)
			}
			if h := a.HeadDim(); h < leastHead || f.Cut && h%leastHead != 0 {
				t.Errorf("%s: heads of %d", r.Name, h)
			}
			if a.Context > b.MaxContext || a.Vocab > b.MaxVocab || f.Config.BatchTokens > max(r.BatchTokens, a.Context) || f.Config.LR > max(r.LR, cutRate) {
				t.Errorf("%s: %+v", r.Name, f.Config)
			}
			if steps := b.FLOPs / a.FLOPsPerToken(a.Context) / float64(f.Config.BatchTokens); steps < 0.99*leastSteps && f.Config.BatchTokens > a.Context {
				t.Errorf("%s: %g steps", r.Name, steps)
			}
			if !f.Cut {
				whole++
				if a.Layers != r.Layers || a.Dim != r.Dim || f.Config.LR != r.LR {
					t.Errorf("%s was to stay as it is, and is %+v", r.Name, f.Config)
				}
			}
		}
		if whole == 0 {
			t.Errorf("no recipe fits a budget of %d parameters as it is", b.Params)
		}
	}
}

func TestTable(t *testing.T) {
	rs := []result{{Name: "b", Bits: 2}, {Name: build, Bits: 2.02}, {Name: "c", Failed: "no number"}, {Name: "a", Bits: 2.5}}
	var names []string
	for _, r := range order(rs) {
		names = append(names, r.Name)
	}
	if got := strings.Join(names, ","); got != "b,"+build+",a,c" {
		t.Errorf("the order is %s", got)
	}
	if x, best, ok := ratio(rs); !ok || best != "b" || x != 1.01 {
		t.Errorf("ratio %v to %s, %v", x, best, ok)
	}
	if _, _, ok := ratio(rs[:1]); ok {
		t.Error("a ratio without a build")
	}
}

func TestResults(t *testing.T) {
	path := filepath.Join(t.TempDir(), "results.jsonl")
	if kept, err := readResults(path, "s"); err != nil || len(kept) != 0 {
		t.Fatal(kept, err)
	}
	if err := os.WriteFile(path, []byte(`{"name":"a","setting":"s","bits_per_byte":2}`+"\n"+`{"name":"b","set`), 0o644); err != nil {
		t.Fatal(err)
	}
	if kept, err := readResults(path, "s"); err != nil || len(kept) != 1 || kept["a"].Bits != 2 {
		t.Errorf("%v, %v", kept, err)
	}
	if _, err := readResults(path, "other"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("results of another setting: %v", err)
	}
}
