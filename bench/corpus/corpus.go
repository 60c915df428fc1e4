// Package corpus makes what the benches train on: the beginning of a text as tokens.
package corpus

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Sample is a text that every checkout has: the first chapters of Moby Dick.
const Sample = "cmd/autoglm/sample/mobydick.txt.gz"

// Corpus is a text in tokens: nine tenths to train, one to score.
type Corpus struct {
	Train, Valid string // files, see train.OpenCorpus
	ByteLens     []int  // text length of each token id
}

// Prepare puts the first keep bytes of a text into dir, by a tokenizer of so many
// tokens that is trained on its training part. The text is plain, or JSON lines with a
// field "text", gzipped or not.
func Prepare(dir, path string, keep, vocab int) (Corpus, error) {
	c := Corpus{Train: filepath.Join(dir, "train.bin"), Valid: filepath.Join(dir, "valid.bin")}
	text, err := read(path)
	if err != nil {
		return c, err
	}
	text = text[:min(len(text), keep)]
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: vocab, Threads: 2})
	if err != nil {
		return c, err
	}
	cut := len(text) * 9 / 10
	tr.Add([]byte(text[:cut]))
	tok, err := tr.Train(context.Background())
	if err != nil {
		return c, err
	}
	c.ByteLens = train.ByteLengths(tok)
	if err := train.Tokenize(context.Background(), &document{text[:cut]}, tok, c.Train, true); err != nil {
		return c, err
	}
	return c, train.Tokenize(context.Background(), &document{text[cut:]}, tok, c.Valid, true)
}

// Training makes a decoder on engine native and its run over the corpus, as cfg says. The
// caller closes it when the run is over.
func (c Corpus) Training(cfg train.Config, threads int) (run *train.Run, closed func(), err error) {
	m, err := native.New(cfg.Arch, native.Options{
		Threads: threads, MaxBatch: cfg.Sequences(), MaxSeq: cfg.Arch.Context, Optimizer: cfg.Optimizer, Precision: cfg.Precision, Seed: cfg.Seed, BaseWidth: cfg.BaseWidth,
	})
	if err != nil {
		return nil, nil, err
	}
	learn, err := train.OpenCorpus(c.Train)
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	valid, err := train.OpenCorpus(c.Valid)
	if err != nil {
		return nil, nil, errors.Join(err, learn.Close(), m.Close())
	}
	begin := time.Now()
	run = &train.Run{
		Model: m, Config: cfg, Train: learn, Valid: valid, World: 1, Clock: func() time.Duration { return time.Since(begin) },
		ByteLen: func(id int32) int { return c.ByteLens[id] },
	}
	return run, func() {
		valid.Close()
		learn.Close()
		m.Close()
	}, nil
}

// read is a text, as Prepare takes it.
func read(path string) (string, error) {
	b, err := os.ReadFile(path)
	name := path
	if err == nil && strings.HasSuffix(path, ".gz") {
		name = strings.TrimSuffix(path, ".gz")
		var z *gzip.Reader
		if z, err = gzip.NewReader(bytes.NewReader(b)); err == nil {
			b, err = io.ReadAll(z)
		}
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	if !strings.HasSuffix(name, ".jsonl") {
		return string(b), nil
	}
	var text strings.Builder
	lines := json.NewDecoder(bytes.NewReader(b))
	for n := 1; ; n++ {
		var line struct {
			Text *string `json:"text"`
		}
		err := lines.Decode(&line)
		if err == io.EOF {
			return text.String(), nil
		}
		if err != nil {
			return "", fmt.Errorf("%s: line %d: %w", path, n, err)
		}
		if line.Text == nil {
			return "", fmt.Errorf(`%s: line %d has no field "text"`, path, n)
		}
		text.WriteString(*line.Text + "\n")
	}
}

// document is a text as one example.
type document struct{ text string }

// Next implements train.Examples.
func (d *document) Next() (data.Example, error) {
	if d.text == "" {
		return data.Example{}, io.EOF
	}
	e := data.Example{Segments: []data.Segment{{Text: d.text, Scored: true}}}
	d.text = ""
	return e, nil
}
