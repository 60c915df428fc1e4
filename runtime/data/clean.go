package data

import (
	"bytes"
	"unicode/utf8"
)

// flags of a text, gathered in one pass.
const (
	hasControl = 1 << iota // below 0x20 except tab and LF, or 0x7F
	hasHigh                // above 0x7F
	hasTag                 // '<'
	hasAmp                 // '&'
	hasAt                  // '@'
	hasDigit
	hasCR
)

var byteFlags = func() (t [256]uint8) {
	for i := range 256 {
		switch {
		case i == '\r':
			t[i] = hasCR
		case i < 0x20 && i != '\t' && i != '\n' || i == 0x7f:
			t[i] = hasControl
		case i >= 0x80:
			t[i] = hasHigh
		case i == '<':
			t[i] = hasTag
		case i == '&':
			t[i] = hasAmp
		case i == '@':
			t[i] = hasAt
		case '0' <= i && i <= '9':
			t[i] = hasDigit
		}
	}
	return t
}()

func textFlags(b []byte) (f uint8) {
	for len(b) >= 8 {
		f |= byteFlags[b[0]] | byteFlags[b[1]] | byteFlags[b[2]] | byteFlags[b[3]] |
			byteFlags[b[4]] | byteFlags[b[5]] | byteFlags[b[6]] | byteFlags[b[7]]
		b = b[8:]
	}
	for _, c := range b {
		f |= byteFlags[c]
	}
	return f
}

// cleaner repairs texts. It is used by one goroutine; what text returns is valid
// until the fourth call after it.
type cleaner struct {
	intact bool // a long plain text: control characters alone are removed
	seen   struct{ email, phone, card, ip bool }
	buf    [16][]byte
	next   int
}

// fixes tells which repairs a text needed.
type fixes struct{ control, html, mojibake bool }

// scratch gives an empty buffer of a ring.
func (c *cleaner) scratch(n int) *[]byte {
	c.next = (c.next + 1) % len(c.buf)
	b := &c.buf[c.next]
	if cap(*b) < n {
		*b = make([]byte, 0, n+n/4)
	}
	*b = (*b)[:0]
	return b
}

// text gives the repaired text, trimmed unless intact; the input is not changed.
func (c *cleaner) text(b []byte, fx *fixes) []byte {
	f := textFlags(b)
	if !c.intact && f&hasHigh != 0 && maybeMojibake(b) {
		dst := c.scratch(len(b))
		var fixed bool
		if *dst, fixed = fixMojibake(*dst, b); fixed {
			fx.mojibake = true
			b = *dst
		}
	}
	if f&(hasControl|hasCR) != 0 || f&hasHigh != 0 && hasInvisible(b) {
		dst := c.scratch(len(b))
		var fixed bool
		*dst, fixed = removeControls(*dst, b)
		fx.control = fx.control || fixed
		b = *dst
	}
	if !c.intact {
		if f&(hasTag|hasAmp) != 0 && maybeHTML(b) {
			dst := c.scratch(len(b))
			var fixed bool
			if *dst, fixed = stripHTML(*dst, b); fixed {
				fx.html = true
				b = *dst
			}
		}
		b = trimText(b)
		if f&hasAt != 0 && findEmail(b) {
			c.seen.email = true
		}
		if f&hasDigit != 0 {
			c.numbers(b)
		}
	}
	return b
}

// trimText removes white space, also the kinds beyond ASCII, from both ends.
func trimText(b []byte) []byte {
	b = trimSpace(b)
	if len(b) == 0 || b[0] < 0x80 && b[0] > ' ' && b[len(b)-1] < 0x80 && b[len(b)-1] > ' ' {
		return b
	}
	return bytes.TrimSpace(b)
}

// invisible characters: zero width, direction, C1 controls, noncharacters.
func invisible(r rune) bool {
	switch {
	case 0x80 <= r && r <= 0x9f,
		r == 0xad, r == 0x200b, 0x200e <= r && r <= 0x200f, 0x202a <= r && r <= 0x202e,
		0x2060 <= r && r <= 0x2064, 0x2066 <= r && r <= 0x206f, r == 0xfeff,
		0xfdd0 <= r && r <= 0xfdef, r&0xfffe == 0xfffe:
		return true
	}
	return false
}

// hasInvisible looks at the lead bytes first: C2, E2, EF and F0 to F4 alone can
// begin such a character.
func hasInvisible(b []byte) bool {
	for i := 0; i < len(b); i++ {
		c := b[i]
		if c < 0xc2 {
			continue
		}
		if c == 0xc2 || c == 0xe2 || c == 0xef || c >= 0xf0 {
			if r, _ := utf8.DecodeRune(b[i:]); invisible(r) {
				return true
			}
		}
	}
	return false
}

// removeControls drops control and invisible characters and terminal escapes,
// and turns CR LF and CR into LF (which alone does not count as a repair).
func removeControls(dst, b []byte) ([]byte, bool) {
	fixed := false
	for i := 0; i < len(b); {
		c := b[i]
		switch {
		case c == '\r':
			dst = append(dst, '\n')
			i++
			if i < len(b) && b[i] == '\n' {
				i++
			}
		case c == 0x1b && i+1 < len(b) && b[i+1] == '[':
			fixed = true
			i += 2
			for i < len(b) && (b[i] < 0x40 || b[i] > 0x7e) && b[i] >= 0x20 {
				i++
			}
			if i < len(b) && 0x40 <= b[i] && b[i] <= 0x7e {
				i++
			}
		case c < 0x20 && c != '\n' && c != '\t' || c == 0x7f:
			fixed = true
			i++
		case c < 0x80:
			dst = append(dst, c)
			i++
		default:
			r, n := utf8.DecodeRune(b[i:])
			switch {
			case r == 0x85 || r == 0x2028 || r == 0x2029: // line ends of other worlds
				dst = append(dst, '\n')
				fixed = true
			case invisible(r):
				fixed = true
			default:
				dst = append(dst, b[i:i+n]...)
			}
			i += n
		}
	}
	return dst, fixed
}
