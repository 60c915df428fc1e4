package token

import (
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

const noRank = ^uint32(0)

// pairTable finds a number that belongs to a pair, such as the rank of its merge:
// open addressing, at most half full.
type pairTable struct {
	slots []pairSlot
	shift uint
	n     int
}

type pairSlot struct {
	key  uint64 // pairKey + 1; 0 is empty
	rank uint32
}

func newPairTable(n int) *pairTable {
	size := 1 << bits.Len(uint(2*n+1))
	return &pairTable{slots: make([]pairSlot, size), shift: uint(64 - bits.TrailingZeros(uint(size)))}
}

func pairKey(a, b uint32) uint64 { return uint64(a)<<32 | uint64(b) }

func (t *pairTable) put(a, b, rank uint32) {
	key := pairKey(a, b) + 1
	i := key * 0x9e3779b97f4a7c15 >> t.shift
	for t.slots[i].key != 0 && t.slots[i].key != key {
		i = (i + 1) & uint64(len(t.slots)-1)
	}
	if t.slots[i].key == 0 {
		t.n++
	}
	t.slots[i] = pairSlot{key, rank}
	if 2*t.n > len(t.slots) {
		old := t.slots
		*t = *newPairTable(2 * t.n)
		for _, s := range old {
			if s.key != 0 {
				t.put(uint32((s.key-1)>>32), uint32(s.key-1), s.rank)
			}
		}
	}
}

// get is the rank, or noRank.
func (t *pairTable) get(a, b uint32) uint32 {
	key := pairKey(a, b) + 1
	i := key * 0x9e3779b97f4a7c15 >> t.shift
	for {
		s := &t.slots[i&uint64(len(t.slots)-1)]
		if s.key == key {
			return s.rank
		}
		if s.key == 0 {
			return noRank
		}
		i++
	}
}

// Pieces of up to cacheBytes bytes are remembered with their ids.
const (
	cacheBytes = 16
	cacheSlots = 1 << 14
	cacheIDs   = 11
)

type cached struct {
	lo, hi uint64
	bytes  uint8 // length of the piece; 0 is an empty slot
	n      uint8
	ids    [cacheIDs]int32
}

// scratch is what one goroutine needs while it encodes.
type scratch struct {
	cache []cached
	ids   []uint32
	ranks []uint32
	prev  []int32
	next  []int32
	heap  []uint64
	dead  []uint64 // places of a piece that the backtracker need not try
	seams []seam
}

func newScratch() *scratch {
	return &scratch{cache: make([]cached, cacheSlots), seams: make([]seam, seamSlots)}
}

// encodePieces appends the ids of text, which starts at a piece.
func (t *Tokenizer) encodePieces(dst []int32, text string, sc *scratch) []int32 {
	for p := 0; p < len(text); {
		e := t.split.next(text, p)
		dst = t.encodePiece(dst, text, p, e, sc)
		p = e
	}
	return dst
}

// encodePiece appends the ids of the piece text[p:e].
func (t *Tokenizer) encodePiece(dst []int32, text string, p, e int, sc *scratch) []int32 {
	n := e - p
	if n == 1 {
		return append(dst, t.byteIDs[text[p]])
	}
	if n > cacheBytes || n > 8 && text[e-1] >= utf8.RuneSelf { // Chinese clauses seldom come again
		return t.merge(dst, text[p:e], sc)
	}
	lo, hi := pack(text, p, n)
	h := (lo*0x9e3779b97f4a7c15 ^ bits.RotateLeft64(hi*0xc2b2ae3d27d4eb4f, 31)) * 0x165667b19e3779f9
	c := &sc.cache[h>>(64-14)]
	if c.lo == lo && c.hi == hi && int(c.bytes) == n {
		if c.n == 1 {
			return append(dst, c.ids[0])
		}
		return append(dst, c.ids[:c.n]...)
	}
	from := len(dst)
	dst = t.merge(dst, text[p:e], sc)
	if ids := dst[from:]; len(ids) <= cacheIDs {
		c.lo, c.hi, c.bytes, c.n = lo, hi, uint8(n), uint8(len(ids))
		copy(c.ids[:], ids)
	}
	return dst
}

// pack reads n ≤ 16 bytes of text at p as two words, zero beyond.
func pack(text string, p, n int) (lo, hi uint64) {
	if p+16 <= len(text) {
		s := text[p : p+16]
		lo = uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 | uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
		if n < 8 {
			return lo & (1<<(8*n) - 1), 0
		}
		hi = uint64(s[8]) | uint64(s[9])<<8 | uint64(s[10])<<16 | uint64(s[11])<<24 | uint64(s[12])<<32 | uint64(s[13])<<40 | uint64(s[14])<<48 | uint64(s[15])<<56
		if n < 16 {
			hi &= 1<<(8*(n-8)) - 1
		}
		return lo, hi
	}
	var b [16]byte
	copy(b[:], text[p:p+n])
	return binary.LittleEndian.Uint64(b[:8]), binary.LittleEndian.Uint64(b[8:])
}

// Pieces longer than this keep their pairs in a heap: the scan is quadratic.
const scanLimit = 96

// merge appends the ids of one piece of two bytes or more.
func (t *Tokenizer) merge(dst []int32, piece string, sc *scratch) []int32 {
	if t.ignoreMerges && len(piece) <= t.longest {
		if id, ok := t.whole[piece]; ok {
			return append(dst, id)
		}
	}
	if t.back != nil {
		return t.back.encode(dst, piece, sc)
	}
	return t.mergeAny(dst, piece, sc)
}

// mergeAny does the merges one by one, whatever they are: the pair of lowest rank
// goes first, the leftmost of equals.
func (t *Tokenizer) mergeAny(dst []int32, piece string, sc *scratch) []int32 {
	if len(piece) > scanLimit {
		return t.mergeHeap(dst, piece, sc)
	}
	ids, ranks := sc.ids[:0], sc.ranks[:0]
	for i := range len(piece) {
		ids = append(ids, uint32(t.byteIDs[piece[i]]))
	}
	for i := range len(ids) - 1 {
		ranks = append(ranks, t.pairs.get(ids[i], ids[i+1]))
	}
	for {
		best, at := noRank, -1
		for i, r := range ranks {
			if r < best {
				best, at = r, i
			}
		}
		if at < 0 {
			break
		}
		ids[at] = t.made[best]
		ids = append(ids[:at+1], ids[at+2:]...)
		ranks = append(ranks[:at], ranks[at+1:]...)
		if at > 0 {
			ranks[at-1] = t.pairs.get(ids[at-1], ids[at])
		}
		if at < len(ranks) {
			ranks[at] = t.pairs.get(ids[at], ids[at+1])
		}
	}
	for _, id := range ids {
		dst = append(dst, int32(id))
	}
	sc.ids, sc.ranks = ids, ranks
	return dst
}

// mergeHeap is mergeAny for long pieces: symbols in a linked list, candidate pairs
// in a heap of rank<<32|position; an entry is stale when its pair has changed.
func (t *Tokenizer) mergeHeap(dst []int32, piece string, sc *scratch) []int32 {
	n := len(piece)
	ids, prev, next, heap := sc.ids[:0], sc.prev[:0], sc.next[:0], sc.heap[:0]
	for i := range n {
		ids = append(ids, uint32(t.byteIDs[piece[i]]))
		prev = append(prev, int32(i-1))
		next = append(next, int32(i+1))
	}
	push := func(pos int32) {
		if rank := t.pairs.get(ids[pos], ids[next[pos]]); rank != noRank {
			heap = append(heap, uint64(rank)<<32|uint64(uint32(pos)))
			siftUp(heap)
		}
	}
	for i := range n - 1 {
		push(int32(i))
	}
	const gone = ^uint32(0)
	for len(heap) > 0 {
		top := heap[0]
		heap[0] = heap[len(heap)-1]
		heap = heap[:len(heap)-1]
		siftDown(heap)
		pos := int32(uint32(top))
		right := next[pos]
		if ids[pos] == gone || int(right) >= n {
			continue
		}
		rank := t.pairs.get(ids[pos], ids[right])
		if rank != uint32(top>>32) {
			continue
		}
		ids[pos], ids[right] = t.made[rank], gone
		next[pos] = next[right]
		if r := next[pos]; int(r) < n {
			prev[r] = pos
			push(pos)
		}
		if prev[pos] >= 0 {
			push(prev[pos])
		}
	}
	for i := int32(0); int(i) < n; i = next[i] {
		dst = append(dst, int32(ids[i]))
	}
	sc.ids, sc.prev, sc.next, sc.heap = ids, prev, next, heap
	return dst
}

func siftUp(h []uint64) {
	i := len(h) - 1
	for i > 0 {
		p := (i - 1) / 2
		if h[p] <= h[i] {
			return
		}
		h[p], h[i] = h[i], h[p]
		i = p
	}
}

func siftDown(h []uint64) {
	i := 0
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && h[c+1] < h[c] {
			c++
		}
		if h[i] <= h[c] {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}
