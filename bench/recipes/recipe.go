package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"gopkg.in/yaml.v3"
)

// recipe is a published way to train a language model, as bench/recipes.yaml has it.
type recipe struct {
	Name        string  `yaml:"name"`
	Source      string  `yaml:"source"`
	Layers      int     `yaml:"layers"`
	Dim         int     `yaml:"dim"`
	Heads       int     `yaml:"heads"`
	KVHeads     int     `yaml:"kv_heads"` // 0: as many as heads
	FFN         int     `yaml:"ffn"`
	Gated       *bool   `yaml:"gated"` // three matrices of that inner width; else two
	Context     int     `yaml:"context"`
	Vocab       int     `yaml:"vocab"`
	Tied        *bool   `yaml:"tied"`
	Optimizer   string  `yaml:"optimizer"` // adamw, which "" is, or muon
	LR          float64 `yaml:"lr"`
	MuonLR      float64 `yaml:"muon_lr"`
	BatchTokens int     `yaml:"batch_tokens"`
	WeightDecay float64 `yaml:"weight_decay"`
	Dropout     float64 `yaml:"dropout"`
	Warmup      float64 `yaml:"warmup"`   // share of the steps
	Schedule    string  `yaml:"schedule"` // cosine, linear, constant or wsd
	Decay       float64 `yaml:"decay"`    // of wsd: share of the steps in which the rate falls
}

// readRecipes reads a file of recipes. An error names the file and the field, or for what
// is no recipe at all the line.
func readRecipes(path string) ([]recipe, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return parseRecipes(path, b)
}

func parseRecipes(path string, b []byte) ([]recipe, error) {
	var file struct {
		Recipes []recipe `yaml:"recipes"`
	}
	d := yaml.NewDecoder(bytes.NewReader(b))
	d.KnownFields(true)
	if err := d.Decode(&file); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(file.Recipes) == 0 {
		return nil, fmt.Errorf("%s: recipes: there are none", path)
	}
	names := map[string]bool{}
	for i, r := range file.Recipes {
		field, msg := r.wrong()
		if field == "" && names[r.Name] {
			field, msg = "name", fmt.Sprintf("%q stands twice", r.Name)
		}
		if field != "" {
			return nil, fmt.Errorf("%s: recipes[%d].%s: %s", path, i, field, msg)
		}
		names[r.Name] = true
		if r.KVHeads == 0 {
			file.Recipes[i].KVHeads = r.Heads
		}
	}
	return file.Recipes, nil
}

// wrong is the first field that makes no sense, and why.
func (r recipe) wrong() (field, msg string) {
	for _, f := range []struct {
		name string
		v    int
	}{{"layers", r.Layers}, {"dim", r.Dim}, {"heads", r.Heads}, {"ffn", r.FFN}, {"context", r.Context}, {"vocab", r.Vocab}, {"batch_tokens", r.BatchTokens}} {
		if f.v < 1 {
			return f.name, fmt.Sprintf("%d is not positive", f.v)
		}
	}
	for _, f := range []struct {
		name string
		v    float64
		most float64
	}{{"lr", r.LR, 1}, {"muon_lr", r.MuonLR, 1}, {"weight_decay", r.WeightDecay, 1}, {"dropout", r.Dropout, 0.9}, {"warmup", r.Warmup, 0.9}, {"decay", r.Decay, 1}} {
		if !(f.v >= 0 && f.v <= f.most) {
			return f.name, fmt.Sprintf("%g is outside 0 … %g", f.v, f.most)
		}
	}
	switch {
	case r.Name == "":
		return "name", "is missing"
	case r.Source == "":
		return "source", "is missing: say where it was published"
	case r.Dim%r.Heads != 0 || r.Dim/r.Heads%2 != 0:
		return "heads", fmt.Sprintf("%d do not divide dim %d into even heads", r.Heads, r.Dim)
	case r.KVHeads < 0 || r.KVHeads > 0 && r.Heads%r.KVHeads != 0:
		return "kv_heads", fmt.Sprintf("%d do not divide heads %d", r.KVHeads, r.Heads)
	case r.Gated == nil:
		return "gated", "is missing: true or false"
	case r.Tied == nil:
		return "tied", "is missing: true or false"
	case r.LR == 0:
		return "lr", "is missing"
	case r.Optimizer != "" && r.Optimizer != "adamw" && r.Optimizer != "muon":
		return "optimizer", fmt.Sprintf("%q is not adamw or muon", r.Optimizer)
	case (r.Optimizer == "muon") != (r.MuonLR > 0):
		return "muon_lr", "goes with optimizer: muon, and that with it"
	case !slices.Contains([]string{"cosine", "linear", "constant", "wsd"}, r.Schedule):
		return "schedule", fmt.Sprintf("%q is not cosine, linear, constant or wsd", r.Schedule)
	case (r.Schedule == "wsd") != (r.Decay > 0):
		return "decay", "goes with schedule: wsd, and that with it"
	case r.BatchTokens < r.Context:
		return "batch_tokens", fmt.Sprintf("%d is less than a sequence of %d", r.BatchTokens, r.Context)
	}
	return "", ""
}

// inner is the inner width of SwiGLU with as many parameters.
func (r recipe) inner() int {
	if *r.Gated {
		return r.FFN
	}
	return int(math.Round(float64(r.FFN) * 2 / 3))
}
