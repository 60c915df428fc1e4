package token

import (
	"sort"
	"strings"
	"unicode/utf8"
)

// Encode appends the ids of text to dst. Text that looks like a special token is
// ordinary text; no BOS is added. Any bytes encode, valid UTF-8 or not.
func (t *Tokenizer) Encode(dst []int32, text string) []int32 {
	sc := t.scratch.Get().(*scratch)
	dst = t.encodePieces(dst, text, sc)
	t.scratch.Put(sc)
	return dst
}

// EncodeSpecial is Encode, but the tokenizer's added tokens become their ids
// wherever they stand, as Hugging Face's tokenizers does by default. No BOS is added.
func (t *Tokenizer) EncodeSpecial(dst []int32, text string) []int32 {
	return t.encodeSpecial(dst, text, "")
}

// Mark puts a mark into what text has of the tokenizer's added tokens, after their first
// letter, so that EncodeMarked takes them for ordinary text. The mark must not be in text.
// A token of one letter can't be marked.
func (t *Tokenizer) Mark(text, mark string) string {
	for _, a := range t.added {
		if _, n := utf8.DecodeRuneInString(a.content); n < len(a.content) && strings.Contains(text, a.content) {
			text = strings.ReplaceAll(text, a.content, a.content[:n]+mark+a.content[n:])
		}
	}
	return text
}

// EncodeMarked is EncodeSpecial of a text in which Mark marked what somebody wrote; the
// marks are not encoded.
func (t *Tokenizer) EncodeMarked(dst []int32, text, mark string) []int32 {
	return t.encodeSpecial(dst, text, mark)
}

func (t *Tokenizer) encodeSpecial(dst []int32, text, mark string) []int32 {
	sc := t.scratch.Get().(*scratch)
	t.raw.segments(text, func(part string, id int32) {
		if id >= 0 {
			dst = append(dst, id)
			return
		}
		t.norm.segments(part, func(part string, id int32) {
			if id >= 0 {
				dst = append(dst, id)
				return
			}
			if mark != "" {
				part = strings.ReplaceAll(part, mark, "")
			}
			dst = t.encodePieces(dst, part, sc)
		})
	})
	t.scratch.Put(sc)
	return dst
}

// EncodePrompt is what Hugging Face's tokenizer(text) gives: BOS if the
// tokenizer's template has one, then EncodeSpecial.
func (t *Tokenizer) EncodePrompt(dst []int32, text string) []int32 {
	if t.bos >= 0 {
		dst = append(dst, t.bos)
	}
	return t.EncodeSpecial(dst, text)
}

// Texts below this many bytes a thread are not worth cutting.
const parallelBytes = 64 << 10

// EncodeAll is Encode on several threads: the text is cut where a piece ends
// for certain, so the ids are those of Encode.
func (t *Tokenizer) EncodeAll(text string, threads int) []int32 {
	parts := cut(text, threads, parallelBytes)
	if len(parts) <= 1 {
		return t.Encode(make([]int32, 0, len(text)/3), text)
	}
	ids := make([][]int32, len(parts))
	parallel(len(parts), func(i int) { ids[i] = t.Encode(make([]int32, 0, len(parts[i])/3), parts[i]) })
	n := 0
	for _, p := range ids {
		n += len(p)
	}
	out := make([]int32, 0, n)
	for _, p := range ids {
		out = append(out, p...)
	}
	return out
}

// cut divides text into at most n parts of at least least bytes (but the last)
// at safe cuts.
func cut(text string, n, least int) []string {
	var parts []string
	for ; n > 1 && len(text) > least; n-- {
		size := max(len(text)/n, least)
		if size >= len(text) {
			break
		}
		q := safeCut(text, 0, size)
		if q < 0 || q == len(text) {
			break
		}
		parts = append(parts, text[:q])
		text = text[q:]
	}
	if text != "" {
		parts = append(parts, text)
	}
	return parts
}

// matcher finds added tokens in text, leftmost first, the longest of those.
type matcher struct {
	first [256]bool
	any   bool
	toks  []added // longest first
}

func (m *matcher) add(a added) {
	m.first[a.content[0]] = true
	m.any = true
	m.toks = append(m.toks, a)
	sort.SliceStable(m.toks, func(i, j int) bool { return len(m.toks[i].content) > len(m.toks[j].content) })
}

// segments calls f with each stretch of ordinary text (id -1, never empty) and
// each token found, in order.
func (m *matcher) segments(text string, f func(part string, id int32)) {
	from := 0
	if m.any {
	scan:
		for p := 0; p < len(text); {
			if m.first[text[p]] {
				for _, a := range m.toks {
					if strings.HasPrefix(text[p:], a.content) {
						if p > from {
							f(text[from:p], -1)
						}
						f(a.content, a.id)
						p += len(a.content)
						from = p
						continue scan
					}
				}
			}
			p++
		}
	}
	if from < len(text) {
		f(text[from:], -1)
	}
}
