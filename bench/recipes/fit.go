package main

import (
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// budget is what recipes are fitted to: what a build's plan says of the time.
type budget struct {
	Params     int64   // glm.Arch.MatrixParams of the best model for it
	MaxParams  int64   // of the largest that a search may try
	FLOPs      float64 // that all processors compute in it
	MaxVocab   int     // of the tokenizer
	MaxContext int     // that a search may try
}

// The rules' constants: see bench/recipes.yaml.
const (
	leastVocab  = 263 // bytes, and the tokens that a tokenizer has besides
	leastSteps  = 1000
	leastHead   = 16   // width that the engine's kernels are made for, and multiples of it
	cutContext  = 256  // of a shape that was cut
	cutRate     = 0.01 // that a rate rises to at most
	widthGrain  = 32   // multiples that widths of shapes that were cut are of
	mostLayers  = 64
	mostWidth   = 4096
	rateOfWidth = 1.0 / 3
)

// fitted is a recipe for a budget.
type fitted struct {
	Config train.Config
	Decay  float64 // share of the time in which the rate falls
	Cut    bool    // the shape is smaller than published
}

// fit fits a recipe to a budget, by the rules of bench/recipes.yaml.
func fit(r recipe, b budget, seed uint64) fitted {
	a := glm.Arch{
		Vocab: min(max(r.Vocab, leastVocab), b.MaxVocab), Dim: r.Dim, Layers: r.Layers, Heads: r.Heads, KVHeads: r.KVHeads,
		FFN: r.inner(), Context: min(r.Context, b.MaxContext), Tied: *r.Tied,
	}.WithDefaults()
	f := fitted{Config: train.Config{
		Optimizer: engine.AdamW, LR: r.LR, WeightDecay: r.WeightDecay, Dropout: r.Dropout, Schedule: "wsd", Precision: engine.Auto, Seed: seed,
	}}
	c := &f.Config
	if published := a.MatrixParams(); published > b.MaxParams {
		a, f.Cut = cut(r, a, b.Params), true
		a.Context = min(a.Context, cutContext)
		c.LR = max(r.LR, min(cutRate, r.LR*math.Pow(float64(published)/float64(a.MatrixParams()), rateOfWidth)))
	}
	if a.HeadDim() < leastHead && a.Dim%leastHead == 0 {
		a.Heads = a.Dim / leastHead
		a.KVHeads = near(a.Heads, float64(a.Heads)*float64(r.KVHeads)/float64(r.Heads))
	}
	if r.Optimizer == "muon" {
		c.Optimizer, c.MuonLR = engine.Muon, r.MuonLR
	}
	tokens := b.FLOPs / a.FLOPsPerToken(a.Context)
	sequences := max(1, int(math.Min(float64(r.BatchTokens), tokens/leastSteps))/a.Context)
	c.Arch, c.BatchTokens = a, sequences*a.Context
	c.Warmup = int(math.Ceil(r.Warmup * tokens / float64(c.BatchTokens)))
	switch r.Schedule {
	case "cosine":
		c.Schedule, f.Decay = "cosine", 1
	case "linear":
		f.Decay = 1
	case "wsd":
		f.Decay = r.Decay
	}
	return f
}

// cut is the recipe's shape at about that many parameters in matrices: with its ratios of
// width to depth, of the inner width and of key and value heads, and its size of a head,
// all as near as whole numbers come. Where they can't have all, the size counts twice.
func cut(r recipe, a glm.Arch, params int64) glm.Arch {
	best, off := a, math.Inf(1)
	for layers := 1; layers <= min(r.Layers, mostLayers); layers++ {
		for dim := widthGrain; dim <= min(r.Dim, mostWidth); dim += widthGrain {
			s := a
			s.Layers, s.Dim = layers, dim
			s.Heads = near(dim/leastHead, float64(dim)*float64(r.Heads)/float64(r.Dim))
			s.KVHeads = near(s.Heads, float64(s.Heads)*float64(r.KVHeads)/float64(r.Heads))
			s.FFN = max(1, int(math.Round(float64(r.inner())/float64(r.Dim)*float64(dim)/widthGrain))) * widthGrain
			size := math.Log(float64(s.MatrixParams()) / float64(params))
			aspect := math.Log(float64(dim) / float64(layers) * float64(r.Layers) / float64(r.Dim))
			if d := 2*math.Abs(size) + math.Abs(aspect); d < off {
				best, off = s, d
			}
		}
	}
	return best
}

// near is the divisor of n that is nearest to x by its ratio.
func near(n int, x float64) int {
	best := 1
	for d := 1; d <= n; d++ {
		if n%d == 0 && math.Abs(math.Log(float64(d)/x)) < math.Abs(math.Log(float64(best)/x)) {
			best = d
		}
	}
	return best
}
