package template

import "strings"

// nestedIf rewrites "a if c else b" where it stands within brackets, which the library
// doesn't know, as "((c) and [a] or [b]) | first", which it does, and which computes no more.
// Lines stay where they are.
func nestedIf(source string) string {
	var out strings.Builder
	for {
		i := strings.IndexByte(source, '{')
		if i < 0 || i+1 == len(source) {
			break
		}
		var end string
		switch source[i+1] {
		case '{':
			end = "}}"
		case '%':
			end = "%}"
		case '#':
			end = "#}"
		default:
			out.WriteString(source[:i+1])
			source = source[i+1:]
			continue
		}
		out.WriteString(source[:i+2])
		source = source[i+2:]
		n := tagEnd(source, end)
		if n < 0 {
			break
		}
		if end == "#}" {
			out.WriteString(source[:n])
		} else {
			out.WriteString(groups(source[:n], 0))
		}
		source = source[n:]
	}
	return out.String() + source
}

// tagEnd is where a tag ends, which quoted text does not, nor brackets.
func tagEnd(s, end string) int {
	if end == "#}" {
		return strings.Index(s, end)
	}
	depth := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\'' || s[i] == '"':
			i = quoteEnd(s, i)
		case strings.HasPrefix(s[i:], end) && depth <= 0:
			return i
		case strings.IndexByte("([{", s[i]) >= 0:
			depth++
		case strings.IndexByte(")]}", s[i]) >= 0:
			depth--
		}
	}
	return -1
}

// quoteEnd is the index of the quote that ends the text which begins at i.
func quoteEnd(s string, i int) int {
	for j := i + 1; j < len(s); j++ {
		switch s[j] {
		case '\\':
			j++
		case s[i]:
			return j
		}
	}
	return len(s)
}

// maxNesting bounds brackets in brackets.
const maxNesting = 100

// groups rewrites what stands in the brackets of an expression.
func groups(s string, depth int) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\'' || s[i] == '"' {
			j := min(quoteEnd(s, i), len(s)-1)
			out.WriteString(s[i : j+1])
			i = j
			continue
		}
		out.WriteByte(s[i])
		if strings.IndexByte("([{", s[i]) < 0 || depth > maxNesting {
			continue
		}
		j := groupEnd(s, i)
		if j < 0 {
			continue
		}
		for k, element := range splitTop(s[i+1:j], ",") {
			if k > 0 {
				out.WriteByte(',')
			}
			out.WriteString(choice(element, depth))
		}
		i = j - 1
	}
	return out.String()
}

func groupEnd(s string, i int) int {
	depth := 0
	for j := i; j < len(s); j++ {
		switch {
		case s[j] == '\'' || s[j] == '"':
			j = quoteEnd(s, j)
		case strings.IndexByte("([{", s[j]) >= 0:
			depth++
		case strings.IndexByte(")]}", s[j]) >= 0:
			if depth--; depth == 0 {
				return j
			}
		}
	}
	return -1
}

// choice rewrites one element of a bracket; what is before its colon or its sign of
// equality, the key of a member or the name of an argument, stays.
func choice(s string, depth int) string {
	parts := splitTop(s, " if ")
	if len(parts) < 2 {
		return groups(s, depth+1)
	}
	then, rest := parts[0], s[len(parts[0])+len(" if "):]
	head := ""
	if i := assigned(then); i >= 0 {
		head, then = then[:i+1], then[i+1:]
	}
	cond, other := rest, "''"
	if halves := splitTop(rest, " else "); len(halves) > 1 {
		cond, other = halves[0], rest[len(halves[0])+len(" else "):]
	}
	return head + "((" + groups(cond, depth+1) + ") and [" + groups(then, depth+1) + "] or [" + choice(other, depth+1) + "]) | first"
}

const whitespace = " \t\r\n"

// assigned is where a key or an argument's name ends, or -1.
func assigned(s string) int {
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\'' || s[i] == '"':
			i = quoteEnd(s, i)
		case strings.IndexByte("([{", s[i]) >= 0:
			if i = groupEnd(s, i); i < 0 {
				return -1
			}
		case s[i] == ':':
			return i
		case s[i] == '=':
			if i+1 < len(s) && s[i+1] != '=' && (i == 0 || strings.IndexByte("=!<>", s[i-1]) < 0) {
				return i
			}
		}
	}
	return -1
}

// splitTop splits outside quotes and brackets. Blanks of a separator stand for any one
// white space.
func splitTop(s, sep string) []string {
	var out []string
	from := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\'' || s[i] == '"':
			i = quoteEnd(s, i)
		case strings.IndexByte("([{", s[i]) >= 0:
			j := groupEnd(s, i)
			if j < 0 {
				return append(out, s[from:])
			}
			i = j
		case separates(s[i:], sep):
			out = append(out, s[from:i])
			i += len(sep) - 1
			from = i + 1
		}
	}
	return append(out, s[from:])
}

func separates(s, sep string) bool {
	if len(s) < len(sep) {
		return false
	}
	for i := range len(sep) {
		if sep[i] != s[i] && (sep[i] != ' ' || strings.IndexByte(whitespace, s[i]) < 0) {
			return false
		}
	}
	return true
}
