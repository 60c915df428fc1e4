package data

import (
	"strconv"
)

// Kind is the type of a field's value.
type Kind uint8

// The kinds of a value, as in JSON. CSV cells are strings.
const (
	Null Kind = iota
	Bool
	Number
	String
	Array
	Object
)

var kindNames = [...]string{"null", "bool", "number", "string", "array", "object"}

// String gives the JSON name of the kind.
func (k Kind) String() string { return kindNames[k] }

// Field is a named value of a record. For strings Val is the decoded text in
// UTF-8; for every other kind it is the value's JSON text.
type Field struct {
	Name []byte
	Val  []byte
	Kind Kind
}

// Record is a row of a source. Its slices stay valid until the reader's next
// call to Next. A row that could not be read has Bad set and no fields.
type Record struct {
	Fields []Field
	Line   int64  // physical line (or row, where the format has no lines), first is 1
	Raw    []byte // the row's own JSON text, where it had one
	Bad    Rule   // "" when the row was read
	Note   string // what is wrong, when Bad is set; what was repaired otherwise
	Fixed  Rule   // repair made while reading ("" for none)
	More   bool   // plain text: this piece goes on in the next record

	scratch []byte // unescaped strings of this record
}

// get finds the last field of that name (as encoding/json does for duplicate keys).
func (r *Record) get(name string) *Field {
	for i := len(r.Fields) - 1; i >= 0; i-- {
		if string(r.Fields[i].Name) == name {
			return &r.Fields[i]
		}
	}
	return nil
}

func (r *Record) reset() {
	r.Fields = r.Fields[:0]
	r.scratch = r.scratch[:0]
	r.Raw, r.Bad, r.Note, r.Fixed, r.More = nil, "", "", "", false
}

func (r *Record) addString(name string, val []byte) {
	r.Fields = append(r.Fields, Field{Name: []byte(name), Val: val, Kind: String})
}

// appendRecord writes the record as one JSON object without a newline.
func appendRecord(b []byte, r *Record) []byte {
	b = append(b, '{')
	for i := range r.Fields {
		f := &r.Fields[i]
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSONString(b, f.Name)
		b = append(b, ':')
		if f.Kind == String {
			b = appendJSONString(b, f.Val)
		} else {
			b = append(b, f.Val...)
		}
	}
	return append(b, '}')
}

// appendJSONString quotes valid UTF-8.
func appendJSONString(b, s []byte) []byte {
	b = append(b, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c == '\n':
			b = append(b, '\\', 'n')
		case c == '\t':
			b = append(b, '\\', 't')
		case c < 0x20:
			b = append(b, '\\', 'u', '0', '0')
			b = append(b, "0123456789abcdef"[c>>4], "0123456789abcdef"[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// recordReader gives the rows of one source in order. Next fills rec and returns
// io.EOF after the last row; a row that cannot be read is no error but rec.Bad.
// Other errors end the source.
type recordReader interface {
	Next(rec *Record) error
}

func itoa(n int64) string { return strconv.FormatInt(n, 10) }
