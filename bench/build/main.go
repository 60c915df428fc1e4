// Command build measures what a whole build is worth: held-out bits per byte of
// a build, of the same build held to one trial of the defaults, and (with -peer)
// of nanoGPT's published CPU configuration trained by PyTorch, each with the same
// wall clock, one after the other. It prints one JSON object a text. -strategy and
// -inherit choose how the searched builds search.
//
//	go run ./bench/build -budget 3m                      # the embedded sample
//	go run ./bench/build -budget 3m a.txt b.txt c.txt    # last tenth held out
//	AUTOGLM_PYTHON=… go run ./bench/build -peer a.txt
//
// Each text is split once, nine tenths to train and the last to judge, and both
// builds and the peer get the same parts.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/job"
)

type result struct {
	Text     string  `json:"text"`
	Seconds  float64 `json:"seconds"`
	Searched float64 `json:"searched_bits_per_byte"`
	Default  float64 `json:"default_bits_per_byte,omitempty"`
	Ratio    float64 `json:"ratio,omitempty"` // searched over default
	Peer     float64 `json:"nanogpt_bits_per_byte,omitempty"`
	Took     float64 `json:"searched_took_seconds"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		os.Exit(1)
	}
}

func run() error {
	budget := flag.Duration("budget", 3*time.Minute, "wall clock of each build")
	seed := flag.Uint64("seed", 1, "seed")
	strategy := flag.String("strategy", "auto", "search_strategy of the builds")
	inherit := flag.String("inherit", "auto", "inherit of the builds: auto or off")
	peer := flag.Bool("peer", false, "train nanoGPT's CPU configuration with PyTorch as well (AUTOGLM_PYTHON)")
	single := flag.Bool("default", true, "also run the build held to one trial of the defaults")
	flag.Parse()
	texts := flag.Args()
	if len(texts) == 0 {
		texts = []string{"cmd/autoglm/sample/mobydick.txt.gz"}
	}
	dir, err := os.MkdirTemp("", "autoglm-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for i, text := range texts {
		train, test, err := split(text, filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			return err
		}
		r := result{Text: filepath.Base(text), Seconds: budget.Seconds()}
		spec := job.Default()
		spec.Seed, spec.SearchStrategy, spec.Inherit = *seed, *strategy, *inherit
		spec.Data.Files, spec.Data.Valid = []string{train}, []string{test}
		spec.Budget = job.Budget{WallClock: job.Duration(*budget)}
		begin := time.Now()
		if r.Searched, err = build(filepath.Join(dir, fmt.Sprint(i), "searched"), spec, test); err != nil {
			return err
		}
		r.Took = time.Since(begin).Seconds()
		if *single {
			info, err := os.Stat(train)
			if err != nil {
				return err
			}
			o, err := node.Preview(context.Background(), spec, info.Size(), false)
			if err != nil {
				return err
			}
			spec.Space = map[string]job.Expr{}
			for name, v := range o.First {
				spec.Space[name] = job.Expr(v.String())
			}
			if r.Default, err = build(filepath.Join(dir, fmt.Sprint(i), "default"), spec, test); err != nil {
				return err
			}
			r.Ratio = r.Searched / r.Default
		}
		if *peer {
			if r.Peer, err = nanoGPT(train, test, budget.Seconds()); err != nil {
				return err
			}
		}
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		fmt.Printf("%s\n", b)
	}
	return nil
}

// split writes the first nine tenths and the last tenth of a text, cut at a
// line's end.
func split(path, dir string) (train, test string, err error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", "", err
	}
	if strings.HasSuffix(path, ".gz") {
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			return "", "", err
		}
		if b, err = io.ReadAll(z); err != nil {
			return "", "", err
		}
	}
	cut := len(b) * 9 / 10
	if i := bytes.LastIndexByte(b[:cut], '\n'); i > 0 {
		cut = i + 1
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", "", err
	}
	train, test = filepath.Join(dir, "train.txt"), filepath.Join(dir, "test.txt")
	if err := os.WriteFile(train, b[:cut], 0o644); err != nil {
		return "", "", err
	}
	return train, test, os.WriteFile(test, b[cut:], 0o644)
}

func build(dir string, spec job.Spec, test string) (float64, error) {
	n, err := node.Open(node.Options{Dir: dir, Spec: spec})
	if err != nil {
		return 0, err
	}
	if err := n.Run(context.Background()); err != nil {
		return 0, err
	}
	b, err := bundle.Open(filepath.Join(dir, "bundle"))
	if err != nil {
		return 0, err
	}
	e, err := node.EvaluateFile(context.Background(), b, test, nil)
	return e.BitsPerByte, err
}

func nanoGPT(train, test string, seconds float64) (float64, error) {
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		return 0, fmt.Errorf("-peer needs AUTOGLM_PYTHON, an interpreter with torch")
	}
	c := exec.Command(python, "bench/peers/nanogpt_char.py", train, test, fmt.Sprint(seconds))
	c.Stderr = os.Stderr
	out, err := c.Output()
	if err != nil {
		return 0, err
	}
	var r struct {
		Bits float64 `json:"bits_per_byte"`
	}
	return r.Bits, json.Unmarshal(out, &r)
}
