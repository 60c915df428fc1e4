package compress

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// reader hands out batches of a corpus, epoch after epoch.
type reader struct {
	batches *train.Batches
	tokens  int // of a sequence
	n       int // sequences read
}

func newReader(c *train.Corpus, tokens int, seed uint64) *reader {
	return &reader{batches: train.NewBatches(c, tokens, seed), tokens: tokens}
}

func (r *reader) batch(sequences int) engine.Batch {
	b := engine.Batch{B: sequences, T: r.tokens, Inputs: make([]int32, sequences*r.tokens), Targets: make([]int32, sequences*r.tokens), Seed: uint64(r.n)}
	scored := 0
	for i := range sequences {
		scored += r.batches.Sequence(r.n, b.Inputs[i*r.tokens:(i+1)*r.tokens], b.Targets[i*r.tokens:(i+1)*r.tokens])
		r.n++
	}
	b.Norm = float64(max(1, scored))
	return b
}

// recovery is the training of what is left of a model.
type recovery struct {
	engine  Engine
	change  Change
	arch    glm.Arch
	data    Data
	threads int
}

// learn trains params, of which those that the sparsity takes stay 0, on the labels and
// on what the whole model says.
func (r recovery) learn(ctx context.Context, params engine.StateDict, wholeArch glm.Arch, whole engine.StateDict) (engine.StateDict, int, error) {
	a := r.arch
	n := sequences(a)
	m, err := r.engine.Model(a, r.threads, n, true)
	if err != nil {
		return nil, 0, err
	}
	defer m.Close()
	teacher, err := r.engine.Model(wholeArch, r.threads, n, false)
	if err != nil {
		return nil, 0, err
	}
	defer teacher.Close()
	if err := teacher.Load(whole); err != nil {
		return nil, 0, err
	}
	several, err := assemble(r.engine, r.data.Teachers, wholeArch, r.threads, n)
	if err != nil {
		return nil, 0, err
	}
	defer several.close()
	layout, size := a.Layout()
	own := engine.Parameters(layout, make([]float32, size))
	if _, err := params.CopyTo(own, len(layout)); err != nil {
		return nil, 0, err
	}
	zeros := sparse(layout, own, r.change.Sparsity)
	zero(own, zeros)
	if err := m.Load(own); err != nil {
		return nil, 0, err
	}
	learnt := engine.Parameters(layout, m.Params())
	read := newReader(r.data.Train, a.Context, r.change.Seed+1)
	begin := time.Now()
	step := 0
	for ; ; step++ {
		if err := context.Cause(ctx); err != nil {
			return nil, step, err
		}
		done := r.done(step, time.Since(begin))
		if done >= 1 {
			break
		}
		b := read.batch(n)
		t := engine.Teacher{Weight: softWeight, Temperature: temperature, HiddenLoss: hiddenLoss}
		if t.Logits, t.Hidden, err = teacher.Outputs(b); err != nil {
			return nil, step, err
		}
		if len(several.models) > 0 {
			if t.Logits, err = several.outputs(b); err != nil {
				return nil, step, err
			}
		}
		if _, err := m.BackwardTaught(b, t, nil); err != nil {
			return nil, step, err
		}
		h := engine.DefaultHyper()
		h.LR = peakRate * math.Min((done+0.01)/warmup, (1-done)/(1-warmup))
		if h.LR > peakRate {
			h.LR = peakRate
		}
		if _, err := m.Update(h); err != nil {
			return nil, step, err
		}
		zero(learnt, zeros)
	}
	return learnt.Clone(), step, nil
}

// done is the share of the recovery that is over.
func (r recovery) done(steps int, spent time.Duration) float64 {
	var share float64
	if r.change.Recover > 0 {
		share = float64(spent) / float64(r.change.Recover)
	}
	if r.change.RecoverSteps > 0 {
		share = max(share, float64(steps)/float64(r.change.RecoverSteps))
	}
	return share
}

// sparse lists, by tensor, the places of that share of each matrix's smallest weights.
// Embeddings, heads and norms are left whole.
func sparse(layout []glm.Param, params engine.StateDict, share float64) [][]int32 {
	out := make([][]int32, len(layout))
	for i, p := range layout {
		n := int(share * float64(p.Elems))
		if n == 0 || p.Role != glm.Matrix && p.Role != glm.Residual {
			continue
		}
		order := make([]int32, p.Elems)
		for j := range order {
			order[j] = int32(j)
		}
		size := func(j int32) float64 { return math.Abs(float64(params[i].Data[j])) }
		slices.SortStableFunc(order, func(x, y int32) int {
			switch d := size(x) - size(y); {
			case d < 0:
				return -1
			case d > 0:
				return 1
			}
			return 0
		})
		out[i] = slices.Clone(order[:n])
	}
	return out
}

func zero(params engine.StateDict, places [][]int32) {
	for i, list := range places {
		for _, j := range list {
			params[i].Data[j] = 0
		}
	}
}
