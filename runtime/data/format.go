package data

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"
	"unicode/utf8"
)

// Formats of a file.
const (
	FormatJSONL   = "jsonl"
	FormatJSON    = "json"
	FormatCSV     = "csv"
	FormatParquet = "parquet"
	FormatText    = "text"
)

// headBytes is the sample from which format, encoding and task are told.
const headBytes = 4 << 20

// source is a file to read: the user's, or a download or a plugin's output.
type source struct {
	name string // as the user knows it
	path string // where it lies
	ext  string // jsonl, json, csv, tsv, parquet, txt or ""
}

func newSource(p string) source { return source{name: p, path: p, ext: extension(p)} }

// extension gives the ending that tells the format, below that of a compression.
func extension(p string) string {
	for {
		e := strings.ToLower(strings.TrimPrefix(path.Ext(p), "."))
		switch e {
		case "gz", "gzip", "zst", "zstd", "bz2":
			p = p[:len(p)-len(e)-1]
			continue
		case "ndjson":
			return "jsonl"
		case "pq":
			return "parquet"
		case "tab":
			return "tsv"
		case "text", "md":
			return "txt"
		}
		return e
	}
}

// shape is what the head of a source shows.
type shape struct {
	format      string
	encoding    string
	mixed       bool
	compression string
	delim       byte
	header      bool
	columns     []string
	rows        int64 // known count (Parquet), else -1
	head        []byte
	whole       bool // head is all of it
}

// FileInfo tells what a file is, for the probe and the report.
type FileInfo struct {
	File        string   `json:"file"`
	Bytes       int64    `json:"bytes"` // as stored
	Format      string   `json:"format"`
	Encoding    string   `json:"encoding,omitempty"`
	Compression string   `json:"compression,omitempty"`
	Delimiter   string   `json:"delimiter,omitempty"`
	Header      *bool    `json:"header,omitempty"` // CSV: the first row names the columns
	Columns     []string `json:"columns,omitempty"`
}

// openSource is a source being read. Close it.
type openSource struct {
	source
	shape
	f      *os.File
	size   int64
	mtime  time.Time
	counts *countReader
	done   []func()
}

// countReader counts the stored bytes read, and stops at the size seen at first.
type countReader struct {
	r    io.Reader
	n    int64
	tick func(n int64)
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if c.tick != nil {
		c.tick(int64(n))
	}
	return n, err
}

// open checks a file and tells its shape.
func (s source) open() (*openSource, error) {
	f, st, err := checkFile(s.path)
	if err != nil {
		if e, ok := err.(*InputError); ok {
			e.File = s.name
		}
		return nil, err
	}
	o := &openSource{source: s, f: f, size: st.Size(), mtime: st.ModTime()}
	if err := o.sniff(); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// Close closes the file and its decoders.
func (o *openSource) Close() {
	for _, f := range o.done {
		f()
	}
	o.done = nil
	_ = o.f.Close()
}

// unchanged compares the file with what it was when opened. A file that grew was
// read up to its first size, which is fine and gives a warning.
func (o *openSource) unchanged() (warning string, err error) {
	st, err := o.f.Stat()
	if err != nil {
		return "", &InputError{File: o.name, Msg: "cannot be checked after reading: " + err.Error(), Err: err}
	}
	switch {
	case st.Size() < o.size:
		return "", &InputError{File: o.name, Msg: fmt.Sprintf("shrank from %d to %d bytes while it was read", o.size, st.Size()), Hint: "wait until its writer is done, then start again"}
	case st.Size() > o.size:
		return fmt.Sprintf("%s grew while it was read: its first %d bytes were used", o.name, o.size), nil
	case !st.ModTime().Equal(o.mtime):
		return "", &InputError{File: o.name, Msg: "was changed while it was read", Hint: "wait until its writer is done, then start again"}
	}
	if _, err := os.Stat(o.path); err != nil {
		return o.name + " was removed while it was read; all of it had been read", nil
	}
	return "", nil
}

var magics = []struct{ magic, what string }{
	{"\x7fELF", "an ELF program"},
	{"\x89PNG", "a PNG image"},
	{"\xff\xd8\xff", "a JPEG image"},
	{"GIF8", "a GIF image"},
	{"%PDF-", "a PDF document"},
	{"SQLite format 3", "an SQLite database"},
	{"RIFF", "a RIFF media file"},
	{"ARROW1", "an Arrow file"},
	{"MZ\x90", "a Windows program"},
	{"\x80\x04\x95", "a Python pickle"},
	{"GGUF", "a GGUF model"},
	{"OggS", "an Ogg file"},
	{"ID3", "an MP3 file"},
	{"\x93NUMPY", "a NumPy array"},
	{"Obj\x01", "an Avro file"},
	{"ORC", "an ORC file"},
}

func (o *openSource) sniff() error {
	first := make([]byte, 16)
	n, err := o.f.ReadAt(first, 0)
	if err != nil && err != io.EOF {
		return &InputError{File: o.name, Msg: "cannot be read: " + err.Error(), Err: err}
	}
	first = first[:n]
	if bytes.HasPrefix(first, []byte("PAR1")) {
		p, err := openParquet(o.name, o.f, o.size)
		if err != nil {
			return err
		}
		o.shape = shape{format: FormatParquet, columns: p.columns(), rows: p.file.NumRows()}
		return nil
	}
	if o.ext == "parquet" {
		return &InputError{File: o.name, Msg: "does not begin as a Parquet file", Hint: "fetch it again, or give its format by its ending"}
	}
	r, closer, comp, err := decompress(o.name, io.NewSectionReader(o.f, 0, o.size))
	if err != nil {
		return err
	}
	head, err := io.ReadAll(io.LimitReader(r, headBytes))
	whole := false
	if err == nil {
		var one [1]byte
		k, _ := io.ReadFull(r, one[:])
		whole = k == 0
	}
	closer()
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(head)) == 0 {
		return &InputError{File: o.name, Msg: "holds nothing but white space", Hint: "give a file with text or rows in it"}
	}
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) && !isPrintable(head) {
			return &InputError{File: o.name, Msg: "is a binary file (" + m.what + ")", Hint: "give text, JSON, CSV or Parquet"}
		}
	}
	enc, mixed := detectEncoding(head, whole)
	if (enc == "" || !strings.HasPrefix(enc, "utf-16")) && binaryShare(head) {
		return &InputError{File: o.name, Msg: "is a binary file", Hint: "give text, JSON, CSV or Parquet"}
	}
	if enc == "" {
		return &InputError{File: o.name, Msg: "is in an encoding that is not recognised", Hint: "convert it to UTF-8, for example with iconv"}
	}
	o.shape = shape{encoding: enc, mixed: mixed, compression: comp, rows: -1, whole: whole}
	if enc == encUTF8 {
		o.head = head
	} else {
		b, err := io.ReadAll(decoded(enc, bytes.NewReader(head)))
		if err != nil {
			return &InputError{File: o.name, Msg: "cannot be decoded as " + enc + ": " + err.Error(), Err: err}
		}
		o.head = b
	}
	return o.sniffFormat()
}

func isPrintable(b []byte) bool {
	if len(b) > 4096 {
		b = b[:4096]
	}
	return validHead(b, false) && textFlags(b)&hasControl == 0
}

// binaryShare tells control bytes in more than one of twenty places.
func binaryShare(b []byte) bool {
	if len(b) > 64<<10 {
		b = b[:64<<10]
	}
	n, zero := 0, 0
	for _, c := range b {
		if byteFlags[c] == hasControl {
			n++
		}
		if c == 0 {
			zero++
		}
	}
	return n*20 > len(b) || zero > 8 && zero*200 > len(b)
}

func (o *openSource) sniffFormat() error {
	b := bytes.TrimSpace(o.head)
	jsonRows, lines := 0, 0
	var rec Record
	rest := o.head
	for len(rest) > 0 && lines < 200 {
		l := rest
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			l, rest = rest[:i], rest[i+1:]
		} else {
			rest = nil
			if !o.whole {
				break
			}
		}
		if l = trimSpace(l); len(l) == 0 {
			continue
		}
		lines++
		rec.reset()
		if l[0] == '{' && utf8.Valid(l) && parseObject(l, &rec) == nil {
			jsonRows++
		}
	}
	switch {
	case o.ext == "jsonl":
		o.format = FormatJSONL
	case o.ext == "csv" || o.ext == "tsv":
		o.format = FormatCSV
	case b[0] == '{' && jsonRows == 1 && lines == 1 && o.whole:
		o.format = FormatJSONL
		rec.reset()
		if parseObject(b, &rec) == nil && holdsRows(&rec) {
			o.format = FormatJSON
		}
	case lines > 0 && jsonRows*2 > lines:
		o.format = FormatJSONL
	case o.ext == "json" || b[0] == '[' && o.ext != "txt" && looksLikeJSONArray(b) || b[0] == '{' && o.ext != "txt" && len(b) > 1 && bytes.IndexByte([]byte(" \n\r\t\""), b[1]) >= 0:
		o.format = FormatJSON
	case o.ext == "txt":
		o.format = FormatText
	default:
		o.format = FormatText
		if _, names, header, ok := sniffCSV(o.head, o.whole, ""); ok && header && len(names) > 1 && bytes.Count(o.head, []byte{'\n'}) >= 3 {
			known := 0
			for _, n := range names {
				if rolesOf(n) != 0 {
					known++
				}
			}
			if known > 0 {
				o.format = FormatCSV
			}
		}
	}
	if o.format == FormatCSV {
		var ok bool
		o.delim, o.columns, o.header, ok = sniffCSV(o.head, o.whole, o.ext)
		if !ok {
			return &InputError{File: o.name, Msg: "has no delimiter (comma, semicolon, tab or bar) that gives rows of one width", Hint: "check its quoting, or name it .txt to read it as plain text"}
		}
	}
	return nil
}

func looksLikeJSONArray(b []byte) bool {
	b = trimSpace(b[1:])
	return len(b) > 0 && (b[0] == '{' || b[0] == ']')
}

// holdsRows tells an object around rows from a row: an array of objects under a
// key that is not a dialogue's.
func holdsRows(rec *Record) bool {
	for i := range rec.Fields {
		f := &rec.Fields[i]
		if f.Kind == Array && len(f.Val) > 2 && rolesOf(string(f.Name))&roleMessages == 0 {
			if v := trimSpace(f.Val[1:]); len(v) > 0 && v[0] == '{' {
				return true
			}
		}
	}
	return false
}

// records gives the rows; from the head alone when sample is set.
func (o *openSource) records(sample bool, tick func(int64)) (recordReader, error) {
	if o.format == FormatParquet {
		p, err := openParquet(o.name, o.f, o.size)
		if err != nil {
			return nil, err
		}
		o.done = append(o.done, func() { _ = p.Close() })
		return p, nil
	}
	var src io.Reader
	if sample {
		head := o.head
		if !o.whole && o.format == FormatJSONL {
			if i := bytes.LastIndexByte(head, '\n'); i > 0 {
				head = head[:i]
			}
		}
		src = bytes.NewReader(head)
	} else {
		o.counts = &countReader{r: io.NewSectionReader(o.f, 0, o.size), tick: tick}
		r, closer, _, err := decompress(o.name, o.counts)
		if err != nil {
			return nil, err
		}
		o.done = append(o.done, closer)
		src = decoded(o.encoding, r)
	}
	switch o.format {
	case FormatJSONL:
		return newJSONL(src, o.encoding == encUTF8 || o.encoding == encUTF8BOM), nil
	case FormatJSON:
		return newDoc(o.name, src), nil
	case FormatCSV:
		return newCSV(src, o.delim, o.columns, o.header), nil
	}
	return newText(src), nil
}

func (o *openSource) info() FileInfo {
	fi := FileInfo{File: o.name, Bytes: o.size, Format: o.format, Encoding: o.encoding, Compression: o.compression, Columns: o.columns}
	if o.format == FormatCSV {
		fi.Delimiter = string(o.delim)
		h := o.header
		fi.Header = &h
	}
	return fi
}
