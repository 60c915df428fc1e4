package data

import (
	"encoding/base64"
	"fmt"
	"io"
	"math"
	"math/big"
	"os"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"
)

// parquetReader reads a Parquet file row group by row group. Nested columns
// become JSON values, so that they look the same as in JSONL. The parquet library
// panics on some damaged files: such a panic becomes an InputError.
type parquetReader struct {
	name  string
	file  *parquet.File
	group int
	rows  parquet.Rows
	buf   []parquet.Row
	n, at int
	line  int64
	cols  [][]parquet.Value // values of the row, by leaf column
	root  *pqNode
	flat  flattener
}

// pqNode is a node of the schema with its levels.
type pqNode struct {
	name     string
	fields   []*pqNode
	leaf     int // index of the leaf column, or of the first one below
	leafs    int // count of leaf columns below
	rep, def int
	optional bool
	repeated bool
	list     bool // LIST: its repeated child is the array
	pqMap    bool
	unit     time.Duration
	date     bool
	scale    int
	decimal  bool
	text     bool
	unsigned bool
}

func openParquet(name string, f *os.File, size int64) (r *parquetReader, err error) {
	defer func() {
		if p := recover(); p != nil {
			r, err = nil, &InputError{File: name, Msg: fmt.Sprintf("Parquet file is damaged: %v", p), Hint: "write or fetch it again"}
		}
	}()
	pf, err := parquet.OpenFile(f, size, parquet.SkipBloomFilters(true), parquet.SkipPageIndex(true))
	if err != nil {
		return nil, &InputError{File: name, Msg: "Parquet footer cannot be read, the file is cut off or damaged: " + err.Error(), Hint: "write or fetch it again", Err: err}
	}
	r = &parquetReader{name: name, file: pf, buf: make([]parquet.Row, 64)}
	leaf := 0
	r.root = newPQNode("", pf.Schema(), 0, 0, &leaf)
	r.cols = make([][]parquet.Value, leaf)
	return r, nil
}

func newPQNode(name string, n parquet.Node, rep, def int, leaf *int) *pqNode {
	x := &pqNode{name: name, leaf: *leaf, optional: n.Optional(), repeated: n.Repeated()}
	if x.repeated {
		rep++
		def++
	} else if x.optional {
		def++
	}
	x.rep, x.def = rep, def
	if n.Leaf() {
		*leaf++
		x.leafs = 1
		if lt := n.Type().LogicalType(); lt != nil {
			switch t := lt.Value.(type) {
			case *format.StringType, *format.EnumType, *format.JsonType:
				x.text = true
			case *format.DateType:
				x.date = true
			case *format.DecimalType:
				x.decimal, x.scale = true, int(t.Scale)
			case *format.IntType:
				x.unsigned = !t.IsSigned
			case *format.TimestampType:
				if u := t.Unit.Value; u != nil {
					x.unit = u.Duration()
				}
			}
		}
		return x
	}
	for _, f := range n.Fields() {
		x.fields = append(x.fields, newPQNode(f.Name(), f, rep, def, leaf))
	}
	x.leafs = *leaf - x.leaf
	// LIST and MAP: one repeated child; two fields in it named key and value make a map
	if name != "" && len(x.fields) == 1 && x.fields[0].repeated && !x.repeated {
		c := x.fields[0]
		if len(c.fields) == 2 && c.fields[0].name == "key" {
			x.pqMap = true
		} else {
			x.list = true
		}
	}
	return x
}

func (r *parquetReader) columns() []string {
	var out []string
	for _, f := range r.root.fields {
		out = append(out, f.name)
	}
	return out
}

// Next gives the next row; Line is the row's number in the file.
func (r *parquetReader) Next(rec *Record) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &InputError{File: r.name, Line: r.line, Msg: fmt.Sprintf("Parquet page is damaged: %v", p), Hint: "write or fetch the file again"}
		}
	}()
	for {
		if r.flat.next(rec) {
			return nil
		}
		row, err := r.row()
		if err != nil {
			return err
		}
		r.line++
		rec.reset()
		rec.Line = r.line
		for i := range r.cols {
			r.cols[i] = r.cols[i][:0]
		}
		for _, v := range row {
			if c := v.Column(); c >= 0 && c < len(r.cols) {
				r.cols[c] = append(r.cols[c], v)
			}
		}
		for _, f := range r.root.fields {
			out, kind := f.field(r.cols)
			if !utf8.Valid(out) {
				rec.Fields = rec.Fields[:0]
				rec.Bad, rec.Note = RuleEncoding, "column "+f.name+" is not valid UTF-8"
				break
			}
			rec.Fields = append(rec.Fields, Field{Name: []byte(f.name), Val: out, Kind: kind})
		}
		if rec.Bad == "" && r.flat.start(rec) {
			continue
		}
		return nil
	}
}

func (r *parquetReader) row() (parquet.Row, error) {
	for r.at >= r.n {
		if r.rows == nil {
			groups := r.file.RowGroups()
			if r.group >= len(groups) {
				return nil, io.EOF
			}
			g := groups[r.group]
			r.group++
			if g.NumRows() == 0 {
				continue
			}
			r.rows = g.Rows()
		}
		n, err := r.rows.ReadRows(r.buf)
		r.n, r.at = n, 0
		if err == io.EOF || err == nil && n == 0 {
			cerr := r.rows.Close()
			r.rows = nil
			if cerr != nil {
				return nil, cerr
			}
		} else if err != nil {
			return nil, &InputError{File: r.name, Line: r.line + 1, Msg: "Parquet page cannot be read: " + err.Error(), Hint: "write or fetch the file again", Err: err}
		}
	}
	r.at++
	return r.buf[r.at-1], nil
}

// Close releases the row group.
func (r *parquetReader) Close() error {
	if r.rows != nil {
		return r.rows.Close()
	}
	return nil
}

// field gives a top-level column's value, strings decoded.
func (n *pqNode) field(cols [][]parquet.Value) ([]byte, Kind) {
	if n.leafs == 1 && len(n.fields) == 0 && !n.repeated {
		v := cols[n.leaf]
		if len(v) == 0 || v[0].IsNull() {
			return []byte("null"), Null
		}
		b := n.appendLeaf(nil, v[0])
		if b[0] == '"' {
			return stringValue(b), String
		}
		return b, kindOf(b)
	}
	b := n.append(nil, cols)
	return b, kindOf(b)
}

func kindOf(raw []byte) Kind {
	switch raw[0] {
	case '"':
		return String
	case '{':
		return Object
	case '[':
		return Array
	case 't', 'f':
		return Bool
	case 'n':
		return Null
	}
	return Number
}

// append writes the node as JSON. cols holds, by leaf column, the values that
// belong to this occurrence of the node's parent.
func (n *pqNode) append(b []byte, cols [][]parquet.Value) []byte {
	if n.repeated {
		return n.appendRepeated(b, cols)
	}
	first := cols[n.leaf]
	if n.optional && (len(first) == 0 || first[0].DefinitionLevel() < n.def) {
		return append(b, "null"...)
	}
	return n.appendPresent(b, cols)
}

func (n *pqNode) appendPresent(b []byte, cols [][]parquet.Value) []byte {
	switch {
	case len(n.fields) == 0:
		if v := cols[n.leaf]; len(v) > 0 && !v[0].IsNull() {
			return n.appendLeaf(b, v[0])
		}
		return append(b, "null"...)
	case n.list, n.pqMap:
		return n.fields[0].appendRepeated(b, cols)
	}
	b = append(b, '{')
	for i, f := range n.fields {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendJSONString(b, []byte(f.name))
		b = append(b, ':')
		b = f.append(b, cols)
	}
	return append(b, '}')
}

// appendRepeated splits the values at this node's repetition level.
func (n *pqNode) appendRepeated(b []byte, cols [][]parquet.Value) []byte {
	b = append(b, '[')
	first := cols[n.leaf]
	if len(first) > 0 && first[0].DefinitionLevel() >= n.def {
		at := make([]int, n.leafs)
		sub := make([][]parquet.Value, len(cols))
		for k := 0; at[0] < len(first); k++ {
			for j := range n.leafs {
				c := cols[n.leaf+j]
				from := at[j]
				to := min(from+1, len(c))
				for to < len(c) && c[to].RepetitionLevel() > n.rep {
					to++
				}
				sub[n.leaf+j] = c[from:to]
				at[j] = to
			}
			if k > 0 {
				b = append(b, ',')
			}
			switch {
			case len(n.fields) == 1 && isElement(n.fields[0].name):
				b = n.fields[0].append(b, sub)
			default:
				b = n.appendPresent(b, sub)
			}
		}
	}
	return append(b, ']')
}

func isElement(name string) bool {
	return name == "element" || name == "item" || name == "array" || name == "array_element"
}

func (n *pqNode) appendLeaf(b []byte, v parquet.Value) []byte {
	switch v.Kind() {
	case parquet.Boolean:
		return strconv.AppendBool(b, v.Boolean())
	case parquet.Int32:
		switch {
		case n.date:
			return appendJSONString(b, []byte(time.Unix(int64(v.Int32())*86400, 0).UTC().Format(time.DateOnly)))
		case n.decimal:
			return appendDecimal(b, strconv.FormatInt(int64(v.Int32()), 10), n.scale)
		case n.unsigned:
			return strconv.AppendUint(b, uint64(v.Uint32()), 10)
		}
		return strconv.AppendInt(b, int64(v.Int32()), 10)
	case parquet.Int64:
		switch {
		case n.unit == time.Millisecond:
			return appendTime(b, time.UnixMilli(v.Int64()))
		case n.unit == time.Microsecond:
			return appendTime(b, time.UnixMicro(v.Int64()))
		case n.unit == time.Nanosecond:
			return appendTime(b, time.Unix(0, v.Int64()))
		case n.decimal:
			return appendDecimal(b, strconv.FormatInt(v.Int64(), 10), n.scale)
		case n.unsigned:
			return strconv.AppendUint(b, v.Uint64(), 10)
		}
		return strconv.AppendInt(b, v.Int64(), 10)
	case parquet.Float, parquet.Double:
		f := v.Double()
		size := 64
		if v.Kind() == parquet.Float {
			f, size = float64(v.Float()), 32
		}
		if math.IsNaN(f) || math.IsInf(f, 0) {
			return append(b, "null"...)
		}
		return strconv.AppendFloat(b, f, 'g', -1, size)
	case parquet.ByteArray, parquet.FixedLenByteArray:
		raw := v.ByteArray()
		if n.decimal && len(raw) > 0 {
			v := new(big.Int).SetBytes(raw)
			if raw[0] >= 0x80 {
				v.Sub(v, new(big.Int).Lsh(big.NewInt(1), uint(8*len(raw))))
			}
			return appendDecimal(b, v.String(), n.scale)
		}
		if n.text || utf8.Valid(raw) {
			return appendJSONString(b, raw)
		}
		return appendJSONString(b, []byte(base64.StdEncoding.EncodeToString(raw)))
	}
	return appendJSONString(b, []byte(v.String()))
}

func appendTime(b []byte, t time.Time) []byte {
	return appendJSONString(b, []byte(t.UTC().Format(time.RFC3339Nano)))
}

func appendDecimal(b []byte, digits string, scale int) []byte {
	neg := digits[0] == '-'
	if neg {
		digits = digits[1:]
	}
	for len(digits) <= scale {
		digits = "0" + digits
	}
	if neg {
		b = append(b, '-')
	}
	b = append(b, digits[:len(digits)-scale]...)
	if scale > 0 {
		b = append(b, '.')
		b = append(b, digits[len(digits)-scale:]...)
	}
	return b
}
