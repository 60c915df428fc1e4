// Command token times training a tokenizer and encoding with it, beside Hugging
// Face's tokenizers in the same run:
//
//	AUTOGLM_PYTHON=… AUTOGLM_TESTDATA=… go run ./bench/token -mb 100 -vocab 4096 -threads 2
//
// It prints one JSON object a line: ours, the peer's and their ratios. The corpus is
// new text sampled from the real files in AUTOGLM_TESTDATA, half of it Chinese
// unless -chinese says otherwise; without the folder it is made up. Without
// AUTOGLM_PYTHON there is no peer.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/runtime/token"
)

// result is one line of output; speeds are in MB (10⁶ bytes) a second.
type result struct {
	Who         string  `json:"who"`
	Bytes       int     `json:"bytes"`
	Vocab       int     `json:"vocab"`
	Threads     int     `json:"threads"`
	TrainS      float64 `json:"train_s"`
	EncodeMBs   float64 `json:"encode_mb_s"`     // one thread, the whole text in one call
	ParallelMBs float64 `json:"encode_all_mb_s"` // all threads
	Tokens      int     `json:"tokens"`
}

type ratios struct {
	Train    float64 `json:"train_speedup"`
	Encode   float64 `json:"encode_speedup"`
	Parallel float64 `json:"encode_all_speedup"`
	Same     bool    `json:"same_tokens"` // tokens of the encoded text are as many
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench/token:", err)
		os.Exit(1)
	}
}

func run() error {
	mb := flag.Int("mb", 100, "size of the corpus in MB")
	vocab := flag.Int("vocab", 4096, "vocabulary")
	threads := flag.Int("threads", runtime.GOMAXPROCS(0), "threads, for both")
	cpuProfile := flag.String("cpuprofile", "", "write a profile of our part here")
	peerMB := flag.Int("encode-mb", 16, "size of the text to encode in MB")
	chinese := flag.Float64("chinese", 0.5, "share of the corpus that is Chinese, the rest is English")
	flag.Parse()

	text, err := corpus(*mb*1_000_000, *chinese)
	if err != nil {
		return err
	}
	part := text[:min(len(text), *peerMB*1_000_000)]
	for len(part) > 0 && part[len(part)-1] >= 0x80 {
		part = part[:len(part)-1]
	}
	if *cpuProfile != "" {
		f, err := os.Create(*cpuProfile)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
	}
	ours, tok, err := measure(text, part, *vocab, *threads)
	pprof.StopCPUProfile()
	if err != nil {
		return err
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(ours); err != nil {
		return err
	}
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		fmt.Fprintln(os.Stderr, "bench/token: AUTOGLM_PYTHON is unset, no peer")
		return nil
	}
	theirs, err := peer(python, tok, text, part, *threads)
	if err != nil {
		return err
	}
	if err := out.Encode(theirs); err != nil {
		return err
	}
	return out.Encode(ratios{
		Train: theirs.TrainS / ours.TrainS, Encode: ours.EncodeMBs / theirs.EncodeMBs,
		Parallel: ours.ParallelMBs / theirs.ParallelMBs, Same: ours.Tokens == theirs.Tokens,
	})
}

func measure(text, part string, vocab, threads int) (result, *token.Tokenizer, error) {
	ctx := context.Background()
	start := time.Now()
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: vocab, MinFrequency: 2, Threads: threads})
	if err != nil {
		return result{}, nil, err
	}
	if err := tr.Feed(ctx, strings.NewReader(text)); err != nil {
		return result{}, nil, err
	}
	tok, err := tr.Train(ctx)
	if err != nil {
		return result{}, nil, err
	}
	r := result{Who: "autoglm", Bytes: len(text), Vocab: tok.VocabSize(), Threads: threads, TrainS: time.Since(start).Seconds()}
	var ids []int32
	r.EncodeMBs = speed(len(part), func() { ids = tok.Encode(ids[:0], part) })
	r.ParallelMBs = speed(len(part), func() { tok.EncodeAll(part, threads) })
	r.Tokens = len(ids)
	return r, tok, nil
}

// speed is the best of three, in MB/s.
func speed(bytes int, f func()) float64 {
	best := time.Duration(1 << 62)
	for range 3 {
		start := time.Now()
		f()
		best = min(best, time.Since(start))
	}
	return float64(bytes) / 1e6 / best.Seconds()
}

// peer times tokenizers: training by itself, encoding with our tokenizer.json.
func peer(python string, tok *token.Tokenizer, text, part string, threads int) (result, error) {
	dir, err := os.MkdirTemp("", "bench-token")
	if err != nil {
		return result{}, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file, err := tok.MarshalJSON()
	if err != nil {
		return result{}, err
	}
	for name, s := range map[string]string{"train.txt": text, "encode.txt": part, "tokenizer.json": string(file)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o600); err != nil {
			return result{}, err
		}
	}
	cmd := exec.Command(python, "bench/peers/token_hf.py", dir, fmt.Sprint(tok.VocabSize()))
	cmd.Env = append(os.Environ(), fmt.Sprintf("RAYON_NUM_THREADS=%d", threads), "TOKENIZERS_PARALLELISM=true")
	cmd.Stderr = os.Stderr
	data, err := cmd.Output()
	if err != nil {
		return result{}, fmt.Errorf("bench/peers/token_hf.py (run from the repository's root): %w", err)
	}
	r := result{Who: "tokenizers", Bytes: len(text), Threads: threads}
	return r, json.Unmarshal(data, &r)
}

// corpus is size bytes of new text, a share of it Chinese, in paragraphs that take
// turns. It has the statistics of real text, words after words and characters
// after characters, but no sentence comes twice: under Llama 3's expression a
// Chinese clause is one piece, so text that repeats would be far too easy.
func corpus(size int, chinese float64) (string, error) {
	var en, zh strings.Builder
	if dir := os.Getenv("AUTOGLM_TESTDATA"); dir != "" {
		plain, err := os.ReadFile(filepath.Join(dir, "text/tinyshakespeare.txt"))
		if err != nil {
			return "", err
		}
		en.Write(plain)
		for _, name := range []string{"text/mobydick.jsonl.gz", "text/sotu.jsonl.gz"} {
			if err := addLines(&en, filepath.Join(dir, name)); err != nil {
				return "", err
			}
		}
		if err := addLines(&zh, filepath.Join(dir, "text/zh.classics.jsonl.gz")); err != nil {
			return "", err
		}
	} else {
		invent(&en, &zh)
	}
	r := rand.New(rand.NewPCG(4, 5))
	english := newChain(strings.SplitAfter(strings.ReplaceAll(en.String(), "\n", " \n "), " "), r)
	chars := newChain(strings.Split(zh.String(), ""), r)
	out := make([]byte, 0, size+4096)
	for from := 0; len(out) < size; from = len(out) {
		c := english
		if r.Float64() < chinese {
			c = chars
		}
		for len(out) < from+2000 {
			out = append(out, c.next()...)
		}
		out = append(out, '\n')
	}
	return strings.ToValidUTF8(string(out[:size]), ""), nil
}

// chain walks at random from one unit of a text to one that follows it somewhere.
type chain struct {
	units []string
	id    []int32   // of each place's unit
	at    [][]int32 // places of each unit
	place int32
	r     *rand.Rand
}

func newChain(units []string, r *rand.Rand) *chain {
	c := &chain{units: units, r: r}
	ids := map[string]int32{}
	for p, u := range units {
		id, ok := ids[u]
		if !ok {
			id = int32(len(ids))
			ids[u] = id
			c.at = append(c.at, nil)
		}
		c.id = append(c.id, id)
		c.at[id] = append(c.at[id], int32(p))
	}
	return c
}

func (c *chain) next() string {
	same := c.at[c.id[c.place]]
	c.place = (same[c.r.IntN(len(same))] + 1) % int32(len(c.units))
	return c.units[c.place]
}

// invent makes up words and characters with the frequencies of natural ones.
func invent(en, zh *strings.Builder) {
	r := rand.New(rand.NewPCG(1, 2))
	words := rand.NewZipf(r, 1.1, 3, 50000)
	for en.Len() < 2<<20 {
		w := rand.New(rand.NewPCG(words.Uint64(), 3))
		for range 1 + w.IntN(9) {
			en.WriteByte("eeeettaaoinshrdlucmfwypvbgk"[w.IntN(27)])
		}
		if r.IntN(12) == 0 {
			en.WriteByte('.')
		}
		en.WriteByte(' ')
	}
	chars := rand.NewZipf(r, 1.05, 8, 4000)
	for zh.Len() < 2<<20 {
		zh.WriteRune(0x4e00 + rune(chars.Uint64()*7%5003))
		if r.IntN(9) == 0 {
			zh.WriteString("，")
		}
	}
}

func addLines(b *strings.Builder, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	for d := json.NewDecoder(z); d.More(); {
		var row struct{ Text string }
		if err := d.Decode(&row); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		b.WriteString(row.Text)
		b.WriteByte('\n')
	}
	return nil
}
