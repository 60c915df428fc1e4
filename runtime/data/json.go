package data

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"unicode/utf8"
)

// maxDepth is the nesting that a value may have, the same as encoding/json's.
const maxDepth = 10000

// jsonError is a fault at a byte of one JSON text.
type jsonError struct {
	at  int
	msg string
}

func (e *jsonError) Error() string { return fmt.Sprintf("%s at byte %d", e.msg, e.at+1) }

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func skipSpace(b []byte, i int) int {
	for i < len(b) && isSpace(b[i]) {
		i++
	}
	return i
}

const (
	ones = 0x0101010101010101
	high = 0x8080808080808080
)

// plainRun gives the index of the first byte at or after i that is a quote, a
// backslash or a control byte, eight bytes at a time.
func plainRun(b []byte, i int) int {
	for i+8 <= len(b) {
		w := binary.LittleEndian.Uint64(b[i:])
		q := w ^ (ones * '"')
		s := w ^ (ones * '\\')
		m := ((q-ones)&^q | (s-ones)&^s | (w-ones*0x20)&^w) & high
		if m != 0 {
			// borrows may set marks above a true one, never below: the lowest is exact
			return i + bits.TrailingZeros64(m)>>3
		}
		i += 8
	}
	for i < len(b) && b[i] != '"' && b[i] != '\\' && b[i] >= 0x20 {
		i++
	}
	return i
}

// scanString checks the string whose opening quote is at b[i] and gives the
// index after its closing quote and whether it has escapes.
func scanString(b []byte, i int) (end int, escaped bool, err error) {
	i++
	for {
		i = plainRun(b, i)
		if i >= len(b) {
			return 0, false, &jsonError{i, "string without end"}
		}
		switch b[i] {
		case '"':
			return i + 1, escaped, nil
		case '\\':
			escaped = true
			if i+1 >= len(b) {
				return 0, false, &jsonError{i, "string without end"}
			}
			switch b[i+1] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
				i += 2
			case 'u':
				if i+6 > len(b) || hex4(b[i+2:i+6]) < 0 {
					return 0, false, &jsonError{i, "bad \\u escape"}
				}
				i += 6
			default:
				return 0, false, &jsonError{i, "bad escape"}
			}
		default:
			return 0, false, &jsonError{i, "raw control byte in a string"}
		}
	}
}

func hex4(b []byte) rune {
	var r rune
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// unescape appends the text of a checked string body (without quotes) to dst.
// A lone surrogate becomes U+FFFD, as in encoding/json.
func unescape(dst, s []byte) []byte {
	for i := 0; i < len(s); {
		j := i
		for j < len(s) && s[j] != '\\' {
			j++
		}
		dst = append(dst, s[i:j]...)
		if j >= len(s) {
			break
		}
		i = j + 2
		switch s[j+1] {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := hex4(s[j+2 : j+6])
			i = j + 6
			if 0xD800 <= r && r < 0xE000 {
				r2 := rune(-1)
				if r < 0xDC00 && i+6 <= len(s) && s[i] == '\\' && s[i+1] == 'u' {
					r2 = hex4(s[i+2 : i+6])
				}
				if 0xDC00 <= r2 && r2 < 0xE000 {
					r = 0x10000 + (r-0xD800)<<10 + (r2 - 0xDC00)
					i += 6
				} else {
					r = utf8.RuneError
				}
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, s[j+1])
		}
	}
	return dst
}

// scanNumber checks a number and gives the index after it.
func scanNumber(b []byte, i int) (int, error) {
	at := i
	if i < len(b) && b[i] == '-' {
		i++
	}
	digits := func() bool {
		n := i
		for i < len(b) && '0' <= b[i] && b[i] <= '9' {
			i++
		}
		return i > n
	}
	switch {
	case i < len(b) && b[i] == '0':
		i++
	case !digits():
		return 0, &jsonError{at, "no value"}
	}
	if i < len(b) && b[i] == '.' {
		i++
		if !digits() {
			return 0, &jsonError{at, "bad number"}
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if !digits() {
			return 0, &jsonError{at, "bad number"}
		}
	}
	return i, nil
}

func scanLiteral(b []byte, i int, lit string) (int, error) {
	if len(b)-i >= len(lit) && string(b[i:i+len(lit)]) == lit {
		return i + len(lit), nil
	}
	return 0, &jsonError{i, "no value"}
}

// scanValue checks the value at b[i] strictly and gives its kind and end.
func scanValue(b []byte, i, depth int) (Kind, int, error) {
	if i >= len(b) {
		return 0, 0, &jsonError{i, "text ends before its value"}
	}
	if depth > maxDepth {
		return 0, 0, &jsonError{i, "nested too deep"}
	}
	switch c := b[i]; c {
	case '"':
		end, _, err := scanString(b, i)
		return String, end, err
	case '{':
		end, err := scanMembers(b, i, depth, func(_, _ span, _ bool, _ Kind) {})
		return Object, end, err
	case '[':
		end, err := scanElements(b, i, depth, func(span, Kind) {})
		return Array, end, err
	case 't':
		end, err := scanLiteral(b, i, "true")
		return Bool, end, err
	case 'f':
		end, err := scanLiteral(b, i, "false")
		return Bool, end, err
	case 'n':
		end, err := scanLiteral(b, i, "null")
		return Null, end, err
	default:
		end, err := scanNumber(b, i)
		return Number, end, err
	}
}

// span is a half-open range of bytes.
type span struct{ from, to int }

// scanMembers walks the object at b[i]; visit gets the key (with quotes), the
// value, whether the key has escapes, and the value's kind.
func scanMembers(b []byte, i, depth int, visit func(key, val span, escaped bool, k Kind)) (int, error) {
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == '}' {
		return i + 1, nil
	}
	for {
		if i >= len(b) || b[i] != '"' {
			return 0, &jsonError{i, "no key in quotes"}
		}
		end, escaped, err := scanString(b, i)
		if err != nil {
			return 0, err
		}
		key := span{i, end}
		i = skipSpace(b, end)
		if i >= len(b) || b[i] != ':' {
			return 0, &jsonError{i, "no colon after a key"}
		}
		i = skipSpace(b, i+1)
		k, end, err := scanValue(b, i, depth+1)
		if err != nil {
			return 0, err
		}
		visit(key, span{i, end}, escaped, k)
		i = skipSpace(b, end)
		if i >= len(b) {
			return 0, &jsonError{i, "object without end"}
		}
		switch b[i] {
		case ',':
			i = skipSpace(b, i+1)
		case '}':
			return i + 1, nil
		default:
			return 0, &jsonError{i, "neither comma nor closing brace"}
		}
	}
}

// scanElements walks the array at b[i].
func scanElements(b []byte, i, depth int, visit func(val span, k Kind)) (int, error) {
	i = skipSpace(b, i+1)
	if i < len(b) && b[i] == ']' {
		return i + 1, nil
	}
	for {
		k, end, err := scanValue(b, i, depth+1)
		if err != nil {
			return 0, err
		}
		visit(span{i, end}, k)
		i = skipSpace(b, end)
		if i >= len(b) {
			return 0, &jsonError{i, "array without end"}
		}
		switch b[i] {
		case ',':
			i = skipSpace(b, i+1)
		case ']':
			return i + 1, nil
		default:
			return 0, &jsonError{i, "neither comma nor closing bracket"}
		}
	}
}

// parseObject checks that b is exactly one JSON object in valid UTF-8 (which the
// caller has checked) and fills rec.Fields. Strings without escapes are slices of
// b; others live in the record's scratch.
func parseObject(b []byte, rec *Record) error {
	i := skipSpace(b, 0)
	if i >= len(b) || b[i] != '{' {
		return &jsonError{i, "not an object"}
	}
	rec.Fields = rec.Fields[:0]
	if cap(rec.scratch) < len(b) {
		// scratch never grows while a row is parsed: earlier slices stay valid
		rec.scratch = make([]byte, 0, 2*len(b)+64)
	}
	rec.scratch = rec.scratch[:0]
	end, err := scanMembers(b, i, 1, func(key, val span, escaped bool, k Kind) {
		f := Field{Name: b[key.from+1 : key.to-1], Val: b[val.from:val.to], Kind: k}
		if escaped {
			f.Name = rec.unescape(f.Name)
		}
		if k == String {
			f.Val = f.Val[1 : len(f.Val)-1]
			if hasBackslash(f.Val) {
				f.Val = rec.unescape(f.Val)
			}
		}
		rec.Fields = append(rec.Fields, f)
	})
	if err != nil {
		rec.Fields = rec.Fields[:0]
		return err
	}
	if end = skipSpace(b, end); end != len(b) {
		rec.Fields = rec.Fields[:0]
		return &jsonError{end, "more text after the object"}
	}
	return nil
}

// unescape decodes into scratch; the text is never longer than its escaped form.
func (r *Record) unescape(s []byte) []byte {
	n := len(r.scratch)
	r.scratch = unescape(r.scratch, s)
	return r.scratch[n:len(r.scratch):len(r.scratch)]
}

// stringValue decodes a JSON string with its quotes into a new or shared slice.
func stringValue(raw []byte) []byte {
	body := raw[1 : len(raw)-1]
	if !hasBackslash(body) {
		return body
	}
	return unescape(make([]byte, 0, len(body)), body)
}

// elements lists the values of a checked array.
func elements(raw []byte, visit func(val []byte, k Kind)) {
	_, _ = scanElements(raw, 0, 1, func(s span, k Kind) { visit(raw[s.from:s.to], k) })
}

// members lists the members of a checked object.
func members(raw []byte, visit func(key string, val []byte, k Kind)) {
	_, _ = scanMembers(raw, 0, 1, func(key, val span, _ bool, k Kind) {
		visit(string(stringValue(raw[key.from:key.to])), raw[val.from:val.to], k)
	})
}
