package compress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/runtime/bundle"
)

// Change takes parts of a model away and has the rest learn, from the whole model, or a
// vote of several, beside the text, to do without.
type Change struct {
	Prune    float64 // share of the feed-forward blocks' channels, the least important ones; 0 ≤ p < 1
	Sparsity float64 // share of each matrix's weights that become 0, the smallest ones; 0 ≤ s < 1
	Student  string  // "auto" keeps as many layers and channels as half the work of a token allows

	// How long the rest learns: so long, or so many steps, whichever ends first; 0 is no bound.
	Recover      time.Duration
	RecoverSteps int
	Seed         uint64 // of the order in which it reads
}

// Auto is a student's shape by estimate.
const Auto = "auto"

func (c Change) validate() error {
	takes := c.changes()
	switch {
	case !(c.Prune >= 0 && c.Prune < 1):
		return fmt.Errorf("compress: prune is %g, must be 0 or more and less than 1", c.Prune)
	case !(c.Sparsity >= 0 && c.Sparsity < 1):
		return fmt.Errorf("compress: sparsity is %g, must be 0 or more and less than 1", c.Sparsity)
	case c.Student != "" && c.Student != Auto:
		return fmt.Errorf("compress: student is %q, must be %q", c.Student, Auto)
	case c.Recover < 0 || c.RecoverSteps < 0:
		return errors.New("compress: recovery must not be negative")
	case takes && c.Recover == 0 && c.RecoverSteps == 0:
		return errors.New("compress: pruning and students need a recovery: say for how long, or how many steps")
	case !takes && (c.Recover != 0 || c.RecoverSteps != 0):
		return errors.New("compress: there is nothing to recover from; ask for pruning, sparsity or a student too")
	}
	return nil
}

// Words are what was asked for, for a model card.
func (o Options) Words() []string {
	var w []string
	if o.Student != "" {
		w = append(w, "a student that learnt from the whole model's logits and hidden states")
	}
	if o.Prune > 0 {
		w = append(w, fmt.Sprintf("the least important %.0f %% of the feed-forward channels taken away", 100*o.Prune))
	}
	if o.Sparsity > 0 {
		w = append(w, fmt.Sprintf("the smallest %.0f %% of each matrix's weights set to 0", 100*o.Sparsity))
	}
	switch o.Weights {
	case glm.Int8:
		w = append(w, "weights of 8 bits")
	case glm.Int4:
		w = append(w, "weights of 4 bits, embedding and head of more")
	}
	return w
}

// How a recovery learns.
const (
	judged      = 16 // sequences by which channels are judged
	batchTokens = 4096
	peakRate    = 2e-3
	warmup      = 0.05 // share of the recovery until that rate is reached; it then falls to 0
	temperature = 2
	softWeight  = 0.5 // of the whole model's logits against the labels
	hiddenLoss  = 1
)

// sequences is how many a step reads: fewer of a large vocabulary, of whose logits there
// are two copies.
func sequences(a glm.Arch) int { return max(1, min(batchTokens, 1<<25/a.Vocab)/a.Context) }

// apply changes a bundle and says how many steps the rest has learnt.
func (c Change) apply(ctx context.Context, e Engine, b *bundle.Bundle, d Data, threads int) (steps int, err error) {
	if d.Train == nil {
		return 0, errors.New("compress: a recovery needs text to learn from")
	}
	whole, err := floats(b)
	if err != nil {
		return 0, err
	}
	a, params := b.Arch, whole
	layers, ffn := a.Layers, a.FFN
	if c.Student == Auto {
		s := Student(a)
		layers, ffn = s.Layers, s.FFN
	}
	if c.Prune > 0 {
		ffn = min(ffn, channels(a.FFN, 1-c.Prune))
	}
	if layers < a.Layers || ffn < a.FFN {
		worth, err := importance(ctx, e, a, params, newReader(d.Train, a.Context, c.Seed), threads)
		if err != nil {
			return 0, err
		}
		a, params = shrink(a, params, worth, layers, ffn)
	}
	r := recovery{engine: e, change: c, arch: a, data: d, threads: threads}
	if params, steps, err = r.learn(ctx, params, b.Arch, whole); err != nil {
		return steps, fmt.Errorf("compress: recovery: %w", err)
	}
	b.Arch, b.Params = a, params
	return steps, nil
}

// floats are a bundle's parameters in the layout's order, widened.
func floats(b *bundle.Bundle) (engine.StateDict, error) {
	layout, size := b.Arch.Layout()
	s := engine.Parameters(layout, make([]float32, size))
	_, err := b.Params.CopyTo(s, len(layout))
	return s, err
}

// channels is a share of the channels, whole blocks of those that share a scale where
// there are so many.
func channels(ffn int, share float64) int {
	n := int(math.Round(share * float64(ffn)))
	if n >= kernel.BlockLen {
		n -= n % kernel.BlockLen
	}
	return max(1, n)
}

// Student is the largest shape with fewer layers of a model, and perhaps fewer channels,
// that needs at most half its work for a token, or the smallest of them.
func Student(a glm.Arch) glm.Arch {
	best := a
	for layers := 1; layers < a.Layers; layers++ {
		for _, share := range []float64{1, 0.75, 0.5} {
			s := a
			s.Layers, s.FFN = layers, channels(a.FFN, share)
			fits, bestFits := s.TokenWork() <= a.TokenWork()/2, best.TokenWork() <= a.TokenWork()/2
			if fits && (!bestFits || s.TokenWork() > best.TokenWork()) || !fits && !bestFits && s.TokenWork() < best.TokenWork() {
				best = s
			}
		}
	}
	return best
}

// importance is, for each channel of each layer's feed-forward block, how much the loss
// would change without it, to first order: |Σ w·∂loss/∂w| over its weights.
func importance(ctx context.Context, e Engine, a glm.Arch, params engine.StateDict, read *reader, threads int) ([][]float64, error) {
	batch := min(judged, sequences(a))
	m, err := e.Model(a, threads, batch, true)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if err := m.Load(params); err != nil {
		return nil, err
	}
	layout, _ := a.Layout()
	grads := engine.Parameters(layout, m.Grads())
	worth := make([][]float64, a.Layers)
	for l := range worth {
		worth[l] = make([]float64, a.FFN)
	}
	for n := 0; n < judged; n += batch {
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
		if _, err := m.Backward(read.batch(batch), nil); err != nil {
			return nil, err
		}
		for l := range a.Layers {
			for c := range a.FFN {
				var change float64
				each := func(name string, from, step, n int) {
					p, _ := params.Get(name)
					g, _ := grads.Get(name)
					for i := range n {
						change += float64(p.Data[from+i*step]) * float64(g.Data[from+i*step])
					}
				}
				each(ofLayer(l, "mlp.gate_proj"), c*a.Dim, 1, a.Dim)
				each(ofLayer(l, "mlp.up_proj"), c*a.Dim, 1, a.Dim)
				each(ofLayer(l, "mlp.down_proj"), c, a.FFN, a.Dim)
				worth[l][c] += math.Abs(change)
			}
		}
		m.ZeroGrad()
	}
	return worth, nil
}

func ofLayer(l int, name string) string { return fmt.Sprintf("model.layers.%d.%s.weight", l, name) }

// shrink keeps layers, spread evenly from the first to the last, and in each the ffn
// channels that are worth most, in their order.
func shrink(a glm.Arch, params engine.StateDict, worth [][]float64, layers, ffn int) (glm.Arch, engine.StateDict) {
	small := a
	small.Layers, small.FFN = layers, ffn
	layout, size := small.Layout()
	out := engine.Parameters(layout, make([]float32, size))
	from := make([]int, layers) // the layer that each was
	keep := make([][]int, layers)
	for l := range from {
		from[l] = a.Layers - 1
		if layers > 1 {
			from[l] = (l*(a.Layers-1) + (layers-1)/2) / (layers - 1)
		}
		order := make([]int, a.FFN)
		for i := range order {
			order[i] = i
		}
		w := worth[from[l]]
		slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(w[y], w[x]) })
		keep[l] = slices.Sorted(slices.Values(order[:ffn]))
	}
	at := 0
	next := func(name string) (to, of engine.Tensor) {
		of, _ = params.Get(name)
		at++
		return out[at-1], of
	}
	same := func(name string) {
		to, of := next(name)
		copy(to.Data, of.Data)
	}
	same("model.embed_tokens.weight")
	for l := range layers {
		for _, name := range []string{"input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "post_attention_layernorm"} {
			same(ofLayer(from[l], name))
		}
		for _, name := range []string{"mlp.gate_proj", "mlp.up_proj"} {
			to, of := next(ofLayer(from[l], name))
			for i, c := range keep[l] {
				copy(to.Data[i*a.Dim:(i+1)*a.Dim], of.Data[c*a.Dim:])
			}
		}
		to, of := next(ofLayer(from[l], "mlp.down_proj"))
		for r := range a.Dim {
			for i, c := range keep[l] {
				to.Data[r*ffn+i] = of.Data[r*a.FFN+c]
			}
		}
	}
	same("model.norm.weight")
	if !a.Tied {
		same("lm_head.weight")
	}
	return small, out
}
