// Command search runs search strategies over published tables of finished trainings,
// synthetic functions and the HW-GPT-Bench decoders, beside other tools, and prints how
// close each came to the best there is:
//
//	go run ./bench/search -table bench/testdata/hpobench_car.csv.gz -strategy auto -trials 100 -seeds 20 -json
//	go run ./bench/search -table tables -strategy auto,tpe,gp -peers optuna-tpe,optuna-gp,smac,hebo
//	go run ./bench/search -table hwgpt -strategy auto -peers optuna-tpe
//	go run ./bench/search -curves bench/testdata/lmcurves.csv.gz -strategy auto/asha,tpe/hyperband -peers optuna-tpe-hyperband
//	go run ./bench/search -table bench/testdata/nasbench201_cifar10.csv.gz -warm nasbench201_cifar100,inverted:nasbench201_cifar100
//
// Peers are Python programs that .ci/search-peers installs; one that is named and
// cannot run is an error.
//
// Regret of a table is (best so far − best of all) / (median − best of all): 0 is the
// table's best, 1 what the median configuration has. That of a function is f(x) − f*,
// of hwgpt perplexity above the best known within the limit, where no configuration
// within the limit was found 1000. Means of regret are taken over seeds; geometric
// means over tasks, each at least 0.001, so that one that is solved does not decide
// alone. Intervals are 95 % bootstrap intervals over seeds. hwgptmo shows the
// hypervolume of perplexity and latency below (42, 30 ms); larger is better.
//
// With -curves schedulers are replayed over learning curves that bench/lmcurves made,
// one for each configuration of a grid: how many epochs, of all workers together and
// those they are idle in included, until some trial's score is within one in a hundred
// of the best in the table. Strategies are then written STRATEGY/SCHEDULER.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"github.com/open-autoglm/autoglm/runtime/search"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "search:", err)
		os.Exit(1)
	}
}

// curve is one search: what it had reached after each trial.
type curve struct {
	Task     string    `json:"task"`
	Strategy string    `json:"strategy"`
	Seed     int       `json:"seed"`
	Best     []float64 `json:"best"`
	AskMS    float64   `json:"ask_ms"` // mean of one ask and tell
}

func run(ctx context.Context) error {
	table := flag.String("table", "tables", "comma-separated: files of tables, tables, syn, syn/NAME, hwgpt, hwgpt/LIMIT, hwgptmo")
	data := flag.String("data", "bench/testdata", "folder of the tables")
	curvesOf := flag.String("curves", "", "a table of learning curves to replay, in place of -table")
	strategy := flag.String("strategy", "", "comma-separated: "+strings.Join(search.Names(), ", ")+"; with -curves each with /SCHEDULER, one of "+strings.Join(search.Schedulers(), ", ")+" (default auto, or auto/asha)")
	peerList := flag.String("peers", "", "comma-separated: "+strings.Join(peerNames(), ", ")+"; with -curves "+strings.Join(schedulerNames(), ", "))
	script := flag.String("driver", "bench/peers/search.py", "the program that drives the peers")
	trials := flag.Int("trials", 100, "trials of each search; with -curves whole trainings' worth of epochs")
	seeds := flag.Int("seeds", 20, "searches of each task, seeds 0, 1, …")
	pending := flag.Int("pending", 0, "trials that run side by side (default 1, with -curves 4)")
	workers := flag.Int("workers", 2, "searches that run side by side")
	asJSON := flag.Bool("json", false, "print one JSON line a search in place of the summary")
	warm := flag.String("warm", "", "comma-separated tables, names or files: -strategy runs once more for each, started warm from 100 random trials of it; inverted:TABLE has their scores turned round, which misleads")
	against := flag.String("against", "", "a file of such lines, of other tools or of an earlier run, to compare with")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q; see -help", flag.Arg(0))
	}
	if *trials < 1 || *seeds < 1 || *pending < 0 || *workers < 1 {
		return fmt.Errorf("-trials, -seeds, -pending and -workers must be at least 1")
	}
	if *curvesOf != "" {
		return replays(ctx, os.Stdout, *curvesOf, split(cmp.Or(*strategy, "auto/asha")), split(*peerList), *script, *seeds, cmp.Or(*pending, 4), *workers, *trials, *asJSON)
	}
	*strategy, *pending = cmp.Or(*strategy, "auto"), cmp.Or(*pending, 1)
	ts, err := tasks(split(*table), *data)
	if err != nil {
		return err
	}
	var searchers []searcher
	for _, n := range split(*strategy) {
		searchers = append(searchers, own(n, nil))
		for _, w := range split(*warm) {
			past, err := warmStart(w, *data)
			if err != nil {
				return err
			}
			s := own(n, past)
			s.name += " < " + w
			searchers = append(searchers, s)
		}
	}
	for _, n := range split(*peerList) {
		p, err := theirSearch(n, *script)
		if err != nil {
			return err
		}
		searchers = append(searchers, p)
	}
	type work struct {
		task     task
		searcher searcher
		seed     int
	}
	var works []work
	for _, s := range searchers {
		for _, t := range ts {
			for seed := range *seeds {
				works = append(works, work{t, s, seed})
			}
		}
	}
	var mu sync.Mutex
	var curves []curve
	out := json.NewEncoder(os.Stdout)
	watched := term.IsTerminal(int(os.Stderr.Fd()))
	err = sideBySide(ctx, *workers, works, func(ctx context.Context, w work) error {
		begin := time.Now()
		best, asked, err := w.searcher.search(ctx, w.task, w.seed, *trials, *pending)
		if err != nil {
			return fmt.Errorf("%s on %s, seed %d: %w", w.searcher.name, w.task.name, w.seed, err)
		}
		c := curve{Task: w.task.name, Strategy: w.searcher.name, Seed: w.seed, Best: best, AskMS: asked.Seconds() * 1000 / float64(max(len(best), 1))}
		mu.Lock()
		defer mu.Unlock()
		curves = append(curves, c)
		if *asJSON {
			return out.Encode(c)
		}
		if watched {
			fmt.Fprintf(os.Stderr, "\r%-70s", fmt.Sprintf("%s %s seed %d: %.3g after %.1f s", w.task.name, w.searcher.name, w.seed, best[len(best)-1], time.Since(begin).Seconds()))
		}
		return nil
	})
	if err != nil {
		return err
	}
	if *asJSON {
		return nil
	}
	if watched {
		fmt.Fprintf(os.Stderr, "\r%-70s\r", "")
	}
	if *against != "" {
		old, err := readCurves(*against)
		if err != nil {
			return err
		}
		curves = append(old, curves...)
	}
	summarise(os.Stdout, ts, curves)
	return nil
}

// sideBySide does all works, so many at a time. The first error ends the others.
func sideBySide[W any](parent context.Context, at int, works []W, do func(context.Context, W) error) error {
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	queue := make(chan W)
	var wg sync.WaitGroup
	for range at {
		wg.Go(func() {
			for w := range queue {
				if ctx.Err() == nil {
					if err := do(ctx, w); err != nil {
						cancel(err)
					}
				}
			}
		})
	}
	for _, w := range works {
		queue <- w
	}
	close(queue)
	wg.Wait()
	if parent.Err() != nil {
		return errors.New("interrupted")
	}
	return context.Cause(ctx)
}

func split(s string) []string {
	var out []string
	for p := range strings.SplitSeq(s, ",") {
		if p = strings.TrimSpace(p); p != "" {
			out = append(out, p)
		}
	}
	return out
}

// lost is the regret of a search that found nothing within its constraints.
const lost = 1000

// progress keeps the best so far of a task: its regret, or the hypervolume.
type progress struct {
	task task
	best float64
	all  [][]float64
	line []float64
}

func newProgress(t task) *progress { return &progress{task: t, best: math.Inf(1)} }

func (p *progress) add(scores []float64, violation float64) {
	if p.task.reference != nil {
		p.all = append(p.all, scores)
		p.line = append(p.line, search.Hypervolume(p.all, p.task.reference))
		return
	}
	if violation <= 0 {
		p.best = min(p.best, scores[0])
	}
	r := float64(lost)
	if !math.IsInf(p.best, 1) {
		r = p.task.regret(p.best)
	}
	p.line = append(p.line, r)
}
