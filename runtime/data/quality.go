package data

import "unicode/utf8"

// textLength counts characters; a wide one counts as three, since it says about
// as much as a short word.
func textLength(b []byte, limit int) int {
	n := 0
	for i := 0; i < len(b) && n < limit; {
		if b[i] < 0x80 {
			i++
			n++
			continue
		}
		r, w := utf8.DecodeRune(b[i:])
		i += w
		n++
		if isWide(r) {
			n += 2
		}
	}
	return n
}

// qualityKind sorts bytes: 0 space, 1 letter, digit or part of a wide character,
// 2 other; unbroken is added for those that encoded bytes are written in.
const unbroken = 4

var qualityKind = func() (t [256]uint8) {
	for i := range t {
		switch c := byte(i); {
		case c >= 0x80:
			t[i] = 1
		case isAlnum(c):
			t[i] = 1 | unbroken
		case c == '/' || c == '+' || c == '=':
			t[i] = 2 | unbroken
		case c > ' ':
			t[i] = 2
		}
	}
	return t
}()

// qualityCount is 1 for kind 1 and 2¹⁶ for kind 2.
var qualityCount = func() (t [256]uint32) {
	for i, k := range qualityKind {
		t[i] = uint32(k&1) | uint32(k>>1&1)<<16
	}
	return t
}()

// quality judges the head of a document, folded, and gives the rule that drops
// it or "". It is meant to let all running text and most tables and code pass.
func (q *qualityCheck) quality(folded []byte) Rule {
	b := folded
	if len(b) < 60 {
		return ""
	}
	if len(b) > 1024 {
		b = b[:1024]
	}
	sum := uint32(0) // letters, and the others times 2¹⁶: neither passes 1,024
	for _, c := range b {
		sum += qualityCount[c]
	}
	letters, other := int(sum&0xffff), int(sum>>16)
	// a run of more than half of the text holds its middle
	mid := len(b) / 2
	if run := runAround(b, mid, func(c byte) bool { return c == b[mid] }); run >= 80 && run*2 > len(b) {
		return RuleRepetition
	}
	if letters*4 < letters+other {
		return RuleGibberish
	}
	if run := runAround(b, mid, func(c byte) bool { return qualityKind[c]&unbroken != 0 }); run > 120 && run*2 > len(b) {
		return RuleGibberish
	}
	if q.repeats(b) {
		return RuleRepetition
	}
	return ""
}

// runAround gives the length of the run of matching bytes that b[mid] is in.
func runAround(b []byte, mid int, match func(byte) bool) int {
	from, to := mid, mid
	for from > 0 && match(b[from-1]) {
		from--
	}
	for to < len(b) && match(b[to]) {
		to++
	}
	if from == to || !match(b[mid]) {
		return 0
	}
	return to - from
}

// qualityCheck holds the tables for counting distinct words.
type qualityCheck struct {
	seen [1024]uint64 // hash set, open addressing
}

// repeats tells whether nearly all word triples of the text stand in it again
// and again: fewer than one in six is new, of at least forty.
func (q *qualityCheck) repeats(b []byte) bool {
	clear(q.seen[:])
	var h1, h2 uint64
	n, distinct := 0, 0
	words(b, func(h uint64) bool {
		if n++; n > 2 {
			t := mix(h1*3 + h2*5 + h*7)
			if t == 0 {
				t = 1
			}
			i := t & 1023
			for q.seen[i] != 0 && q.seen[i] != t {
				i = (i + 1) & 1023
			}
			if q.seen[i] == 0 {
				q.seen[i] = t
				distinct++
			}
		}
		h1, h2 = h2, h
		return n < 700 && distinct < 110 && (n != 64 || distinct < 56) // 600 triples at one in six
	})
	n -= 2
	return n >= 40 && distinct*6 < n
}
