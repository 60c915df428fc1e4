package token

import "sync"

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
	tally  []*tally    // one a thread
}

func newLearner(words []word, byteID *[256]uint32, threads int) *learner {
	n := 0
	for _, w := range words {
		n += len(w.text)
	}
	l := &learner{
		syms: make([]uint32, 0, n), start: make([]uint32, len(words)), length: make([]uint32, len(words)),
		freq: make([]int64, len(words)), pairs: map[uint64]*pair{},
	}
	for range threads {
		l.tally = append(l.tally, &tally{})
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

// Joins of fewer words than this are not worth a thread more. A variable for
// the tests alone.
var wordsPerThread = 1 << 14

// join replaces the pair by the symbol id in every word, from left to right, and
// brings the counts of the neighbouring pairs up to date.
func (l *learner) join(p *pair, id uint32) {
	delete(l.pairs, pairKey(p.left, p.right))
	n := max(1, min(len(l.tally), len(p.words)/wordsPerThread))
	var wg sync.WaitGroup
	for i, y := range l.tally[:n] {
		words := p.words[len(p.words)*i/n : len(p.words)*(i+1)/n]
		y.reset(int(id) + 1)
		if n == 1 {
			y.join(l, p.left, p.right, id, words)
			continue
		}
		wg.Go(func() { y.join(l, p.left, p.right, id, words) })
	}
	wg.Wait()
	p.words = nil

	var fresh []*pair
	made := map[uint64]*pair{}
	add := func(left, right uint32, n *neighbour) {
		if len(n.words) == 0 && n.made == 0 {
			return
		}
		q := made[pairKey(left, right)]
		if q == nil {
			q = &pair{left: left, right: right}
			made[pairKey(left, right)] = q
			fresh = append(fresh, q)
		}
		q.count += n.made
		q.words = append(q.words, n.words...) // threads have ascending words, in order
	}
	for _, y := range l.tally[:n] {
		for _, x := range y.touched[before] {
			n := &y.side[before][x]
			l.lose(x, p.left, n.lost)
			add(x, id, n)
		}
		for _, x := range y.touched[after] {
			n := &y.side[after][x]
			l.lose(p.right, x, n.lost)
			add(id, x, n)
		}
	}
	for _, q := range fresh {
		if q.count > 0 {
			key := pairKey(q.left, q.right)
			l.pairs[key] = q
			l.heap = append(l.heap, candidate{count: q.count, key: key})
			l.up(len(l.heap) - 1)
		}
	}
}

func (l *learner) lose(a, b uint32, n int64) {
	if p := l.pairs[pairKey(a, b)]; p != nil {
		p.count -= n
	}
}

// tally is what one thread's share of a join changes, by the symbol that stands
// before or after the joined pair: plain arrays, since one side of every changed
// pair is fixed.
type tally struct {
	side    [2][]neighbour
	touched [2][]uint32
}

const (
	before = iota
	after
)

// neighbour counts for one symbol x beside a joined pair. Before it: lost is of
// (x, left), made of (x, joined). After it: lost is of (right, x), made of
// (joined, x).
type neighbour struct {
	lost, made int64
	words      []uint32 // that hold the new pair
	touched    bool
}

func (y *tally) reset(symbols int) {
	for s := range y.side {
		for _, x := range y.touched[s] {
			y.side[s][x] = neighbour{}
		}
		y.touched[s] = y.touched[s][:0]
		for len(y.side[s]) < symbols {
			y.side[s] = append(y.side[s], neighbour{})
		}
	}
}

func (y *tally) at(side int, x uint32) *neighbour {
	n := &y.side[side][x]
	if !n.touched {
		n.touched = true
		y.touched[side] = append(y.touched[side], x)
	}
	return n
}

func (n *neighbour) add(freq int64, w uint32) {
	n.made += freq
	if k := len(n.words); k == 0 || n.words[k-1] != w {
		n.words = append(n.words, w)
	}
}

// join rewrites the words, which no other thread touches.
func (y *tally) join(l *learner, left, right, id uint32, words []uint32) {
	for _, w := range words {
		s := l.syms[l.start[w] : l.start[w]+l.length[w]]
		freq := l.freq[w]
		n := 0 // symbols written; s[:n] is done
		for i := 0; i < len(s); i++ {
			if i+1 == len(s) || s[i] != left || s[i+1] != right {
				s[n] = s[i]
				n++
				continue
			}
			if n > 0 {
				b := y.at(before, s[n-1])
				if s[n-1] == id { // (id, left) was made a moment ago
					y.at(after, left).made -= freq
				} else {
					b.lost += freq
				}
				b.add(freq, w)
			}
			if i+2 < len(s) {
				a := y.at(after, s[i+2])
				a.lost += freq
				a.add(freq, w)
			}
			s[n] = id
			n++
			i++
		}
		l.length[w] = uint32(n)
	}
}

func (l *learner) better(a, b candidate) bool {
	return a.count > b.count || a.count == b.count && a.key < b.key
}

func (l *learner) up(i int) {
	for i > 0 {
		p := (i - 1) / 2
		if !l.better(l.heap[i], l.heap[p]) {
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
		if c+1 < len(l.heap) && l.better(l.heap[c+1], l.heap[c]) {
			c++
		}
		if !l.better(l.heap[c], l.heap[i]) {
			return
		}
		l.heap[i], l.heap[c] = l.heap[c], l.heap[i]
		i = c
	}
}
