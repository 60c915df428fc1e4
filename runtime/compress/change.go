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
	Heads    float64 // share of the attention's heads, the least important ones; 0 ≤ h < 1
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
	case !(c.Heads >= 0 && c.Heads < 1):
		return fmt.Errorf("compress: heads is %g, must be 0 or more and less than 1", c.Heads)
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
	if o.Heads > 0 {
		w = append(w, fmt.Sprintf("the least important %.0f %% of the attention's heads taken away", 100*o.Heads))
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
	judged      = 16 // sequences by which channels and heads are judged
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
	whole, err := Floats(b)
	if err != nil {
		return 0, err
	}
	a, params := b.Arch, whole
	small := a
	if c.Student == Auto {
		small = Student(a)
	}
	if c.Prune > 0 {
		small.FFN = min(small.FFN, channels(a.FFN, 1-c.Prune))
	}
	small = fewerHeads(small, c.Heads)
	if small != a {
		worth, err := importance(ctx, e, a, params, newReader(d.Train, a.Context, c.Seed), threads)
		if err != nil {
			return 0, err
		}
		a, params = small, shrink(a, small, params, worth)
	}
	r := recovery{engine: e, change: c, arch: a, data: d, threads: threads}
	if params, steps, err = r.learn(ctx, params, b.Arch, whole); err != nil {
		return steps, fmt.Errorf("compress: recovery: %w", err)
	}
	b.Arch, b.Params = a, params
	return steps, nil
}

// Floats are a bundle's parameters in the layout's order, widened: what a model that
// learns, or teaches, takes.
func Floats(b *bundle.Bundle) (engine.StateDict, error) {
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

// fewerHeads takes a share of the heads away: keys' and values' with all queries that
// they serve or, where all queries have one, queries' heads. One is left, or as many more
// as make whole blocks of what shares a scale, where the model has those.
func fewerHeads(a glm.Arch, share float64) glm.Arch {
	size, per := a.HeadDim(), a.Heads/a.KVHeads
	left := func(n, width int) int {
		k := max(1, int(math.Round((1-share)*float64(n))))
		for n*width%kernel.BlockLen == 0 && k*width%kernel.BlockLen != 0 {
			k++
		}
		return k
	}
	if a.KVHeads > 1 {
		a.KVHeads = left(a.KVHeads, per*size)
	} else {
		per = left(per, size)
	}
	a.Heads = a.KVHeads * per
	return a.WithHead(size)
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

// worth is how much the loss would change without a part of the model, to first order,
// by layer.
type worth struct {
	channels [][]float64 // of the feed-forward block: |Σ w·∂loss/∂w| over its weights
	heads    [][]float64 // of queries: the same over what reads it, as of a gate behind the head (Michel et al. 2019)
}

func newWorth(a glm.Arch) worth {
	w := worth{make([][]float64, a.Layers), make([][]float64, a.Layers)}
	for l := range a.Layers {
		w.channels[l], w.heads[l] = make([]float64, a.FFN), make([]float64, a.Heads)
	}
	return w
}

func importance(ctx context.Context, e Engine, a glm.Arch, params engine.StateDict, read *reader, threads int) (worth, error) {
	out := newWorth(a)
	batch := min(judged, sequences(a))
	m, err := e.Model(a, threads, batch, true)
	if err != nil {
		return out, err
	}
	defer m.Close()
	if err := m.Load(params); err != nil {
		return out, err
	}
	layout, _ := a.Layout()
	grads := engine.Parameters(layout, m.Grads())
	change := func(name string, from, step, n int) (sum float64) {
		p, _ := params.Get(name)
		g, _ := grads.Get(name)
		for i := range n {
			sum += float64(p.Data[from+i*step]) * float64(g.Data[from+i*step])
		}
		return sum
	}
	size, width := a.HeadDim(), a.QueryDim()
	for n := 0; n < judged; n += batch {
		if err := context.Cause(ctx); err != nil {
			return out, err
		}
		if _, err := m.Backward(read.batch(batch), nil); err != nil {
			return out, err
		}
		for l := range a.Layers {
			for c := range a.FFN {
				out.channels[l][c] += math.Abs(change(ofLayer(l, "mlp.gate_proj"), c*a.Dim, 1, a.Dim) +
					change(ofLayer(l, "mlp.up_proj"), c*a.Dim, 1, a.Dim) + change(ofLayer(l, "mlp.down_proj"), c, a.FFN, a.Dim))
			}
			for h := range a.Heads {
				sum := 0.0
				for row := range a.Dim {
					sum += change(ofLayer(l, "self_attn.o_proj"), row*width+h*size, 1, size)
				}
				out.heads[l][h] += math.Abs(sum)
			}
		}
		m.ZeroGrad()
	}
	return out, nil
}

func ofLayer(l int, name string) string { return fmt.Sprintf("model.layers.%d.%s.weight", l, name) }

// best are the n places that are worth most, in their order.
func best(worth []float64, n int) []int {
	order := make([]int, len(worth))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(worth[y], worth[x]) })
	return slices.Sorted(slices.Values(order[:n]))
}

// keptHeads are the heads of keys, and those of queries, that a smaller shape has of a
// layer: whole groups where it has fewer of them.
func keptHeads(a, small glm.Arch, worth []float64) (keys, queries []int) {
	per := a.Heads / a.KVHeads
	groups := make([]float64, a.KVHeads)
	for h, w := range worth {
		groups[h/per] += w
	}
	keys = best(groups, small.KVHeads)
	for _, k := range keys {
		for _, q := range best(worth[k*per:(k+1)*per], small.Heads/small.KVHeads) {
			queries = append(queries, k*per+q)
		}
	}
	return keys, queries
}

// shrink keeps layers, spread evenly from the first to the last, and in each the heads
// and the channels that are worth most, in their order.
func shrink(a, small glm.Arch, params engine.StateDict, w worth) engine.StateDict {
	layout, size := small.Layout()
	out := engine.Parameters(layout, make([]float32, size))
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
	// Parts are width rows, or columns, each.
	rows := func(name string, keep []int, width int) {
		to, of := next(name)
		n := width * a.Dim
		for i, p := range keep {
			copy(to.Data[i*n:(i+1)*n], of.Data[p*n:])
		}
	}
	columns := func(name string, keep []int, width int) {
		to, of := next(name)
		wide, narrow := of.Shape[1], to.Shape[1]
		for r := range a.Dim {
			for i, p := range keep {
				copy(to.Data[r*narrow+i*width:][:width], of.Data[r*wide+p*width:])
			}
		}
	}
	same("model.embed_tokens.weight")
	for l := range small.Layers {
		from := a.Layers - 1 // the layer that it was
		if n := small.Layers - 1; n > 0 {
			from = (l*(a.Layers-1) + n/2) / n
		}
		keys, queries := keptHeads(a, small, w.heads[from])
		channels := best(w.channels[from], small.FFN)
		same(ofLayer(from, "input_layernorm"))
		rows(ofLayer(from, "self_attn.q_proj"), queries, a.HeadDim())
		rows(ofLayer(from, "self_attn.k_proj"), keys, a.HeadDim())
		rows(ofLayer(from, "self_attn.v_proj"), keys, a.HeadDim())
		columns(ofLayer(from, "self_attn.o_proj"), queries, a.HeadDim())
		same(ofLayer(from, "post_attention_layernorm"))
		rows(ofLayer(from, "mlp.gate_proj"), channels, 1)
		rows(ofLayer(from, "mlp.up_proj"), channels, 1)
		columns(ofLayer(from, "mlp.down_proj"), channels, 1)
	}
	same("model.norm.weight")
	if !a.Tied {
		same("lm_head.weight")
	}
	return out
}
