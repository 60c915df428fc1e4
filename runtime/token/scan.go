package token

// A scan holds the pairs that count at least a sixteenth of the best. More would
// take memory and time for pairs that are never merged, fewer would need more scans.
const floorShare = 16

// sketchSize is the number of sums that pairs share, a power of two.
const sketchSize = 1 << 20

// sketch bounds the count of every pair from above in little memory: pairs that
// share a sum are counted together.
type sketch []uint32

func sketchSlot[S symbol](left, right S) uint64 {
	return pairKey(uint32(left), uint32(right)) * 0x9e3779b97f4a7c15 >> (64 - 20)
}

func (s sketch) add(slot uint64, n int64) {
	s[slot] = uint32(min(int64(s[slot])+n, 1<<32-1)) // more is not told apart
}

// found counts, on one thread, the pairs whose sums are large enough.
type found struct {
	index  *pairTable // into the rest
	keys   []uint64
	counts []int64
	places []uint32
	next   []uint32 // by number; where in the block the next place is listed, or unheld
}

const unheld = ^uint32(0)

// scan sets a new floor and finds all pairs above it, with their places.
func (l *pairLearner[S]) scan() {
	threads := len(l.tally)
	cuts := l.regions(threads)
	sketches := make([]sketch, threads)
	parallel(threads, func(k int) {
		s := make(sketch, sketchSize)
		l.neighbours(cuts[k], cuts[k+1], func(left, right S, _ uint32, freq int64) { s.add(sketchSlot(left, right), freq) })
		sketches[k] = s
	})
	sum, best := sketches[0], uint32(0)
	for slot := range sum {
		for _, s := range sketches[1:] {
			sum.add(uint64(slot), int64(s[slot]))
		}
		best = max(best, sum[slot])
	}
	// The best sum may be that of several pairs: with no pair found the next scan
	// goes lower than this one's floor.
	l.floor = max(l.least, min(int64(best), l.floor-1)/floorShare)
	enough := uint32(min(l.floor, 1<<32-1))

	all := make([]*found, threads)
	parallel(threads, func(k int) {
		f := &found{index: newPairTable(1 << 12)}
		l.neighbours(cuts[k], cuts[k+1], func(left, right S, _ uint32, freq int64) {
			if sum[sketchSlot(left, right)] < enough {
				return
			}
			i := f.index.get(uint32(left), uint32(right))
			if i == noRank {
				i = uint32(len(f.keys))
				f.index.put(uint32(left), uint32(right), i)
				f.keys = append(f.keys, pairKey(uint32(left), uint32(right)))
				f.counts = append(f.counts, 0)
				f.places = append(f.places, 0)
				f.next = append(f.next, unheld)
			}
			f.counts[i] += freq
			f.places[i]++
		})
		all[k] = f
	})

	l.pairs, l.heap, l.index = nil, nil, newPairTable(1<<12)
	var ends []uint32
	places := uint32(0)
	for k, f := range all {
		for i, key := range f.keys {
			left, right := uint32(key>>32), uint32(key)
			if f.next[i] != unheld {
				continue
			}
			count := f.counts[i]
			for _, g := range all[k+1:] {
				if j := g.index.get(left, right); j != noRank {
					count += g.counts[j]
				}
			}
			if count < l.floor || l.index.get(left, right) != noRank {
				continue
			}
			l.hold(pair{left: left, right: right, count: count})
			for _, g := range all[k:] {
				if j := g.index.get(left, right); j != noRank {
					g.next[j] = places
					places += g.places[j]
				}
			}
			ends = append(ends, places)
		}
	}
	for i := len(l.heap)/2 - 1; i >= 0; i-- {
		l.down(i)
	}
	block := make([]uint32, places)
	from := uint32(0)
	for i, end := range ends {
		l.pairs[i].at = block[from:end:end]
		from = end
	}
	parallel(threads, func(k int) {
		f := all[k]
		l.neighbours(cuts[k], cuts[k+1], func(left, right S, p uint32, _ int64) {
			if sum[sketchSlot(left, right)] < enough {
				return
			}
			if i := f.index.get(uint32(left), uint32(right)); f.next[i] != unheld {
				block[f.next[i]] = p
				f.next[i]++
			}
		})
	})
}
