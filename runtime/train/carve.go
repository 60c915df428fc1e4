package train

import (
	"context"
	"errors"
	"fmt"
)

// The stretches that Carve takes out are of minStretch to maxStretch tokens.
const (
	minStretch = 64
	maxStretch = 1024
)

// Carve lays the documents of some corpora down as two: stretches from evenly
// over all of them as guard, and the rest. The final training learns from the
// rest and keeps the checkpoint that does best on the guard. A part at the end
// of the text can't serve for that: it lies closest to what comes next, and so
// is what the model must learn from.
//
// The guard takes 2 % of the tokens, 5 % of fewer than 160 thousand. A document
// of less than two stretches goes to one side whole; a longer one is cut. Of
// fewer than 1,280 tokens nothing can be spared: both sides have them all.
// byteLens is the text length of each id.
func Carve(ctx context.Context, from []string, rest, guard string, byteLens []int) (err error) {
	var total int
	var sources []*Corpus
	defer func() {
		for _, c := range sources {
			c.Close()
		}
	}()
	for _, path := range from {
		c, err := OpenCorpus(path)
		if err != nil {
			return err
		}
		sources = append(sources, c)
		total += len(c.tokens)
	}
	want := max(total/50, min(8192, total/20))
	stretch := max(minStretch, min(maxStretch, want/4))
	period := max(20*stretch, total/max(1, want/stretch))
	all := total < period

	out := [2]carved{{path: rest}, {path: guard}}
	defer func() {
		for i := range out {
			if out[i].w != nil {
				out[i].w.Abort()
			}
		}
		if err != nil {
			err = fmt.Errorf("token file %s: %w", rest, err)
		}
	}()
	for i := range out {
		if out[i].w, err = CreateCorpus(out[i].path); err != nil {
			return err
		}
		out[i].byteLens = byteLens
	}
	// The guard's stretches lie in the middle of each period. side tells whose the
	// token at that place of the whole is, and where its stretch ends.
	side := func(at int) (which, end int) {
		begin := at/period*period + (period-stretch)/2
		switch {
		case at < begin:
			return 0, begin
		case at < begin+stretch:
			return 1, begin + stretch
		}
		return 0, begin + period
	}
	base := 0
	for _, c := range sources {
		for d := range c.Docs() {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			lo, hi := c.doc(d)
			if all {
				if err := errors.Join(out[0].add(c.tokens[lo:hi]), out[1].add(c.tokens[lo:hi])); err != nil {
					return err
				}
				continue
			}
			for at := lo; at < hi; {
				which, end := side(base + at)
				if end -= base; end > hi || hi-lo < 2*stretch {
					end = hi
				}
				if err := out[which].add(c.tokens[at:end]); err != nil {
					return err
				}
				at = end
			}
		}
		base += len(c.tokens)
	}
	// The guard's name comes last: where it is, both are.
	for i := range out {
		w := out[i].w
		out[i].w = nil
		if err := w.Close(); err != nil {
			return err
		}
	}
	return nil
}

// carved is one side of Carve.
type carved struct {
	path     string
	w        *CorpusWriter
	byteLens []int
}

// add appends a document.
func (c *carved) add(tokens []uint32) error {
	c.w.Begin()
	bytes := 0
	for _, t := range tokens {
		if id := t &^ scoredBit; id != t {
			if int(id) >= len(c.byteLens) {
				return fmt.Errorf("token %d is not in the vocabulary of %d; delete the file and build again", id, len(c.byteLens))
			}
			bytes += c.byteLens[id]
		}
	}
	return c.w.addMarked(tokens, bytes)
}
