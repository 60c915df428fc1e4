package native

import (
	"fmt"
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// Eval returns the summed negative log-likelihood (nats) of a batch's scored targets and
// their number, as engine.Model's does, by the very products that generate: that is the
// score of weights of few bits. It needs room for B sequences (DecoderOptions.MaxSeqs)
// beside those that are held.
func (d *Decoder) Eval(b engine.Batch) (nll float64, tokens int, err error) {
	V := d.arch.Vocab
	if len(b.Inputs) != b.B*b.T || len(b.Targets) != b.B*b.T {
		return 0, 0, fmt.Errorf("native: score of %d inputs and %d targets, want %d sequences of %d", len(b.Inputs), len(b.Targets), b.B, b.T)
	}
	if err := engine.CheckIDs(b.Inputs, V); err != nil {
		return 0, 0, fmt.Errorf("native: %w", err)
	}
	for i, id := range b.Targets {
		if id != engine.Ignore && (id < 0 || int(id) >= V) {
			return 0, 0, fmt.Errorf("native: target %d is %d, vocabulary has %d", i, id, V)
		}
	}
	seqs := make([]*cache, b.B)
	name := func(s int) int { return -1 - s }
	defer func() {
		for s := range seqs {
			d.Drop(name(s))
		}
	}()
	for s := range seqs {
		if seqs[s], err = d.reach(name(s), b.T); err != nil {
			return 0, 0, err
		}
	}
	var targets []int32
	for t := 0; t < b.T; t += prefillRows {
		n := min(prefillRows, b.T-t)
		d.rows, targets = d.rows[:0], targets[:0]
		for s, c := range seqs {
			for p := t; p < t+n; p++ {
				out, at := -1, s*b.T+p
				if id := b.Targets[at]; id != engine.Ignore {
					out, targets = len(targets), append(targets, id)
				}
				d.rows = append(d.rows, row{c, b.Inputs[at], p, out})
			}
		}
		d.grow(len(targets))
		for i, w := range d.worker { // whole sequences: their rows depend on each other
			w.from, w.to = b.B*i/len(d.worker)*n, b.B*(i+1)/len(d.worker)*n
		}
		if err := d.team.run(0); err != nil {
			return 0, 0, err
		}
		for i, id := range targets {
			nll += surprise(d.logits[i*V:(i+1)*V], int(id))
		}
		tokens += len(targets)
	}
	return nll, tokens, nil
}

// surprise is −log softmax(logits)[id]; it overwrites them.
func surprise(logits []float32, id int) float64 {
	largest, own := kernel.Max(logits), logits[id]
	return math.Log(float64(kernel.ExpSum(logits, logits, 1, largest))) + float64(largest) - float64(own)
}
