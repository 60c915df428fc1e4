package data

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var fixedTime = time.Unix(1, 0)

func readAll(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, n := range []string{"train.part", "valid.part", "test.part", "report.json", "dropped.jsonl"} {
		b, err := os.ReadFile(dir + "/" + n)
		if err != nil {
			t.Fatal(err)
		}
		s := sha256.Sum256(b)
		out[n] = hex.EncodeToString(s[:])
	}
	return out
}

// TestSameInSameOut prepares twice; and once more with so little memory that both
// indexes of duplicates go to disk: the parts have the same bytes.
func TestSameInSameOut(t *testing.T) {
	src := put(t, "a.jsonl", mixed(30000))
	c := config(src)
	r1, d1 := prepare(t, c)
	_, d2 := prepare(t, c)
	a, b := readAll(t, d1), readAll(t, d2)
	for k := range a {
		if a[k] != b[k] {
			t.Errorf("%s differs between two runs", k)
		}
	}
	c.Memory = 1 << 20
	r3, d3 := prepare(t, c)
	b = readAll(t, d3)
	for _, k := range []string{"train.part", "valid.part", "test.part"} {
		if a[k] != b[k] {
			t.Errorf("%s differs when the indexes spill", k)
		}
	}
	if r1.Rules[RuleExact].Dropped < 500 || *r1.Rules[RuleExact] != *r3.Rules[RuleExact] || *r1.Rules[RuleNear] != *r3.Rules[RuleNear] {
		t.Errorf("exact %+v %+v, near %+v %+v", r1.Rules[RuleExact], r3.Rules[RuleExact], r1.Rules[RuleNear], r3.Rules[RuleNear])
	}
	if r1.HeldOut.SHA256 != a["test.part"] {
		t.Error("the hash in the report is not that of the file")
	}
	c.Seed = 2
	_, d4 := prepare(t, c)
	if readAll(t, d4)["test.part"] == a["test.part"] {
		t.Error("another seed gives the same split")
	}
}

// mixed makes rows of random words, with exact and near copies.
func mixed(n int) string {
	rnd := rand.New(rand.NewPCG(7, 7))
	var s strings.Builder
	var old []string
	for i := range n {
		var w []string
		for range 12 + rnd.IntN(20) {
			w = append(w, fmt.Sprintf("w%d", rnd.IntN(5000)))
		}
		text := strings.Join(w, " ")
		if len(old) > 100 && i%20 == 0 {
			text = old[rnd.IntN(len(old))]
			if i%40 == 0 {
				text = strings.ToUpper(text) + " again"
			}
		}
		old = append(old, text)
		fmt.Fprintf(&s, `{"id":"%d","text":"%s"}`+"\n", i, text)
	}
	return s.String()
}

// TestTail holds that a long text comes back whole and in order: train, valid,
// test are contiguous, and every piece but the first of a part goes on.
func TestTail(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	var s strings.Builder
	for s.Len() < 1<<20 {
		fmt.Fprintf(&s, "Chapter %d.\nA löng line of text, 漢字 and number %d follow here.\n\n", rnd.IntN(99), rnd.IntN(1e9))
	}
	r, dir := prepare(t, config(put(t, "book.txt", s.String())))
	if r.Split != "tail" || r.Task != TaskText {
		t.Errorf("%s, %s", r.Split, r.Task)
	}
	var all strings.Builder
	for _, part := range []string{"train", "valid", "test"} {
		es := examples(t, dir, part)
		n := 0
		for i, e := range es {
			all.WriteString(e.Segments[0].Text)
			n += len(e.Segments[0].Text)
			if e.Continued != (i > 0) {
				t.Errorf("%s %d: continued %v", part, i, e.Continued)
			}
			if last := part == "test" && i == len(es)-1; e.More == last {
				t.Errorf("%s %d: more %v", part, i, e.More)
			}
		}
		if c := r.Parts[part]; c.Bytes != int64(n) || c.ScoredBytes != c.Bytes || c.Documents != 1 {
			t.Errorf("%s: %+v, %d bytes", part, c, n)
		}
		if f := float64(n) / float64(s.Len()); part != "train" && (f < 0.045 || f > 0.055) {
			t.Errorf("%s holds %.3f", part, f)
		}
	}
	if all.String() != s.String() {
		t.Error("the parts together are not the text")
	}
}

// TestSplitKeepsGroups holds that no question, and no context, stands in two parts.
func TestSplitKeepsGroups(t *testing.T) {
	var s strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&s, `{"context":"Passage number %d tells about many things.","question":"What is %d?","answer":"It is %d."}`+"\n", i/5, i, i)
	}
	c := config(put(t, "a.jsonl", s.String()))
	r, dir := prepare(t, c)
	in := map[string]string{}
	for _, part := range []string{"train", "valid", "test"} {
		for _, e := range examples(t, dir, part) {
			ctx, _, _ := strings.Cut(e.Segments[0].Text, "\n")
			if was := in[ctx]; was != "" && was != part {
				t.Fatalf("%q stands in %s and %s", ctx, was, part)
			}
			in[ctx] = part
		}
		if f := float64(r.Parts[part].Bytes) / float64(r.Parts["train"].Bytes); part != "train" && (f < 0.05 || f > 0.07) {
			t.Errorf("%s has %.3f of train", part, f)
		}
	}
	if len(in) != 600 || r.Kept != 3000 {
		t.Errorf("%d contexts, %d rows", len(in), r.Kept)
	}
}

func TestSplitProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSplitter(rapid.Int64().Draw(t, "seed"), 0.05, 0.05)
		sizes := rapid.SliceOfN(rapid.Int64Range(50, 5000), 3, 400).Draw(t, "sizes")
		for i, n := range sizes {
			s.add(mix(uint64(i)+1), n)
		}
		s.decide()
		var got [partCount]int64
		var groups [partCount]int
		for i, n := range sizes {
			p := s.of(mix(uint64(i) + 1))
			got[p] += n
			groups[p]++
		}
		for p := range partCount {
			if groups[p] == 0 {
				t.Fatalf("part %s is empty: %v", partNames[p], sizes)
			}
		}
		for _, p := range []int{partValid, partTest} {
			want := target(s.total, 0.05)
			if groups[p] > 1 && got[p] > 3*want {
				t.Fatalf("part %s has %d bytes, wanted %d", partNames[p], got[p], want)
			}
		}
	})
}

// TestGivenHeldOut uses the user's own file, and drops its rows from the rest.
func TestGivenHeldOut(t *testing.T) {
	rows := strings.SplitAfter(sentences(400), "\n")
	train := put(t, "a.jsonl", strings.Join(rows[:300], ""))
	valid := put(t, "v.jsonl", strings.Join(rows[290:400], ""))
	c := config(train)
	c.Near = false
	c.Valid = []string{valid}
	r, dir := prepare(t, c)
	if r.Parts["test"].Examples != 110 || !r.HeldOut.Given || r.Rules[RuleExact].Dropped != 10 {
		t.Errorf("%+v %+v", r.Parts["test"], r.Rules[RuleExact])
	}
	if d := readDropped(t, dir)[300]; d.File != train || d.Of != valid+":10" {
		t.Errorf("%+v", d)
	}
	if r.Parts["train"].Examples+r.Parts["valid"].Examples != 290 || r.Parts["valid"].Examples == 0 {
		t.Errorf("%+v", r.Parts)
	}
}

func TestMaxLength(t *testing.T) {
	long := strings.Repeat("This paragraph repeats, but with its own number. ", 3)
	var s strings.Builder
	for i := range 40 {
		fmt.Fprintf(&s, `{"text":"`)
		for k := range 30 {
			fmt.Fprintf(&s, `%d-%d %s\n\n`, i, k*k, long)
		}
		s.WriteString("\"}\n")
	}
	c := config(put(t, "a.jsonl", s.String()))
	c.Near, c.MaxLength = false, 1000
	r, dir := prepare(t, c)
	if r.Rules[RuleTooLong].Repaired != 40 || r.Kept < 150 {
		t.Errorf("%+v, %d kept", r.Rules[RuleTooLong], r.Kept)
	}
	for _, e := range examples(t, dir, "train") {
		if n := len(e.Segments[0].Text); n > 1000 {
			t.Errorf("a document has %d bytes", n)
		}
	}
}

func TestHTTP(t *testing.T) {
	body := sentences(300)
	mux := http.NewServeMux()
	mux.HandleFunc("/rows", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-ndjson")
		_, _ = w.Write([]byte(body))
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write([]byte(body[:len(body)/2]))
	})
	release := make(chan struct{})
	mux.HandleFunc("/slow", func(http.ResponseWriter, *http.Request) { <-release })
	srv := httptest.NewServer(mux)
	defer srv.Close()
	defer close(release)
	c := DefaultConfig()
	c.Near = false
	c.URLs = []string{srv.URL + "/rows"}
	if r, _ := prepare(t, c); r.Rows != 300 || r.Files[0].File != srv.URL+"/rows" {
		t.Errorf("%+v", r)
	}
	for path, msg := range map[string]string{"/none": "404 Not Found", "/cut": "cannot be fetched"} {
		c.URLs = []string{srv.URL + path}
		_, err := Prepare(context.Background(), c, t.TempDir(), Events{})
		if e := wantInput(t, err); !strings.Contains(e.Error(), msg) || e.File != srv.URL+path {
			t.Errorf("%s: %v", path, e)
		}
	}
	h := &HTTPSource{Timeout: 50 * time.Millisecond}
	if err := h.Connect(map[string]string{"url": srv.URL + "/slow"}); err != nil {
		t.Fatal(err)
	}
	_, err := h.Fetch(context.Background())
	if e := wantInput(t, err); !strings.Contains(e.Msg, "silent for 50ms") {
		t.Errorf("%v", e)
	}
	h = &HTTPSource{MaxBytes: 100}
	if err := h.Connect(map[string]string{"url": srv.URL + "/rows"}); err != nil {
		t.Fatal(err)
	}
	if err := download(context.Background(), h, t.TempDir()+"/x", "x"); err == nil || !strings.Contains(err.Error(), "100") {
		t.Errorf("%v", err)
	}
	if e := wantInput(t, (&HTTPSource{}).Connect(map[string]string{"url": "ftp://x"})); e.Hint == "" {
		t.Errorf("%v", e)
	}
}

func TestFromBytes(t *testing.T) {
	p := FromBytes(func(context.Context, map[string]string) ([]byte, error) { return []byte(sentences(200)), nil },
		func(b []byte) ([]byte, error) { return bytes.ReplaceAll(b, []byte("sailors"), []byte("cooks")), nil })
	c := DefaultConfig()
	c.Near = false
	c.Sources = []DataPlugin{p}
	r, dir := prepare(t, c)
	if r.Rows != 200 || !strings.Contains(examples(t, dir, "train")[0].Segments[0].Text, "cooks") {
		t.Errorf("%+v", r)
	}
	bad := errors.New("no cursor")
	c.Sources = []DataPlugin{FromBytes(func(context.Context, map[string]string) ([]byte, error) { return nil, bad }, nil)}
	if _, err := Prepare(context.Background(), c, t.TempDir(), Events{}); !errors.Is(err, bad) {
		t.Errorf("%v", err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	dir := t.TempDir()
	_, err := Prepare(ctx, config(put(t, "a.jsonl", sentences(20000))), dir, Events{Phase: func(s string) {
		if strings.HasPrefix(s, "read") {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 0 {
		t.Errorf("left behind: %v", files)
	}
}

// TestTemplates renders an example of every task.
func TestTemplates(t *testing.T) {
	for _, c := range []struct {
		name, row, want string
		roles           map[string]string
		task            Task
	}{
		{"text", `{"text":" Some text. "}`, BOS + "Some text." + EOS, map[string]string{"text": "text"}, TaskText},
		{"qa", `{"question":"Why?","answer":["So.","?"]}`, BOS + User + "Why?" + Assistant + "So." + EOS, map[string]string{"question": "question", "answer": "answer"}, TaskQA},
		{"context", `{"question":"Why?","answer":"So.","context":"It is."}`, BOS + User + "It is.\n\nWhy?" + Assistant + "So." + EOS, map[string]string{"question": "question", "answer": "answer", "context": "context"}, TaskQA},
		{"alpaca", `{"instruction":"Add.","input":"1 2","output":3}`, BOS + User + "Add.\n\n1 2" + Assistant + "3" + EOS, map[string]string{"question": "instruction", "answer": "output", "context": "input"}, TaskQA},
		{"summary", `{"document":"Long.","summary":"S."}`, BOS + User + "Long." + Assistant + "S." + EOS, map[string]string{"document": "document", "summary": "summary"}, TaskSummary},
		{"label", `{"text":"Fine.","label":1}`, BOS + User + "Fine." + Assistant + "1" + EOS, map[string]string{"text": "text", "label": "label"}, TaskClassification},
		{
			"dialogue", `{"conversations":[{"from":"system","value":"Be brief."},{"from":"human","value":"Hi "},{"from":"gpt","value":"Ho\u0000"},{"from":"human","value":"So?"},{"from":"gpt","value":"No."}]}`,
			BOS + System + "Be brief." + User + "Hi" + Assistant + "Ho" + EOS + User + "So?" + Assistant + "No." + EOS,
			map[string]string{"messages": "conversations"},
			TaskDialogue,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			var rec Record
			if err := parseObject([]byte(c.row), &rec); err != nil {
				t.Fatal(err)
			}
			b := rowBuilder{task: c.task, roles: c.roles}
			if _, rule := b.build(&rec); rule != "" {
				t.Fatal(rule, b.note)
			}
			e := Example{}
			for _, s := range b.segs {
				e.Segments = append(e.Segments, Segment{roleTokens[s.role], string(s.text), s.scored})
			}
			if got := e.Render(); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			for _, s := range e.Segments {
				if s.Scored != (s.Role == Assistant || s.Role == "") {
					t.Errorf("%+v", s)
				}
			}
		})
	}
}

// TestChatTemplate holds the Jinja template against Render, in transformers.
func TestChatTemplate(t *testing.T) {
	py := os.Getenv("AUTOGLM_PYTHON")
	if py == "" {
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal("AUTOGLM_PYTHON is not set and AUTOGLM_REQUIRE=all")
		}
		t.Skip("AUTOGLM_PYTHON is not set")
	}
	e := Example{Segments: []Segment{{System, "Be brief.", false}, {User, "a < b?\n\n{x}", false}, {Assistant, "Yes, 漢.", true}, {User, "So?", false}}}
	names := map[string]string{System: "system", User: "user", Assistant: "assistant"}
	var msgs []map[string]string
	for _, s := range e.Segments {
		msgs = append(msgs, map[string]string{"role": names[s.Role], "content": " " + s.Text + "\n"})
	}
	in, err := json.Marshal(map[string]any{"template": ChatTemplate(), "messages": msgs, "bos": BOS, "eos": EOS})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(py, "testdata/chat_template.py")
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		var ee *exec.ExitError
		if errors.As(err, &ee) {
			t.Fatalf("%v: %s", err, ee.Stderr)
		}
		t.Fatal(err)
	}
	var got []string
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if got[0] != e.Render() || got[1] != e.Render()+Assistant {
		t.Errorf("got  %q\nwant %q", got, e.Render())
	}
}

// TestPartDamage cuts and flips a part file anywhere: it is refused.
func TestPartDamage(t *testing.T) {
	c := config(put(t, "a.jsonl", sentences(200)))
	c.Near = false
	_, dir := prepare(t, c)
	path := PartFile(dir, "test")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	read := func() error {
		p, err := OpenPart(dir, "test")
		if err != nil {
			return err
		}
		defer func() { _ = p.Close() }()
		for {
			if _, err := p.Next(); err != nil {
				if err.Error() == "EOF" {
					return nil
				}
				return err
			}
		}
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		if i >= 12 && i < 16 {
			continue // reserved
		}
		b := bytes.Clone(whole)
		b[i] ^= 0x41
		for _, x := range [][]byte{b, whole[:i]} {
			if err := os.WriteFile(path, x, 0o644); err != nil {
				t.Fatal(err)
			}
			var e *InputError
			if err := read(); !errors.As(err, &e) {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
	}
}
