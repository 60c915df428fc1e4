package data

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"
)

// stored writes rows of text that does not pack well in one of the formats.
func stored(t *testing.T, format string, rows int) string {
	t.Helper()
	type row struct {
		Text string `parquet:"text"`
	}
	r := rand.New(rand.NewPCG(1, 2))
	var lines bytes.Buffer
	var table []row
	for range rows {
		var s strings.Builder
		for range 12 {
			for range 3 + r.IntN(6) {
				s.WriteByte("etaoinshrdlucmfwypvbgk"[r.IntN(22)])
			}
			s.WriteByte(' ')
		}
		table = append(table, row{s.String()})
		lines.WriteString(`{"text":"` + s.String() + `"}` + "\n")
	}
	switch format {
	case "jsonl":
		return put(t, "a.jsonl", lines.String())
	case "jsonl.gz":
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		if _, err := z.Write(lines.Bytes()); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		return put(t, "a.jsonl.gz", b.String())
	}
	var b bytes.Buffer
	w := parquet.NewGenericWriter[row](&b, parquet.MaxRowsPerRowGroup(5000))
	if _, err := w.Write(table); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return put(t, "a.parquet", b.String())
}

// A file that is changed between the probe and the end of reading, in every way of
// reading, is used as far as it was at first, or refused with its name; nothing is
// left of what had been written.
func TestChangedWhileRead(t *testing.T) {
	const rows = 40000 // more than the pipeline reads ahead
	for _, format := range []string{"jsonl", "jsonl.gz", "parquet"} {
		for _, c := range []struct {
			name   string
			change func(p string) error
			msg    string // "" when it goes on with a warning
		}{
			{"shrinks", func(p string) error { return os.Truncate(p, 100) }, "shrank from"},
			{"empties", func(p string) error { return os.Truncate(p, 0) }, "shrank from"},
			{"grows", func(p string) error {
				f, err := os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				_, err = f.WriteString(sentences(50))
				return errors.Join(err, f.Close())
			}, ""},
			{"vanishes", os.Remove, ""},
			{"rewritten", func(p string) error { return os.Chtimes(p, fixedTime, fixedTime) }, "was changed while it was read"},
		} {
			t.Run(format+"/"+c.name, func(t *testing.T) {
				p := stored(t, format, rows)
				done := false
				cfg := config(p)
				cfg.Near = false
				dir := t.TempDir()
				r, err := Prepare(context.Background(), cfg, dir, Events{Progress: func(Progress) {
					if !done {
						done = true
						if err := c.change(p); err != nil {
							t.Error(err)
						}
					}
				}})
				if !done {
					t.Fatal("no progress was reported")
				}
				if c.msg != "" {
					if e := wantInput(t, err); !strings.Contains(e.Msg, c.msg) || e.File != p || e.Hint == "" {
						t.Errorf("%v", e)
					}
					if left, _ := os.ReadDir(dir); len(left) != 0 {
						t.Errorf("left behind: %v", left)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], p) || r.Rows != rows {
					t.Errorf("%d rows, warnings %v", r.Rows, r.Warnings)
				}
			})
		}
	}
}

// A file that is gone after the probe is named.
func TestGoneAfterProbe(t *testing.T) {
	p := stored(t, "jsonl", 100)
	dir := t.TempDir()
	_, err := Prepare(context.Background(), config(p), dir, Events{Phase: func(s string) {
		if strings.HasPrefix(s, "read ") {
			_ = os.Remove(p)
		}
	}})
	if e := wantInput(t, err); e.File != p || !strings.Contains(e.Msg, "no such file") {
		t.Errorf("%v", e)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// A damaged byte in the middle of a packed file is refused, not read past.
func TestDamagedMiddle(t *testing.T) {
	p := stored(t, "jsonl.gz", 40000)
	f, err := os.OpenFile(p, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, 64), st.Size()-1000); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	_, err = Prepare(context.Background(), config(p), dir, Events{})
	if e := wantInput(t, err); e.File != p || !strings.Contains(e.Msg, "damaged or cut off") {
		t.Errorf("%v", e)
	}
	if left, _ := os.ReadDir(filepath.Dir(p)); len(left) != 1 {
		t.Errorf("left beside the file: %v", left)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}
