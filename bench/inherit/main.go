// Command inherit measures what it is worth that the children of evolution begin from
// their parents' weights: the same search, of as many trials of as many tokens each,
// once with that and once without. It prints one JSON object a seed: the best bits per
// byte of each, and how many tokens of training, of all trials together, each took to
// reach the best that the search without had; and one with the median of the ratios.
//
//	go run ./bench/inherit                               # the embedded sample's first 300 kB
//	go run ./bench/inherit -trials 40 -seeds 5 text.txt
//
// Tokens are counted, not seconds: other work on the machine changes nothing.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/open-autoglm/autoglm/bench/corpus"
	"github.com/open-autoglm/autoglm/bench/stat"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

type result struct {
	Seed      uint64   `json:"seed"`
	Trials    int      `json:"trials"`
	Inherited int      `json:"inherited"` // trials that began from a parent's weights
	Without   float64  `json:"best_without"`
	With      float64  `json:"best_with"`
	Tokens    int64    `json:"tokens_without"` // to the best without
	Reached   *int64   `json:"tokens_with"`    // null: never
	Ratio     *float64 `json:"ratio"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "inherit:", err)
		os.Exit(1)
	}
}

func run() error {
	trials := flag.Int("trials", 30, "trials of each search")
	tokens := flag.Float64("tokens", 40_000, "training tokens of a trial")
	first := flag.Uint64("first", 1, "first seed")
	seeds := flag.Uint64("seeds", 5, "number of seeds")
	strategy := flag.String("strategy", "evolution", "evolution or evolutionary")
	flag.Parse()
	text := corpus.Sample
	if flag.NArg() > 0 {
		text = flag.Arg(0)
	}
	dir, err := os.MkdirTemp("", "autoglm-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := bench{dir: dir, strategy: *strategy, trials: *trials, tokens: *tokens}
	if b.corpus, err = corpus.Prepare(dir, text, keep, vocab); err != nil {
		return err
	}
	var ratios []float64
	for seed := *first; seed < *first+*seeds; seed++ {
		var runs [2]outcome
		for i, inherit := range []bool{false, true} {
			if runs[i], err = b.search(seed, inherit); err != nil {
				return err
			}
		}
		r := result{Seed: seed, Trials: *trials, Inherited: runs[1].inherited, Without: runs[0].best(), With: runs[1].best()}
		r.Tokens, _ = runs[0].reach(r.Without)
		ratio := math.Inf(1)
		if n, ok := runs[1].reach(r.Without); ok {
			ratio = float64(n) / float64(r.Tokens)
			r.Reached, r.Ratio = &n, &ratio
		}
		ratios = append(ratios, ratio)
		if err := print(r); err != nil {
			return err
		}
	}
	median := stat.Median(ratios)
	return print(map[string]any{"median_ratio": number(median)})
}

func number(x float64) any {
	if math.IsInf(x, 0) {
		return nil
	}
	return x
}

func print(v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		fmt.Printf("%s\n", b)
	}
	return err
}

type bench struct {
	dir      string
	strategy string
	trials   int
	tokens   float64
	corpus   corpus.Corpus
}

const (
	vocab  = 512
	keep   = 300_000 // bytes of the text
	seqLen = 64
)

// outcome is what a search's trials scored, and the tokens of all of them up to each.
type outcome struct {
	scores    []float64
	tokens    []int64
	inherited int
}

func (o outcome) best() float64 {
	best := math.Inf(1)
	for _, s := range o.scores {
		best = min(best, s)
	}
	return best
}

// reach is the tokens after which a trial scored that or better.
func (o outcome) reach(score float64) (int64, bool) {
	for i, s := range o.scores {
		if s <= score {
			return o.tokens[i], true
		}
	}
	return 0, false
}

func (b *bench) search(seed uint64, inherit bool) (outcome, error) {
	var o outcome
	dir := filepath.Join(b.dir, fmt.Sprint(seed, inherit))
	defer os.RemoveAll(dir)
	sp, err := space.Decoder(space.Limits{MaxVocab: vocab, Context: seqLen, MaxMatrix: 600_000, Epochs: 1}, map[string]string{
		space.Vocab: fmt.Sprint(vocab), space.Batch: "1024", space.Layers: "int(1, 6)",
	})
	if err != nil {
		return o, err
	}
	opts := search.Options{Seed: seed, Architecture: space.IsArchitecture, Startup: 6}
	if inherit {
		opts.Grows = func(child, parent space.Config) bool {
			_, err := glm.NewGrowth(space.Arch(child), space.Arch(parent))
			return err == nil
		}
	}
	st, err := search.NewStrategy(b.strategy, sp, opts)
	if err != nil {
		return o, err
	}
	s := search.New(st, search.NewHyperband([]search.Bracket{{Trials: b.trials, Keep: []int{b.trials}, Resources: []float64{b.tokens}}}), 1)
	var spent int64
	start := time.Now()
	parents := map[string]glm.Arch{}
	for !s.Done() {
		ds, err := s.Next()
		if err != nil {
			return o, err
		}
		for _, d := range ds {
			cfg := train.FromSpace(d.Config, seed)
			cfg.Precision = engine.Auto
			steps := int(d.Resource) / (cfg.Sequences() * cfg.Arch.Context)
			t := train.Task{
				Trial: d.Trial, Dir: filepath.Join(dir, d.Trial), Config: cfg, Segment: train.Segment{Steps: steps, DecayFrom: math.Ceil(0.75 * float64(steps))},
				TrainPath: b.corpus.Train, ValidPath: b.corpus.Valid, ByteLens: b.corpus.ByteLens, EvalTokens: 20_000, Threads: 2,
			}
			if d.Inherit != "" {
				o.inherited++
				t.Inherit, t.InheritArch = filepath.Join(dir, d.Inherit, "checkpoint"), parents[d.Inherit]
				t.Config.Seed += uint64(d.Seq+1) << 32
			}
			parents[d.Trial] = cfg.Arch
			rep, err := train.Execute(context.Background(), t, train.Env{
				World: 1, Clock: func() time.Duration { return time.Since(start) },
				NewModel: func(c train.Config, threads, world int) (engine.Model, error) {
					return native.New(c.Arch, native.Options{
						Threads: threads, MaxBatch: c.MicroBatch(world), MaxSeq: c.Arch.Context, Dropout: c.Dropout, Optimizer: c.Optimizer, Precision: c.Precision, Seed: c.Seed, BaseWidth: c.BaseWidth,
					})
				},
			})
			if err != nil && !errors.Is(err, train.ErrDiverged) {
				return o, err
			}
			spent += rep.State.Tokens
			score := rep.Bits
			if err != nil {
				score = math.Inf(1)
			}
			o.scores, o.tokens = append(o.scores, score), append(o.tokens, spent)
			if err := s.Report(d.Seq, search.Outcome{Score: score, Failed: err != nil}); err != nil {
				return o, err
			}
		}
	}
	return o, nil
}
