package data

import (
	"bytes"
	"html"
	"strings"
)

// htmlTags are the elements whose tags are taken as remnants. Other words in
// angle brackets, as in List<String> or <stdio.h>, stay.
var htmlTags = func() map[string]byte {
	m := map[string]byte{}
	for _, t := range strings.Fields("a abbr acronym b bdi bdo big cite code del dfn em font i img input ins kbd label mark nobr q s samp small span strike strong sub sup tt u var wbr") {
		m[t] = 1
	}
	for _, t := range strings.Fields("address article aside blockquote body br button center caption col colgroup dd details div dl dt fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hr html iframe li link main meta nav noscript object ol option p pre section select summary table tbody td textarea tfoot th thead title tr ul video audio canvas svg") {
		m[t] = 2 // its tag ends a line
	}
	m["script"], m["style"] = 3, 3 // left out with all they hold
	return m
}()

func maybeHTML(b []byte) bool {
	for i := 0; i < len(b); i++ {
		k := bytes.IndexByte(b[i:], '<')
		if k < 0 {
			break
		}
		i += k
		if i+1 < len(b) {
			if c := b[i+1]; c == '/' || c == '!' || 'a' <= c|0x20 && c|0x20 <= 'z' {
				return true
			}
		}
	}
	for i := 0; i < len(b); i++ {
		k := bytes.IndexByte(b[i:], '&')
		if k < 0 {
			return false
		}
		i += k
		if entityEnd(b, i) > 0 {
			return true
		}
	}
	return false
}

// entityEnd gives the index after the known entity at b[i], 0 when there is none.
func entityEnd(b []byte, i int) int {
	for k := i + 1; k < len(b) && k < i+12; k++ {
		c := b[k]
		if c == ';' {
			if k == i+1 {
				return 0
			}
			s := string(b[i : k+1])
			if html.UnescapeString(s) != s {
				return k + 1
			}
			return 0
		}
		if !('a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9' || c == '#' && k == i+1) {
			return 0
		}
	}
	return 0
}

// tagAt gives the name's class and the index after the tag or comment at b[i].
func tagAt(b []byte, i int) (class byte, end int) {
	if bytes.HasPrefix(b[i:], []byte("<!--")) {
		if k := bytes.Index(b[i+4:], []byte("-->")); k >= 0 {
			return 1, i + 4 + k + 3
		}
		return 0, 0
	}
	if len(b) >= i+9 && strings.EqualFold(string(b[i:i+9]), "<!doctype") {
		if k := bytes.IndexByte(b[i:], '>'); k >= 0 {
			return 2, i + k + 1
		}
		return 0, 0
	}
	k := i + 1
	closing := k < len(b) && b[k] == '/'
	if closing {
		k++
	}
	from := k
	for k < len(b) && k-from < 12 && ('a' <= b[k]|0x20 && b[k]|0x20 <= 'z' || k > from && '0' <= b[k] && b[k] <= '9') {
		k++
	}
	class = htmlTags[strings.ToLower(string(b[from:k]))]
	if class == 0 || k >= len(b) || b[k] != '>' && b[k] != '/' && !isSpace(b[k]) {
		return 0, 0
	}
	name := b[from:k]
	for n := 0; k < len(b) && b[k] != '>'; k++ {
		if n++; b[k] == '<' || n > 2000 {
			return 0, 0
		}
	}
	if k >= len(b) {
		return 0, 0
	}
	end = k + 1
	if class == 3 && !closing {
		rest := b[end:]
		for at := 0; ; {
			j := bytes.Index(rest[at:], []byte("</"))
			if j < 0 {
				break
			}
			at += j + 2
			if len(rest) > at+len(name) && bytes.EqualFold(rest[at:at+len(name)], name) {
				if e := bytes.IndexByte(rest[at:], '>'); e >= 0 {
					return 2, end + at + e + 1
				}
			}
		}
	}
	if class == 3 {
		class = 2
	}
	return class, end
}

// stripHTML removes tags, comments, scripts and styles and decodes entities. A
// block's tag becomes a line's end where text stands on both sides of it.
func stripHTML(dst, b []byte) ([]byte, bool) {
	fixed := false
	for i := 0; i < len(b); {
		switch b[i] {
		case '<':
			if class, end := tagAt(b, i); end > 0 {
				fixed = true
				if class == 2 && len(dst) > 0 && dst[len(dst)-1] != '\n' {
					dst = append(dst, '\n')
				}
				i = end
				continue
			}
		case '&':
			if end := entityEnd(b, i); end > 0 {
				fixed = true
				s := html.UnescapeString(string(b[i:end]))
				if s == "&" { // escaped twice, as in &amp;nbsp;
					k := end
					for k < len(b) && k < end+10 && b[k] != ';' && b[k] > ' ' {
						k++
					}
					if k < len(b) && b[k] == ';' {
						two := "&" + string(b[end:k+1])
						if u := html.UnescapeString(two); u != two {
							s, end = u, k+1
						}
					}
				}
				for _, r := range s {
					switch {
					case r == 0xa0:
						dst = append(dst, ' ')
					case r == '\n' || r == '\t' || r >= 0x20 && !invisible(r) && r != 0x7f:
						dst = append(dst, string(r)...)
					}
				}
				i = end
				continue
			}
		}
		dst = append(dst, b[i])
		i++
	}
	return dst, fixed
}
