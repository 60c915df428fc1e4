package data

import (
	"bytes"
	"encoding/binary"
	"math/bits"
)

func isAlnum(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
}

// findEmail looks for local@domain.tld.
func findEmail(b []byte) bool {
	for i := 0; i < len(b); i++ {
		k := bytes.IndexByte(b[i:], '@')
		if k < 0 {
			return false
		}
		i += k
		if i == 0 || !isAlnum(b[i-1]) {
			continue
		}
		j, dot := i+1, -1
		for j < len(b) && (isAlnum(b[j]) || b[j] == '-' || b[j] == '.') {
			if b[j] == '.' {
				dot = j
			}
			j++
		}
		if dot == j-1 { // a full stop after it
			dot = bytes.LastIndexByte(b[i+1:j-1], '.')
			if dot >= 0 {
				dot += i + 1
			}
			j--
		}
		if dot > i+1 && j-dot >= 3 && b[dot+1] > '9' {
			return true
		}
	}
	return false
}

// numbers looks at each group of digits with the separators of phone numbers,
// cards and addresses in it.
func (c *cleaner) numbers(b []byte) {
	s := &c.seen
	for i := 0; ; i++ {
		if i = nextDigit(b, i); i >= len(b) {
			return
		}
		if i > 0 && ('a' <= b[i-1]|0x20 && b[i-1]|0x20 <= 'z' || b[i-1] >= 0x80 || b[i-1] == '.' && i > 1 && isAlnum(b[i-2])) {
			for i+1 < len(b) && isAlnum(b[i+1]) {
				i++
			}
			continue
		}
		var digits [24]byte
		var groups [12]int
		n, g, dots, seps, j := 0, 0, 0, 0, i
		for ; j < len(b) && n < len(digits); j++ {
			d := b[j]
			if '0' <= d && d <= '9' {
				digits[n] = d - '0'
				n++
				if g < len(groups) {
					groups[g]++
				}
				continue
			}
			if j+1 < len(b) && (d == '-' || d == '.' || d == ' ' || d == ')') && g < len(groups)-1 {
				next := j + 1
				if d == ')' && b[next] == ' ' && next+1 < len(b) {
					next++
				}
				if b[next] >= '0' && b[next] <= '9' {
					if d == '.' {
						dots++
					}
					seps++
					g++
					j = next - 1
					continue
				}
			}
			break
		}
		if j < len(b) && 'a' <= b[j]|0x20 && b[j]|0x20 <= 'z' {
			i = j
			continue
		}
		plus := i > 0 && (b[i-1] == '+' || b[i-1] == '(')
		switch {
		case g == 3 && dots == 3 && seps == 3 && isIPv4(b[i:j]):
			s.ip = true
		case n >= 13 && n <= 19 && luhn(digits[:n]) && (g == 0 || groups[0] == 4 && g <= 4):
			s.card = true
		case n >= 9 && n <= 15 && seps >= 2 && looksLikePhone(groups[:g+1], plus),
			n >= 10 && n <= 15 && plus && seps <= 1 && b[i-1] == '+':
			s.phone = true
		}
		if j > i {
			i = j - 1
		}
	}
}

// nextDigit is the index of the first digit at or after i, or len(b): eight bytes at a time.
func nextDigit(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		low := w &^ high
		if m := (low + ones*(0x80-'0')) &^ (low + ones*(0x80-'9'-1)) &^ w & high; m != 0 {
			return i + bits.TrailingZeros64(m)>>3
		}
	}
	for i < len(b) && (b[i] < '0' || b[i] > '9') {
		i++
	}
	return i
}

// looksLikePhone tells groups of digits such as 3-3-4, 1-3-3-4 or 44-20-4-4.
func looksLikePhone(g []int, plus bool) bool {
	last := g[len(g)-1]
	if last < 3 || last > 4 || len(g) > 5 {
		return false
	}
	if plus {
		return true
	}
	if len(g) == 4 && g[0] <= 2 {
		g = g[1:]
	}
	return len(g) == 3 && g[0] == 3 && g[1] == 3 && last == 4
}

func isIPv4(b []byte) bool {
	for _, p := range bytes.Split(b, []byte{'.'}) {
		v := 0
		if len(p) == 0 || len(p) > 3 || len(p) > 1 && p[0] == '0' {
			return false
		}
		for _, c := range p {
			v = v*10 + int(c-'0')
		}
		if v > 255 {
			return false
		}
	}
	return true
}

func luhn(d []byte) bool {
	sum, same := 0, true
	for i := range d {
		x := int(d[len(d)-1-i])
		same = same && d[i] == d[0]
		if i%2 == 1 {
			if x *= 2; x > 9 {
				x -= 9
			}
		}
		sum += x
	}
	return sum%10 == 0 && !same
}
