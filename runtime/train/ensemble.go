package train

import (
	"context"
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// EachEvaluator is a model that tells each token's score.
type EachEvaluator interface {
	// EvalEach is Evaluator's Eval, and leaves the negative log-likelihood of each scored
	// target in nll, [B, T].
	EvalEach(b engine.Batch, nll []float32) (sum float64, tokens int, err error)
}

// TokenScores is Sliding by each token: the negative log-likelihood of every scored token
// of the corpus, in its order, whatever the model's context.
func TokenScores(ctx context.Context, m EachEvaluator, c *Corpus, context_, batch int) ([]float32, error) {
	e := &each{m: m}
	_, err := Sliding(ctx, e, c, context_, batch, Share{})
	return e.nll, err
}

// each gathers tokens' scores.
type each struct {
	m   EachEvaluator
	nll []float32
	buf []float32
}

func (e *each) Eval(b engine.Batch) (float64, int, error) {
	if n := b.B * b.T; len(e.buf) < n {
		e.buf = make([]float32, n)
	}
	sum, n, err := e.m.EvalEach(b, e.buf)
	for i, t := range b.Targets {
		if t != engine.Ignore {
			e.nll = append(e.nll, e.buf[i])
		}
	}
	return sum, n, err
}

// Vote is a set of models whose probabilities are averaged.
type Vote struct {
	Weights []float64 // of the models, which add up to 1
	Comparison
}

// Constants of the selection.
const (
	selectRounds = 24 // additions: weights are multiples of a share of them
	selectBlock  = 64 // tokens of a batch of the comparison
)

// Select chooses among models, the first of which is the one to beat, by the scores that
// each gives the tokens of a text of so many bytes (Caruana et al. 2004): round by round
// the one is added, once more if need be, that the mean of probabilities gains most by.
// The vote of the best round is taken where it is better than the first model by more than
// twice the noise. All models share a tokenizer.
func Select(nll [][]float32, bytes int64) Vote {
	n := len(nll[0])
	sum := make([]float64, n) // of the chosen ones' probabilities
	counts, best := make([]int, len(nll)), make([]int, len(nll))
	least := math.Inf(1)
	for round := 1; round <= selectRounds; round++ {
		pick, low := -1, math.Inf(1)
		for k := range nll {
			total := 0.0
			for i, x := range nll[k] {
				total -= math.Log(max((sum[i]+math.Exp(-float64(x)))/float64(round), math.SmallestNonzeroFloat64))
			}
			if total < low {
				pick, low = k, total
			}
		}
		if pick < 0 {
			break
		}
		counts[pick]++
		for i, x := range nll[pick] {
			sum[i] += math.Exp(-float64(x))
		}
		if low+1e-9*math.Abs(low) < least { // the fewest additions of those that are equal
			least = low
			copy(best, counts)
		}
	}
	v := Vote{Weights: make([]float64, len(nll))}
	chosen, members := 0, 0
	for _, c := range best {
		chosen += c
		if c > 0 {
			members++
		}
	}
	for k, c := range best {
		v.Weights[k] = float64(c) / float64(max(chosen, 1))
	}
	v.Comparison = Compare(Mix(nll, v.Weights), nll[0], bytes)
	v.Taken = v.Taken && members > 1
	return v
}

// Mix is the score of each token under the weighted mean of the models' probabilities.
func Mix(nll [][]float32, weights []float64) []float32 {
	out := make([]float32, len(nll[0]))
	for i := range out {
		p := 0.0
		for k, w := range weights {
			if w > 0 {
				p += w * math.Exp(-float64(nll[k][i]))
			}
		}
		out[i] = float32(-math.Log(max(p, math.SmallestNonzeroFloat64)))
	}
	return out
}

// Compare holds the tokens' scores of one model against those of another on a text of so
// many bytes.
func Compare(a, b []float32, bytes int64) Comparison { return compare(blocks(a), blocks(b), bytes) }

// blocks sums scores over batches of tokens: neighbours' are not independent.
func blocks(nll []float32) []float64 {
	out := make([]float64, (len(nll)+selectBlock-1)/selectBlock)
	for i, x := range nll {
		out[i/selectBlock] += float64(x)
	}
	return out
}
