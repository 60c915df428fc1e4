// Command tuning trains for real against another library's search: a build on its wall
// clock, and Optuna (TPE with Hyperband's pruner), which drives trials of the same engine
// and the same space through autoglm trial, on the same wall clock, processors and text.
// Wanted: what Optuna ends with, in half of its time.
//
//	export AUTOGLM_SEARCH_PEERS=$(.ci/search-peers)
//	go run ./bench/tuning -text a.txt -seconds 600 -seeds 5
//	go run ./bench/tuning -text a.txt -side-by-side -keep /tmp/tuning   # goes on where it was cut off
//
// What is compared is what either side can hand back at a time: a model, by its bits per
// byte on the part of the text that no training of either sees, scored by the same code.
// The build's is that of its final training, which is part of its wall clock: before that
// has scored once there is none. Optuna's is that of its best trial so far by the
// validation part, and all of its wall clock is for trials; with -final it trains the best
// one on instead, for that share of the clock at the end. The build's final training
// learns from the validation part too, so that only trials have validation scores; they
// are part of -json.
//
// Optuna is given the space of a build with its budget, the width at which the build's
// rates are meant, all processors as slots of one trial each, rungs of training time like
// the build's own, and the reading of the text and its own thinking for nothing. A
// configuration that breaks a constraint of the space is refused without a trial. The last
// pieces are cut to end with the clock. A build on half of the clock searches the space that
// its own budget gives, around a smaller model.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/bench/drive"
)

// options of all runs.
type options struct {
	text    string
	seconds float64
	top     float64 // share of its clock for trials that Optuna's longest trial takes
	final   float64 // share of the clock in which Optuna's best is trained on
	first   bool    // Optuna begins with the build's first configuration
	script  string
	program string
	dir     string
	say     func(format string, args ...any)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "tuning:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	var o options
	flag.StringVar(&o.text, "text", drive.Text(), "`FILE` to learn from")
	flag.Float64Var(&o.seconds, "seconds", 600, "wall clock of Optuna, and of a build of share 1")
	seeds := flag.Int("seeds", 5, "seeds of each side")
	shares := flag.String("shares", "0.5,1", "wall clocks of the builds, as shares of Optuna's")
	side := flag.Bool("side-by-side", false, "run both sides at once, each kept to one half of the processors: what else the machine does then meets both")
	threads := flag.Int("threads", 0, "processors of each side; 0 is all, or with -side-by-side a half")
	flag.Float64Var(&o.top, "top", 0.25, "longest trial of Optuna, as a share of its clock for trials")
	flag.Float64Var(&o.final, "final", 0, "share of its clock in which Optuna's best trial is trained on, on all processors")
	flag.BoolVar(&o.first, "first", false, "let Optuna begin with the configuration that the build begins with")
	flag.StringVar(&o.script, "driver", "bench/peers/search.py", "the program that drives Optuna")
	keep := flag.String("keep", "", "`DIR` to keep everything in: results there are not run again")
	asJSON := flag.Bool("json", false, "print each run as JSON, with its curves")
	flag.Parse()
	if flag.NArg() > 0 || *seeds < 1 || !(o.seconds >= 20) || !(o.top > 0 && o.top <= 1) || !(o.final >= 0 && o.final < 1) {
		return fmt.Errorf("takes no arguments, -seeds from 1, -seconds from 20, -top in 0 … 1 and -final under 1")
	}
	var budgets []float64
	for _, s := range strings.Split(*shares, ",") {
		x, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
		if err != nil || !(x*o.seconds >= 10) {
			return fmt.Errorf("-shares %s: %q is no share that gives a build its 10 seconds", *shares, s)
		}
		budgets = append(budgets, x)
	}
	o.dir = *keep
	if o.dir == "" {
		var err error
		if o.dir, err = os.MkdirTemp("", "autoglm-tuning-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.dir)
	} else if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	var err error
	if o.program, err = drive.Program(ctx, o.dir); err != nil {
		return err
	}
	n := 1
	if *side {
		n = 2
	}
	lanes, err := drive.Lanes(n, o.dir)
	if err != nil {
		return err
	}
	for i := range lanes {
		if *threads > len(lanes[i].CPUs) {
			return fmt.Errorf("-threads %d: a side has %d processors", *threads, len(lanes[i].CPUs))
		}
		if *threads > 0 {
			lanes[i].CPUs = lanes[i].CPUs[:*threads]
		}
	}
	var mu sync.Mutex
	begin := time.Now()
	o.say = func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(os.Stderr, "%6.0f s  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
	}
	for i, l := range lanes {
		who := "both, one after the other"
		if *side {
			who = [...]string{"the builds", "Optuna, at the same time"}[i]
		}
		o.say("%s: processors %v", who, l.CPUs)
	}
	// Both go through the seeds on their own, so that neither is waited for.
	ours := func(ctx context.Context) (rs []result, err error) {
		for seed := range *seeds {
			for _, share := range budgets {
				r, err := o.once(fmt.Sprintf("build-%g-%d", share, seed+1), o.setting("build", lanes[0]), func(dir string) (result, error) { return o.build(ctx, lanes[0], share, seed+1, dir) })
				if err != nil {
					return rs, err
				}
				rs = append(rs, r)
			}
		}
		return rs, nil
	}
	theirs := func(ctx context.Context) (rs []result, err error) {
		for seed := range *seeds {
			r, err := o.once(fmt.Sprintf("optuna-%d", seed+1), o.setting("optuna", lanes[len(lanes)-1]), func(dir string) (result, error) { return o.optuna(ctx, lanes[len(lanes)-1], seed+1, dir) })
			if err != nil {
				return rs, err
			}
			rs = append(rs, r)
		}
		return rs, nil
	}
	var a, b []result
	var errA, errB error
	if *side {
		ctx, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Go(func() {
			if a, errA = ours(ctx); errA != nil {
				stop()
			}
		})
		wg.Go(func() {
			if b, errB = theirs(ctx); errB != nil {
				stop()
			}
		})
		wg.Wait()
		stop()
	} else if a, errA = ours(ctx); errA == nil {
		b, errB = theirs(ctx)
	}
	if err := firstCause(errA, errB); err != nil {
		return err
	}
	if *asJSON {
		for _, r := range append(a, b...) {
			if err := json.NewEncoder(out).Encode(r); err != nil {
				return err
			}
		}
		for _, share := range budgets {
			if err := json.NewEncoder(out).Encode(compare(a, b, share, o.seconds)); err != nil {
				return err
			}
		}
		return nil
	}
	write(out, a, b, budgets, o.seconds)
	return nil
}

// firstCause prefers what went wrong to what was stopped because of it.
func firstCause(a, b error) error {
	if a != nil && b != nil && strings.Contains(a.Error(), context.Canceled.Error()) {
		return b
	}
	return cmp.Or(a, b)
}

// setting says what a side's results are of.
func (o options) setting(side string, l drive.Lane) string {
	s := fmt.Sprintf("%s, %g s, %d processors", o.text, o.seconds, len(l.CPUs))
	if side == "optuna" {
		s += fmt.Sprintf(", longest trial %g, final %g, first %v", o.top, o.final, o.first)
	}
	return s
}

// once makes a result, or reads that of an earlier call.
func (o options) once(name, setting string, make func(dir string) (result, error)) (result, error) {
	var r result
	path := filepath.Join(o.dir, name+".json")
	if b, err := os.ReadFile(path); err == nil {
		if err := json.Unmarshal(b, &r); err != nil {
			return r, fmt.Errorf("%s: %w; remove it to run that anew", path, err)
		}
		if r.Setting != setting {
			return r, fmt.Errorf("%s is of %s, and not of %s; name another folder", path, r.Setting, setting)
		}
		o.say("%s: kept, %.4f bits per byte", name, r.Final)
		return r, nil
	}
	dir := filepath.Join(o.dir, name)
	if err := os.RemoveAll(dir); err != nil {
		return r, err
	}
	r, err := make(dir)
	if err != nil {
		return r, fmt.Errorf("%s: %w", name, err)
	}
	r.Setting = setting
	o.say("%s: %.4f bits per byte after %.0f s, %d trials", name, r.Final, r.HeldOut[len(r.HeldOut)-1].T, r.Trials)
	b, err := json.Marshal(r)
	if err == nil {
		err = os.WriteFile(path, append(b, '\n'), 0o644)
	}
	return r, err
}
