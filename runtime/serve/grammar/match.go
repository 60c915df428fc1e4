package grammar

import (
	"github.com/open-autoglm/autoglm/runtime/token"
)

// Vocabulary is a tokenizer's tokens as a trie of their bytes. It never changes; any
// goroutine may use it.
type Vocabulary struct {
	tok   *token.Tokenizer
	nodes []branch
}

// branch is a node of the trie: its children and the tokens that end there.
type branch struct {
	bytes    []byte
	children []int32
	ids      []int32
}

// NewVocabulary makes a tokenizer's trie. Special tokens are not in it.
func NewVocabulary(tok *token.Tokenizer) *Vocabulary {
	v := &Vocabulary{tok: tok, nodes: make([]branch, 1)}
	for id := range int32(tok.VocabSize()) {
		symbol := tok.Symbol(id)
		if symbol == "" || tok.IsAdded(id) {
			continue
		}
		at := int32(0)
		for i := range len(symbol) {
			at = v.child(at, symbol[i])
		}
		v.nodes[at].ids = append(v.nodes[at].ids, id)
	}
	return v
}

func (v *Vocabulary) child(at int32, b byte) int32 {
	n := &v.nodes[at]
	for i, x := range n.bytes {
		if x == b {
			return n.children[i]
		}
	}
	to := int32(len(v.nodes))
	n.bytes, n.children = append(n.bytes, b), append(n.children, to)
	v.nodes = append(v.nodes, branch{})
	return to
}

// Matcher is a text on its way through a schema. It implements serve.Grammar and
// belongs to one goroutine.
type Matcher struct {
	v    *Vocabulary
	m    *machine
	at   *node
	todo []reached
}

type reached struct {
	branch int32
	node   *node
}

// Match is a Matcher at the start of a text.
func (s *Schema) Match(v *Vocabulary) *Matcher {
	m, at := newMachine(&s.p)
	return &Matcher{v: v, m: m, at: at}
}

// Allowed implements serve.Grammar.
func (m *Matcher) Allowed() (ids []uint64, end bool) {
	if m.at.mask != nil {
		return m.at.mask, m.at.end
	}
	mask := make([]uint64, (m.v.tok.VocabSize()+63)/64)
	m.todo = append(m.todo[:0], reached{0, m.at})
	for len(m.todo) > 0 {
		r := m.todo[len(m.todo)-1]
		m.todo = m.todo[:len(m.todo)-1]
		b := &m.v.nodes[r.branch]
		for _, id := range b.ids {
			mask[id/64] |= 1 << (id % 64)
		}
		for i, x := range b.bytes {
			if to := m.m.step(r.node, x); to != &m.m.dead {
				m.todo = append(m.todo, reached{b.children[i], to})
			}
		}
	}
	m.at.mask = mask
	return mask, m.at.end
}

// Take implements serve.Grammar.
func (m *Matcher) Take(id int32) {
	if m.v.tok.IsAdded(id) { // the end
		return
	}
	m.write(m.v.tok.Symbol(id))
}

func (m *Matcher) write(text string) {
	for i := range len(text) {
		m.at = m.m.step(m.at, text[i])
	}
}
