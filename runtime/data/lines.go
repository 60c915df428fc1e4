package data

import (
	"bytes"
	"errors"
	"io"
	"unicode/utf8"
)

// maxLine bounds one line, row or record, so that memory stays bounded.
const maxLine = 64 << 20

var errTooLong = errors.New("record too long")

func hasBackslash(b []byte) bool { return bytes.IndexByte(b, '\\') >= 0 }

// window is a growing view of a stream: the unread bytes are buf[r:w].
type window struct {
	src  io.Reader
	buf  []byte
	r, w int
	eof  bool
}

func newWindow(src io.Reader) *window {
	return &window{src: src, buf: make([]byte, 256<<10)}
}

// more reads on, moving and growing the buffer as needed. It returns io.EOF when
// nothing more comes and errTooLong when the unread part has reached maxLine.
func (v *window) more() error {
	if v.eof {
		return io.EOF
	}
	if v.r > 0 && v.w == len(v.buf) {
		copy(v.buf, v.buf[v.r:v.w])
		v.w -= v.r
		v.r = 0
	}
	if v.w == len(v.buf) {
		if len(v.buf) >= maxLine {
			return errTooLong
		}
		b := make([]byte, 2*len(v.buf))
		copy(b, v.buf[:v.w])
		v.buf = b
	}
	for {
		n, err := v.src.Read(v.buf[v.w:])
		v.w += n
		if err == io.EOF {
			v.eof = true
			if n > 0 {
				return nil
			}
			return io.EOF
		}
		if err != nil {
			return err
		}
		if n > 0 {
			return nil
		}
	}
}

// line gives the next line without its LF; long is set when it was cut off and
// the rest of it was skipped.
func (v *window) line() (b []byte, long bool, err error) {
	from := v.r
	for {
		if i := bytes.IndexByte(v.buf[from:v.w], '\n'); i >= 0 {
			b = v.buf[v.r : from+i]
			v.r = from + i + 1
			return b, long, nil
		}
		seen := v.w - v.r
		err := v.more()
		from = v.r + seen
		switch {
		case err == io.EOF:
			if v.r == v.w {
				return nil, long, io.EOF
			}
			b = v.buf[v.r:v.w]
			v.r = v.w
			return b, long, nil
		case err == errTooLong:
			long = true
			v.r = v.w - 1 // keep on looking for the line's end
			from = v.w
		case err != nil:
			return nil, long, err
		}
	}
}

// jsonlReader reads one JSON object a line. A line whose bytes are no valid UTF-8
// is repaired when it is clearly Windows-1252 or GB18030, else marked broken.
type jsonlReader struct {
	in  *window
	n   int64
	fix bool // repair lines of another encoding
}

func newJSONL(src io.Reader, fix bool) *jsonlReader {
	return &jsonlReader{in: newWindow(src), fix: fix}
}

// Next gives the next line; a blank one as RuleBlank.
func (r *jsonlReader) Next(rec *Record) error {
	b, long, err := r.in.line()
	if err != nil {
		return err
	}
	r.n++
	rec.reset()
	rec.Line = r.n
	if long {
		rec.Bad, rec.Note = RuleTooLong, "line is longer than 64 MiB"
		return nil
	}
	if r.n == 1 {
		b = bytes.TrimPrefix(b, []byte("\xef\xbb\xbf"))
	}
	b = trimSpace(b)
	if len(b) == 0 {
		rec.Bad, rec.Note = RuleBlank, "blank line"
		return nil
	}
	if !utf8.Valid(b) {
		fixed, enc := []byte(nil), ""
		if r.fix {
			fixed, enc = repairLine(b)
		}
		if fixed == nil {
			rec.Bad, rec.Note = RuleEncoding, "not valid UTF-8, nor clearly another encoding"
			rec.Raw = b
			return nil
		}
		b = fixed
		rec.Fixed, rec.Note = RuleEncoding, "read as "+enc
	}
	rec.Raw = b
	if err := parseObject(b, rec); err != nil {
		rec.Bad, rec.Note = RuleUnparsable, err.Error()
	}
	return nil
}

func trimSpace(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// textReader gives a plain text in pieces of at most textPiece bytes that end at
// a line's end where there is one, else at a character's end.
type textReader struct {
	in  *window
	n   int64
	end bool
}

const textPiece = 256 << 10

func newText(src io.Reader) *textReader { return &textReader{in: newWindow(src), n: 1} }

// Next gives the next piece, in field "text"; More is set on all but the last.
func (r *textReader) Next(rec *Record) error {
	if r.end {
		return io.EOF
	}
	v := r.in
	for v.w-v.r <= textPiece {
		if err := v.more(); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
	}
	rec.reset()
	rec.Line = r.n
	b := v.buf[v.r:v.w]
	if len(b) > textPiece {
		b = b[:textPiece]
		if i := bytes.LastIndexByte(b, '\n'); i > 0 {
			b = b[:i+1]
		} else {
			for i := 1; i < utf8.UTFMax && len(b) > i; i++ {
				if c := b[len(b)-i]; c < 0x80 {
					break
				} else if utf8.RuneStart(c) {
					if !utf8.FullRune(b[len(b)-i:]) {
						b = b[:len(b)-i]
					}
					break
				}
			}
		}
		rec.More = true
	} else {
		r.end = true
	}
	v.r += len(b)
	r.n += int64(bytes.Count(b, []byte{'\n'}))
	rec.addString("text", b)
	return nil
}
