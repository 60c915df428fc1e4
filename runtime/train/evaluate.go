package train

import (
	"context"
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// Evaluator is the part of a model that scores.
type Evaluator interface {
	Eval(b engine.Batch) (nll float64, tokens int, err error)
}

// Score is the result of an evaluation.
type Score struct {
	NLL    float64 `json:"nll" msgpack:"nll"`       // summed, nats
	Tokens int64   `json:"tokens" msgpack:"tokens"` // scored
	Bytes  int64   `json:"bytes" msgpack:"bytes"`   // of the text they stand for
}

// BitsPerByte is Σ nll / (ln 2 · bytes).
func (s Score) BitsPerByte() float64 { return s.NLL / (math.Ln2 * float64(max(s.Bytes, 1))) }

// Perplexity is per token.
func (s Score) Perplexity() float64 { return math.Exp(s.NLL / float64(max(s.Tokens, 1))) }

// Share is the part of an evaluation that one rank does: windows whose number
// is Rank modulo World.
type Share struct{ Rank, World int }

// Sliding scores every document of the corpus in windows of context tokens with
// a stride of half of it: each token once, in the first window that reaches it,
// with as much before it as that window gives. The beginning-of-text token that
// starts a document is context only. batch is the number of windows that one
// Eval takes.
func Sliding(ctx context.Context, m Evaluator, c *Corpus, context_, batch int, share Share) (Score, error) {
	w := windower{m: m, t: context_, max: batch, share: share}
	stride := max(1, context_/2)
	for d := range c.Docs() {
		from, to := c.doc(d)
		// Targets are from+1 … to−1; window k reads inputs from+k·stride on.
		scoredTo := from + 1
		for start := from; scoredTo < to; start += stride {
			if err := ctx.Err(); err != nil {
				return Score{}, err
			}
			end := min(start+context_, to-1) // inputs [start, end)
			if err := w.add(c.tokens[start:end+1], scoredTo-start-1); err != nil {
				return Score{}, err
			}
			scoredTo = end + 1
		}
	}
	err := w.flush()
	w.score.Bytes = c.Bytes()
	return w.score, err
}

// Sample scores at most limit tokens of the corpus in windows that do not
// overlap, spread evenly over it: the quick score by which trials are compared.
// byteLen gives the text length of a token id.
func Sample(m Evaluator, c *Corpus, context_, batch int, limit int64, byteLen func(id int32) int, share Share) (Score, error) {
	w := windower{m: m, t: context_, max: batch, share: share, byteLen: byteLen}
	n := (len(c.tokens) - 1) / context_
	if n == 0 {
		if err := w.add(c.tokens, 0); err != nil {
			return Score{}, err
		}
		return w.score, w.flush()
	}
	take := min(n, max(1, int(limit/int64(context_))))
	for i := range take {
		at := i * n / take * context_
		if err := w.add(c.tokens[at:at+context_+1], 0); err != nil {
			return Score{}, err
		}
	}
	err := w.flush()
	return w.score, err
}

// windower gathers windows into batches.
type windower struct {
	m       Evaluator
	t, max  int
	share   Share
	byteLen func(int32) int

	n     int // windows seen
	b     engine.Batch
	score Score
}

// add takes a window of inputs and targets (len(tokens) = inputs + 1); targets
// before index skip are context only.
func (w *windower) add(tokens []uint32, skip int) error {
	w.n++
	if w.share.World > 1 && (w.n-1)%w.share.World != w.share.Rank {
		return nil
	}
	at := w.b.B * w.t
	if w.b.Inputs == nil {
		w.b.Inputs, w.b.Targets = make([]int32, w.max*w.t), make([]int32, w.max*w.t)
	}
	for i := range w.t {
		w.b.Inputs[at+i], w.b.Targets[at+i] = 0, engine.Ignore
		if i+1 < len(tokens) {
			w.b.Inputs[at+i] = int32(tokens[i] &^ scoredBit)
			if tok := tokens[i+1]; tok&scoredBit != 0 && i >= skip {
				id := int32(tok &^ scoredBit)
				w.b.Targets[at+i] = id
				if w.byteLen != nil {
					w.score.Bytes += int64(w.byteLen(id))
				}
			}
		}
	}
	if w.b.B++; w.b.B == w.max {
		return w.flush()
	}
	return nil
}

func (w *windower) flush() error {
	if w.b.B == 0 {
		return nil
	}
	b := w.b
	b.T = w.t
	b.Inputs, b.Targets, b.Norm = b.Inputs[:b.B*w.t], b.Targets[:b.B*w.t], 1
	w.b.B = 0
	nll, n, err := w.m.Eval(b)
	w.score.NLL += nll
	w.score.Tokens += int64(n)
	return err
}
