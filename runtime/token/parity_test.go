package token

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// python is the interpreter with Hugging Face's packages.
func python(t testing.TB) string {
	path := os.Getenv("AUTOGLM_PYTHON")
	if path == "" {
		need(t, "AUTOGLM_PYTHON is unset: no Python with tokenizers to compare with")
	}
	return path
}

// need skips a test that lacks something, or fails it when all is required.
func need(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("AUTOGLM_REQUIRE") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

type peerJob struct {
	Docs         []string `json:"docs"`
	Vocab        int      `json:"vocab"`
	MinFrequency int      `json:"min_frequency"`
	Ours         string   `json:"ours"`
	Lines        []string `json:"lines"`
	GPT2         bool     `json:"gpt2"`
}

type peerResult struct {
	File  json.RawMessage `json:"file"`
	IDs   [][]int32       `json:"ids"`
	Plain [][]int32       `json:"plain"`
	Texts []string        `json:"texts"`
}

func runPeer(t *testing.T, job peerJob) peerResult {
	t.Helper()
	in, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python(t), "testdata/hf.py")
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("hf.py: %v\n%s", err, stderr.String())
	}
	var res peerResult
	if err := json.Unmarshal(out, &res); err != nil {
		t.Fatal(err)
	}
	return res
}

// tricky holds what splitters get wrong.
var tricky = []string{
	"", " ", "  ", "\n", "\r\n", "\r\n\r\n", " \n ", "\n  x", "a\n\n  \n b", "a  b", "a   b", "a \t b", "\t\tif x:\n\t\t\treturn",
	"I'm you're they've he'll she'd it's don't", "I'M YOU'RE THEY'VE HE'LL SHE'D IT'S DON'T", "'ſ x'ſy 'ST 'sT 're've", "''s '''ll ' s", "x'", "'", "'l", "'r e",
	"1", "12", "123", "1234", "1234567", "3.14159", "x1y22z333", "１２３４", "٣٤٥٦", "Ⅷ ½ ²³",
	"你好，世界！今天天气怎么样？", "日本語 テスト　全角　空白", "한국어 텍스트", "Привет, мир!", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
	"😀😃 👨‍👩‍👧‍👦 🇩🇪 ❤️", "e\u0301 o\u0308 \u200b\u200d\ufeff x", "\u00a0\u00a0x \u2003y\u3000z \u0085w", "\u2028\u2029 a", "\x00\x01\x7f",
	"foo(bar) { return a[i] += \"str\"; } // comment\n", "!!!\n\n???\r\n...", "a!\n b?\r\nc", "  !!", " \n!!\n\n x", "$100 #tag @user a_b __init__",
	"<|endoftext|>", "<|bos|>hello<|user|> <|assistant|>\n", "<|en<|pad|>", "<|user|", "https://example.com/a?b=c&d=%20", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀀𠀁", "ǅ ʰ ª º", "\u0345 \u24d0 Ⓐ", "a\u030ab'S\u017f",
	"\U0001e5d0\U0001e5f1 \U000105c0 \U00016d40 \U0002ebf0", "word\u2019s it\u2019s", strings.Repeat("ab", 300), strings.Repeat("a", 513), strings.Repeat("=-", 200), strings.Repeat(" ", 100) + "x", strings.Repeat("你好世界", 60),
}

// randomText is n characters of every kind; valid UTF-8.
func randomText(r *rand.Rand, n int) string {
	pools := []string{"abcdefgh", " ", "  \t", "\n\r", "0123456789", "'stremvdlSTLDſ", ".,!?-_=+(){}[]<|>", "你好世界的是", "éèüñçа́бвгд", "😀👍🏽🇩", "\u00a0\u3000\u2028\u0085", "٣Ⅷ²"}
	var b strings.Builder
	for b.Len() < n {
		if r.IntN(30) == 0 {
			c := rune(r.IntN(0x110000))
			if 0xd800 <= c && c < 0xe000 {
				c = 'x'
			}
			b.WriteRune(c)
			continue
		}
		p := []rune(pools[r.IntN(len(pools))])
		for range 1 + r.IntN(5) {
			b.WriteRune(p[r.IntN(len(p))])
		}
	}
	return b.String()
}

// proseText is made-up prose: words of a random lexicon with Zipf's frequencies.
func proseText(r *rand.Rand, n int, alphabet string, sep string) string {
	letters := []rune(alphabet)
	lexicon := make([]string, 400)
	for i := range lexicon {
		w := make([]rune, 1+r.IntN(7))
		for j := range w {
			w[j] = letters[int(float64(len(letters))*r.Float64()*r.Float64())]
		}
		lexicon[i] = string(w)
	}
	z := rand.NewZipf(r, 1.2, 2, uint64(len(lexicon)-1))
	var b strings.Builder
	for b.Len() < n {
		b.WriteString(lexicon[z.Uint64()])
		switch r.IntN(12) {
		case 0:
			b.WriteString(". ")
		case 1:
			b.WriteString(",\n")
		case 2:
			fmt.Fprintf(&b, " %d ", r.IntN(3000))
		default:
			b.WriteString(sep)
		}
	}
	return b.String()
}

func corpora(t *testing.T) map[string][]string {
	r := rand.New(rand.NewPCG(1, 2))
	src, err := os.ReadFile("train.go")
	if err != nil {
		t.Fatal(err)
	}
	c := map[string][]string{
		"latin":   {proseText(r, 60000, "etaoinshrdlucmfwypvbgkqjxz", " "), proseText(r, 20000, "abcd", " ")},
		"chinese": {proseText(r, 60000, "的一是不了人我在有他这为之大来以个中上们到说国和地也子时道出而要于就下得可你年生", "")},
		"emoji":   {proseText(r, 30000, "😀😃😄👍🏽❤🇩🇪🔥✨", " ")},
		"code":    {string(src), strings.ReplaceAll(string(src), "\t", "    ")},
		"crlf":    {strings.ReplaceAll(string(src), "\n", "\r\n")},
		"runs":    {strings.Repeat("a", 1000) + " " + strings.Repeat("ab", 333) + " " + strings.Repeat("=-", 100) + strings.Repeat(" ", 77) + "\n" + strings.Repeat("aaab", 99)},
		"tricky":  tricky,
	}
	var lines []string
	for range 300 {
		lines = append(lines, randomText(r, 100))
	}
	c["random"] = lines
	if dir := os.Getenv("AUTOGLM_TESTDATA"); dir != "" {
		shakespeare, err := os.ReadFile(filepath.Join(dir, "text/tinyshakespeare.txt"))
		if err != nil {
			t.Fatal(err)
		}
		c["shakespeare"] = []string{string(shakespeare)}
		c["classics"] = jsonLines(t, filepath.Join(dir, "text/zh.classics.jsonl.gz"))
	}
	return c
}

func jsonLines(t testing.TB, path string) []string {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for d := json.NewDecoder(z); ; {
		var row struct{ Text string }
		if err := d.Decode(&row); err == io.EOF {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, row.Text)
	}
}

func trainOn(t testing.TB, vocab, minFrequency, threads int, docs ...string) *Tokenizer {
	t.Helper()
	tr, err := NewTrainer(TrainConfig{VocabSize: vocab, MinFrequency: minFrequency, Threads: threads})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		tr.Add([]byte(d))
	}
	tok, err := tr.Train(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// The same corpus gives the same file as tokenizers makes, value for value.
func TestTrainsLikeHuggingFace(t *testing.T) {
	python(t)
	for name, docs := range corpora(t) {
		for _, minFrequency := range []int{0, 2} {
			t.Run(fmt.Sprintf("%s/%d", name, minFrequency), func(t *testing.T) {
				t.Parallel()
				const vocab = 2048
				theirs := runPeer(t, peerJob{Docs: docs, Vocab: vocab, MinFrequency: minFrequency})
				tok := trainOn(t, vocab, minFrequency, 2, docs...)
				ours, err := tok.MarshalJSON()
				if err != nil {
					t.Fatal(err)
				}
				var a, b map[string]any
				if err := json.Unmarshal(ours, &a); err != nil {
					t.Fatal(err)
				}
				if err := json.Unmarshal(theirs.File, &b); err != nil {
					t.Fatal(err)
				}
				am, bm := a["model"].(map[string]any)["merges"].([]any), b["model"].(map[string]any)["merges"].([]any)
				for i := range min(len(am), len(bm)) {
					if !reflect.DeepEqual(am[i], bm[i]) {
						t.Fatalf("merge %d is %v, tokenizers has %v", i, am[i], bm[i])
					}
				}
				if len(am) != len(bm) {
					t.Fatalf("%d merges, tokenizers has %d", len(am), len(bm))
				}
				if !reflect.DeepEqual(a, b) {
					t.Fatalf("tokenizer.json differs from tokenizers' beyond the merges")
				}
			})
		}
	}
}

// Our file gives the same ids in tokenizers on more than 10,000 lines.
func TestEncodesLikeHuggingFace(t *testing.T) {
	python(t)
	r := rand.New(rand.NewPCG(3, 4))
	var docs []string
	for _, d := range corpora(t) {
		docs = append(docs, d...)
	}
	slices.Sort(docs)
	tok := trainOn(t, 4096, 2, 2, docs...)
	data, err := tok.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tokenizer.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	lines := slices.Clone(tricky)
	for _, d := range docs {
		for _, l := range strings.SplitAfter(d, "\n") {
			if len(lines) < 12000 {
				lines = append(lines, l)
			}
		}
	}
	for len(lines) < 16000 {
		lines = append(lines, randomText(r, 1+r.IntN(200)))
	}
	for len(lines) < 17000 { // any characters at all
		var b strings.Builder
		for range r.IntN(40) {
			b.WriteString(strings.ToValidUTF8(string(rune(r.IntN(0x32000))), "?"))
		}
		lines = append(lines, b.String())
	}
	theirs := runPeer(t, peerJob{Ours: path, Lines: lines})
	enc := tok.NewEncoder()
	for i, line := range lines {
		if got := tok.EncodePrompt(nil, line); !slices.Equal(got, theirs.IDs[i]) {
			t.Fatalf("line %d %q:\n got %v\nwant %v", i, line, got, theirs.IDs[i])
		}
		plain := tok.Encode(nil, line)
		if !slices.Equal(plain, theirs.Plain[i]) && len(plain)+len(theirs.Plain[i]) > 0 {
			t.Fatalf("line %d %q without special tokens:\n got %v\nwant %v", i, line, plain, theirs.Plain[i])
		}
		streamed := enc.Flush(enc.Append(nil, []byte(line)))
		if !slices.Equal(streamed, plain) && len(plain) > 0 {
			t.Fatalf("line %d %q streamed:\n got %v\nwant %v", i, line, streamed, plain)
		}
		if got := tok.Decode(theirs.IDs[i]); got != theirs.Texts[i] {
			t.Fatalf("line %d decodes to %q, want %q", i, got, theirs.Texts[i])
		}
	}
}

// A tokenizer made elsewhere, with GPT-2's split, works the same here.
func TestParsesGPT2LikeHuggingFace(t *testing.T) {
	r := rand.New(rand.NewPCG(31, 32))
	lines := slices.Clone(tricky)
	for range 3000 {
		lines = append(lines, randomText(r, 1+r.IntN(150)))
	}
	theirs := runPeer(t, peerJob{Docs: append(slices.Clone(tricky), proseText(r, 50000, "etaoinshrdlu", " ")), Vocab: 1500, Lines: lines, GPT2: true})
	tok, err := Parse(theirs.File)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range lines {
		if got := tok.EncodePrompt(nil, line); !slices.Equal(got, theirs.IDs[i]) && len(line) > 0 {
			t.Fatalf("%q:\n got %v\nwant %v", line, got, theirs.IDs[i])
		}
		if got := tok.Encode(nil, line); !slices.Equal(got, theirs.Plain[i]) && len(line) > 0 {
			t.Fatalf("%q without special tokens:\n got %v\nwant %v", line, got, theirs.Plain[i])
		}
	}
}

// An incomplete or invalid sequence gives Unicode's number of replacement
// characters, as Python and Rust do.
func TestReplacesLikePython(t *testing.T) {
	python(t)
	cases := []string{"\xe4\xb8", "\xe4\xb8a", "\xf0\x9f\x98", "\xf0\x9f", "\xff\xfe", "a\x80b", "\xe4\xb8\xad\xe4", "\xc0\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xf0\x9f\xe4\xb8\xad"}
	cmd := exec.CommandContext(t.Context(), python(t), "-c", "import sys,json\njson.dump([bytes(b).decode('utf-8','replace') for b in json.load(sys.stdin)],sys.stdout)")
	in := make([][]int, len(cases))
	for i, c := range cases {
		for _, b := range []byte(c) {
			in[i] = append(in[i], int(b))
		}
	}
	data, _ := json.Marshal(in)
	cmd.Stdin = bytes.NewReader(data)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		if got := ValidUTF8(c); got != want[i] {
			t.Errorf("%q gives %q, want %q", c, got, want[i])
		}
	}
}
