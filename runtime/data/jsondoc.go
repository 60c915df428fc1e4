package data

import (
	"fmt"
	"io"
	"unicode/utf8"
)

// docReader reads the rows of one JSON document as a stream: an array of objects,
// or an object that has such an array under some key ("data", "rows", …). Only
// one row is held at a time. Nested SQuAD is flattened to a row a question.
type docReader struct {
	in    *window
	name  string
	state int // 0 before the rows, 1 in them, 2 after
	line  int64
	flat  flattener
}

func newDoc(name string, src io.Reader) *docReader {
	return &docReader{in: newWindow(src), name: name, line: 1}
}

func (d *docReader) fail(msg string) error {
	return &InputError{File: d.name, Line: d.line, Msg: msg, Hint: "give an array of objects, or one object a line"}
}

// peek gives the next byte that is no space, without taking it.
func (d *docReader) peek() (byte, error) {
	v := d.in
	for {
		for v.r < v.w {
			c := v.buf[v.r]
			if !isSpace(c) {
				return c, nil
			}
			if c == '\n' {
				d.line++
			}
			v.r++
		}
		if err := v.more(); err != nil {
			return 0, err
		}
	}
}

// value takes one raw value. Its brackets and strings are balanced; whether it is
// valid JSON is for the caller to check.
func (d *docReader) value() ([]byte, error) {
	if _, err := d.peek(); err != nil {
		return nil, err
	}
	v := d.in
	depth, i, inString := 0, 0, false
	for {
		for v.r+i >= v.w {
			if err := v.more(); err == io.EOF {
				return nil, d.fail("JSON ends in the middle of a value: the file is cut off")
			} else if err != nil {
				return nil, err
			}
		}
		c := v.buf[v.r+i]
		if inString {
			switch c {
			case '\\':
				i++
			case '"':
				inString = false
				if depth == 0 {
					i++
					return d.take(i), nil
				}
			}
			i++
			continue
		}
		switch c {
		case '"':
			inString = true
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 { // end of the container after a bare literal
				return d.take(i), nil
			}
			if depth--; depth == 0 {
				i++
				return d.take(i), nil
			}
		case ',', ':':
			if depth == 0 {
				return d.take(i), nil
			}
		default:
			if depth == 0 && isSpace(c) {
				return d.take(i), nil
			}
		}
		i++
	}
}

func (d *docReader) take(n int) []byte {
	v := d.in
	b := v.buf[v.r : v.r+n]
	v.r += n
	return b
}

// open finds the array of rows.
func (d *docReader) open() error {
	c, err := d.peek()
	if err != nil {
		return d.fail("no JSON value")
	}
	if c == '[' {
		d.in.r++
		return nil
	}
	if c != '{' {
		return d.fail("JSON is neither an array nor an object")
	}
	d.in.r++
	for {
		key, err := d.value()
		if err != nil || len(key) < 2 || key[0] != '"' {
			return d.fail("no array of rows in the JSON object")
		}
		if c, err = d.peek(); err != nil || c != ':' {
			return d.fail("no colon after a key")
		}
		d.in.r++
		if c, err = d.peek(); err != nil {
			return d.fail("JSON ends after a key: the file is cut off")
		}
		if c == '[' {
			d.in.r++
			if c, err = d.peek(); err == nil && c == '{' {
				return nil
			}
			// another array: leave it out, value by value
			for err == nil && c != ']' {
				if c == ',' {
					d.in.r++
				} else if x, verr := d.value(); verr != nil {
					return verr
				} else if len(x) == 0 {
					return d.fail("not valid JSON")
				}
				c, err = d.peek()
			}
			if err != nil {
				return d.fail("JSON ends in an array: the file is cut off")
			}
			d.in.r++
		} else if _, err := d.value(); err != nil {
			return err
		}
		if c, err = d.peek(); err != nil || c != ',' {
			return d.fail("no array of rows in the JSON object")
		}
		d.in.r++
	}
}

// Next gives the next row.
func (d *docReader) Next(rec *Record) error {
	if d.flat.next(rec) {
		return nil
	}
	if d.state == 0 {
		if err := d.open(); err != nil {
			return err
		}
		d.state = 1
	}
	for d.state == 1 {
		c, err := d.peek()
		if err == io.EOF {
			return d.fail("JSON array has no end: the file is cut off")
		} else if err != nil {
			return err
		}
		switch c {
		case ']':
			d.state = 2
			continue
		case ',':
			d.in.r++
			continue
		}
		raw, err := d.value()
		if err != nil {
			return err
		}
		rec.reset()
		rec.Line = d.line
		d.line += countLines(raw)
		rec.Raw = raw
		switch {
		case len(raw) == 0:
			return d.fail(fmt.Sprintf("%q stands where a row should", c))
		case !utf8.Valid(raw):
			rec.Bad, rec.Note = RuleEncoding, "not valid UTF-8"
		default:
			if err := parseObject(raw, rec); err != nil {
				rec.Bad, rec.Note = RuleUnparsable, err.Error()
			} else if d.flat.start(rec) {
				if d.flat.next(rec) {
					return nil
				}
				continue
			}
		}
		return nil
	}
	return io.EOF
}

// flattener turns an article of nested SQuAD (paragraphs of qas), or a paragraph
// with its qas, into one row a question: id, title, context, question, answers.
type flattener struct {
	rows [][]Field
	line int64
}

// start takes the record when it is nested. Its fields are copied.
func (f *flattener) start(rec *Record) bool {
	par, qas := rec.get("paragraphs"), rec.get("qas")
	var title []byte
	if t := rec.get("title"); t != nil && t.Kind == String {
		title = append(title, t.Val...)
	}
	f.rows, f.line = f.rows[:0], rec.Line
	switch {
	case par != nil && par.Kind == Array:
		raw := append([]byte(nil), par.Val...)
		elements(raw, func(v []byte, k Kind) {
			if k == Object {
				var context, list []byte
				members(v, func(key string, val []byte, k Kind) {
					switch {
					case key == "context" && k == String:
						context = stringValue(val)
					case key == "qas" && k == Array:
						list = val
					}
				})
				f.add(title, context, list)
			}
		})
		return true
	case qas != nil && (qas.Kind == Array || qas.Kind == Null):
		var context []byte
		if c := rec.get("context"); c != nil && c.Kind == String {
			context = append(context, c.Val...)
		}
		f.add(title, context, append([]byte(nil), qas.Val...))
		return true
	}
	return false
}

func (f *flattener) add(title, context, qas []byte) {
	if len(qas) == 0 || qas[0] != '[' {
		return
	}
	elements(qas, func(v []byte, k Kind) {
		if k != Object {
			return
		}
		row := []Field{{Name: []byte("title"), Val: title, Kind: String}, {Name: []byte("context"), Val: context, Kind: String}}
		members(v, func(key string, val []byte, k Kind) {
			if k == String {
				val = stringValue(val)
			}
			row = append(row, Field{Name: []byte(key), Val: val, Kind: k})
		})
		f.rows = append(f.rows, row)
	})
}

func (f *flattener) next(rec *Record) bool {
	if len(f.rows) == 0 {
		return false
	}
	rec.reset()
	rec.Line = f.line
	rec.Fields = append(rec.Fields, f.rows[0]...)
	f.rows = f.rows[1:]
	return true
}
