package token

import "unicode/utf8"

// class is what the split expressions can tell of a character. Bytes that are
// not valid UTF-8 count as other, one byte each.
type class uint8

const (
	other   class = iota // [^\s\p{L}\p{N}]
	letter               // \p{L}
	number               // \p{N}
	space                // \s but not \r or \n
	newline              // [\r\n]
)

var classes = buildClasses()

func buildClasses() *[utf8.MaxRune + 1]class {
	t := new([utf8.MaxRune + 1]class)
	fill := func(c class, ranges [][2]rune) {
		for _, r := range ranges {
			for i := r[0]; i <= r[1]; i++ {
				t[i] = c
			}
		}
	}
	fill(letter, letterRanges)
	fill(number, numberRanges)
	fill(space, [][2]rune{
		{'\t', '\r'},
		{' ', ' '},
		{0x85, 0x85},
		{0xa0, 0xa0},
		{0x1680, 0x1680},
		{0x2000, 0x200a},
		{0x2028, 0x2029},
		{0x202f, 0x202f},
		{0x205f, 0x205f},
		{0x3000, 0x3000},
	})
	t['\r'], t['\n'] = newline, newline
	return t
}

// classAt is the class and the width in bytes of the character at s[p].
func classAt(s string, p int) (class, int) {
	if c := s[p]; c < utf8.RuneSelf {
		return classes[c], 1
	}
	if r, ok := three(s, p); ok {
		return classes[r], 3
	}
	r, w := utf8.DecodeRuneInString(s[p:])
	return classes[r], w
}

// three decodes most characters of three bytes, those of Chinese among them,
// where a call of utf8 would cost more than the rest.
func three(s string, p int) (r rune, ok bool) {
	if p+2 >= len(s) {
		return 0, false
	}
	a, b, c := s[p], s[p+1], s[p+2]
	if a <= 0xe0 || a >= 0xf0 || a == 0xed || b&0xc0 != 0x80 || c&0xc0 != 0x80 {
		return 0, false
	}
	return rune(a&15)<<12 | rune(b&63)<<6 | rune(c&63), true
}
