package policy

import (
	"bytes"
	"errors"
	"fmt"
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/bundle"
)

// Mix says what a Mixture averages.
type Mix struct {
	Over      []string  // served names
	Weights   []float64 // that add up to 1
	Geometric bool      // the mean of log-probabilities, not of probabilities
}

// Mixture is a Decoder whose logits are the log-probabilities of a vote: the weighted mean
// of what its members give each next token, or that of their logarithms, which is not
// normalised (samplers do that). It owns its members. Owned by one goroutine.
type Mixture struct {
	mix     Mix
	members []engine.Decoder
	vocab   int       // ids that all know: the tokenizer's
	logits  []float32 // of the last call, [len(seqs), vocab]
}

// NewMixture mixes decoders, one for each of mix.Weights, of models whose tokenizer has
// vocab ids; models may have more.
func NewMixture(mix Mix, members []engine.Decoder, vocab int) (*Mixture, error) {
	if len(members) == 0 || len(members) != len(mix.Weights) || vocab < 1 {
		return nil, fmt.Errorf("mixture: %d models, %d weights, a vocabulary of %d", len(members), len(mix.Weights), vocab)
	}
	return &Mixture{mix: mix, members: members, vocab: vocab}, nil
}

// MixedBundle is what is to be known of a mixture of bundles: the first one's tokenizer and
// defaults, the shortest context, no parameters. It refuses those whose tokens differ.
func MixedBundle(names []string, all []*bundle.Bundle) (*bundle.Bundle, error) {
	first := *all[0]
	want, err := first.Tokenizer.MarshalJSON()
	if err != nil {
		return nil, err
	}
	for i, b := range all[1:] {
		got, err := b.Tokenizer.MarshalJSON()
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(got, want) {
			return nil, fmt.Errorf("%s and %s have different tokenizers: a soft vote is of one tokenizer; kind: majority takes any", names[0], names[i+1])
		}
		first.Arch.Context = min(first.Arch.Context, b.Arch.Context)
		if b.ChatTemplate != first.ChatTemplate {
			first.ChatTemplate = ""
		}
	}
	first.Arch.Vocab, first.Params, first.Eval = first.Tokenizer.VocabSize(), nil, nil
	return &first, nil
}

// Prefill implements engine.Decoder.
func (m *Mixture) Prefill(seq int, ids []int32) ([]float32, error) {
	return m.each(1, func(d engine.Decoder) ([]float32, error) { return d.Prefill(seq, ids) })
}

// Decode implements engine.Decoder.
func (m *Mixture) Decode(seqs []int, ids []int32) ([]float32, error) {
	return m.each(len(seqs), func(d engine.Decoder) ([]float32, error) { return d.Decode(seqs, ids) })
}

// each mixes the logits that each member gives, for n sequences.
func (m *Mixture) each(n int, call func(engine.Decoder) ([]float32, error)) ([]float32, error) {
	if len(m.logits) < n*m.vocab {
		m.logits = make([]float32, n*m.vocab)
	}
	out := m.logits[:n*m.vocab]
	clear(out)
	for k, d := range m.members {
		logits, err := call(d)
		if err != nil {
			return nil, err
		}
		wide := len(logits) / n
		if wide < m.vocab {
			return nil, fmt.Errorf("mixture: a model has %d ids, the tokenizer %d", wide, m.vocab)
		}
		for i := range n {
			m.add(out[i*m.vocab:(i+1)*m.vocab], logits[i*wide:i*wide+m.vocab], m.mix.Weights[k], k == 0)
		}
	}
	return out, nil
}

// add mixes one model's logits into those of a sequence, in which the earlier models' are.
func (m *Mixture) add(out, logits []float32, weight float64, first bool) {
	top := float64(logits[0])
	for _, v := range logits {
		top = max(top, float64(v))
	}
	sum := 0.0
	for _, v := range logits {
		sum += math.Exp(float64(v) - top)
	}
	norm := top + math.Log(sum)
	for i, v := range logits {
		p := float64(v) - norm
		switch {
		case m.mix.Geometric:
			out[i] += float32(weight * p)
		case first:
			out[i] = float32(math.Log(weight) + p)
		default:
			out[i] = float32(logAdd(float64(out[i]), math.Log(weight)+p))
		}
	}
}

// logAdd is log(exp(a) + exp(b)).
func logAdd(a, b float64) float64 {
	if b > a {
		a, b = b, a
	}
	if math.IsInf(a, -1) {
		return a
	}
	return a + math.Log1p(math.Exp(b-a))
}

// Len implements engine.Decoder.
func (m *Mixture) Len(seq int) int { return m.members[0].Len(seq) }

// Drop implements engine.Decoder.
func (m *Mixture) Drop(seq int) {
	for _, d := range m.members {
		d.Drop(seq)
	}
}

// Close closes all members.
func (m *Mixture) Close() error {
	var errs []error
	for _, d := range m.members {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}
