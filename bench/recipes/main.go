// Command recipes holds a build against published recipes of the field (bench/recipes.yaml),
// each trained by the same engine on the same text for the same time, and prints them by
// bits per byte on the held-out part. Wanted: a build no worse than 1 % above the best.
//
//	go run ./bench/recipes -text a.txt -seconds 600
//	go run ./bench/recipes -text a.txt -seconds 600 -side 2 -keep /tmp/recipes   # goes on where it was cut off
//
// A recipe trains for all of the time, what reads the text comes before; a build does all
// in it: it reads, searches, trains and scores. -side runs that many at once, each kept to
// its part of the processors, builds too.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/bench/drive"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// result is a line of results.jsonl.
type result struct {
	Name    string   `json:"name"` // of the recipe, or build
	Setting string   `json:"setting"`
	Bits    float64  `json:"bits_per_byte"` // on the held-out part
	Took    float64  `json:"took_seconds"`
	Steps   int      `json:"steps"`
	Arch    glm.Arch `json:"arch"`
	LR      float64  `json:"lr"`
	Batch   int      `json:"batch_tokens"`
	Cut     bool     `json:"cut,omitempty"`
	Failed  string   `json:"failed,omitempty"` // such as a loss that is no number
}

// build is the name of the build's result.
const build = "autoglm build"

// bench is what all runs have in common.
type bench struct {
	program, text, dir, data string
	seconds                  float64
	seed                     int
	setting                  string
	budget                   budget
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "recipes:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	var b bench
	flag.StringVar(&b.text, "text", drive.Text(), "`FILE` to learn from")
	flag.Float64Var(&b.seconds, "seconds", 600, "wall clock of each recipe and of the build")
	flag.IntVar(&b.seed, "seed", 1, "seed")
	file := flag.String("recipes", "bench/recipes.yaml", "`FILE` of recipes")
	only := flag.String("only", "", "names of recipes with commas; all otherwise")
	side := flag.Int("side", 1, "how many run side by side, each on its part of the processors")
	keep := flag.String("keep", "", "`DIR` to keep everything in: what is done there is not run again, and what was cut off goes on")
	asJSON := flag.Bool("json", false, "print each result as JSON")
	flag.Parse()
	if flag.NArg() > 0 || !(b.seconds >= 10) || *side < 1 {
		return errors.New("takes no arguments, -seconds from 10 and -side from 1")
	}
	recipes, err := readRecipes(*file)
	if err != nil {
		return err
	}
	if *only != "" {
		if recipes, err = choose(recipes, strings.Split(*only, ",")); err != nil {
			return err
		}
	}
	b.dir = *keep
	if b.dir == "" {
		if b.dir, err = os.MkdirTemp("", "autoglm-recipes-"); err != nil {
			return err
		}
		defer os.RemoveAll(b.dir)
	} else if err := os.MkdirAll(b.dir, 0o755); err != nil {
		return err
	}
	lanes, err := drive.Lanes(*side, b.dir)
	if err != nil {
		return err
	}
	b.setting = fmt.Sprintf("%s, %g s, %d processors, seed %d", b.text, b.seconds, len(lanes[0].CPUs), b.seed)
	kept, err := readResults(filepath.Join(b.dir, "results.jsonl"), b.setting)
	if err != nil {
		return err
	}
	if b.program, err = drive.Program(ctx, b.dir); err != nil {
		return err
	}
	if err := b.prepare(ctx, lanes[0]); err != nil {
		return err
	}
	results, err := b.all(ctx, lanes, recipes, kept)
	if err != nil {
		return err
	}
	if *asJSON {
		for _, r := range results {
			if err := json.NewEncoder(out).Encode(r); err != nil {
				return err
			}
		}
	}
	write(out, results)
	return nil
}

// choose picks recipes by name.
func choose(all []recipe, names []string) ([]recipe, error) {
	var out []recipe
	for _, n := range names {
		i := slices.IndexFunc(all, func(r recipe) bool { return r.Name == n })
		if i < 0 {
			return nil, fmt.Errorf("-only: there is no recipe %q", n)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// readResults reads what an earlier call has done. A line that was cut off is not.
func readResults(path, setting string) (map[string]result, error) {
	out := map[string]result{}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	for line := range bytes.Lines(b) {
		var r result
		if json.Unmarshal(line, &r) != nil {
			continue
		}
		if r.Setting != setting {
			return nil, fmt.Errorf("%s is of %s, and not of %s; name another folder", path, r.Setting, setting)
		}
		out[r.Name] = r
	}
	return out, nil
}

// prepare reads the text once, for all recipes, and fits the budget to the machine. Both
// are kept: recipes of one table are fitted to the same.
func (b *bench) prepare(ctx context.Context, l drive.Lane) error {
	b.data = filepath.Join(b.dir, "data")
	path := filepath.Join(b.dir, "budget.json")
	if kept, err := os.ReadFile(path); err == nil {
		return json.Unmarshal(kept, &b.budget)
	}
	st, err := l.Prepare(ctx, b.program, b.text, fmt.Sprintf("%gs", b.seconds), b.seed, b.data)
	if err != nil {
		return err
	}
	sp, err := node.SearchSpace(b.data, st)
	if err != nil {
		return err
	}
	p := st.Plan
	b.budget = budget{Params: p.Params, MaxParams: p.MaxParams, FLOPs: p.Rate * float64(len(l.CPUs)) * b.seconds}
	for _, d := range sp.Dimensions() {
		most := 0
		for _, c := range d.Choices {
			most = max(most, int(c.Num))
		}
		switch d.Name {
		case space.Vocab:
			b.budget.MaxVocab = most
		case space.Context:
			b.budget.MaxContext = most
		}
	}
	kept, err := json.Marshal(b.budget)
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(kept, '\n'), 0o644)
}

// all runs the build and the recipes, a lane at a time each.
func (b *bench) all(ctx context.Context, lanes []drive.Lane, recipes []recipe, kept map[string]result) ([]result, error) {
	log, err := os.OpenFile(filepath.Join(b.dir, "results.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var results []result
	todo := make(chan func(ctx context.Context, l drive.Lane) (result, error), len(recipes)+1)
	add := func(name string, f func(ctx context.Context, l drive.Lane) (result, error)) {
		if r, done := kept[name]; done {
			results = append(results, r)
			return
		}
		todo <- f
	}
	add(build, b.build)
	for _, r := range recipes {
		add(r.Name, func(ctx context.Context, l drive.Lane) (result, error) { return b.recipe(ctx, l, r) })
	}
	close(todo)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, l := range lanes {
		wg.Go(func() {
			for f := range todo {
				if ctx.Err() != nil {
					return
				}
				r, err := f(ctx, l)
				if err == nil {
					mu.Lock()
					r.Setting = b.setting
					results = append(results, r)
					fmt.Fprintf(os.Stderr, "%-26s %s\n", r.Name, r.words())
					err = json.NewEncoder(log).Encode(r)
					mu.Unlock()
				}
				if err != nil {
					stop(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return results, context.Cause(ctx)
}

// build runs a build of the same time, or goes on with one that was cut off.
func (b *bench) build(ctx context.Context, l drive.Lane) (result, error) {
	r := result{Name: build}
	dir := filepath.Join(b.dir, "build")
	args := []string{"build", b.text, "--budget", fmt.Sprintf("%gs", b.seconds), "--seed", fmt.Sprint(b.seed), "--out", dir}
	if _, err := os.Stat(filepath.Join(dir, "journal")); err == nil {
		args = []string{"resume", dir}
	}
	begin := time.Now()
	if err := l.Events(ctx, b.program, args, func(journal.Event) bool { return true }); err != nil {
		return r, err
	}
	r.Took = time.Since(begin).Seconds()
	var e node.Evaluation
	if err := readJSON(filepath.Join(dir, "bundle", "eval.json"), &e); err != nil {
		return r, err
	}
	var c train.Config
	if err := readJSON(filepath.Join(dir, "trials", "final", "config.json"), &c); err != nil {
		return r, err
	}
	st, err := train.CheckpointState(train.BestDir(filepath.Join(dir, "trials", "final")))
	if err != nil {
		return r, err
	}
	r.Bits, r.Arch, r.LR, r.Batch, r.Steps = e.BitsPerByte, c.Arch, c.LR, c.BatchTokens, st.Step
	return r, nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// recipe trains a recipe for the time.
func (b *bench) recipe(ctx context.Context, l drive.Lane, rec recipe) (result, error) {
	f := fit(rec, b.budget, uint64(b.seed))
	c := f.Config
	r := result{Name: rec.Name, Arch: c.Arch, LR: c.LR, Batch: c.BatchTokens, Cut: f.Cut}
	dir := filepath.Join(b.dir, rec.Name)
	text, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return r, err
	}
	if err := os.WriteFile(dir+".json", append(text, '\n'), 0o644); err != nil {
		return r, err
	}
	begin := time.Now()
	last, failed, err := l.Trial(ctx, b.program, b.data, len(l.CPUs), "--config", dir+".json", "--resume", dir, "--final",
		"--for", fmt.Sprintf("%gs", b.seconds), "--decay", fmt.Sprint(f.Decay))
	r.Took, r.Steps, r.Failed = time.Since(begin).Seconds(), last.Step, failed
	if err != nil {
		return r, fmt.Errorf("%s: %w", rec.Name, err)
	}
	if failed != "" {
		return r, nil
	}
	score, err := node.HeldOut(ctx, b.data, c.Arch, train.BestDir(dir), len(l.CPUs))
	r.Bits = score.BitsPerByte()
	return r, err
}

// words are a result in a line.
func (r result) words() string {
	if r.Failed != "" {
		return "failed: " + r.Failed
	}
	how := "as published"
	if r.Cut {
		how = "cut"
	}
	if r.Name == build {
		how = ""
	}
	return fmt.Sprintf("%.4f  %6d steps of %6d tokens  lr %-8.4g %8d params  %s  %s", r.Bits, r.Steps, r.Batch, r.LR, r.Arch.Params(), r.Arch, how)
}

// order sorts by bits per byte, what failed last.
func order(results []result) []result {
	out := slices.Clone(results)
	slices.SortFunc(out, func(a, b result) int {
		if (a.Failed == "") != (b.Failed == "") {
			return cmp.Compare(a.Failed, b.Failed)
		}
		return cmp.Or(cmp.Compare(a.Bits, b.Bits), cmp.Compare(a.Name, b.Name))
	})
	return out
}

// ratio is the build's bits per byte over the best recipe's; false where one is missing.
func ratio(results []result) (x float64, best string, ok bool) {
	var ours, theirs float64
	for _, r := range order(results) {
		switch {
		case r.Failed != "":
		case r.Name == build:
			ours = r.Bits
		case theirs == 0:
			theirs, best = r.Bits, r.Name
		}
	}
	if ours == 0 || theirs == 0 {
		return 0, "", false
	}
	return ours / theirs, best, true
}

func write(w io.Writer, results []result) {
	for i, r := range order(results) {
		fmt.Fprintf(w, "%2d  %-26s %s\n", i+1, r.Name, r.words())
	}
	if x, best, ok := ratio(results); ok {
		fmt.Fprintf(w, "build / best recipe (%s): %.4f\n", best, x)
	}
}
