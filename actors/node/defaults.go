package node

import (
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// shape is a width and a number of layers.
type shape struct{ dim, layers int }

// arch is a model of the shape that a search starts from.
func (s shape) arch(vocab, context int) glm.Arch {
	return glm.Arch{
		Vocab: vocab, Dim: s.dim, Layers: s.layers, Heads: headsOf(s.dim), KVHeads: headsOf(s.dim), FFN: ffnRatio * s.dim,
		Context: context, Tied: true,
	}.WithDefaults()
}

// sizes are the shapes from which a search starts, smallest first.
var sizes = []shape{
	{64, 2}, {64, 4}, {128, 3}, {128, 4}, {128, 6}, {192, 4}, {192, 6}, {256, 4}, {256, 6}, {320, 6}, {384, 6}, {384, 8}, {512, 8}, {640, 10}, {768, 12},
}

// The rest of the shape from which a search starts, and its batch.
const (
	ffnRatio    = 3
	batchTokens = 1024
)

func headsOf(dim int) int {
	if dim <= 128 {
		return dim / 32
	}
	return dim / 64
}

// contextFor is the context to start from.
func contextFor(finalSeconds float64, params int64) int {
	if finalSeconds > 300 || params > 3e6 {
		return 256
	}
	return 128
}

// vocabFor is the vocabulary that a text of so many bytes feeds well.
func vocabFor(bytes int64) int {
	v := 512
	for v < 16384 && bytes > int64(v)*4000 {
		v *= 2
	}
	if bytes < 100_000 {
		v = 320
	}
	return v
}

// maxVocabFor is the largest vocabulary worth training for a text.
func maxVocabFor(bytes int64) int {
	v := 512
	for v < 16384 && bytes > int64(v)*2000 {
		v *= 2
	}
	return v
}

// defaults is the configuration that a search starts from: what is known to
// train well at the plan's size, fitted into the space.
func defaults(p search.Plan, sp *space.Space, bytes int64, context int) space.Config {
	dropout := 0.0
	switch {
	case p.Epochs > 25:
		dropout = 0.2
	case p.Epochs > 12:
		dropout = 0.1
	case p.Epochs > 7:
		dropout = 0.05
	}
	best := space.Config{}
	for _, s := range sizes {
		heads := headsOf(s.dim)
		c := sp.Nearest(space.Config{
			space.Layers: space.Number(float64(s.layers)), space.Dim: space.Number(float64(s.dim)),
			space.Heads: space.Number(float64(heads)), space.KVHeads: space.Number(float64(heads)),
			space.FFNRatio: space.Number(ffnRatio), space.Context: space.Number(float64(context)), space.Vocab: space.Number(float64(vocabFor(bytes))),
			space.Tied: space.Word("true"), space.Optimizer: space.Word("adamw"), space.LR: space.Number(4e-3), space.MuonLR: space.Number(0.02),
			space.Batch: space.Number(batchTokens), space.Dropout: space.Number(dropout), space.Decay: space.Number(0.1), space.Warmup: space.Number(50),
			space.Schedule: space.Word("wsd"),
		})
		if sp.Check(c) != nil {
			continue
		}
		if len(best) > 0 && space.Arch(c).MatrixParams() > p.Params*11/10 {
			break
		}
		best = c
	}
	return best
}
