package data

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzJSON holds the scanner against encoding/json: the same texts are objects,
// and the same fields with the same values come out.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{
		`{"a":"b"}`, `{"a":1.5e3,"b":[1,{"c":null}],"a":"twice"}`, `{"a":"\ud83d\ude00 \ud800 \u00e9\n"}`, ` {} `, `{"a":01}`, `{"a":1,}`,
		"{\"a\":\"\x01\"}", `{"\u0061":"x"}`, `{"a":tru}`, `{"a":-}`, `[1]`, `{"a":"b"}{}`, `{"a":"12345678\"90"}`, `{"é":"日本"}`, `{"a":1e}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if !utf8.Valid(b) {
			return
		}
		var rec Record
		err := parseObject(b, &rec)
		var want map[string]json.RawMessage
		wantErr := json.Unmarshal(b, &want)
		if wantErr == nil && want == nil {
			return // null
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%q: got %v, encoding/json %v", b, err, wantErr)
		}
		if err != nil {
			return
		}
		names := map[string]bool{}
		for i := range rec.Fields {
			names[string(rec.Fields[i].Name)] = true
		}
		if len(names) != len(want) {
			t.Fatalf("%q: %d names, want %d", b, len(names), len(want))
		}
		for k, raw := range want {
			fd := rec.get(k)
			if fd == nil {
				t.Fatalf("%q: no field %q", b, k)
			}
			got := string(fd.Val)
			if fd.Kind == String {
				var s string
				if err := json.Unmarshal(raw, &s); err != nil || s != got {
					t.Fatalf("%q: field %q is %q, want %q (%v)", b, k, got, s, err)
				}
			} else if got != string(raw) {
				t.Fatalf("%q: field %q is %q, want %q", b, k, got, raw)
			}
		}
		// and back
		out := appendRecord(nil, &rec)
		if !json.Valid(out) {
			t.Fatalf("%q became %q", b, out)
		}
	})
}

// FuzzCSV writes rows with encoding/csv and reads them back, and holds that any
// bytes at all are read without a fault.
func FuzzCSV(f *testing.F) {
	f.Add("a,b\nc,d\n")
	f.Add("\"a\"\"b\",\"c\nd\"\r\ne,\r")
	f.Add("\"open,b\nc,d\n")
	f.Fuzz(func(t *testing.T, s string) {
		read := func(src string) (rows [][]string, bad int) {
			c := newCSV(strings.NewReader(src), ',', nil, false)
			var rec Record
			for {
				rec.reset()
				cells, b, err := c.row(&rec)
				if err == io.EOF {
					return rows, bad
				}
				if err != nil {
					t.Fatal(err)
				}
				if b != "" {
					bad++
					continue
				}
				var r []string
				for _, x := range cells {
					r = append(r, string(x))
				}
				rows = append(rows, r)
			}
		}
		rows, _ := read(s)
		var b bytes.Buffer
		w := csv.NewWriter(&b)
		for _, r := range rows {
			if len(r) == 1 && r[0] == "" {
				return
			}
			for _, x := range r {
				if strings.ContainsAny(x, "\r") || x == `\.` {
					return // encoding/csv reads CR LF in a field as LF
				}
			}
			if err := w.Write(r); err != nil {
				t.Fatal(err)
			}
		}
		w.Flush()
		again, bad := read(b.String())
		if bad != 0 || len(again) != len(rows) {
			t.Fatalf("%q: %d rows became %d, %d bad", b.String(), len(rows), len(again), bad)
		}
		for i := range rows {
			if strings.Join(rows[i], "\x00") != strings.Join(again[i], "\x00") {
				t.Fatalf("row %q became %q", rows[i], again[i])
			}
		}
	})
}

// FuzzEncoding holds that any bytes are told an encoding that decodes, or none,
// and that what a line is repaired to is valid.
func FuzzEncoding(f *testing.F) {
	f.Add([]byte("caf\xe9 cr\xe8me"))
	f.Add([]byte("\xff\xfea\x00b\x00"))
	f.Add([]byte("\xd6\xd0\xce\xc4\xb2\xe2\xca\xd4\xa3\xac"))
	f.Add([]byte("a\x00b\x00c\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, _ := repairLine(b); out != nil && !utf8.Valid(out) {
			t.Fatalf("repaired %q to %q", b, out)
		}
		enc, mixed := detectEncoding(b, true)
		if enc == "" || mixed {
			return
		}
		out, err := io.ReadAll(decoded(enc, bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("%q as %s: %v", b, enc, err)
		}
		if !utf8.Valid(out) {
			t.Fatalf("%q as %s gives %q", b, enc, out)
		}
	})
}

// FuzzClean holds that cleaning gives valid UTF-8, leaves nothing for a second
// cleaning of control characters, and that folding is stable.
func FuzzClean(f *testing.F) {
	f.Add("caf\u00c3\u00a9 <b>x</b> &amp; a\u200bb\u001b[31m")
	f.Add("\u00e2\u20ac\u2122 it\u2019s 10.0.0.1 a@b.co 4111 1111 1111 1111")
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) {
			return
		}
		var c cleaner
		var fx fixes
		out := string(c.text([]byte(s), &fx))
		if !utf8.ValidString(out) {
			t.Fatalf("%q became %q", s, out)
		}
		for _, r := range out {
			if r < 0x20 && r != '\n' && r != '\t' || r == 0x7f {
				t.Fatalf("%q became %q", s, out)
			}
		}
		one := appendFolded(nil, []byte(out))
		if !utf8.Valid(one) {
			t.Fatalf("%q folds to %q", out, one)
		}
		var q qualityCheck
		q.quality(one)
	})
}

// FuzzPart reads any bytes as a part file.
func FuzzPart(f *testing.F) {
	seed := []byte(partMagic + "\x01\x00\x00\x00\x00\x00\x00\x00")
	f.Add(seed)
	f.Add(append(seed, "\x05\x00\x00\x00\x00\x00\x00\x00hello"...))
	f.Add([]byte("\x00\x01a\x01\x80\x02hi"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := newPartReader("fuzz", io.NopCloser(bytes.NewReader(b)))
		if err == nil {
			for {
				if _, err := p.Next(); err != nil {
					break
				}
			}
		}
		var segs []rawSegment
		flags, id, err := parsePayload(b, func(role byte, scored bool, text []byte) {
			segs = append(segs, rawSegment{role, scored, text})
		})
		if err != nil {
			return
		}
		again := appendPayload(nil, id, segs, flags)
		n := 0
		if _, id2, err := parsePayload(again, func(byte, bool, []byte) { n++ }); err != nil || !bytes.Equal(id, id2) || n != len(segs) {
			t.Fatalf("%q does not come back: %v", b, err)
		}
	})
}

// FuzzDocument reads any text as a JSON document.
func FuzzDocument(f *testing.F) {
	f.Add(`{"data":[{"a":1},{"a":2}]}`)
	f.Add(`[{"a":"]"},{"b":"\""}]`)
	f.Add(`{"x":[1,2],"data":[{"paragraphs":[{"context":"c","qas":[{"question":"q"}]}]}]}`)
	f.Fuzz(func(t *testing.T, s string) {
		r := newDoc("fuzz", strings.NewReader(s))
		var rec Record
		n := 0
		for {
			err := r.Next(&rec)
			if err != nil {
				break
			}
			if n++; n > len(s)+1 {
				t.Fatalf("%q gives rows without end", s)
			}
		}
		var rows []map[string]json.RawMessage
		if json.Unmarshal([]byte(s), &rows) == nil && utf8.ValidString(s) && !strings.Contains(s, "paragraphs") && !strings.Contains(s, "qas") && !strings.Contains(s, "null") && n != len(rows) {
			t.Fatalf("%q: %d rows, want %d", s, n, len(rows))
		}
	})
}
