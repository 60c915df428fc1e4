package token

import (
	"encoding/json"
	"fmt"
)

// Parts is a tokenizer taken apart, for formats other than tokenizer.json.
type Parts struct {
	Split        Split
	IgnoreMerges bool // a piece that is in the vocabulary is one token, whatever the merges say
	BOS          int32
	Pieces       []Piece     // by id
	Merges       [][2]string // by rank, in the alphabet
}

// Piece is one id of a vocabulary. Text is what tokenizer.json holds: bytes in the
// printable alphabet, or the content of an added token.
type Piece struct {
	Text string
	Kind Kind
}

// Kind of a piece.
type Kind uint8

// Kinds of pieces.
const (
	Unused  Kind = iota // no token has the id
	Normal              // bytes
	Special             // an added token that Decode leaves out
	Added               // an added token that stands in text
)

// Parts takes the tokenizer apart.
func (t *Tokenizer) Parts() Parts {
	p := Parts{Split: t.split, IgnoreMerges: t.ignoreMerges, BOS: t.bos, Pieces: make([]Piece, len(t.symbols)), Merges: make([][2]string, len(t.merges))}
	for id, s := range t.symbols {
		switch id := int32(id); {
		case t.IsSpecial(id):
			p.Pieces[id] = Piece{s, Special}
		case t.IsAdded(id):
			p.Pieces[id] = Piece{s, Added}
		case t.inModel[id]:
			p.Pieces[id] = Piece{toAlphabet(s), Normal}
		}
	}
	for i, m := range t.merges {
		p.Merges[i] = [2]string{toAlphabet(t.symbols[m[0]]), toAlphabet(t.symbols[m[1]])}
	}
	return p
}

// FromParts puts a tokenizer together; what Parse would refuse is refused.
func FromParts(p Parts) (*Tokenizer, error) {
	if len(p.Pieces) > MaxVocab {
		return nil, fmt.Errorf("%d pieces are more than %d", len(p.Pieces), MaxVocab)
	}
	var vocab vocabJSON
	var adds []addedJSON
	for id, piece := range p.Pieces {
		if piece.Kind == Unused {
			continue
		}
		vocab = append(vocab, vocabEntry{piece.Text, int32(id)})
		if piece.Kind != Normal {
			adds = append(adds, addedJSON{ID: int32(id), Content: piece.Text, Special: piece.Kind == Special})
		}
	}
	if p.BOS < -1 || int(p.BOS) >= len(p.Pieces) {
		return nil, fmt.Errorf("the token before every sequence has id %d, which is not in the vocabulary", p.BOS)
	}
	raw, err := json.Marshal(p.Merges)
	if err != nil {
		return nil, err
	}
	t := &Tokenizer{split: p.Split, ignoreMerges: p.IgnoreMerges, bos: p.BOS}
	if err := t.setVocab(vocab, adds); err != nil {
		return nil, err
	}
	if err := t.setMerges(&modelJSON{Vocab: vocab, Merges: raw}); err != nil {
		return nil, err
	}
	if err := t.finish(); err != nil {
		return nil, err
	}
	return t, nil
}
