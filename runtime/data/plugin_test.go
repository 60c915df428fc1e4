package data

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pluginMain is the test binary run as a plugin.
func pluginMain(mode string) int {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	in.Scan()
	hello := `{"autoglm_plugin":1,"role":"clean","name":"goclean","version":"1"}`
	switch mode {
	case "source", "crash", "short", "error":
		hello = `{"autoglm_plugin":1,"role":"source","name":"gosource"}`
	case "version":
		hello = `{"autoglm_plugin":9,"role":"source","name":"future"}`
	case "role":
		hello = `{"autoglm_plugin":1,"role":"cook","name":"cook"}`
	case "mute":
		hello = `good morning`
	case "silent":
		in.Scan()
		return 0
	}
	fmt.Println(hello)
	switch mode {
	case "source", "crash", "short", "error":
		for i := range 300 {
			fmt.Printf(`{"record":{"id":"s%d","text":"Row number %d of this source says that %d is a number."}}`+"\n", i, i, i*i)
			if i == 100 && mode == "crash" {
				fmt.Fprintln(os.Stderr, "out of cheese")
				return 3
			}
			if i == 100 && mode == "error" {
				fmt.Println(`{"error":"the cursor expired"}`)
				return 1
			}
		}
		n := 300
		if mode == "short" {
			n = 301
		}
		fmt.Printf(`{"end":{"count":%d}}`+"\n", n)
	case "clean", "hang":
		n := 0
		for in.Scan() {
			var m struct {
				Seq    int64             `json:"seq"`
				Record map[string]string `json:"record"`
			}
			if err := json.Unmarshal(in.Bytes(), &m); err != nil {
				fmt.Printf(`{"error":%q}`+"\n", err.Error())
				return 1
			}
			n++
			switch {
			case mode == "hang" && n == 5:
				fmt.Fprintln(os.Stderr, "thinking")
				select {}
			case n%3 == 0:
				fmt.Printf(`{"seq":%d,"drop":"every third"}`+"\n", m.Seq)
			case n%3 == 1:
				m.Record["text"] = strings.ToUpper(m.Record["text"])
				b, _ := json.Marshal(m.Record)
				fmt.Printf(`{"seq":%d,"record":%s,"reason":"louder"}`+"\n", m.Seq, b)
			default:
				fmt.Printf(`{"seq":%d,"keep":true}`+"\n", m.Seq)
			}
		}
		fmt.Printf(`{"end":{"count":%d}}`+"\n", n)
	}
	return 0
}

func self(t *testing.T, mode string) *Command {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("AUTOGLM_DATA_PLUGIN_MODE", mode)
	return &Command{Args: []string{exe}}
}

func TestPluginSource(t *testing.T) {
	c := self(t, "source")
	cfg := DefaultConfig()
	cfg.Plugins = []PluginConfig{{Command: c.Args}}
	cfg.Near = false // the rows are alike
	r, _ := prepare(t, cfg)
	if r.Rows != 300 || r.Kept != 300 || r.Task != TaskText || r.Files[0].File != "plugin gosource" {
		t.Errorf("%+v", r)
	}
}

func TestPluginClean(t *testing.T) {
	c := self(t, "clean")
	var s strings.Builder
	for i := range 300 {
		fmt.Fprintf(&s, `{"id":"r%d","text":"Sentence %d is about the number %d and no other."}`+"\n", i, i, i*i)
	}
	cfg := config(put(t, "a.jsonl", s.String()))
	cfg.Near = false
	cfg.Plugins = []PluginConfig{{Command: c.Args}}
	r, dir := prepare(t, cfg)
	if p := r.Rules[RulePlugin]; p == nil || p.Dropped != 100 || p.Repaired != 100 || r.Kept != 200 {
		t.Fatalf("%+v, kept %d", p, r.Kept)
	}
	d := readDropped(t, dir)[3]
	if d.ID != "" && d.ID != "r2" || d.Note != "plugin goclean: every third" || d.Rule != RulePlugin {
		t.Errorf("%+v", d)
	}
	upper := 0
	for _, e := range examples(t, dir, "train") {
		if strings.HasPrefix(e.Segments[0].Text, "SENTENCE") {
			upper++
		}
	}
	if upper < 50 {
		t.Errorf("%d rows changed", upper)
	}
}

// TestPluginPreprocess runs a step on its own, as a stream of JSONL.
func TestPluginPreprocess(t *testing.T) {
	c := self(t, "clean")
	if err := c.Connect(nil); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r, err := c.Preprocess(strings.NewReader(strings.Repeat(`{"text":"a"}`+"\n", 9)))
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(r)
	if err != nil || strings.Count(string(b), "\n") != 6 {
		t.Errorf("%q, %v", b, err)
	}
}

func TestPluginFaults(t *testing.T) {
	for _, c := range []struct{ mode, want string }{
		{"crash", "out of cheese"},
		{"error", "the cursor expired"},
		{"short", "gave 300 records and says it gave 301"},
		{"version", "version 9"},
		{"role", `"cook"`},
		{"mute", "good morning"},
		{"silent", "gave no line"},
	} {
		t.Run(c.mode, func(t *testing.T) {
			p := self(t, c.mode)
			p.Timeout = 2 * time.Second
			if c.mode == "silent" {
				p.Timeout = 50 * time.Millisecond
			}
			err := p.Connect(nil)
			if err == nil {
				var r io.ReadCloser
				if r, err = p.Fetch(context.Background()); err == nil {
					_, err = io.ReadAll(r)
				}
			}
			_ = p.Close()
			if e := wantInput(t, err); !strings.Contains(e.Error(), c.want) || !strings.HasPrefix(e.File, "plugin ") {
				t.Errorf("%v", e)
			}
		})
	}
	t.Run("hang", func(t *testing.T) {
		p := self(t, "hang")
		if err := p.Connect(nil); err != nil {
			t.Fatal(err)
		}
		p.Timeout = 50 * time.Millisecond
		r, _ := p.Preprocess(strings.NewReader(strings.Repeat(`{"text":"a"}`+"\n", 9)))
		_, err := io.ReadAll(r)
		if e := wantInput(t, err); !strings.Contains(e.Msg, "gave no line for 50ms") || !strings.Contains(e.Hint, "thinking") {
			t.Errorf("%v", e)
		}
	})
	t.Run("missing", func(t *testing.T) {
		p := &Command{Args: []string{filepath.Join(t.TempDir(), "nothing")}}
		if e := wantInput(t, p.Connect(nil)); e.Field != "plugin" {
			t.Errorf("%v", e)
		}
	})
}

// TestPluginScripts runs the examples of PLUGINS.md.
func TestPluginScripts(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Near = false
	cfg.Plugins = []PluginConfig{{Command: []string{"testdata/plugins/count.sh"}, Config: map[string]string{"rows": "200"}}}
	if py, err := exec.LookPath("python3"); err == nil {
		cfg.Plugins = append(cfg.Plugins, PluginConfig{Command: []string{py, "testdata/plugins/no_sevens.py"}})
	}
	r, _ := prepare(t, cfg)
	if r.Rows != 200 {
		t.Fatalf("%+v", r)
	}
	if p := r.Rules[RulePlugin]; len(cfg.Plugins) == 2 && (p == nil || p.Dropped != 38) {
		t.Errorf("%+v", p) // the numbers to 200 with a seven in them
	}
}

func FuzzPluginLine(f *testing.F) {
	for _, s := range []string{`{"autoglm_plugin":1,"role":"source"}`, `{"seq":1,"record":{"a":1}}`, `{"end":{"count":3}}`, `{"drop":"x"}`, `[]`, `{"record":[]}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMessage(b)
		if err == nil && len(m.Record) > 0 {
			var rec Record
			if err := parseObject(m.Record, &rec); err != nil {
				t.Errorf("record %q was let through: %v", m.Record, err)
			}
		}
	})
}
