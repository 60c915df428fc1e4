package token

import (
	"errors"
	"io"
	"unicode/utf8"
	"unsafe"
)

// Encoder encodes a text that comes in chunks, to the ids that Encode gives the
// whole. It belongs to one goroutine.
type Encoder struct {
	t     *Tokenizer
	buf   []byte // what is not settled yet; starts at a piece
	retry int    // length of buf from which settling is worth trying again: keeps long pieces linear
}

// NewEncoder is an Encoder at the start of a text.
func (t *Tokenizer) NewEncoder() *Encoder { return &Encoder{t: t} }

// Append appends the ids that are settled once chunk is known. The Encoder keeps
// no reference to chunk.
func (e *Encoder) Append(dst []int32, chunk []byte) []int32 {
	e.buf = append(e.buf, chunk...)
	if len(e.buf) < e.retry {
		return dst
	}
	text := unsafe.String(unsafe.SliceData(e.buf), len(e.buf)) // not kept beyond this call
	sc := e.t.scratch.Get().(*scratch)
	p := e.t.split.settled(text, 0, func(from, to int) {
		dst = e.t.encodePiece(dst, text, from, to, sc)
	})
	e.t.scratch.Put(sc)
	e.retry = 0
	if p == 0 {
		e.retry = 2 * len(e.buf)
	}
	e.buf = append(e.buf[:0], e.buf[p:]...)
	return dst
}

// Flush appends the ids of what is left; the text ends here. The Encoder may
// then start another text.
func (e *Encoder) Flush(dst []int32) []int32 {
	dst = e.t.Encode(dst, string(e.buf))
	e.buf, e.retry = e.buf[:0], 0
	return dst
}

// EncodeReader encodes what r gives until its end and hands the ids to emit
// chunk by chunk; emit must not keep the slice.
func (t *Tokenizer) EncodeReader(r io.Reader, emit func(ids []int32) error) error {
	e := t.NewEncoder()
	buf := make([]byte, 256<<10)
	var ids []int32
	for {
		n, err := r.Read(buf)
		ids = e.Append(ids[:0], buf[:n])
		end := errors.Is(err, io.EOF)
		if end {
			ids = e.Flush(ids)
		}
		if len(ids) > 0 {
			if err := emit(ids); err != nil {
				return err
			}
		}
		if end {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Decode is the text of ids, special tokens left out. It is the bytes that were
// encoded, which need not be valid UTF-8; a Decoder gives valid UTF-8. Ids that
// are not in use decode to nothing.
func (t *Tokenizer) Decode(ids []int32) string { return t.decode(ids, true) }

// DecodeSpecial is Decode with the special tokens' own text.
func (t *Tokenizer) DecodeSpecial(ids []int32) string { return t.decode(ids, false) }

func (t *Tokenizer) decode(ids []int32, skip bool) string {
	n := 0
	for _, id := range ids {
		n += len(t.Symbol(id))
	}
	out := make([]byte, 0, n)
	for _, id := range ids {
		if skip && t.IsSpecial(id) {
			continue
		}
		out = append(out, t.Symbol(id)...)
	}
	return string(out)
}

// Decoder decodes ids one by one into pieces of valid UTF-8: an incomplete
// character waits for its other bytes, an invalid one becomes U+FFFD (one for
// each maximal part, as Hugging Face and Unicode do). It belongs to one goroutine.
type Decoder struct {
	t       *Tokenizer
	special bool
	buf     []byte
}

// NewDecoder decodes without special tokens, or with their text if special is set.
func (t *Tokenizer) NewDecoder(special bool) *Decoder { return &Decoder{t: t, special: special} }

// Push adds an id and returns the text that is complete with it, maybe empty.
func (d *Decoder) Push(id int32) string {
	if d.special || !d.t.IsSpecial(id) {
		d.buf = append(d.buf, d.t.Symbol(id)...)
	}
	return d.take(false)
}

// Flush ends the text: bytes that are left become U+FFFD.
func (d *Decoder) Flush() string { return d.take(true) }

func (d *Decoder) take(end bool) string {
	var out []byte
	p := 0
	for p < len(d.buf) {
		if r, w := utf8.DecodeRune(d.buf[p:]); r != utf8.RuneError || w > 1 {
			out = append(out, d.buf[p:p+w]...)
			p += w
			continue
		}
		if !end && !utf8.FullRune(d.buf[p:]) {
			break
		}
		out = utf8.AppendRune(out, utf8.RuneError)
		p += invalidPart(d.buf[p:])
	}
	d.buf = append(d.buf[:0], d.buf[p:]...)
	return string(out)
}

// invalidPart is the length of the longest start of b that a valid character
// could begin with, at least 1.
func invalidPart(b []byte) int {
	n := 1
	for n < len(b) && !utf8.FullRune(b[:n+1]) {
		n++
	}
	return n
}

// ValidUTF8 is s with every maximal invalid part replaced by U+FFFD.
func ValidUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	d := Decoder{buf: []byte(s)}
	return d.take(true)
}
