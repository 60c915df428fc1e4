package token

import (
	"context"
	"fmt"
	"slices"
)

// TrainConfig says how large a vocabulary to make.
type TrainConfig struct {
	// VocabSize is the number of ids wanted, special tokens and bytes included;
	// at least MinVocab, at most MaxVocab.
	VocabSize int
	// MinFrequency is the smallest count that a pair must have to be merged;
	// 0 and 1 are the same.
	MinFrequency int
	// Threads count words at the same time; at least 1.
	Threads int
}

// MaxVocab bounds what a Trainer makes.
const MaxVocab = 1 << 20

// DefaultTrainConfig merges pairs that occur at least twice, on one thread.
func DefaultTrainConfig() TrainConfig {
	return TrainConfig{VocabSize: 4096, MinFrequency: 2, Threads: 1}
}

// Validate reports the first field that can't be.
func (c TrainConfig) Validate() error {
	switch {
	case c.VocabSize < MinVocab || c.VocabSize > MaxVocab:
		return fmt.Errorf("tokenizer: vocab size is %d, must be %d (special tokens and bytes) to %d", c.VocabSize, MinVocab, MaxVocab)
	case c.MinFrequency < 0:
		return fmt.Errorf("tokenizer: min frequency is %d, must not be negative", c.MinFrequency)
	case c.Threads < 1:
		return fmt.Errorf("tokenizer: threads is %d, must be at least 1", c.Threads)
	}
	return nil
}

// pair is a candidate for merging. Its words are those that held it when it came
// to be; some may not any more.
type pair struct {
	left, right uint32
	count       int64
	words       []uint32 // ascending
}

// candidate is a pair as the heap knows it; count may be stale, never too low.
type candidate struct {
	count int64
	key   uint64 // left<<32|right
}

// Train makes the tokenizer from what was added; the Trainer may go on afterwards.
// The merges are those of Hugging Face's BpeTrainer: always the pair with the
// highest count, of equals the one with the smaller ids. When the data has no
// more pairs the vocabulary is smaller than asked: see VocabSize. Training to a
// larger size only appends merges, so Truncate gives the smaller ones.
func (tr *Trainer) Train(ctx context.Context) (*Tokenizer, error) {
	tr.flush()
	t := &Tokenizer{split: SplitLlama3, ignoreMerges: true, bos: BOSID}
	for id, s := range specials {
		t.added = append(t.added, added{id: int32(id), content: s, special: true})
		t.symbols = append(t.symbols, s)
		t.inModel = append(t.inModel, true)
	}
	var byteID [256]uint32
	for i, b := range byteOrder {
		byteID[b] = uint32(int(numSpecials) + i)
		t.symbols = append(t.symbols, string([]byte{b}))
		t.inModel = append(t.inModel, true)
	}

	l := newLearner(tr.words(), &byteID)
	for step := 0; len(t.symbols) < tr.cfg.VocabSize; step++ {
		if step&63 == 0 && ctx.Err() != nil {
			return nil, fmt.Errorf("train tokenizer: %w", context.Cause(ctx))
		}
		p := l.pop()
		if p == nil || p.count < int64(max(tr.cfg.MinFrequency, 1)) {
			break
		}
		id := uint32(len(t.symbols))
		t.merges = append(t.merges, [2]int32{int32(p.left), int32(p.right)})
		t.symbols = append(t.symbols, t.symbols[p.left]+t.symbols[p.right])
		t.inModel = append(t.inModel, true)
		l.join(p, id)
	}
	if err := t.finish(); err != nil {
		return nil, fmt.Errorf("train tokenizer: %w", err)
	}
	return t, nil
}

// learner holds the words as symbols and the counts of their pairs.
// Invariant: count of a pair is the number of times its symbols stand side by
// side over all words, each weighed by its frequency.
type learner struct {
	syms   []uint32 // of all words, one after another
	start  []uint32 // of each word in syms, in the order of words
	length []uint32
	freq   []int64
	pairs  map[uint64]*pair
	heap   []candidate // largest count first, of equals the smallest key
	fresh  []uint64    // pairs that the last join made
}

func newLearner(words []word, byteID *[256]uint32) *learner {
	n := 0
	for _, w := range words {
		n += len(w.text)
	}
	l := &learner{
		syms: make([]uint32, 0, n), start: make([]uint32, len(words)), length: make([]uint32, len(words)),
		freq: make([]int64, len(words)), pairs: map[uint64]*pair{},
	}
	// All first pairs are of two bytes: count them and the lists' lengths in
	// plain arrays.
	type stat struct {
		count int64
		words uint32
		last  uint32
	}
	stats := make([]stat, 1<<16)
	for i, w := range words {
		l.start[i], l.length[i], l.freq[i] = uint32(len(l.syms)), uint32(len(w.text)), w.count
		for j := range len(w.text) {
			l.syms = append(l.syms, byteID[w.text[j]])
			if j > 0 {
				s := &stats[int(w.text[j-1])<<8|int(w.text[j])]
				s.count += w.count
				if s.last != uint32(i+1) {
					s.last = uint32(i + 1)
					s.words++
				}
			}
		}
	}
	byBytes := make([]*pair, 1<<16)
	for k := range stats {
		if s := &stats[k]; s.count > 0 {
			p := &pair{left: byteID[k>>8], right: byteID[k&255], count: s.count, words: make([]uint32, 0, s.words)}
			byBytes[k] = p
			l.pairs[pairKey(p.left, p.right)] = p
			l.heap = append(l.heap, candidate{count: p.count, key: pairKey(p.left, p.right)})
		}
	}
	for i, w := range words {
		for j := 1; j < len(w.text); j++ {
			p := byBytes[int(w.text[j-1])<<8|int(w.text[j])]
			if k := len(p.words); k == 0 || p.words[k-1] != uint32(i) {
				p.words = append(p.words, uint32(i))
			}
		}
	}
	for i := len(l.heap)/2 - 1; i >= 0; i-- {
		l.down(i)
	}
	return l
}

// pop takes the best pair out, or returns nil when none is left.
func (l *learner) pop() *pair {
	for len(l.heap) > 0 {
		top := l.heap[0]
		p := l.pairs[top.key]
		if p.count == top.count {
			l.drop()
			return p
		}
		if p.count <= 0 {
			l.drop()
			continue
		}
		l.heap[0].count = p.count
		l.down(0)
	}
	return nil
}

func (l *learner) drop() {
	last := len(l.heap) - 1
	l.heap[0] = l.heap[last]
	l.heap = l.heap[:last]
	if last > 0 {
		l.down(0)
	}
}

// join replaces the pair by the symbol id in every word, from left to right, and
// brings the counts of the neighbouring pairs up to date.
func (l *learner) join(p *pair, id uint32) {
	l.fresh = l.fresh[:0]
	for _, w := range p.words {
		s := l.syms[l.start[w] : l.start[w]+l.length[w]]
		n := 0 // symbols written; s[:n] is done
		for i := 0; i < len(s); i++ {
			if i+1 == len(s) || s[i] != p.left || s[i+1] != p.right {
				s[n] = s[i]
				n++
				continue
			}
			if n > 0 {
				l.change(s[n-1], p.left, -l.freq[w])
				l.add(s[n-1], id, w)
			}
			if i+2 < len(s) {
				l.change(p.right, s[i+2], -l.freq[w])
				l.add(id, s[i+2], w)
			}
			s[n] = id
			n++
			i++
		}
		l.length[w] = uint32(n)
	}
	p.words = nil
	delete(l.pairs, pairKey(p.left, p.right))
	for _, key := range l.fresh {
		if q := l.pairs[key]; q.count > 0 {
			l.heap = append(l.heap, candidate{count: q.count, key: key})
			l.up(len(l.heap) - 1)
		} else {
			delete(l.pairs, key)
		}
	}
}

func (l *learner) change(a, b uint32, by int64) {
	if p := l.pairs[pairKey(a, b)]; p != nil {
		p.count += by
	}
}

// add counts a pair that holds the new symbol.
func (l *learner) add(a, b uint32, w uint32) {
	key := pairKey(a, b)
	p := l.pairs[key]
	if p == nil {
		p = &pair{left: a, right: b}
		l.pairs[key] = p
		l.fresh = append(l.fresh, key)
	}
	p.count += l.freq[w]
	if k := len(p.words); k == 0 || p.words[k-1] != w {
		p.words = append(p.words, w)
	}
}

func (l *learner) before(a, b candidate) bool {
	return a.count > b.count || a.count == b.count && a.key < b.key
}

func (l *learner) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !l.before(l.heap[i], l.heap[p]) {
			return
		}
		l.heap[i], l.heap[p] = l.heap[p], l.heap[i]
		i = p
	}
}

func (l *learner) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(l.heap) {
			return
		}
		if c+1 < len(l.heap) && l.before(l.heap[c+1], l.heap[c]) {
			c++
		}
		if !l.before(l.heap[c], l.heap[i]) {
			return
		}
		l.heap[i], l.heap[c] = l.heap[c], l.heap[i]
		i = c
	}
}

// word is a distinct piece of the text and how often it occurs.
type word struct {
	text  string
	count int64
}

// words lists the counted words of two bytes or more in a fixed order.
func (tr *Trainer) words() []word {
	total := tr.counters[0]
	for _, c := range tr.counters[1:] {
		for text, i := range c.index {
			total.add(text, c.counts[i])
		}
		*c = *newCounter()
	}
	out := make([]word, 0, len(total.index))
	for text, i := range total.index {
		if len(text) > 1 {
			out = append(out, word{text, total.counts[i]})
		}
	}
	slices.SortFunc(out, func(a, b word) int {
		if a.text < b.text {
			return -1
		}
		return 1
	})
	return out
}
