package compress

import (
	"errors"
	"fmt"
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// Teacher is one of several models whose vote a recovery learns from: the mean, by their
// weights, of the probabilities that they give each token. All have one tokenizer.
type Teacher struct {
	Arch   glm.Arch
	Params engine.StateDict
	Weight float64 // > 0
}

func (t Teacher) validate(a glm.Arch) error {
	switch {
	case t.Arch.Vocab != a.Vocab:
		return fmt.Errorf("it knows %d tokens, the model %d", t.Arch.Vocab, a.Vocab)
	case t.Arch.Context < a.Context && a.Context%t.Arch.Context != 0:
		return fmt.Errorf("it reads %d tokens, of which the model's %d are no multiple", t.Arch.Context, a.Context)
	case !(t.Weight > 0):
		return fmt.Errorf("it has the weight %g, must be more than 0", t.Weight)
	}
	return nil
}

// vote is teachers at work on batches of sequences of one length.
type vote struct {
	models  []Model
	tokens  []int     // that each reads at once
	weights []float64 // which sum to 1
	logits  []float32 // [B, T, V] of the last batch
}

// assemble loads teachers for batches of so many sequences of a shape's context.
func assemble(e Engine, teachers []Teacher, a glm.Arch, threads, sequences int) (*vote, error) {
	v := &vote{}
	total := 0.0
	for _, t := range teachers {
		total += t.Weight
	}
	for i, t := range teachers {
		if err := t.validate(a); err != nil {
			return nil, errors.Join(fmt.Errorf("compress: teacher %d: %w", i+1, err), v.close())
		}
		t.Arch.Context = min(t.Arch.Context, a.Context)
		m, err := e.Model(t.Arch, threads, sequences*(a.Context/t.Arch.Context), false)
		if err == nil {
			v.models = append(v.models, m)
			err = m.Load(t.Params)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("compress: teacher %d: %w", i+1, err), v.close())
		}
		v.tokens, v.weights = append(v.tokens, t.Arch.Context), append(v.weights, t.Weight/total)
	}
	return v, nil
}

func (v *vote) close() error {
	var all error
	for _, m := range v.models {
		all = errors.Join(all, m.Close())
	}
	return all
}

// outputs are the logarithms of the mean probabilities, of which softmax makes those
// again. They are overwritten by the next call.
func (v *vote) outputs(b engine.Batch) ([]float32, error) {
	for i, m := range v.models {
		// One with a shorter context reads a sequence in parts.
		part := b
		part.B, part.T = b.B*(b.T/v.tokens[i]), v.tokens[i]
		logits, _, err := m.Outputs(part)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			if len(v.logits) != len(logits) {
				v.logits = make([]float32, len(logits))
			}
			clear(v.logits)
		}
		vocab := len(logits) / (b.B * b.T)
		for at := 0; at < len(logits); at += vocab {
			mix(v.logits[at:at+vocab], logits[at:at+vocab], v.weights[i])
		}
	}
	for i, p := range v.logits {
		v.logits[i] = float32(math.Log(math.Max(float64(p), math.SmallestNonzeroFloat32)))
	}
	return v.logits, nil
}

// mix adds weight times the softmax of a row of logits.
func mix(sum, row []float32, weight float64) {
	most := row[0]
	for _, x := range row {
		most = max(most, x)
	}
	total := 0.0
	for _, x := range row {
		total += math.Exp(float64(x - most))
	}
	for i, x := range row {
		sum[i] += float32(weight * math.Exp(float64(x-most)) / total)
	}
}
