// Command estimates measures which cheap estimate of a configuration ranks what it scores
// once it is trained: what is known from its shape and settings alone, what its model has
// before the first step, and its score after a handful of steps. The configurations and
// their scores are those of the table of real learning curves (see bench/lmcurves). It
// prints one JSON object a line: of each text and estimate the rank correlation (Spearman's)
// with the last score, over all configurations, over those of the better half, and over
// the settings of each shape and the shapes of each setting, in the mean.
//
//	go run ./bench/estimates                                  # of the embedded sample
//	go run ./bench/estimates -text zh=classics.jsonl.gz
//	go run ./bench/estimates -searches 40                     # what it helps a search to begin so
//
// A positive correlation means that the estimate ranks as the score does, whose lower is
// better; an estimate of which more is better stands with its sign turned.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"os/signal"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/bench/corpus"
	"github.com/open-autoglm/autoglm/bench/curves"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

func main() {
	table := flag.String("curves", "bench/testdata/lmcurves.csv.gz", "the table")
	text := flag.String("text", "mobydick="+corpus.Sample, "NAME=FILE of a text of the table")
	threads := flag.Int("threads", 1, "that train")
	searches := flag.Int("searches", 0, "in place of correlations, what so many searches find whose first trials an estimate has chosen")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *table, *text, *threads, *searches); err != nil {
		fmt.Fprintln(os.Stderr, "estimates:", err)
		os.Exit(1)
	}
}

// steps after which a model is scored.
var steps = []int{1, 3, 10}

// scored is how many tokens that score is taken on.
const scored = 2048

// estimated is a configuration and what is estimated of it.
type estimated struct {
	row   curves.Row
	score float64
	by    map[string]float64 // lower is better
}

func run(ctx context.Context, table, text string, threads, searches int) error {
	name, path, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("-text %q is no NAME=FILE", text)
	}
	rows, err := curves.Read(table)
	if err != nil {
		return err
	}
	rows = slices.DeleteFunc(rows, func(r curves.Row) bool { return r.Text != name })
	if len(rows) == 0 {
		return fmt.Errorf("%s has no text %q", table, name)
	}
	if searches > 0 {
		return found(name, rows, searches)
	}
	dir, err := os.MkdirTemp("", "autoglm-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := corpus.Prepare(dir, path, curves.Keep, curves.Vocab)
	if err != nil {
		return err
	}
	var all []estimated
	for _, r := range rows {
		e := estimated{row: r, score: math.Inf(1)}
		if len(r.Bits) == 20 {
			e.score = r.Bits[19]
		}
		if e.by, err = estimates(ctx, c, r.Config, threads); err != nil {
			return err
		}
		all = append(all, e)
		fmt.Fprintf(os.Stderr, "\r%d of %d", len(all), len(rows))
	}
	fmt.Fprintln(os.Stderr)
	return report(name, all)
}

// estimates are all of one configuration.
func estimates(ctx context.Context, c corpus.Corpus, cfg train.Config, threads int) (by map[string]float64, err error) {
	by = shape(cfg)
	if by["gradient"], by["sensitivity"], err = begins(c, cfg, threads); err != nil {
		return nil, err
	}
	run, closed, err := c.Training(cfg, threads)
	if err != nil {
		return nil, err
	}
	defer closed()
	st := train.State{}
	for _, k := range steps {
		key := fmt.Sprintf("score after %d", k)
		if st, err = run.To(ctx, st, train.Segment{Steps: k, DecayFrom: float64(k)}); errors.Is(err, train.ErrDiverged) {
			for _, later := range steps {
				if later >= k {
					by[fmt.Sprintf("score after %d", later)] = math.Inf(1)
				}
			}
			return by, nil
		} else if err != nil {
			return nil, err
		}
		s, err := run.Validate(scored)
		if err != nil {
			return nil, err
		}
		by[key] = s.BitsPerByte()
	}
	return by, nil
}

// shape are those that need no model.
func shape(cfg train.Config) map[string]float64 {
	total := 20 * curves.Tokens / float64(cfg.BatchTokens)
	return map[string]float64{
		"parameters": -float64(cfg.Arch.MatrixParams()),
		"operations": -cfg.Arch.FLOPsPerToken(curves.Context),
		"steps":      -total,
		"rate":       -cfg.LR,
		"path":       -total * cfg.LR, // how far all steps together may go
	}
}

// begins is the norm of the gradient of the first batch, and the sum over the parameters of
// how much each one's gradient times itself is (SNIP, Lee et al. 2019). More of either is
// taken for better.
func begins(c corpus.Corpus, cfg train.Config, threads int) (gradient, sensitivity float64, err error) {
	run, closed, err := c.Training(cfg, threads)
	if err != nil {
		return 0, 0, err
	}
	defer closed()
	n, t := cfg.Sequences(), cfg.Arch.Context
	b := engine.Batch{B: n, T: t, Inputs: make([]int32, n*t), Targets: make([]int32, n*t)}
	batches := train.NewBatches(run.Train, t, cfg.Seed)
	told := 0
	for j := range n {
		told += batches.Sequence(j, b.Inputs[j*t:(j+1)*t], b.Targets[j*t:(j+1)*t])
	}
	b.Norm = float64(told)
	g := &gathered{}
	if _, err := run.Model.Backward(b, g); err != nil {
		return 0, 0, err
	}
	layout, _ := cfg.Arch.Layout()
	params := run.Model.State()
	for _, p := range layout {
		w, _ := params.Get(p.Name)
		for i, x := range g.sum[p.Offset : p.Offset+p.Elems] {
			gradient += float64(x) * float64(x)
			sensitivity += math.Abs(float64(x) * float64(w.Data[i]))
		}
	}
	return -math.Sqrt(gradient), -sensitivity, nil
}

// gathered is an engine.GradientSync that keeps the gradient, which comes from its end to
// its beginning.
type gathered struct{ sum []float32 }

// Reduce implements engine.GradientSync.
func (g *gathered) Reduce(_ int, b ring.Buffer) { g.sum = append(slices.Clone(b.Data), g.sum...) }

// Wait implements engine.GradientSync.
func (g *gathered) Wait() error { return nil }

func report(text string, all []estimated) error {
	half := slices.Clone(all)
	slices.SortStableFunc(half, func(a, b estimated) int { return cmp.Compare(a.score, b.score) })
	half = half[:len(half)/2]
	shapes, settings := map[string][]estimated{}, map[string][]estimated{}
	for _, e := range all {
		shapes[e.row.Config.Arch.String()] = append(shapes[e.row.Config.Arch.String()], e)
		settings[e.row.Settings()] = append(settings[e.row.Settings()], e)
	}
	out := json.NewEncoder(os.Stdout)
	for _, name := range slices.Sorted(maps.Keys(all[0].by)) {
		line := struct {
			Text     string  `json:"text"`
			Estimate string  `json:"estimate"`
			All      float64 `json:"all"`
			Half     float64 `json:"better_half"`
			Shape    float64 `json:"within_shapes"`
			Settings float64 `json:"within_settings"`
		}{text, name, spearman(all, name), spearman(half, name), mean(shapes, name), mean(settings, name)}
		if err := out.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

func mean(groups map[string][]estimated, name string) float64 {
	sum := 0.0
	for _, g := range groups {
		sum += spearman(g, name)
	}
	return round(sum / float64(len(groups)))
}

// spearman is the correlation of the ranks, ties sharing theirs; 0 where all are tied.
func spearman(all []estimated, name string) float64 {
	var x, y []float64
	for _, e := range all {
		x, y = append(x, e.by[name]), append(y, e.score)
	}
	x, y = ranks(x), ranks(y)
	m := float64(len(x)-1) / 2
	var xy, xx, yy float64
	for i := range x {
		xy += (x[i] - m) * (y[i] - m)
		xx += (x[i] - m) * (x[i] - m)
		yy += (y[i] - m) * (y[i] - m)
	}
	if xx == 0 || yy == 0 {
		return 0
	}
	return round(xy / math.Sqrt(xx*yy))
}

// ranks from 0; equal values have the mean of theirs.
func ranks(x []float64) []float64 {
	order := make([]int, len(x))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(x[a], x[b]) })
	out := make([]float64, len(x))
	for i := 0; i < len(order); {
		j := i
		for j < len(order) && x[order[j]] == x[order[i]] {
			j++
		}
		for _, k := range order[i:j] {
			out[k] = float64(i+j-1) / 2
		}
		i = j
	}
	return out
}

func round(x float64) float64 { return math.Round(x*1e3) / 1e3 }
