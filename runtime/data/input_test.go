package data

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func sentences(n int) string {
	var s strings.Builder
	for i := range n {
		fmt.Fprintf(&s, `{"text":"Line %d tells of ship %d, which sailed on day %d with %d sailors."}`+"\n", i, i*7, i*i, i*13)
	}
	return s.String()
}

// TestBadInput names, for each kind of bad input, what its error must say.
func TestBadInput(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write([]byte(sentences(500)))
	_ = z.Close()
	broken := strings.Repeat(sentences(2)+"{broken\n{worse\nworst\n", 20)
	for _, c := range []struct {
		name, file, content, msg string
		line                     int64
	}{
		{"empty", "a.jsonl", "", "is empty", 0},
		{"white space", "a.txt", " \n\n ", "nothing but white space", 0},
		{"one line", "a.txt", "Just this.\n", "11 bytes of text are left", 0},
		{"one row", "a.jsonl", sentences(1), "which is too little", 0},
		{"elf", "a.txt", "\x7fELF\x02\x01\x01" + strings.Repeat("\x00\x01\x02", 99), "an ELF program", 0},
		{"png", "a.txt", "\x89PNG\r\n\x1a\n" + strings.Repeat("\x00\x01\x02", 99), "a PNG image", 0},
		{"binary", "a.txt", strings.Repeat("\x01\x00\x02\x9f\x05", 99), "is a binary file", 0},
		{"not parquet", "a.parquet", "hello there", "does not begin as a Parquet file", 0},
		{"cut parquet", "a.parquet", "PAR1" + strings.Repeat("x", 99), "cut off or damaged", 0},
		{"cut gzip", "a.jsonl.gz", packed.String()[:packed.Len()/2], "gzip stream is damaged or cut off", 0},
		{"xz", "a.jsonl.xz", "\xfd7zXZ\x00" + strings.Repeat("x", 99), "compressed with xz", 0},
		{"mostly broken", "a.jsonl", broken, "60 of 100 rows cannot be read as jsonl (line 3: ", 3},
		{"no delimiter", "a.csv", "one,two\nthree\nfour;five;six;;;\nseven|eight\n", "has no delimiter", 0},
		{"cut json", "a.json", `[{"text":"one row"},{"text":"two`, "cut off", 1},
		{"no rows in json", "a.json", "{\n\"a\":1,\n\"b\":[1,2,3]\n}", "no array of rows", 4},
		{"no task", "a.csv", "height,width\n1,2\n3,4\n5,6\n", "no task fits", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Prepare(context.Background(), config(put(t, c.file, c.content)), dir, Events{})
			e := wantInput(t, err)
			if !strings.Contains(e.Error(), c.msg) || e.Hint == "" || e.Line != c.line {
				t.Errorf("line %d: %v", e.Line, e)
			}
			if left, _ := os.ReadDir(dir); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	for name, c := range map[string]struct{ path, msg string }{
		"directory": {t.TempDir(), "is a directory"},
		"missing":   {filepath.Join(t.TempDir(), "no.jsonl"), "no such file"},
		"glob":      {filepath.Join(t.TempDir(), "*.jsonl"), "matches no file"},
		"device":    {"/dev/null", "is not a regular file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Prepare(context.Background(), config(c.path), t.TempDir(), Events{})
			if e := wantInput(t, err); !strings.Contains(e.Msg, c.msg) || e.File == "" {
				t.Errorf("%v", e)
			}
		})
	}
}

// TestFortyPercentBroken goes on, and reports every row.
func TestFortyPercentBroken(t *testing.T) {
	lines := strings.SplitAfter(sentences(200), "\n")
	for i := range lines {
		if i%5 < 2 && lines[i] != "" {
			lines[i] = lines[i][:20] + "\n"
		}
	}
	c := config(put(t, "a.jsonl", strings.Join(lines, "")))
	c.Near = false
	r, dir := prepare(t, c)
	if r.Rules[RuleUnparsable].Dropped != 80 || r.Kept != 120 || len(readDropped(t, dir)) != 80 {
		t.Errorf("%+v", r.Rules[RuleUnparsable])
	}
}

func TestConfigErrors(t *testing.T) {
	for field, change := range map[string]func(*Config){
		"data":           func(c *Config) { c.Files = nil },
		"task_type":      func(c *Config) { c.Task = "poetry" },
		"columns":        func(c *Config) { c.Columns = map[string]string{"verse": "x"} },
		"test_fraction":  func(c *Config) { c.TestFraction = 0.9 },
		"valid_fraction": func(c *Config) { c.ValidFraction = 0 },
		"near_threshold": func(c *Config) { c.NearThreshold = 0 },
		"max_length":     func(c *Config) { c.MaxLength = 3 },
		"memory":         func(c *Config) { c.Memory = 5 },
	} {
		c := config("x")
		change(&c)
		if e := wantInput(t, c.Validate()); e.Field != field {
			t.Errorf("%s: %v", field, e)
		}
	}
}
