package token

import "math"

// learner proposes one merge after another.
type learner interface {
	// next makes the best merge, whose symbol gets the next id; ok is false when
	// no pair is frequent enough.
	next() (left, right uint32, ok bool)
}

func learn(tables []*wordTable, byteID *[256]uint32, cfg TrainConfig) (learner, error) {
	if cfg.VocabSize < 1<<16 {
		return newPairLearner[uint16](tables, byteID, cfg)
	}
	return newPairLearner[uint32](tables, byteID, cfg)
}

// pair is a candidate for merging.
type pair struct {
	left, right uint32
	count       int64
	at          []uint32 // slots of the left symbol, ascending; some may be stale
}

// candidate is a pair as the heap knows it; count may be stale, never too low.
type candidate struct {
	count int64
	key   uint64 // left<<32|right
	pair  uint32 // index
}

// pairLearner holds the words and those of their pairs that count at least floor:
// no other can be the best before those are used up, and a pair's count never
// rises after the merge that made its younger symbol. When the best falls below
// the floor, a new one is set and the words are scanned again.
// Invariant: count of a held pair is the number of times its symbols stand side by
// side over all words, each weighed by its frequency.
type pairLearner[S symbol] struct {
	*arena[S]
	least int64 // a pair that counts less is never merged
	floor int64
	pairs []pair
	index *pairTable  // into pairs
	heap  []candidate // largest count first, of equals the smallest key
	tally []*tally[S] // one a thread
	ends  []uint32    // of the lists that a join makes; kept for its memory
}

func newPairLearner[S symbol](tables []*wordTable, byteID *[256]uint32, cfg TrainConfig) (*pairLearner[S], error) {
	a, err := newArena[S](tables, byteID)
	if err != nil {
		return nil, err
	}
	l := &pairLearner[S]{arena: a, least: int64(max(cfg.MinFrequency, 1)), floor: math.MaxInt64}
	for range cfg.Threads {
		l.tally = append(l.tally, &tally[S]{})
	}
	return l, nil
}

func (l *pairLearner[S]) next() (left, right uint32, ok bool) {
	i, ok := l.pop()
	for !ok {
		if l.floor <= l.least {
			return 0, 0, false
		}
		l.scan()
		i, ok = l.pop()
	}
	left, right = l.pairs[i].left, l.pairs[i].right
	l.join(i)
	return left, right, true
}

// pop takes the best of the held pairs out of the heap.
func (l *pairLearner[S]) pop() (i uint32, ok bool) {
	for len(l.heap) > 0 {
		top := &l.heap[0]
		count := l.pairs[top.pair].count
		if count == top.count {
			i = top.pair
			l.drop()
			return i, true
		}
		if count < l.floor {
			l.drop()
			continue
		}
		top.count = count
		l.down(0)
	}
	return 0, false
}

// hold takes a pair among those that may be merged; the heap is the caller's to
// put in order.
func (l *pairLearner[S]) hold(p pair) {
	i := uint32(len(l.pairs))
	l.pairs = append(l.pairs, p)
	l.index.put(p.left, p.right, i)
	l.heap = append(l.heap, candidate{p.count, pairKey(p.left, p.right), i})
}

func (l *pairLearner[S]) lose(left, right uint32, n int64) {
	if i := l.index.get(left, right); i != noRank {
		l.pairs[i].count -= n
	}
}

func (l *pairLearner[S]) drop() {
	last := len(l.heap) - 1
	l.heap[0] = l.heap[last]
	l.heap = l.heap[:last]
	if last > 0 {
		l.down(0)
	}
}

func better(a, b candidate) bool {
	return a.count > b.count || a.count == b.count && a.key < b.key
}

func (l *pairLearner[S]) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !better(l.heap[i], l.heap[p]) {
			return
		}
		l.heap[i], l.heap[p] = l.heap[p], l.heap[i]
		i = p
	}
}

func (l *pairLearner[S]) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(l.heap) {
			return
		}
		if c+1 < len(l.heap) && better(l.heap[c+1], l.heap[c]) {
			c++
		}
		if !better(l.heap[c], l.heap[i]) {
			return
		}
		l.heap[i], l.heap[c] = l.heap[c], l.heap[i]
		i = c
	}
}
