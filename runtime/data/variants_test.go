package data

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVariants reads every variant and compares the rows with their digest.
func TestVariants(t *testing.T) {
	b, err := os.ReadFile(testdataFile(t, "variants/expected.json"))
	if err != nil {
		t.Fatal(err)
	}
	var expected map[string]struct {
		Rows        int64          `json:"rows"`
		SHA256      string         `json:"sha256_rows"`
		Encoding    string         `json:"encoding"`
		Delimiter   string         `json:"delimiter"`
		Header      *bool          `json:"header"`
		Compression string         `json:"compression"`
		Nulls       map[string]int `json:"nulls"`
		Error       string         `json:"error"`
		Bad         map[string]any `json:"bad_data_lines"`
		Columns     []string       `json:"columns"`
	}
	if err := json.Unmarshal(b, &expected); err != nil {
		t.Fatal(err)
	}
	if len(expected) < 30 {
		t.Fatalf("only %d variants", len(expected))
	}
	for name, want := range expected {
		t.Run(name, func(t *testing.T) {
			o, err := newSource(testdataFile(t, filepath.Join("variants", name))).open()
			if want.Error != "" {
				if e := wantInput(t, err); !strings.Contains(e.File, name) {
					t.Errorf("error does not name the file: %v", e)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			if want.Encoding != "" && o.encoding != want.Encoding && o.encoding+", no BOM" != want.Encoding {
				t.Errorf("encoding %q, want %q", o.encoding, want.Encoding)
			}
			if want.Delimiter != "" && string(o.delim) != want.Delimiter {
				t.Errorf("delimiter %q, want %q", o.delim, want.Delimiter)
			}
			if want.Header != nil && o.header != *want.Header {
				t.Errorf("header %v", o.header)
			}
			cols := map[string]string{"question": "question", "answer": "answer", "context": "context"}
			switch {
			case want.Header != nil:
				cols = map[string]string{"question": "column_1", "answer": "column_2", "context": "column_3"}
			case strings.Contains(name, "alpaca"):
				cols = map[string]string{"question": "instruction", "answer": "output", "context": "input"}
			}
			r, err := o.records(false, nil)
			if err != nil {
				t.Fatal(err)
			}
			h := sha256.New()
			var rec Record
			var rows, bad int64
			nulls := map[string]int{}
			for {
				err := r.Next(&rec)
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				rows++
				if rec.Bad != "" {
					bad++
					if _, ok := want.Bad[itoa(rec.Line-1)]; !ok {
						t.Errorf("line %d: %s %s", rec.Line, rec.Bad, rec.Note)
					}
					continue
				}
				var cells []string
				for i := range rec.Fields {
					if rec.Fields[i].Kind == Null {
						nulls[string(rec.Fields[i].Name)]++
					}
				}
				for _, role := range []string{"question", "answer", "context"} {
					f := rec.get(cols[role])
					if f == nil && role == "answer" {
						if f = rec.get("answers"); f != nil {
							v, _ := scalarText(f.Val, f.Kind)
							cells = append(cells, string(v))
							continue
						}
					}
					if f != nil {
						cells = append(cells, string(f.Val))
					}
				}
				var sb strings.Builder
				e := json.NewEncoder(&sb)
				e.SetEscapeHTML(false)
				if err := e.Encode(cells); err != nil {
					t.Fatal(err)
				}
				// Python leaves U+2028 and U+2029 as they are
				_, _ = io.WriteString(h, strings.NewReplacer(`\u2028`, "\u2028", `\u2029`, "\u2029").Replace(sb.String()))
			}
			if rows != want.Rows {
				t.Errorf("%d rows, want %d", rows, want.Rows)
			}
			if int(bad) != len(want.Bad) {
				t.Errorf("%d bad rows, want %d", bad, len(want.Bad))
			}
			if got := hex.EncodeToString(h.Sum(nil)); want.SHA256 != "" && got != want.SHA256 {
				t.Errorf("rows differ: digest %s", got)
			}
			for c, n := range want.Nulls {
				if nulls[c] != n {
					t.Errorf("%d nulls in %s, want %d", nulls[c], c, n)
				}
			}
			if name == "types.parquet" && len(o.columns) != len(want.Columns) {
				t.Errorf("columns %v", o.columns)
			}
		})
	}
}
