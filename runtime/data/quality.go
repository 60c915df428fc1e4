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

// quality judges the head of a document, folded, and gives the rule that drops
// it or "". It is meant to let all running text and most tables and code pass.
func (q *qualityCheck) quality(folded []byte) Rule {
	b := folded
	if len(b) < 60 {
		return ""
	}
	if len(b) > 4096 {
		b = b[:4096]
	}
	var letters, other, longest, run, same, sameMax int
	var prev byte
	for _, c := range b {
		switch {
		case c >= 0x80:
			letters++
			run = 0
		case isAlnum(c):
			letters++
			run++
		case c == ' ':
			run = 0
		case c == '/' || c == '+' || c == '=':
			other++
			run++
		default:
			other++
			run = 0
		}
		longest = max(longest, run)
		if c == prev {
			same++
			sameMax = max(sameMax, same)
		} else {
			same = 0
		}
		prev = c
	}
	if sameMax >= 80 && sameMax*2 > len(b) {
		return RuleRepetition
	}
	if letters*4 < letters+other {
		return RuleGibberish
	}
	if longest > 120 && longest*2 > len(b) {
		return RuleGibberish
	}
	if q.repeats(b) {
		return RuleRepetition
	}
	return ""
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
		return n < 700 && distinct < 110 // 600 triples at one in six
	})
	n -= 2
	return n >= 40 && distinct*6 < n
}
