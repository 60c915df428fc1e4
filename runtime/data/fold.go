package data

import (
	"encoding/binary"
	"slices"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// lowerASCII maps ASCII for folding: letters to lower case, white space to ' '.
var lowerASCII = func() (t [128]byte) {
	for i := range 128 {
		t[i] = byte(i)
		if 'A' <= i && i <= 'Z' {
			t[i] |= 0x20
		}
		if i <= ' ' || i == 0x7f {
			t[i] = ' '
		}
	}
	return t
}()

// appendFolded appends the text as duplicates compare it: NFKC, lower case, runs
// of white space as one space, none at the ends. NFKC goes before lower case.
func appendFolded(dst, b []byte) []byte {
	start := len(dst)
	space := true
	for i := 0; i < len(b); {
		if b[i] < 0x80 {
			// room for the rest, so that the loop need not check
			dst = slices.Grow(dst, len(b)-i)
			out := dst[len(dst) : len(dst)+len(b)-i]
			n := 0
			for i < len(b) && b[i] < 0x80 {
				if i+8 <= len(b) {
					if w, ok := foldEight(binary.LittleEndian.Uint64(b[i:]), space); ok {
						binary.LittleEndian.PutUint64(out[n:n+8], w)
						i, n = i+8, n+8
						space = w>>56 == ' '
						continue
					}
				}
				c := lowerASCII[b[i]&0x7f]
				i++
				if c == ' ' {
					if space {
						continue
					}
					space = true
				} else {
					space = false
				}
				out[n] = c
				n++
			}
			dst = dst[:len(dst)+n]
			continue
		}
		// a stretch beyond ASCII; its base letter before it may compose with it
		j := i
		for j < len(b) && b[j] >= 0x80 {
			j++
		}
		s := b[i:j]
		if !space && len(dst) > start && i > 0 && s[0] >= 0xCC && b[i-1] < 0x80 && !norm.NFKC.Properties(s).BoundaryBefore() {
			s = append([]byte{b[i-1]}, s...)
			dst = dst[:len(dst)-1]
		}
		if !latin(s) && !norm.NFKC.IsNormal(s) {
			s = norm.NFKC.Bytes(s)
		}
		for len(s) > 0 {
			r, n := utf8.DecodeRune(s)
			s = s[n:]
			if r >= 0x3000 && r < 0xA000 && r != 0x3000 { // CJK has neither case nor spaces
				dst = utf8.AppendRune(dst, r)
				space = false
				continue
			}
			if unicode.IsSpace(r) {
				if !space {
					dst = append(dst, ' ')
				}
				space = true
				continue
			}
			dst = utf8.AppendRune(dst, unicode.ToLower(r))
			space = false
		}
		i = j
	}
	if space && len(dst) > start {
		dst = dst[:len(dst)-1]
	}
	return dst
}

// foldEight folds eight bytes at once where none but letters' case changes: all
// are printable ASCII and no two spaces meet, space telling whether one or the
// text's start stands before.
func foldEight(w uint64, space bool) (folded uint64, ok bool) {
	y, z := w^ones*' ', w^ones*0x7f
	if (w|(w-ones*' ')|(z-ones)&^z)&high != 0 { // beyond ASCII, below ' ', or DEL
		return 0, false
	}
	spaces := ^(y + ones*0x7f) & high
	if spaces&(spaces<<8) != 0 || space && spaces&0x80 != 0 {
		return 0, false
	}
	upper := (w + ones*(0x80-'A')) &^ (w + ones*(0x80-'Z'-1)) & high
	return w | upper>>2, true
}

// latin tells a short stretch of U+00C0 to U+00FF alone, which NFKC leaves alone.
func latin(s []byte) bool {
	return len(s) == 2 && s[0] == 0xC3
}

// isWide tells characters that count as a word each: Han, kana, Hangul syllables.
func isWide(r rune) bool {
	return 0x3041 <= r && r <= 0x30FF || 0x3400 <= r && r <= 0x9FFF || 0xAC00 <= r && r <= 0xD7A3 || 0xF900 <= r && r <= 0xFAFF || 0x20000 <= r && r <= 0x3FFFF
}

// wordByte tells letters, digits and the underscore.
var wordByte = func() (t [256]bool) {
	for i := range t {
		t[i] = isAlnum(byte(i)) || i == '_'
	}
	return t
}()

const prime = 0x9E3779B97F4A7C15

// words calls visit with the hash of each word of a folded text: a run of letters
// and digits, or one wide character. It stops when visit returns false.
func words(b []byte, visit func(h uint64) bool) {
	h, in := uint64(prime), false
	for i := 0; i < len(b); {
		c := b[i]
		if c < 0x80 {
			i++
			if wordByte[c] {
				h = (h ^ uint64(c)) * 0x100000001b3
				for i < len(b) && wordByte[b[i]] {
					h = (h ^ uint64(b[i])) * 0x100000001b3
					i++
				}
				in = true
			} else if in {
				if !visit(h) {
					return
				}
				h, in = prime, false
			}
			continue
		}
		r, n := utf8.DecodeRune(b[i:])
		i += n
		switch {
		case isWide(r):
			if in && !visit(h) {
				return
			}
			h, in = prime, false
			if !visit(uint64(r) * prime) {
				return
			}
		case unicode.IsLetter(r) || unicode.IsDigit(r) || unicode.IsMark(r):
			h = (h ^ uint64(r)) * 0x100000001b3
			in = true
		case in:
			if !visit(h) {
				return
			}
			h, in = prime, false
		}
	}
	if in {
		visit(h)
	}
}

// mix spreads a hash's bits (the finaliser of MurmurHash3).
func mix(h uint64) uint64 {
	h ^= h >> 33
	h *= 0xff51afd7ed558ccd
	h ^= h >> 33
	h *= 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
