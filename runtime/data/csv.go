package data

import (
	"bytes"
	"fmt"
	"io"
	"unicode/utf8"
)

// csvReader reads delimited rows as a stream: quoted fields with doubled quotes
// and newlines in them, and lines that end in LF, CR LF or CR. Its input is UTF-8.
// A row with more or fewer fields than the header is given as RuleRagged.
type csvReader struct {
	in     *window
	delim  byte
	names  [][]byte // one a column
	skip   bool     // the first row is the header
	line   int64
	cells  [][]byte
	maxRow int // bytes a row may have; beyond, its opening quote is taken as unclosed
}

const maxCSVRow = 4 << 20

func newCSV(src io.Reader, delim byte, names []string, header bool) *csvReader {
	c := &csvReader{in: newWindow(src), delim: delim, skip: header, line: 1, maxRow: maxCSVRow}
	for _, n := range names {
		c.names = append(c.names, []byte(n))
	}
	return c
}

// Next gives the next row; a blank line as RuleBlank.
func (c *csvReader) Next(rec *Record) error {
	for {
		rec.reset()
		rec.Line = c.line
		cells, bad, err := c.row(rec)
		if err != nil {
			return err
		}
		if c.skip {
			c.skip = false
			continue
		}
		switch {
		case bad != "":
			rec.Bad, rec.Note = RuleUnparsable, bad
		case len(cells) == 1 && len(cells[0]) == 0 && len(c.names) > 1:
			rec.Bad, rec.Note = RuleBlank, "blank line"
		case len(cells) != len(c.names):
			rec.Bad, rec.Note = RuleRagged, fmt.Sprintf("%d fields where the first row has %d", len(cells), len(c.names))
			rec.Raw = bytes.Join(cells, []byte{c.delim})
		default:
			for i, v := range cells {
				if !utf8.Valid(v) {
					fixed, enc := repairLine(v)
					if fixed == nil {
						rec.Fields = rec.Fields[:0]
						rec.Bad, rec.Note, rec.Raw = RuleEncoding, "not valid UTF-8, nor clearly another encoding", v
						break
					}
					v = fixed
					rec.Fixed, rec.Note = RuleEncoding, "read as "+enc
				}
				rec.Fields = append(rec.Fields, Field{Name: c.names[i], Val: v, Kind: String})
			}
		}
		return nil
	}
}

// at gives the byte at offset i from the row's start, reading on as needed.
func (c *csvReader) at(i int) (byte, error) {
	v := c.in
	for v.r+i >= v.w {
		if err := v.more(); err != nil {
			return 0, err
		}
	}
	return v.buf[v.r+i], nil
}

type cellSpan struct {
	from, to int
	doubled  bool
}

// row splits one row. The cells are slices of the window or of rec's scratch.
func (c *csvReader) row(rec *Record) (cells [][]byte, bad string, err error) {
	var stack [32]cellSpan
	spans := stack[:0]
	i := 0
	if _, err := c.at(0); err != nil {
		return nil, "", err
	}
	lines := int64(0)
	next := 0 // offset where the next row starts
cell:
	for {
		b, err := c.at(i)
		if err != nil && err != io.EOF {
			return nil, "", err
		}
		s := cellSpan{from: i}
		if err == nil && b == '"' {
			i++
			s.from = i
			for {
				v := c.in
				k := bytes.IndexByte(v.buf[v.r+i:v.w], '"')
				if k < 0 {
					i = v.w - v.r
					err := v.more()
					if err == nil && i < c.maxRow {
						continue
					}
					if err != nil && err != io.EOF && err != errTooLong {
						return nil, "", err
					}
					return nil, c.resync(), nil
				}
				i += k + 1
				b, err = c.at(i)
				if err != nil && err != io.EOF {
					return nil, "", err
				}
				if err == nil && b == '"' {
					s.doubled = true
					i++
					continue
				}
				break
			}
			s.to = i - 1
			lines += countLines(c.in.buf[c.in.r+s.from : c.in.r+s.to])
			// text between a closing quote and the delimiter is kept as it stands
			if err == nil && b != c.delim && b != '\n' && b != '\r' {
				s.from--
				s.doubled = false
				for err == nil && b != c.delim && b != '\n' && b != '\r' {
					i++
					b, err = c.at(i)
				}
				s.to = i
			}
		} else {
			for err == nil && b != c.delim && b != '\n' && b != '\r' {
				i++
				b, err = c.at(i)
			}
			s.to = i
		}
		if err != nil && err != io.EOF {
			return nil, "", err
		}
		spans = append(spans, s)
		switch {
		case err == io.EOF:
			next = i
			break cell
		case b == c.delim:
			i++
		case b == '\n':
			next = i + 1
			break cell
		default: // CR, or CR LF
			next = i + 1
			if b, err := c.at(next); err == nil && b == '\n' {
				next++
			} else if err != nil && err != io.EOF {
				return nil, "", err
			}
			break cell
		}
	}
	row := c.in.buf[c.in.r : c.in.r+next]
	if cap(rec.scratch) < len(row) {
		rec.scratch = make([]byte, 0, 2*len(row)+64)
	}
	c.cells = c.cells[:0]
	for _, s := range spans {
		v := row[s.from:s.to]
		if s.doubled {
			n := len(rec.scratch)
			for k := 0; k < len(v); k++ {
				rec.scratch = append(rec.scratch, v[k])
				if v[k] == '"' {
					k++
				}
			}
			v = rec.scratch[n:len(rec.scratch):len(rec.scratch)]
		}
		c.cells = append(c.cells, v)
	}
	c.in.r += next
	c.line += lines + 1
	return c.cells, "", nil
}

// resync leaves out the line in which a quote was opened and never closed.
func (c *csvReader) resync() string {
	v := c.in
	if k := bytes.IndexAny(v.buf[v.r:v.w], "\r\n"); k >= 0 {
		if v.buf[v.r+k] == '\r' && v.r+k+1 < v.w && v.buf[v.r+k+1] == '\n' {
			k++
		}
		v.r += k + 1
	} else {
		v.r = v.w
	}
	c.line++
	return "a quote is opened here and never closed"
}

func countLines(b []byte) int64 {
	n := int64(bytes.Count(b, []byte{'\n'}))
	if n == 0 {
		n = int64(bytes.Count(b, []byte{'\r'}))
	}
	return n
}

// sniffCSV finds the delimiter, the header and the columns in a UTF-8 sample.
// ok is false when no delimiter gives rows of one width.
func sniffCSV(sample []byte, whole bool, ext string) (delim byte, names []string, header, ok bool) {
	best := 0.0
	var rows [][]string
	for _, d := range []byte{',', '\t', ';', '|'} {
		rs := sampleRows(sample, whole, d, 200)
		if len(rs) == 0 {
			continue
		}
		count := map[int]int{}
		for _, r := range rs {
			count[len(r)]++
		}
		width, hits := 0, 0
		for w, n := range count {
			if n > hits || n == hits && w > width {
				width, hits = w, n
			}
		}
		if width < 2 {
			continue
		}
		score := float64(hits)/float64(len(rs)) + 0.001*float64(width)
		if ext == "tsv" && d == '\t' {
			score += 0.2
		}
		if ext == "csv" && d == ',' {
			score += 0.005
		}
		if score > best && float64(hits) >= 0.7*float64(len(rs)) {
			best, delim, rows = score, d, rs
			for len(rows) > 1 && len(rows[0]) != width {
				rows = rows[1:]
			}
		}
	}
	if delim == 0 {
		if ext != "csv" && ext != "tsv" {
			return 0, nil, false, false
		}
		delim = ','
		rows = sampleRows(sample, whole, delim, 200)
		if len(rows) == 0 || len(rows[0]) != 1 {
			return 0, nil, false, false
		}
	}
	header = looksLikeHeader(rows)
	if header {
		names = rows[0]
	} else {
		for i := range rows[0] {
			names = append(names, fmt.Sprintf("column_%d", i+1))
		}
	}
	return delim, names, header, true
}

// sampleRows reads up to n rows; the last one of a cut sample is left out.
func sampleRows(sample []byte, whole bool, delim byte, n int) [][]string {
	c := newCSV(bytes.NewReader(sample), delim, nil, false)
	var rec Record
	var out [][]string
	for len(out) < n {
		rec.reset()
		cells, bad, err := c.row(&rec)
		if err != nil {
			break
		}
		if bad != "" || len(cells) == 1 && len(cells[0]) == 0 {
			continue
		}
		r := make([]string, len(cells))
		for i, v := range cells {
			r[i] = string(v)
		}
		out = append(out, r)
	}
	if !whole && len(out) > 1 && len(out) < n {
		out = out[:len(out)-1]
	}
	return out
}

// looksLikeHeader tells names from data in the first of several rows.
func looksLikeHeader(rows [][]string) bool {
	if len(rows) == 0 {
		return false
	}
	seen := map[string]bool{}
	known := 0
	for _, v := range rows[0] {
		if v == "" || len(v) > 64 || isNumber(v) || seen[v] {
			return false
		}
		if last := v[len(v)-1]; last == '.' || last == '?' || last == '!' {
			return false
		}
		seen[v] = true
		if rolesOf(v) != 0 {
			known++
		}
	}
	if known > 0 {
		return true
	}
	if len(rows) < 2 {
		return false
	}
	// numbers below a name, or cells much longer than their name, show a header
	for col, name := range rows[0] {
		nums, long, n, spaces := 0, 0, 0, 0
		for _, r := range rows[1:] {
			if col >= len(r) {
				continue
			}
			n++
			if isNumber(r[col]) || r[col] == "" {
				nums++
			}
			if len(r[col]) > 3*len(name) {
				long++
			}
			if bytes.IndexByte([]byte(r[col]), ' ') >= 0 {
				spaces++
			}
		}
		if n > 0 && (nums*2 > n || long*2 > n && spaces*2 > n && bytes.IndexByte([]byte(name), ' ') < 0) {
			return true
		}
	}
	return false
}

func isNumber(s string) bool {
	i := 0
	if i < len(s) && (s[i] == '-' || s[i] == '+') {
		i++
	}
	digits := 0
	for ; i < len(s); i++ {
		switch c := s[i]; {
		case '0' <= c && c <= '9':
			digits++
		case c == '.' || c == ',' || c == '%' || c == 'e' || c == 'E' || c == '-' || c == ':' || c == '/' || c == ' ':
		default:
			return false
		}
	}
	return digits > 0
}
