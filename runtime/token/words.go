package token

import (
	"hash/maphash"
	"unsafe"
)

// wordTable counts words: an open-addressed table over texts that stand one
// after another in one block, so that millions of words cost no allocation each
// and nothing for the garbage collector to follow. It belongs to one goroutine.
type wordTable struct {
	seed  maphash.Seed
	slots []wordSlot // a power of two, at most half full
	words []word
	text  []byte
}

// wordSlot points at a word; tag spares looking at words of another hash.
type wordSlot struct {
	tag uint32
	at  uint32 // index into words plus 1; 0 is empty
}

// word is a distinct piece of the text and how often it occurs.
type word struct {
	hash   uint64
	start  uint64 // in text
	count  int64
	length uint32 // bytes
}

func newWordTable(seed maphash.Seed) *wordTable {
	return &wordTable{seed: seed, slots: make([]wordSlot, 1<<10)}
}

// count counts the words of a text that starts and ends with a piece. The text is
// not kept.
func (t *wordTable) count(s string) {
	for p := 0; p < len(s); {
		e := nextLlama3(s, p)
		if e-p > 1 { // single bytes have no pairs
			t.add(s[p:e], maphash.String(t.seed, s[p:e]), 1)
		}
		p = e
	}
}

func (t *wordTable) add(s string, hash uint64, n int64) {
	mask := uint64(len(t.slots) - 1)
	tag := uint32(hash >> 32)
	i := hash & mask
	for ; t.slots[i].at != 0; i = (i + 1) & mask {
		if t.slots[i].tag != tag {
			continue
		}
		if w := &t.words[t.slots[i].at-1]; w.hash == hash && t.of(w) == s {
			w.count += n
			return
		}
	}
	t.words = append(t.words, word{hash: hash, start: uint64(len(t.text)), count: n, length: uint32(len(s))})
	t.text = append(t.text, s...)
	t.slots[i] = wordSlot{tag, uint32(len(t.words))}
	if 2*len(t.words) >= len(t.slots) {
		t.grow()
	}
}

func (t *wordTable) grow() {
	t.slots = make([]wordSlot, 4*len(t.slots))
	mask := uint64(len(t.slots) - 1)
	for k := range t.words {
		i := t.words[k].hash & mask
		for t.slots[i].at != 0 {
			i = (i + 1) & mask
		}
		t.slots[i] = wordSlot{uint32(t.words[k].hash >> 32), uint32(k + 1)}
	}
}

// of is the text of a word; it holds until the next add.
func (t *wordTable) of(w *word) string {
	return unsafe.String(unsafe.SliceData(t.text[w.start:]), int(w.length))
}

// share spreads the words over as many tables so that each word stands in one
// only, with its whole count. All have the same seed.
func share(tables []*wordTable) []*wordTable {
	if len(tables) == 1 {
		return tables
	}
	out := make([]*wordTable, len(tables))
	parallel(len(out), func(k int) {
		out[k] = newWordTable(tables[0].seed)
		for _, t := range tables {
			for i := range t.words {
				w := &t.words[i]
				if (w.hash>>56)%uint64(len(out)) == uint64(k) {
					out[k].add(t.of(w), w.hash, w.count)
				}
			}
		}
	})
	return out
}
