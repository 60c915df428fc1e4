package token

import "math/bits"

// backtracker encodes pieces by the longest symbols that go together, in time
// linear in the piece. It rests on two facts of byte pair encoding: a sequence of
// symbols is the encoding of its text exactly when each two neighbours are that of
// theirs, and each start of an encoding is the encoding of its own text (van
// Antwerpen and Neubeck, "So many tokens, so little time", 2024). So it tries the
// longest symbol first, a shorter one where the two don't go together, and steps
// back where none does; a place that led nowhere is not tried again.
//
// Symbols are numbered by age: bytes by their value, then merges by their rank.
type backtracker struct {
	ids    []int32     // by age, as are all below
	length []uint32    // bytes
	split  [][2]uint32 // halves of a merge; a byte's are itself
	prefix []uint32    // the longest symbol that the symbol starts with, or noRank
	pairs  *pairTable  // age of the symbol that two symbols make

	start []uint32 // node of the trie by the first two bytes, 0 if there is none
	edges *edgeTable
	end   []uint32 // age of the symbol that ends at a node, or noRank
}

// newBacktracker is nil for merges that no training makes: of a symbol that is made
// twice, before its halves, or that its own text does not encode to.
func newBacktracker(t *Tokenizer) *backtracker {
	n := 256 + len(t.merges)
	b := &backtracker{
		ids: make([]int32, n), length: make([]uint32, n), split: make([][2]uint32, n), prefix: make([]uint32, n),
		pairs: newPairTable(len(t.merges)), start: make([]uint32, 1<<16), edges: newEdgeTable(2 * n), end: []uint32{noRank},
	}
	age := make(map[int32]uint32, n)
	for i := range 256 {
		b.ids[i], b.length[i], b.split[i], b.prefix[i] = t.byteIDs[i], 1, [2]uint32{uint32(i), uint32(i)}, noRank
		age[t.byteIDs[i]] = uint32(i)
	}
	sc := &scratch{}
	for rank, m := range t.merges {
		left, ok1 := age[m[0]]
		right, ok2 := age[m[1]]
		i, id := uint32(256+rank), int32(t.made[rank])
		if _, twice := age[id]; !ok1 || !ok2 || twice {
			return nil
		}
		if got := t.mergeAny(nil, t.symbols[id], sc); len(got) != 1 || got[0] != id {
			return nil
		}
		age[id] = i
		b.ids[i], b.length[i], b.split[i] = id, b.length[left]+b.length[right], [2]uint32{left, right}
		b.pairs.put(left, right, i)
		if !b.add(t.symbols[id], i) {
			return nil
		}
	}
	for i := 256; i < n; i++ { // all are in the trie
		s := t.symbols[b.ids[i]]
		b.prefix[i] = b.longest(s[:len(s)-1])
	}
	return b
}

// add puts a symbol of two bytes or more into the trie, which has room for 2²⁴ nodes.
func (b *backtracker) add(s string, age uint32) bool {
	node := &b.start[uint32(s[0])<<8|uint32(s[1])]
	if *node == 0 {
		*node = b.node()
	}
	at := *node
	for i := 2; i < len(s); i++ {
		to := b.edges.get(at, s[i])
		if to == 0 {
			if to = b.node(); to >= 1<<24 {
				return false
			}
			b.edges.put(at, s[i], to)
		}
		at = to
	}
	b.end[at] = age
	return true
}

// has reports whether the text is that of a symbol of this id.
func (b *backtracker) has(s string, id int32) bool {
	i := b.longest(s)
	return int(b.length[i]) == len(s) && b.ids[i] == id
}

func (b *backtracker) node() uint32 {
	b.end = append(b.end, noRank)
	return uint32(len(b.end) - 1)
}

// longest is the longest symbol that s starts with; s is not empty.
func (b *backtracker) longest(s string) uint32 {
	best := uint32(s[0])
	if len(s) < 2 {
		return best
	}
	at := b.start[uint32(s[0])<<8|uint32(s[1])]
	for i := 2; at != 0; i++ {
		if e := b.end[at]; e != noRank {
			best = e
		}
		if i == len(s) {
			break
		}
		at = b.edges.get(at, s[i])
	}
	return best
}

// together reports whether the text of both symbols encodes to just them. It undoes
// the merges of both, the youngest first, and looks whether a merge across the
// seam would have come before.
func (b *backtracker) together(left, right uint32) bool {
	limit := noRank
	for {
		if made := b.pairs.get(left, right); made < limit {
			return false
		}
		if left > right {
			limit = left
			if left = b.split[left][1]; left != limit {
				continue
			}
			limit = right + 1
			if right = b.split[right][0]; right+1 == limit {
				return true
			}
			continue
		}
		limit = right + 1
		if right = b.split[right][0]; right+1 != limit {
			continue
		}
		limit = left
		if left = b.split[left][1]; left == limit {
			return true
		}
	}
}

// encode appends the ids of a piece.
func (b *backtracker) encode(dst []int32, piece string, sc *scratch) []int32 {
	for len(sc.dead) <= len(piece)/64 {
		sc.dead = append(sc.dead, 0)
	}
	dead := sc.dead[:len(piece)/64+1]
	clear(dead)
	out := sc.ids[:0]
	last := noRank
	sym := b.longest(piece)
	for pos := 0; ; {
		end := pos + int(b.length[sym])
		if dead[end>>6]>>(end&63)&1 == 0 && (last == noRank || b.known(sc, last, sym)) {
			out = append(out, sym)
			if end == len(piece) {
				break
			}
			pos, last = end, sym
			sym = b.longest(piece[pos:])
			continue
		}
		if sym = b.prefix[sym]; sym != noRank {
			continue
		}
		// Not at the start: bytes encode any text, so some first symbol fits.
		dead[pos>>6] |= 1 << (pos & 63)
		sym = last
		pos -= int(b.length[sym])
		out = out[:len(out)-1]
		last = noRank
		if len(out) > 0 {
			last = out[len(out)-1]
		}
	}
	for _, s := range out {
		dst = append(dst, b.ids[s])
	}
	sc.ids = out
	return dst
}

// Answers of together that a scratch remembers, a power of two.
const (
	seamBits  = 15
	seamSlots = 1 << seamBits
)

// seam is a pair of symbols and the answer, as key<<1|answer; 0 is empty.
type seam uint64

// known is together, remembered.
func (b *backtracker) known(sc *scratch, left, right uint32) bool {
	key := uint64(left)<<31 | uint64(right) + 1 // ages are far below 2³¹
	s := &sc.seams[key*0x9e3779b97f4a7c15>>(64-seamBits)]
	if uint64(*s>>1) == key {
		return *s&1 != 0
	}
	ok := b.together(left, right)
	*s = seam(key << 1)
	if ok {
		*s |= 1
	}
	return ok
}

// edgeTable holds the edges of a trie: open addressing, at most half full.
type edgeTable struct {
	slots []edge
	shift uint
	n     int
}

type edge struct{ key, to uint32 } // key is node<<8|byte; to is never 0

func newEdgeTable(n int) *edgeTable {
	size := 1 << bits.Len(uint(2*n+1))
	return &edgeTable{slots: make([]edge, size), shift: uint(32 - bits.TrailingZeros(uint(size)))}
}

func (t *edgeTable) get(node uint32, c byte) uint32 {
	key := node<<8 | uint32(c)
	for i := key * 0x9e3779b1 >> t.shift; ; i++ {
		e := t.slots[i&uint32(len(t.slots)-1)]
		if e.key == key || e.to == 0 {
			return e.to
		}
	}
}

func (t *edgeTable) put(node uint32, c byte, to uint32) {
	if t.n++; 2*t.n > len(t.slots) {
		old := t.slots
		*t = *newEdgeTable(2 * t.n)
		for _, e := range old {
			if e.to != 0 {
				t.put(e.key>>8, byte(e.key), e.to)
			}
		}
		t.n++
	}
	key := node<<8 | uint32(c)
	i := key * 0x9e3779b1 >> t.shift
	for t.slots[i&uint32(len(t.slots)-1)].to != 0 {
		i++
	}
	t.slots[i&uint32(len(t.slots)-1)] = edge{key, to}
}
