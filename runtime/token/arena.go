package token

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// symbol is the id of a symbol in an arena: two bytes where the vocabulary allows
// it, since an arena is as long as all words and read at random.
type symbol interface{ uint16 | uint32 }

// gap stands between words. It is a special token's id, which no word holds.
const gap = 0

// arena holds every distinct word once, one slot a byte. A symbol of n bytes fills
// n slots: its id stands in the first and in the last one and holes between, so
// that the neighbours on both sides of a symbol are found without links.
// Invariant: the slot beside a symbol holds a gap or an end of another symbol.
type arena[S symbol] struct {
	syms   []S
	length []uint32 // bytes of each symbol, by id
	runs   []freqRun
}

// freqRun says that the words before slot end, and not of an earlier run, occur
// freq times each.
type freqRun struct {
	end  uint32
	freq int64
}

// newArena lays the words out, the most frequent first: then few runs tell how
// often each occurs. byteID gives the symbols of single bytes.
func newArena[S symbol](tables []*wordTable, byteID *[256]uint32) (*arena[S], error) {
	type ref struct {
		table int
		word  *word
	}
	var often []ref                       // words that occur more than once
	size := uint64(1)                     // slots of those and the first gap
	once := make([]uint64, len(tables)+1) // slots of the others, summed over tables
	for k, t := range tables {
		once[k+1] = once[k]
		for i := range t.words {
			if w := &t.words[i]; w.count == 1 {
				once[k+1] += uint64(w.length) + 1
			} else {
				often = append(often, ref{k, w})
				size += uint64(w.length) + 1
			}
		}
	}
	total := size + once[len(tables)]
	if total > math.MaxUint32 {
		return nil, fmt.Errorf("the distinct words have %d bytes and may have 4 GiB: train on a part of the text", total)
	}
	slices.SortFunc(often, func(a, b ref) int { return cmp.Compare(b.word.count, a.word.count) })

	a := &arena[S]{syms: make([]S, total)}
	put := func(p uint64, s string) uint64 {
		for i := range len(s) {
			a.syms[p] = S(byteID[s[i]])
			p++
		}
		return p + 1
	}
	p := uint64(1)
	for i, r := range often {
		p = put(p, tables[r.table].of(r.word))
		if i+1 == len(often) || often[i+1].word.count != r.word.count {
			a.runs = append(a.runs, freqRun{uint32(p), r.word.count})
		}
	}
	a.runs = append(a.runs, freqRun{math.MaxUint32, 1})
	parallel(len(tables), func(k int) {
		t, p := tables[k], size+once[k]
		for i := range t.words {
			if w := &t.words[i]; w.count == 1 {
				p = put(p, t.of(w))
			}
		}
	})
	a.length = make([]uint32, int(numSpecials)+256)
	for _, id := range byteID {
		a.length[id] = 1
	}
	return a, nil
}

// run is the index of the run of frequencies that slot p belongs to.
func (a *arena[S]) run(p uint32) int {
	i, _ := slices.BinarySearchFunc(a.runs, p, func(r freqRun, p uint32) int {
		if r.end <= p {
			return -1
		}
		return 1
	})
	return i
}

// regions cuts the arena into n stretches of whole words, given by their ends;
// each starts and ends at a gap.
func (a *arena[S]) regions(n int) []int {
	cuts := []int{0}
	for k := 1; k < n; k++ {
		p := max(cuts[k-1], len(a.syms)*k/n)
		for a.syms[p] != gap {
			p++
		}
		cuts = append(cuts, p)
	}
	return append(cuts, len(a.syms)-1)
}

// neighbours calls visit for each pair of neighbours between two gaps, with the slot of
// its left symbol and how often its word occurs.
func (a *arena[S]) neighbours(from, to int, visit func(left, right S, p uint32, freq int64)) {
	run := a.run(uint32(from))
	for p := from; p < to; {
		left := a.syms[p]
		if left == gap {
			p++
			for uint32(p) >= a.runs[run].end {
				run++
			}
			continue
		}
		q := p + int(a.length[left])
		if right := a.syms[q]; right != gap {
			visit(left, right, uint32(p), a.runs[run].freq)
		}
		p = q
	}
}
