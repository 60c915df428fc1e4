package token

import "sync"

// Joins of fewer places than this are not worth a thread more. A variable for
// the tests alone.
var placesPerThread = 1 << 13

// join replaces a pair by the next symbol wherever it stands, from left to right,
// and brings the counts of the neighbouring pairs up to date.
func (l *pairLearner[S]) join(i uint32) {
	p := l.pairs[i]
	l.pairs[i].at, l.pairs[i].count = nil, 0
	id := uint32(len(l.length))
	l.length = append(l.length, l.length[p.left]+l.length[p.right])

	tally := l.tally[:max(1, min(len(l.tally), len(p.at)/placesPerThread))]
	parts := l.cut(p.at, len(tally))
	parallel(len(tally), func(k int) {
		tally[k].reset(len(l.length))
		tally[k].join(l.arena, S(p.left), S(p.right), S(id), parts[k])
	})

	// Hold the new pairs that are frequent enough. Their lists are stretches of one
	// block, in each the places of the first thread before those of the second.
	old := len(l.pairs)
	places := uint32(0)
	for side := range 2 {
		for k, y := range tally {
			for _, x := range y.touched[side] {
				made := int64(0)
				seen := false
				for j, z := range tally {
					made += z.side[side][x].made
					seen = seen || j < k && z.side[side][x].touched
				}
				left, right := x, p.left
				if side == after {
					left, right = p.right, x
				}
				l.lose(left, right, y.side[side][x].lost)
				if seen || made < l.floor {
					continue
				}
				left, right = x, id
				if side == after {
					left, right = id, x
				}
				l.hold(pair{left: left, right: right, count: made})
				for _, z := range tally {
					n := &z.side[side][x]
					n.held, n.next = n.touched, places
					places += n.places
				}
				l.ends = append(l.ends, places)
				l.up(len(l.heap) - 1)
			}
		}
	}
	if places == 0 {
		return
	}
	block := make([]uint32, places)
	from := uint32(0)
	for j, end := range l.ends {
		l.pairs[old+j].at = block[from:end:end]
		from = end
	}
	l.ends = l.ends[:0]
	parallel(len(tally), func(k int) { tally[k].list(block, l.length) })
}

// cut divides slots, which ascend, into n parts so that no word is in two.
func (a *arena[S]) cut(at []uint32, n int) [][]uint32 {
	parts := make([][]uint32, n)
	from := 0
	for k := range parts {
		to := max(from, len(at)*(k+1)/n)
		for to > 0 && to < len(at) && !a.parted(at[to-1], at[to]) {
			to++
		}
		parts[k] = at[from:to]
		from = to
	}
	return parts
}

// parted reports whether a gap lies between two slots.
func (a *arena[S]) parted(p, q uint32) bool {
	for ; p < q; p++ {
		if a.syms[p] == gap {
			return true
		}
	}
	return false
}

// parallel calls f with 0 to n-1 at the same time.
func parallel(n int, f func(k int)) {
	if n == 1 {
		f(0)
		return
	}
	var wg sync.WaitGroup
	for k := range n {
		wg.Go(func() { f(k) })
	}
	wg.Wait()
}

// tally is what one thread's share of a join changes, by the symbol that stands
// before or after the joined pair: plain arrays, since one side of every changed
// pair is fixed.
type tally[S symbol] struct {
	side    [2][]neighbour
	touched [2][]uint32
	joined  []joined[S]
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
	places     uint32 // of the new pair
	next       uint32 // where in the block its next place is listed, if held
	touched    bool
	held       bool
}

// joined is one place where the pair was joined, and what stands beside it once
// the whole word is done.
type joined[S symbol] struct {
	at            uint32
	before, after S
}

func (y *tally[S]) reset(symbols int) {
	for s := range y.side {
		for _, x := range y.touched[s] {
			y.side[s][x] = neighbour{}
		}
		y.touched[s] = y.touched[s][:0]
		if n := symbols - len(y.side[s]); n > 0 {
			y.side[s] = append(y.side[s], make([]neighbour, n)...)
		}
	}
	y.joined = y.joined[:0]
}

func (y *tally[S]) at(side int, x S) *neighbour {
	n := &y.side[side][x]
	if !n.touched {
		n.touched = true
		y.touched[side] = append(y.touched[side], uint32(x))
	}
	return n
}

// join rewrites the words that at points into, which no other thread touches.
func (y *tally[S]) join(a *arena[S], left, right, id S, at []uint32) {
	if len(at) == 0 {
		return
	}
	hole := ^S(0)
	syms := a.syms
	nl, nr := a.length[left], a.length[right]
	run := a.run(at[0])
	for _, p := range at {
		if syms[p] != left || syms[p+nl] != right {
			continue // joined with another symbol meanwhile
		}
		for p >= a.runs[run].end {
			run++
		}
		freq := a.runs[run].freq
		end := p + nl + nr
		b, f := syms[p-1], syms[end]
		if b != gap {
			n := y.at(before, b)
			if b == id { // the pair before was followed by left, which is gone
				last := &y.joined[len(y.joined)-1]
				last.after = id
				m := y.at(after, left)
				m.made -= freq
				m.places--
				n = y.at(after, id)
				n.made += freq
				n.places++
			} else {
				n.lost += freq
				n.made += freq
				n.places++
			}
		}
		if f != gap {
			n := y.at(after, f)
			n.lost += freq
			n.made += freq
			n.places++
		}
		syms[p+nl-1], syms[p+nl] = hole, hole
		syms[p], syms[end-1] = id, id
		y.joined = append(y.joined, joined[S]{p, b, f})
	}
}

// list writes the places of the new pairs that are held into the block.
func (y *tally[S]) list(block, length []uint32) {
	for _, j := range y.joined {
		if j.before != gap {
			if n := &y.side[before][j.before]; n.held {
				block[n.next] = j.at - length[j.before]
				n.next++
			}
		}
		if j.after != gap {
			if n := &y.side[after][j.after]; n.held {
				block[n.next] = j.at
				n.next++
			}
		}
	}
}
