package policy

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/token"
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
	sum     []float64 // the same, before its logarithm
	exp     []float64 // scratch, [vocab]
}

// NewMixture mixes decoders, one for each of mix.Weights, of models whose tokenizer has
// vocab ids; models may have more. It is an engine.KVCache where all of them are.
func NewMixture(mix Mix, members []engine.Decoder, vocab int) (engine.Decoder, error) {
	if len(members) == 0 || len(members) != len(mix.Weights) || vocab < 1 {
		return nil, fmt.Errorf("mixture: %d models, %d weights, a vocabulary of %d", len(members), len(mix.Weights), vocab)
	}
	return paged(&Mixture{mix: mix, members: members, vocab: vocab}), nil
}

// MixedBundle is what is to be known of a mixture of bundles: the first one's tokenizer and
// defaults, the shortest context, no parameters. It refuses those whose tokens differ.
func MixedBundle(names []string, all []*bundle.Bundle) (*bundle.Bundle, error) {
	first := *all[0]
	for i, b := range all[1:] {
		if !token.Equal(first.Tokenizer, b.Tokenizer) {
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
		m.logits, m.sum = make([]float32, n*m.vocab), make([]float64, n*m.vocab)
	}
	sum := m.sum[:n*m.vocab]
	clear(sum)
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
			m.add(sum[i*m.vocab:(i+1)*m.vocab], logits[i*wide:i*wide+m.vocab], m.mix.Weights[k])
		}
	}
	out := m.logits[:n*m.vocab]
	m.finish(out, sum)
	return out, nil
}

// add adds one model's part to a sequence's sum: of probabilities, or of their logarithms.
func (m *Mixture) add(sum []float64, logits []float32, weight float64) {
	if m.exp == nil {
		m.exp = make([]float64, m.vocab)
	}
	top, total := float64(slices.Max(logits)), 0.0
	for i, v := range logits {
		m.exp[i] = math.Exp(float64(v) - top)
		total += m.exp[i]
	}
	if m.mix.Geometric {
		norm := top + math.Log(total)
		for i, v := range logits {
			sum[i] += weight * (float64(v) - norm)
		}
		return
	}
	for i, p := range m.exp {
		sum[i] += weight / total * p
	}
}

// finish makes logits of sums. What no model gives any probability keeps the least that
// there is, so that a grammar may still choose it.
func (m *Mixture) finish(out []float32, sum []float64) {
	for i, v := range sum {
		if !m.mix.Geometric {
			v = math.Log(max(v, math.SmallestNonzeroFloat64))
		}
		out[i] = float32(v)
	}
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
