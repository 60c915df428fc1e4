package token

import (
	"fmt"
	"sync"
)

// added is a token that stands in text as it is, outside the merges.
type added struct {
	id         int32
	content    string
	normalized bool // Hugging Face looks for these after the others
	special    bool
}

// Tokenizer is a byte-level BPE vocabulary with its merges. It never changes
// after it is made; any number of goroutines may use it.
type Tokenizer struct {
	split        Split
	ignoreMerges bool // a piece that is in the vocabulary is one token, whatever the merges say
	bos          int32

	// symbols holds, by id, what the id decodes to; holes and added tokens that
	// are not in the model's vocabulary are not in inModel.
	symbols []string
	inModel []bool
	added   []added // by id
	merges  [][2]int32

	byteIDs   [256]int32
	whole     map[string]int32 // raw bytes to id, of the model's vocabulary
	pairs     *pairTable
	back      *backtracker  // nil where the merges are not those of a training
	longest   int           // bytes of the longest piece to look for in whole
	made      []uint32      // id of the symbol that each merge makes, by rank
	addedByID map[int32]int // index into added
	addedIDs  map[string]int32
	raw, norm matcher // added tokens looked for first, and after

	scratch sync.Pool
}

// finish builds the lookups from symbols, added and merges. Parts are valid.
func (t *Tokenizer) finish() error {
	t.addedByID = make(map[int32]int, len(t.added))
	t.addedIDs = make(map[string]int32, len(t.added))
	for i, a := range t.added {
		t.addedByID[a.id] = i
		t.addedIDs[a.content] = a.id
		if a.normalized {
			t.norm.add(a)
		} else {
			t.raw.add(a)
		}
	}
	t.whole = make(map[string]int32, len(t.symbols))
	for id, s := range t.symbols {
		if !t.inModel[id] {
			continue
		}
		if t.IsAdded(int32(id)) { // the model reads its text in the alphabet
			raw, ok := fromAlphabet(s)
			if !ok {
				continue
			}
			s = raw
		}
		t.whole[s] = int32(id)
	}
	for b := range 256 {
		id, ok := t.whole[string([]byte{byte(b)})]
		if !ok {
			return fmt.Errorf("vocabulary lacks byte 0x%02x (written %q): not a byte-level tokenizer", b, string(byteToRune[b]))
		}
		t.byteIDs[b] = id
	}
	t.pairs = newPairTable(len(t.merges))
	for rank, m := range t.merges {
		joined := t.symbols[m[0]] + t.symbols[m[1]]
		id, ok := t.whole[joined]
		if !ok {
			return fmt.Errorf("merge %d (%q %q): %q is not in the vocabulary", rank, toAlphabet(t.symbols[m[0]]), toAlphabet(t.symbols[m[1]]), toAlphabet(joined))
		}
		t.pairs.put(uint32(m[0]), uint32(m[1]), uint32(rank))
		t.made = append(t.made, uint32(id))
	}
	t.back = newBacktracker(t)
	for s, id := range t.whole {
		// A symbol that merges make is found by them too, and one of several pieces never.
		if len(s) > 1 && (t.back == nil || !t.back.has(s, id)) && t.split.next(s, 0) == len(s) {
			t.longest = max(t.longest, len(s))
		}
	}
	t.scratch.New = func() any { return newScratch() }
	return nil
}

// VocabSize is one more than the largest id.
func (t *Tokenizer) VocabSize() int { return len(t.symbols) }

// Merges is the number of merges.
func (t *Tokenizer) Merges() int { return len(t.merges) }

// Merge is the pair of symbols, as raw bytes, joined by the merge of that rank.
func (t *Tokenizer) Merge(rank int) (left, right string) {
	m := t.merges[rank]
	return t.symbols[m[0]], t.symbols[m[1]]
}

// Split is the expression that cuts text into pieces.
func (t *Tokenizer) Split() Split { return t.split }

// BOS is the id that stands before every sequence, or -1 when the tokenizer's
// template puts none there.
func (t *Tokenizer) BOS() int32 { return t.bos }

// ID is the id of a symbol, given as raw bytes (" the", not "Ġthe").
func (t *Tokenizer) ID(symbol string) (int32, bool) {
	id, ok := t.whole[symbol]
	if ok && t.IsAdded(id) {
		return 0, false
	}
	return id, ok
}

// SpecialID is the id of a special (or other added) token, such as "<|user|>".
func (t *Tokenizer) SpecialID(content string) (int32, bool) {
	id, ok := t.addedIDs[content]
	return id, ok
}

// Symbol is what an id decodes to: raw bytes, or the text of an added token;
// empty for an id that is not in use.
func (t *Tokenizer) Symbol(id int32) string {
	if id < 0 || int(id) >= len(t.symbols) {
		return ""
	}
	return t.symbols[id]
}

// IsSpecial reports whether the id is a special token, which Decode leaves out.
func (t *Tokenizer) IsSpecial(id int32) bool {
	i, ok := t.addedByID[id]
	return ok && t.added[i].special
}

// IsAdded reports whether the id is an added token, special or not.
func (t *Tokenizer) IsAdded(id int32) bool {
	_, ok := t.addedByID[id]
	return ok
}

// Truncate is the tokenizer with the first vocab ids only: the one that training
// to that size would have given. It needs merges that make their ids in rising
// order, as trainers write them.
func (t *Tokenizer) Truncate(vocab int) (*Tokenizer, error) {
	if vocab >= t.VocabSize() {
		if vocab == t.VocabSize() {
			return t, nil
		}
		return nil, fmt.Errorf("truncate tokenizer to %d: it has %d ids only", vocab, t.VocabSize())
	}
	base := t.VocabSize() - len(t.merges)
	if vocab < base {
		return nil, fmt.Errorf("truncate tokenizer to %d: bytes and special tokens alone are %d", vocab, base)
	}
	for rank, m := range t.merges {
		if id := int(t.made[rank]); id != base+rank || m[0] >= int32(base+rank) || m[1] >= int32(base+rank) {
			return nil, fmt.Errorf("truncate tokenizer: merge %d makes id %d, not %d: ids and merges are not in the order of training", rank, id, base+rank)
		}
	}
	out := &Tokenizer{
		split: t.split, ignoreMerges: t.ignoreMerges, bos: t.bos,
		symbols: t.symbols[:vocab:vocab], inModel: t.inModel[:vocab:vocab],
		merges: t.merges[: vocab-base : vocab-base], added: t.added,
	}
	for _, a := range t.added {
		if int(a.id) >= vocab {
			return nil, fmt.Errorf("truncate tokenizer to %d: added token %q has id %d", vocab, a.content, a.id)
		}
	}
	if err := out.finish(); err != nil {
		return nil, err
	}
	return out, nil
}
