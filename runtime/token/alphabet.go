package token

import "unicode/utf8"

// The alphabet of byte-level BPE (GPT-2): every byte is written as one printable
// character. The bytes that print as themselves in Latin-1 keep their code
// point; the other 68 are written U+0100 and up, in order.
var (
	byteToRune [256]rune
	runeToByte = map[rune]byte{}
	byteOrder  [256]byte // the bytes in order of their characters, which is the order of their ids
)

func init() {
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !('!' <= r && r <= '~' || 0xa1 <= r && r <= 0xac || 0xae <= r && r <= 0xff) {
			r = next
			next++
		}
		byteToRune[b] = r
		runeToByte[r] = byte(b)
	}
	n := 0
	for r := rune(0); r < next; r++ {
		if b, ok := runeToByte[r]; ok {
			byteOrder[n] = b
			n++
		}
	}
}

// toAlphabet writes raw bytes in the alphabet, as tokenizer.json holds them.
func toAlphabet(raw string) string {
	out := make([]byte, 0, 2*len(raw))
	for i := range len(raw) {
		out = utf8.AppendRune(out, byteToRune[raw[i]])
	}
	return string(out)
}

// fromAlphabet is the inverse; ok is false when a character is not of the alphabet.
func fromAlphabet(s string) (raw string, ok bool) {
	out := make([]byte, 0, len(s))
	for _, r := range s {
		b, known := runeToByte[r]
		if !known {
			return "", false
		}
		out = append(out, b)
	}
	return string(out), true
}
