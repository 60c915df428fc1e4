// Command transfer sweeps the learning rate over widths, in the standard parametrisation
// and in µP (see glm.Width), and prints the rate that is best at each width, and how far
// the best rates lie apart: 1 is that they are the same.
//
//	go run ./bench/transfer                       # widths 64 to 512, 131,072 tokens each
//	go run ./bench/transfer -widths 64,128 -tokens 65536 -optimizer muon -json text.txt
//
// Rates lie on a grid of factors of 2. The best one is that of the parabola through the
// best and its neighbours, over the logarithm of the rate. The rate falls linearly to
// zero over the last quarter; all models have two layers and heads of 32.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"

	"github.com/open-autoglm/autoglm/bench/corpus"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/train"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "transfer:", err)
		os.Exit(1)
	}
}

const (
	vocab   = 512
	keep    = 1_000_000 // bytes of the text
	seqLen  = 64
	batch   = 1024 // tokens of a step
	evalFor = 32_768
)

// trained is one training.
type trained struct {
	Base  int     `json:"base_width"` // 0: the standard parametrisation
	Width int     `json:"width"`
	LR    float64 `json:"lr"`
	Bits  float64 `json:"bits_per_byte"` // 99 where it diverged
}

func run(ctx context.Context) error {
	widthList := flag.String("widths", "64,128,256,512", "widths, multiples of 32")
	base := flag.Int("base", 64, "base width of µP")
	tokens := flag.Int("tokens", 131_072, "training tokens of each model")
	low := flag.Float64("low", 1.0/2048, "lowest rate")
	count := flag.Int("rates", 7, "rates, each twice the one before")
	optimizer := flag.String("optimizer", "adamw", "adamw or muon; its rate for matrices is ten times the other")
	tied := flag.Bool("tied", true, "the head is the embedding")
	threads := flag.Int("threads", 2, "threads")
	asJSON := flag.Bool("json", false, "print one JSON line a training too")
	flag.Parse()
	var widths []int
	for w := range strings.SplitSeq(*widthList, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(w))
		if err != nil || n < 32 || n%32 != 0 {
			return fmt.Errorf("-widths: %q is no multiple of 32", w)
		}
		widths = append(widths, n)
	}
	if *tokens < 10*batch || *count < 3 || *low <= 0 || *base < 1 {
		return fmt.Errorf("-tokens is at least %d, -rates 3, -low and -base above 0", 10*batch)
	}
	text := corpus.Sample
	if flag.NArg() > 0 {
		text = flag.Arg(0)
	}
	dir, err := os.MkdirTemp("", "autoglm-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := corpus.Prepare(dir, text, keep, vocab)
	if err != nil {
		return err
	}
	for _, b := range []int{0, *base} {
		name := "standard"
		if b > 0 {
			name = fmt.Sprintf("µP, base width %d", b)
		}
		fmt.Println(name)
		var best []float64
		for _, w := range widths {
			var rates, bits []float64
			line := ""
			for i := range *count {
				lr := *low * math.Pow(2, float64(i))
				v, err := score(ctx, c, *threads, *tokens, train.Config{
					Arch:        glm.Arch{Vocab: vocab, Dim: w, Layers: 2, Heads: w / 32, KVHeads: w / 32, FFN: 3 * w, Context: seqLen, Tied: *tied}.WithDefaults(),
					BatchTokens: batch, Optimizer: engine.Optimizer(*optimizer), Precision: engine.Auto, LR: lr, MuonLR: 10 * lr, WeightDecay: 0.01,
					Warmup: 10, Schedule: "wsd", Seed: 1, BaseWidth: b,
				})
				if err != nil {
					return err
				}
				rates, bits = append(rates, lr), append(bits, v)
				line += fmt.Sprintf(" %6.3f", v)
				if *asJSON {
					if err := json.NewEncoder(os.Stdout).Encode(trained{b, w, lr, v}); err != nil {
						return err
					}
				}
			}
			at, edge := lowest(rates, bits)
			best = append(best, at)
			if edge {
				line += "  (at the grid's edge)"
			}
			fmt.Printf("  width %4d: best rate %.2g; bits per byte at %g, twice that, …:%s\n", w, at, *low, line)
		}
		fmt.Printf("  best rates within a factor of %.2f\n", slices.Max(best)/slices.Min(best))
	}
	return nil
}

// lowest is where the scores are lowest, and whether that is at an end of the grid.
func lowest(rates, bits []float64) (float64, bool) {
	i := 0
	for j, b := range bits {
		if b < bits[i] {
			i = j
		}
	}
	if i == 0 || i == len(bits)-1 {
		return rates[i], true
	}
	l, m, r := bits[i-1], bits[i], bits[i+1]
	shift := 0.0
	if curved := l - 2*m + r; curved > 0 {
		shift = min(max(0.5*(l-r)/curved, -0.5), 0.5)
	}
	return rates[i] * math.Pow(2, shift), false
}

// score is the score of one training on the held-out tenth.
func score(ctx context.Context, c corpus.Corpus, threads, tokens int, cfg train.Config) (float64, error) {
	run, closed, err := c.Training(cfg, threads)
	if err != nil {
		return 0, err
	}
	defer closed()
	steps := tokens / cfg.BatchTokens
	_, err = run.To(ctx, train.State{}, train.Segment{Steps: steps, DecayFrom: 0.75 * float64(steps)})
	if errors.Is(err, train.ErrDiverged) {
		return 99, nil
	}
	if err != nil {
		return 0, err
	}
	s, err := run.Validate(evalFor)
	return s.BitsPerByte(), err
}
