package grammar

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// set is a set of bytes.
type set [4]uint64

func (s *set) has(b byte) bool { return s[b/64]>>(b%64)&1 != 0 }

func (s *set) add(from, to byte) {
	for b := int(from); b <= int(to); b++ {
		s[b/64] |= 1 << (b % 64)
	}
}

// op is what a state does.
type op uint8

const (
	read   op = iota // one byte of a set, then next
	split            // next or other
	call             // the rule other, then next
	finish           // the rule is over
)

type state struct {
	op          op
	set         set
	next, other int32 // of call: other is a rule
}

// program is a pushdown automaton: rules call each other.
type program struct {
	states []state
	rules  []int32 // the first state of each
}

// maxStates bounds a program.
const maxStates = 200_000

// The builder's functions make what comes before the state next, and return where it
// begins.

func (p *program) state(s state) int32 {
	p.states = append(p.states, s)
	return int32(len(p.states) - 1)
}

func (p *program) ranges(next int32, bounds ...byte) int32 {
	s := state{op: read, next: next}
	for i := 0; i < len(bounds); i += 2 {
		s.set.add(bounds[i], bounds[i+1])
	}
	return p.state(s)
}

func (p *program) literal(text string, next int32) int32 {
	for i := len(text) - 1; i >= 0; i-- {
		next = p.ranges(next, text[i], text[i])
	}
	return next
}

// either is one of several beginnings.
func (p *program) either(all ...int32) int32 {
	at := all[len(all)-1]
	for i := len(all) - 2; i >= 0; i-- {
		at = p.state(state{op: split, next: all[i], other: at})
	}
	return at
}

// times repeats what f makes; most below 0 is any number.
func (p *program) times(least, most int, next int32, f func(next int32) int32) int32 {
	at := next
	if most < 0 {
		loop := p.state(state{op: split, other: next})
		body := f(loop)
		p.states[loop].next = body
		at = loop
	}
	for i := most; i > least && len(p.states) < maxStates; i-- {
		at = p.either(f(at), next)
	}
	for i := 0; i < least && len(p.states) < maxStates; i++ {
		at = f(at)
	}
	return at
}

func (p *program) call(rule, next int32) int32 {
	return p.state(state{op: call, next: next, other: rule})
}

// leftRecursive tells whether a rule calls itself before it reads a byte.
func (p *program) leftRecursive() bool {
	const fresh, open, done = 0, 1, 2
	marks := make([]int, len(p.rules))
	var visit func(rule int32) bool
	visit = func(rule int32) bool {
		switch marks[rule] {
		case open:
			return true
		case done:
			return false
		}
		marks[rule] = open
		seen := map[int32]bool{}
		todo := []int32{p.rules[rule]}
		for len(todo) > 0 {
			at := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if seen[at] {
				continue
			}
			seen[at] = true
			switch s := p.states[at]; s.op {
			case split:
				todo = append(todo, s.next, s.other)
			case call: // no rule is empty: what follows comes after a byte
				if visit(s.other) {
					return true
				}
			}
		}
		marks[rule] = done
		return false
	}
	for r := range p.rules {
		if visit(int32(r)) {
			return true
		}
	}
	return false
}

// place is where an automaton is: in a state that reads, with the calls to return to.
type place struct{ state, stack int32 }

// node is a state of the automaton made deterministic: the places it may be in.
type node struct {
	places []place
	end    bool // the text may end here
	next   [256]*node
	mask   []uint64 // tokens that may come; nil until it is asked for
}

// frame is a call to return from.
type frame struct{ state, below int32 }

// machine walks a program. It belongs to one goroutine.
type machine struct {
	p      *program
	nodes  map[string]*node
	frames []frame // the stack's elements by number; 0 is the empty stack
	known  map[frame]int32
	dead   node
	closed map[string]*node // by the places that close began with
	seen   map[place]bool
	todo   []place
	key    []byte
}

// maxNodes bounds what a machine keeps.
const maxNodes = 4096

func newMachine(p *program) (*machine, *node) {
	m := &machine{p: p, nodes: map[string]*node{}, frames: make([]frame, 1), known: map[frame]int32{}, closed: map[string]*node{}, seen: map[place]bool{}}
	return m, m.close([]place{{p.rules[0], 0}})
}

// step is where a byte leads.
func (m *machine) step(n *node, b byte) *node {
	if to := n.next[b]; to != nil {
		return to
	}
	m.todo = m.todo[:0]
	for _, pl := range n.places {
		if s := &m.p.states[pl.state]; s.set.has(b) {
			m.todo = append(m.todo, place{s.next, pl.stack})
		}
	}
	to := &m.dead
	if len(m.todo) > 0 { // most bytes of a text lead to where others led
		key := string(keyOf(m.key[:0], m.todo))
		var ok bool
		if to, ok = m.closed[key]; !ok {
			to = m.close(m.todo)
			m.closed[key] = to
		}
	}
	n.next[b] = to
	return to
}

func keyOf(dst []byte, places []place) []byte {
	for _, pl := range places {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(pl.state))
		dst = binary.LittleEndian.AppendUint32(dst, uint32(pl.stack))
	}
	return dst
}

// close follows what reads nothing.
func (m *machine) close(todo []place) *node {
	clear(m.seen)
	n := &node{}
	for len(todo) > 0 {
		at := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if m.seen[at] {
			continue
		}
		m.seen[at] = true
		switch s := &m.p.states[at.state]; s.op {
		case read:
			n.places = append(n.places, at)
		case split:
			todo = append(todo, place{s.next, at.stack}, place{s.other, at.stack})
		case call:
			todo = append(todo, place{m.p.rules[s.other], m.push(frame{s.next, at.stack})})
		case finish:
			if at.stack == 0 {
				n.end = true
				continue
			}
			f := m.frames[at.stack]
			todo = append(todo, place{f.state, f.below})
		}
	}
	slices.SortFunc(n.places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.state, b.state), cmp.Compare(a.stack, b.stack))
	})
	m.key = keyOf(m.key[:0], n.places)
	if n.end {
		m.key = append(m.key, 1)
	}
	if old := m.nodes[string(m.key)]; old != nil {
		return old
	}
	if len(m.nodes) >= maxNodes { // those that are in use are held by who uses them
		for _, old := range m.nodes {
			old.next = [256]*node{}
		}
		clear(m.nodes)
		clear(m.closed)
	}
	m.nodes[string(m.key)] = n
	return n
}

func (m *machine) push(f frame) int32 {
	id, ok := m.known[f]
	if !ok {
		id = int32(len(m.frames))
		m.frames = append(m.frames, f)
		m.known[f] = id
	}
	return id
}
