package token

import (
	"fmt"
	"unicode/utf8"
)

// Split is the expression that cuts text into pieces before any merge. Both
// known ones need a lookahead, which Go's regexp lacks, so each is written out
// by hand.
type Split uint8

const (
	// SplitLlama3 is Llama 3's expression, the one Trainer uses.
	SplitLlama3 Split = iota
	// SplitGPT2 is GPT-2's expression, for tokenizers made elsewhere.
	SplitGPT2
)

const (
	llama3Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	gpt2Pattern   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
)

// Pattern is the regular expression, as tokenizer.json holds it.
func (sp Split) Pattern() string {
	if sp == SplitGPT2 {
		return gpt2Pattern
	}
	return llama3Pattern
}

func splitOf(pattern string) (Split, error) {
	switch pattern {
	case llama3Pattern:
		return SplitLlama3, nil
	case gpt2Pattern:
		return SplitGPT2, nil
	}
	return 0, fmt.Errorf("split expression %q is not known; only those of Llama 3 and GPT-2 are", pattern)
}

// next is the end of the piece that starts at s[p]; p < len(s).
func (sp Split) next(s string, p int) int {
	if sp == SplitGPT2 {
		return nextGPT2(s, p)
	}
	return nextLlama3(s, p)
}

func nextLlama3(s string, p int) int {
	k, w := classAt(s, p)
	switch k {
	case letter:
		return run(s, p+w, letter)
	case number:
		q := p + w
		for i := 0; i < 2 && q < len(s); i++ {
			k, w := classAt(s, q)
			if k != number {
				break
			}
			q += w
		}
		return q
	case newline:
		return whitespace(s, p, true)
	}
	q := p + w
	if s[p] == '\'' {
		if e := contraction(s, q, true); e > q {
			return e
		}
	}
	if q < len(s) {
		switch k2, w2 := classAt(s, q); {
		case k2 == letter:
			return run(s, q+w2, letter)
		case k == other && k2 == other || s[p] == ' ' && k2 == other:
			return run(s, run(s, q+w2, other), newline)
		case k == other:
			return run(s, q, newline)
		}
	} else if k == other {
		return q
	}
	return whitespace(s, p, true)
}

func nextGPT2(s string, p int) int {
	k, w := classAt(s, p)
	q := p + w
	if s[p] == '\'' {
		if e := contraction(s, q, false); e > q {
			return e
		}
	}
	if s[p] == ' ' && q < len(s) {
		if k2, w2 := classAt(s, q); k2 <= number {
			return run(s, q+w2, k2)
		}
	}
	if k <= number {
		return run(s, q, k)
	}
	return whitespace(s, p, false)
}

// run skips characters of one class.
func run(s string, p int, k class) int {
	for p < len(s) {
		c := s[p]
		if c < utf8.RuneSelf {
			if classes[c] != k {
				return p
			}
			p++
			continue
		}
		if r, ok := three(s, p); ok {
			if classes[r] != k {
				return p
			}
			p += 3
			continue
		}
		r, w := utf8.DecodeRuneInString(s[p:])
		if classes[r] != k {
			return p
		}
		p += w
	}
	return p
}

// whitespace is \s*[\r\n]+ (when breaks is set), else \s+(?!\S), else \s+, at a
// white-space character.
func whitespace(s string, p int, breaks bool) int {
	last, lineEnd, q := p, -1, p
	for q < len(s) {
		k, w := classAt(s, q)
		if k < space {
			break
		}
		last = q
		q += w
		if k == newline {
			lineEnd = q
		}
	}
	switch {
	case breaks && lineEnd >= 0:
		return lineEnd
	case q == len(s) || last == p:
		return q
	}
	return last
}

// contraction is the end of s, t, re, ve, m, ll or d after an apostrophe, or p.
// Folding case lets ſ (U+017F) stand for s, as Unicode's simple folding does.
func contraction(s string, p int, fold bool) int {
	at := func(i int) byte {
		if i >= len(s) {
			return 0
		}
		c := s[i]
		if fold && 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		return c
	}
	switch at(p) {
	case 's', 't', 'm', 'd':
		return p + 1
	case 'r', 'v':
		if at(p+1) == 'e' {
			return p + 2
		}
	case 'l':
		if at(p+1) == 'l' {
			return p + 2
		}
	case 0xc5:
		if fold && at(p+1) == 0xbf {
			return p + 2
		}
	}
	return p
}

// safeCut is the last q in (lo, hi] where every split expression ends a piece
// whatever stands before, or -1. It holds where a letter is followed by a
// character that is no letter (no alternative goes on from a letter to anything
// else), or where the text ends.
func safeCut(s string, lo, hi int) int {
	if hi >= len(s) {
		return len(s)
	}
	for hi > lo && !utf8.RuneStart(s[hi]) {
		hi--
	}
	for q := hi; q > lo; {
		before, w := utf8.DecodeLastRuneInString(s[:q])
		if after, _ := classAt(s, q); classes[before] == letter && after != letter && utf8.FullRuneInString(s[q:]) {
			return q
		}
		q -= w
	}
	return -1
}

// settled is the end of the last piece of s that more text after s can't change,
// counted from p, which starts a piece. It calls piece with each settled piece.
func (sp Split) settled(s string, p int, piece func(from, to int)) int {
	n := len(s)
	for i := 1; i <= 3 && i <= n; i++ { // an incomplete character at the end is not read yet
		if utf8.RuneStart(s[n-i]) {
			if !utf8.FullRuneInString(s[n-i:]) {
				n -= i
			}
			break
		}
	}
	s = s[:n]
	for p < n {
		e := sp.next(s, p)
		if e == n {
			return p
		}
		if k, _ := classAt(s, p); k >= space && skipWhite(s, e) == n {
			return p // the white space may go on
		}
		piece(p, e)
		p = e
	}
	return p
}

// skipWhite skips white space of both kinds.
func skipWhite(s string, p int) int {
	for p < len(s) {
		k, w := classAt(s, p)
		if k < space {
			break
		}
		p += w
	}
	return p
}
