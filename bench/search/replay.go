package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/open-autoglm/autoglm/bench/peer"
	"github.com/open-autoglm/autoglm/bench/stat"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// Replays of learning curves: a scheduler starts, stops, pauses and goes on with trials
// whose scores are read from a table that lmcurves made.

// lesson is a text of such a table: a curve for each configuration of a grid.
type lesson struct {
	name   string
	dims   []space.Dimension
	curves map[string][]float64 // by index of each dimension's value
	epochs int
	best   float64 // of all scores
}

// diverged is the score of a training that diverged, bits per byte.
const diverged = 10

// readLessons reads a table: a column text, one a dimension, one of the training's operations, and the
// scores.
func readLessons(path string) ([]*lesson, error) {
	b, err := unpacked(path)
	if err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(bytes.NewReader(b)).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(rows) < 2 {
		return nil, fmt.Errorf("%s: holds no curves", path)
	}
	head := rows[0]
	split := slices.Index(head, "gflop")
	if head[0] != "text" || split < 2 || split+1 >= len(head) {
		return nil, fmt.Errorf("%s: the first line is %q, want text,…,gflop,bits_1,…", path, strings.Join(head, ","))
	}
	// The values of each dimension, numbers in their order.
	values := make([][]string, split)
	for _, r := range rows[1:] {
		for i := 1; i < split; i++ {
			if !slices.Contains(values[i], r[i]) {
				values[i] = append(values[i], r[i])
			}
		}
	}
	var dims []space.Dimension
	for i := 1; i < split; i++ {
		_, err := strconv.ParseFloat(values[i][0], 64)
		slices.SortFunc(values[i], func(a, b string) int {
			x, e1 := strconv.ParseFloat(a, 64)
			y, e2 := strconv.ParseFloat(b, 64)
			if e1 != nil || e2 != nil {
				return cmp.Compare(a, b)
			}
			return cmp.Compare(x, y)
		})
		dims = append(dims, indexDim(head[i], len(values[i]), err == nil))
	}
	var out []*lesson
	for line, r := range rows[1:] {
		i := slices.IndexFunc(out, func(l *lesson) bool { return l.name == r[0] })
		if i < 0 {
			i = len(out)
			out = append(out, &lesson{name: r[0], dims: dims, curves: map[string][]float64{}, epochs: len(head) - split - 1, best: math.Inf(1)})
		}
		l := out[i]
		key := make([]byte, len(dims))
		for j := range dims {
			key[j] = digits[slices.Index(values[j+1], r[j+1])]
		}
		curve := make([]float64, 0, l.epochs)
		for j, cell := range r[split+1:] {
			v := float64(diverged)
			if cell != "" {
				if v, err = strconv.ParseFloat(cell, 64); err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
					return nil, fmt.Errorf("%s: line %d: %s is %q, no score", path, line+2, head[split+1+j], cell)
				}
			}
			curve = append(curve, v)
			l.best = min(l.best, v)
		}
		if l.curves[string(key)] != nil {
			return nil, fmt.Errorf("%s: line %d: %s stands there twice", path, line+2, strings.Join(r[:split], ","))
		}
		l.curves[string(key)] = curve
	}
	for _, l := range out {
		want := 1
		for _, d := range dims {
			want *= int(d.Cells())
		}
		if len(l.curves) != want {
			return nil, fmt.Errorf("%s: text %s has %d curves of %d: it is no whole grid", path, l.name, len(l.curves), want)
		}
	}
	return out, nil
}

func (l *lesson) space() (*space.Space, error) { return space.New(l.dims...) }

func (l *lesson) curve(c space.Config) []float64 { return l.curves[indices(l.dims, c)] }

// piece is work for one of the workers: a trial, trained from an epoch to another one
// unless it is stopped before.
type piece struct {
	trial  string
	config space.Config
	from   int
}

// scheduled is a tool that rations trials.
type scheduled interface {
	// next gives work for a worker that is free; false where there is none until more
	// is reported.
	next() (piece, bool, error)
	// report tells a trial's score after an epoch, and whether the trial goes on at once.
	report(trial string, epoch int, score float64) (on bool, err error)
	close() error
}

// replay lets a tool use so many workers. Each epoch takes all of them the same time. It
// gives the best score after so many epochs of all workers together, idle ones included.
func (l *lesson) replay(ctx context.Context, tool scheduled, workers, budget int) ([]float64, error) {
	at := make([]*piece, workers)
	var line []float64
	best := math.Inf(1)
	for len(line) < budget {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		for i := range at {
			if at[i] != nil {
				continue
			}
			p, ok, err := tool.next()
			if err != nil {
				return nil, err
			}
			if ok {
				at[i] = &p
			}
		}
		idle := true
		for i, p := range at {
			if p != nil {
				idle = false
				p.from++
				score := l.curve(p.config)[p.from-1]
				best = min(best, score)
				on, err := tool.report(p.trial, p.from, score)
				if err != nil {
					return nil, err
				}
				if !on || p.from == l.epochs {
					at[i] = nil
				}
			}
			line = append(line, best)
		}
		if idle { // it has ended: nothing more will come
			for len(line) < budget {
				line = append(line, best)
			}
		}
	}
	return line[:budget], nil
}

// ours is a strategy and a scheduler of this project.
type ours struct {
	*search.Search
	queue   []search.Decision
	running map[string]*rung
}

// rung is a decision that is carried out.
type rung struct {
	search.Decision
	curve []search.Point
}

// newOurs makes "strategy/scheduler" for a text.
func newOurs(name string, l *lesson, seed, workers int) (*ours, error) {
	strategy, scheduler, ok := strings.Cut(name, "/")
	if !ok {
		return nil, fmt.Errorf("%q is no STRATEGY/SCHEDULER", name)
	}
	sp, err := l.space()
	if err != nil {
		return nil, err
	}
	st, err := search.NewStrategy(strategy, sp, search.Options{Seed: uint64(seed)})
	if err != nil {
		return nil, err
	}
	sched, err := search.NewScheduler(planned(scheduler, l))
	if err != nil {
		return nil, err
	}
	s := search.New(st, sched, workers)
	s.ByArrival() // as under a budget of wall clock
	return &ours{Search: s, running: map[string]*rung{}}, nil
}

// planned is a plan without an end: as many trials as there are configurations.
func planned(scheduler string, l *lesson) search.Plan {
	p := search.Plan{Scheduler: scheduler}
	top, all := float64(l.epochs), len(l.curves)
	switch scheduler {
	case "asha", "pasha":
		var ladder []float64 // 1, 4, 16, …; the last step is no less than half as large
		for r := 1.0; r <= top/2; r *= 4 {
			ladder = append(ladder, r)
		}
		ladder = append(ladder, top)
		keep := make([]int, len(ladder))
		for i := range keep {
			keep[i] = all
		}
		p.Brackets = []search.Bracket{{Trials: all, Keep: keep, Resources: ladder}}
	case "sha", "auto", "hyperband":
		round := search.Brackets(1, top, 3)
		if scheduler != "hyperband" {
			round = round[:1]
		}
		for i := range round {
			for j, r := range round[i].Resources {
				round[i].Resources[j] = math.Round(r)
			}
		}
		for n := 0; n < all; {
			for _, b := range round {
				p.Brackets = append(p.Brackets, b)
				n += b.Trials
			}
		}
	default:
		p.Brackets = []search.Bracket{{Trials: all, Keep: []int{all}, Resources: []float64{top}}}
	}
	return p
}

func (o *ours) next() (piece, bool, error) {
	if len(o.queue) == 0 {
		ds, err := o.Next()
		if err != nil && !errors.Is(err, search.ErrExhausted) {
			return piece{}, false, err
		}
		o.queue = ds
	}
	if len(o.queue) == 0 {
		return piece{}, false, nil
	}
	d := o.queue[0]
	o.queue = o.queue[1:]
	o.running[d.Trial] = &rung{Decision: d}
	return piece{trial: d.Trial, config: d.Config, from: int(d.From)}, true, nil
}

func (o *ours) report(trial string, epoch int, score float64) (bool, error) {
	r := o.running[trial]
	r.curve = append(r.curve, search.Point{Resource: float64(epoch), Score: score})
	out := search.Outcome{Score: score}
	if r.Stop != nil {
		out.Curve = r.curve
		if float64(epoch) < r.Resource {
			out.Why = r.Stop.Judge(r.curve)
			out.Stopped = out.Why != ""
		}
	}
	if float64(epoch) < r.Resource && !out.Stopped {
		return true, nil
	}
	delete(o.running, trial)
	return false, o.Report(r.Seq, out)
}

func (o *ours) close() error { return nil }

// schedulers of other libraries, and where they live below $AUTOGLM_SEARCH_PEERS.
var schedulers = [][2]string{
	{"optuna-tpe-hyperband", "optuna"},
	{"optuna-tpe-median", "optuna"},
	{"syne-asha", "syne"},
	{"syne-bohb", "syne"},
	{"syne-ashabore", "syne"},
	{"syne-ashacqr", "syne"},
	{"syne-mobster", "syne-old"},
	{"syne-hypertune", "syne-old"},
}

func schedulerNames() []string {
	var out []string
	for _, p := range schedulers {
		out = append(out, p[0])
	}
	return out
}

// theirs is a scheduler of another library, driven by bench/peers/search.py.
type theirs struct {
	*peer.Driver
	lesson  *lesson
	space   *space.Space
	configs map[string]piece // by trial, with the epoch that it has reached
}

func newTheirs(ctx context.Context, name, script string, l *lesson, seed int) (*theirs, error) {
	i := slices.Index(schedulerNames(), name)
	if i < 0 {
		return nil, fmt.Errorf("there is no peer %s; there are %s", name, strings.Join(schedulerNames(), ", "))
	}
	path, err := peer.Python(name, schedulers[i][1])
	if err != nil {
		return nil, err
	}
	sp, err := l.space()
	if err != nil {
		return nil, err
	}
	d, err := peer.Start(exec.CommandContext(ctx, path, script))
	if err != nil {
		return nil, err
	}
	t := &theirs{Driver: d, lesson: l, space: sp, configs: map[string]piece{}}
	if _, err := d.Call(map[string]any{"peer": name, "space": peer.Dims(l.dims), "seed": seed, "epochs": l.epochs}); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return t, nil
}

func (t *theirs) next() (piece, bool, error) {
	a, err := t.Call(map[string]any{"next": true})
	if err != nil || a.Trial == "" {
		return piece{}, false, err
	}
	if p, known := t.configs[a.Trial]; known {
		return p, true, nil
	}
	p := piece{trial: a.Trial}
	if p.config, err = peer.Config(t.space, t.lesson.dims, a.Config); err != nil {
		return p, false, err
	}
	t.configs[a.Trial] = p
	return p, true, nil
}

func (t *theirs) report(trial string, epoch int, score float64) (bool, error) {
	a, err := t.Call(map[string]any{"report": trial, "epoch": epoch, "value": score})
	p := t.configs[trial]
	p.from = epoch
	t.configs[trial] = p
	return a.Decision == "continue", err
}

func (t *theirs) close() error { return t.Close() }

// replayed is one replay: the epochs of all workers after which the best score was within
// one in a hundred of the table's best; the budget where it never was.
type replayed struct {
	Text  string    `json:"text"`
	Tool  string    `json:"tool"`
	Seed  int       `json:"seed"`
	Found bool      `json:"found"`
	Spent int       `json:"epochs"`
	Best  []float64 `json:"best"` // after 1, 2, … whole trainings' worth of epochs
}

// near is how close to the table's best a search has to come.
const near = 1.01

// replays runs tools over the texts of a table.
func replays(ctx context.Context, out io.Writer, path string, own, peers []string, script string, seeds, workers, side, trainings int, asJSON bool) error {
	ls, err := readLessons(path)
	if err != nil {
		return err
	}
	type work struct {
		tool string
		l    *lesson
		seed int
	}
	tools := slices.Concat(own, peers)
	var works []work
	for _, tool := range tools {
		for _, l := range ls {
			for seed := range seeds {
				works = append(works, work{tool, l, seed})
			}
		}
	}
	var mu sync.Mutex
	var done []replayed
	err = sideBySide(ctx, side, works, func(ctx context.Context, w work) error {
		r, err := w.l.run(ctx, w.tool, slices.Contains(peers, w.tool), script, w.seed, workers, trainings)
		if err != nil {
			return fmt.Errorf("%s on %s, seed %d: %w", w.tool, w.l.name, w.seed, err)
		}
		mu.Lock()
		defer mu.Unlock()
		done = append(done, r)
		if asJSON {
			return json.NewEncoder(out).Encode(r)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !asJSON {
		summariseReplays(out, ls, tools, done)
	}
	return nil
}

func (l *lesson) run(ctx context.Context, name string, peer bool, script string, seed, workers, trainings int) (r replayed, err error) {
	var tool scheduled
	if peer {
		tool, err = newTheirs(ctx, name, script, l, seed)
	} else {
		tool, err = newOurs(name, l, seed, workers)
	}
	if err != nil {
		return r, err
	}
	line, err := l.replay(ctx, tool, workers, trainings*l.epochs)
	if err = cmp.Or(err, tool.close()); err != nil {
		return r, err
	}
	r = replayed{Text: l.name, Tool: name, Seed: seed, Spent: len(line)}
	if i := slices.IndexFunc(line, func(b float64) bool { return b <= near*l.best }); i >= 0 {
		r.Found, r.Spent = true, i+1
	}
	for n := l.epochs; n <= len(line); n += l.epochs {
		r.Best = append(r.Best, line[n-1])
	}
	return r, nil
}

// summariseReplays prints, for each tool, the mean budget of each text, and its geometric
// mean over texts by the other tools', with a bootstrap interval over seeds.
func summariseReplays(w io.Writer, ls []*lesson, tools []string, done []replayed) {
	slices.SortFunc(done, func(a, b replayed) int { return cmp.Compare(a.Seed, b.Seed) })
	spent := map[string]map[string][]float64{} // tool, text
	lost := map[string]int{}
	for _, r := range done {
		if spent[r.Tool] == nil {
			spent[r.Tool] = map[string][]float64{}
		}
		spent[r.Tool][r.Text] = append(spent[r.Tool][r.Text], float64(r.Spent))
		if !r.Found {
			lost[r.Tool]++
		}
	}
	geo := func(tool string, pick func([]float64) []float64) float64 {
		sum := 0.0
		for _, l := range ls {
			x := pick(spent[tool][l.name])
			s := 0.0
			for _, v := range x {
				s += v
			}
			sum += math.Log(s / float64(len(x)))
		}
		return math.Exp(sum / float64(len(ls)))
	}
	same := func(x []float64) []float64 { return x }
	rng := rand.New(rand.NewPCG(1, 2))
	again := func(x []float64) []float64 { return stat.Resample(rng, x) }
	fmt.Fprintf(w, "%-24s", "epochs to within 1 %")
	for _, l := range ls {
		fmt.Fprintf(w, " %12s", l.name)
	}
	fmt.Fprintf(w, " %12s %8s   by %s\n", "geo. mean", "never", tools[0])
	for _, tool := range tools {
		fmt.Fprintf(w, "%-24s", tool)
		for _, l := range ls {
			s := 0.0
			for _, v := range spent[tool][l.name] {
				s += v / float64(len(spent[tool][l.name]))
			}
			fmt.Fprintf(w, " %12.0f", s)
		}
		lo, hi := stat.Interval(func() float64 { return geo(tool, again) / geo(tools[0], again) })
		fmt.Fprintf(w, " %12.0f %8d   %.2f [%.2f, %.2f]\n", geo(tool, same), lost[tool], geo(tool, same)/geo(tools[0], same), lo, hi)
	}
}
