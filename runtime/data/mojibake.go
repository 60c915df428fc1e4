package data

import (
	"bytes"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
)

// to1252 gives, for a character, the byte that Windows-1252 (or, where that has
// none, Latin-1) read it from; 0 for none.
var to1252 = func() map[rune]byte {
	m := make(map[rune]byte, 160)
	for i := 0x80; i < 0x100; i++ {
		m[rune(i)] = byte(i)
	}
	for i := 0x80; i < 0xA0; i++ {
		if r := charmap.Windows1252.DecodeByte(byte(i)); r != utf8.RuneError {
			m[r] = byte(i)
		}
	}
	return m
}()

// maybeMojibake looks for a character U+00C2 to U+00F4 (bytes C3 82 to C3 B4)
// with another beyond ASCII right after it.
func maybeMojibake(b []byte) bool {
	for i := 0; i+2 < len(b); i++ {
		k := bytes.IndexByte(b[i:len(b)-2], 0xC3)
		if k < 0 {
			return false
		}
		i += k
		if b[i+1] >= 0x82 && b[i+1] <= 0xB4 && b[i+2] >= 0xC2 {
			return true
		}
	}
	return false
}

// fixMojibake turns runs of characters that are UTF-8 read as Windows-1252 back.
// It acts only where such a run can hardly be anything else: accented letters
// alone, as in French or German, and a letter before a typographic quote stay.
func fixMojibake(dst, b []byte) ([]byte, bool) {
	fixed := false
	for i := 0; i < len(b); {
		if b[i] < 0x80 {
			dst = append(dst, b[i])
			i++
			continue
		}
		raw, from := make([]byte, 0, 64), i
		starts := make([]int, 0, 64)
		for i < len(b) && b[i] >= 0x80 {
			r, n := utf8.DecodeRune(b[i:])
			c, ok := to1252[r]
			if !ok {
				break
			}
			raw = append(raw, c)
			starts = append(starts, i)
			i += n
		}
		if len(raw) == 0 { // a character that Windows-1252 has not
			_, n := utf8.DecodeRune(b[i:])
			dst = append(dst, b[i:i+n]...)
			i += n
			continue
		}
		upper := from > 0 && 'A' <= b[from-1] && b[from-1] <= 'Z'
		pairs, triples := countSequences(raw)
		for k := 0; k < len(raw); {
			r, n := utf8.DecodeRune(raw[k:])
			if n > 1 && r != utf8.RuneError && believable(r, raw[k], n, pairs, triples, upper && k == 0) {
				dst = append(dst, raw[k:k+n]...)
				fixed = true
				k += n
				continue
			}
			end := i
			if k+1 < len(raw) {
				end = starts[k+1]
			}
			dst = append(dst, b[starts[k]:end]...)
			k++
		}
	}
	return dst, fixed
}

func countSequences(raw []byte) (pairs, triples int) {
	for k := 0; k < len(raw); {
		r, n := utf8.DecodeRune(raw[k:])
		if r != utf8.RuneError {
			if n == 2 {
				pairs++
			} else if n >= 3 {
				triples++
			}
		}
		k += n
	}
	return pairs, triples
}

func believable(r rune, lead byte, n, pairs, triples int, upper bool) bool {
	switch {
	case n == 2 && (lead == 0xC3 || lead == 0xC2):
		return !upper || r >= 0xE0
	case n == 2:
		return pairs >= 3
	case n == 3 && lead == 0xE2:
		return r >= 0x2010 && r < 0x2C00
	case n == 3:
		return triples >= 2
	}
	return n == 4
}
