// Command token times training a tokenizer and encoding with it, beside Hugging
// Face's tokenizers in the same run:
//
//	AUTOGLM_PYTHON=… AUTOGLM_TESTDATA=… go run ./bench/token -mb 100 -vocab 4096 -threads 2
//
// It prints one JSON object a line: ours, the peer's and their ratios. Without
// AUTOGLM_TESTDATA the corpus is made up; without AUTOGLM_PYTHON there is no peer.
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
	peerMB := flag.Int("encode-mb", 16, "size of the text to encode in MB")
	flag.Parse()

	text, err := corpus(*mb * 1_000_000)
	if err != nil {
		return err
	}
	part := text[:min(len(text), *peerMB*1_000_000)]
	for len(part) > 0 && part[len(part)-1] >= 0x80 {
		part = part[:len(part)-1]
	}
	ours, tok, err := measure(text, part, *vocab, *threads)
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

// corpus is size bytes of English and Chinese text.
func corpus(size int) (string, error) {
	var base strings.Builder
	if dir := os.Getenv("AUTOGLM_TESTDATA"); dir != "" {
		plain, err := os.ReadFile(filepath.Join(dir, "text/tinyshakespeare.txt"))
		if err != nil {
			return "", err
		}
		base.Write(plain)
		for _, name := range []string{"text/mobydick.jsonl.gz", "text/sotu.jsonl.gz", "text/zh.classics.jsonl.gz"} {
			if err := addLines(&base, filepath.Join(dir, name)); err != nil {
				return "", err
			}
		}
	} else {
		r := rand.New(rand.NewPCG(1, 2))
		zipf := rand.NewZipf(r, 1.1, 3, 50000)
		for base.Len() < 4<<20 {
			w := rand.New(rand.NewPCG(zipf.Uint64(), 3))
			if w.IntN(4) == 0 {
				for range 1 + w.IntN(4) {
					base.WriteRune(0x4e00 + rune(w.IntN(2000)))
				}
				continue
			}
			base.WriteByte(' ')
			for range 1 + w.IntN(9) {
				base.WriteByte("eeeettaaoinshrdlucmfwypvbgk"[w.IntN(27)])
			}
			if r.IntN(12) == 0 {
				base.WriteString(".\n")
			}
		}
	}
	s := base.String()
	out := strings.Repeat(s, size/len(s)+1)[:size]
	return strings.ToValidUTF8(out, ""), nil
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
