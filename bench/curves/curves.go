// Package curves reads the table of real learning curves that bench/lmcurves makes.
package curves

import (
	"compress/gzip"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Of the table's trainings.
const (
	Tokens  = 8192    // between two scores
	Vocab   = 512     //
	Context = 64      //
	Keep    = 300_000 // bytes of each text
)

// Row is one training.
type Row struct {
	Text   string
	Config train.Config
	Bits   []float64 // fewer where it diverged
}

// Settings are what trains it, without its shape.
func (r Row) Settings() string {
	return fmt.Sprint(r.Config.LR, " ", r.Config.BatchTokens, " ", r.Config.Optimizer)
}

// Config is the configuration of a place in the grid.
func Config(lr float64, dim, layers, batch int, o engine.Optimizer) train.Config {
	a := glm.Arch{Vocab: Vocab, Dim: dim, Layers: layers, Heads: dim / 32, KVHeads: dim / 32, FFN: 3 * dim, Context: Context, Tied: true}.WithDefaults()
	return train.Config{Arch: a, BatchTokens: batch, Optimizer: o, LR: lr, MuonLR: 3 * lr, WeightDecay: 0.01, Warmup: 10, Schedule: "cosine", Seed: 1}
}

// Read is the table's rows, in its order.
func Read(path string) (rows []Row, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	lines, err := csv.NewReader(z).ReadAll()
	if err != nil || len(lines) == 0 || len(lines[0]) < 8 {
		return nil, fmt.Errorf("%s is no table of bench/lmcurves: %w", path, err)
	}
	for n, l := range lines[1:] {
		var numbers [4]float64
		for i := range numbers {
			if numbers[i], err = strconv.ParseFloat(l[1+i], 64); err != nil {
				return nil, fmt.Errorf("%s: line %d: %w", path, n+2, err)
			}
		}
		r := Row{Text: l[0], Config: Config(numbers[0], int(numbers[1]), int(numbers[2]), int(numbers[3]), engine.Optimizer(l[5]))}
		for _, cell := range l[7:] {
			if cell == "" {
				break
			}
			b, err := strconv.ParseFloat(cell, 64)
			if err != nil {
				return nil, fmt.Errorf("%s: line %d: %w", path, n+2, err)
			}
			r.Bits = append(r.Bits, b)
		}
		rows = append(rows, r)
	}
	return rows, nil
}
