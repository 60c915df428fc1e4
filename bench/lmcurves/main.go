// Command lmcurves makes a table of real learning curves: every configuration of a
// grid of small decoders and their training, trained on each text by the native engine
// in float32, and scored at 20 places. bench/search replays it, so that schedulers are
// compared without training anything.
//
//	go run ./bench/lmcurves -out curves.csv.gz                       # the embedded sample alone
//	go run ./bench/lmcurves -out curves.csv.gz mobydick=cmd/autoglm/sample/mobydick.txt.gz zh=classics.jsonl.gz
//
// A row is a configuration: its text, its place in each dimension, the operations of its
// training, and the bits per byte of a fixed sample of the held-out tenth after
// each twentieth of the training. The rate falls by half a cosine to zero at the end, as
// it does in published tables, so that what is behind early may be ahead at the end.
// Cells after a training that diverged are empty. Rows that the file has already are not
// computed again: an interrupted run goes on.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/csv"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/bench/corpus"
	"github.com/open-autoglm/autoglm/bench/curves"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/train"
)

const (
	checkpoints = 20
	each        = curves.Tokens // between two of them
	evalTokens  = 8192
	vocab       = curves.Vocab
	keep        = curves.Keep
	context_    = curves.Context
)

// grid is every configuration: 360 of them.
var grid = struct {
	lr                 []float64
	dim, layers, batch []int
	optimizer          []engine.Optimizer
}{
	lr: []float64{2e-4, 6e-4, 2e-3, 6e-3, 2e-2}, dim: []int{32, 64, 96, 128}, layers: []int{1, 2, 4}, batch: []int{256, 512, 1024},
	optimizer: []engine.Optimizer{engine.AdamW, engine.Muon},
}

// configs yields the grid's.
func configs(yield func(train.Config) bool) {
	for _, lr := range grid.lr {
		for _, dim := range grid.dim {
			for _, layers := range grid.layers {
				for _, batch := range grid.batch {
					for _, opt := range grid.optimizer {
						if !yield(curves.Config(lr, dim, layers, batch, opt)) {
							return
						}
					}
				}
			}
		}
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "lmcurves:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	out := flag.String("out", "", "the table, a .csv.gz; rows that it has are kept")
	flag.Parse()
	if *out == "" {
		return errors.New("-out is missing: the table to write")
	}
	texts := flag.Args()
	if len(texts) == 0 {
		texts = []string{"mobydick=" + corpus.Sample}
	}
	t, err := openTable(*out)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "autoglm-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, arg := range texts {
		name, path, ok := strings.Cut(arg, "=")
		if !ok || name == "" {
			return fmt.Errorf("%q is no NAME=FILE", arg)
		}
		at := filepath.Join(dir, name)
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		c, err := corpus.Prepare(at, path, keep, vocab)
		if err != nil {
			return err
		}
		if err := t.fill(ctx, name, c); err != nil {
			return err
		}
	}
	return nil
}

// table is the file, and its rows by what precedes their results.
type table struct {
	path string
	rows [][]string
	has  map[string]bool
}

var head = func() []string {
	h := []string{"text", "lr", "dim", "layers", "batch_tokens", "optimizer", "gflop"}
	for i := range checkpoints {
		h = append(h, fmt.Sprintf("bits_%d", i+1))
	}
	return h
}()

func key(row []string) string { return strings.Join(row[:6], ",") }

func openTable(path string) (*table, error) {
	t := &table{path: path, has: map[string]bool{}}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	var z *gzip.Reader
	if err == nil {
		z, err = gzip.NewReader(bytes.NewReader(b))
	}
	if err == nil {
		t.rows, err = csv.NewReader(z).ReadAll()
	}
	if err == nil && (len(t.rows) == 0 || strings.Join(t.rows[0], ",") != strings.Join(head, ",")) {
		err = errors.New("its first line is not this version's; write to another file")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t.rows = t.rows[1:]
	for _, r := range t.rows {
		t.has[key(r)] = true
	}
	return t, nil
}

// save writes the table anew.
func (t *table) save() error {
	return durable.Write(t.path, func(w io.Writer) error {
		z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
		if err != nil {
			return err
		}
		c := csv.NewWriter(z)
		if err := c.WriteAll(append([][]string{head}, t.rows...)); err != nil {
			return err
		}
		return z.Close()
	})
}

// fill trains what is missing of a text.
func (t *table) fill(ctx context.Context, text string, c corpus.Corpus) error {
	saved := time.Now()
	for cfg := range configs {
		row := []string{
			text, strconv.FormatFloat(cfg.LR, 'g', -1, 64), strconv.Itoa(cfg.Arch.Dim), strconv.Itoa(cfg.Arch.Layers), strconv.Itoa(cfg.BatchTokens), string(cfg.Optimizer),
		}
		if t.has[key(row)] {
			continue
		}
		bits, err := curve(ctx, c, cfg)
		if err != nil {
			return errors.Join(err, t.save())
		}
		row = append(row, fmt.Sprintf("%.1f", checkpoints*each*cfg.Arch.FLOPsPerToken(context_)/1e9))
		for i := range checkpoints {
			cell := ""
			if i < len(bits) {
				cell = fmt.Sprintf("%.4f", bits[i])
			}
			row = append(row, cell)
		}
		t.rows = append(t.rows, row)
		fmt.Fprintln(os.Stderr, strings.Join(row, ","))
		if time.Since(saved) > time.Minute {
			saved = time.Now()
			if err := t.save(); err != nil {
				return err
			}
		}
	}
	return t.save()
}

// curve trains a configuration: its scores, fewer where it diverged.
func curve(ctx context.Context, c corpus.Corpus, cfg train.Config) ([]float64, error) {
	run, closed, err := c.Training(cfg, 1)
	if err != nil {
		return nil, err
	}
	defer closed()
	steps := checkpoints * each / cfg.BatchTokens
	var bits []float64
	run.EvalEvery, run.EvalTokens = each/float64(cfg.BatchTokens), evalTokens
	run.Events.Scored = func(_ train.State, s train.Score) { bits = append(bits, s.BitsPerByte()) }
	_, err = run.To(ctx, train.State{}, train.Segment{Steps: steps})
	if err != nil && !errors.Is(err, train.ErrDiverged) {
		return nil, err
	}
	if err == nil {
		s, err := run.Validate(evalTokens)
		if err != nil {
			return nil, err
		}
		bits = append(bits, s.BitsPerByte())
		if len(bits) != checkpoints {
			return nil, fmt.Errorf("%d scores of %d", len(bits), checkpoints)
		}
	}
	return bits, nil
}
