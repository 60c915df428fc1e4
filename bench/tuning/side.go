package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/bench/drive"
	"github.com/open-autoglm/autoglm/bench/peer"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// snapshot is a model that a side could have handed back from a time on.
type snapshot struct {
	t      float64
	config train.Config
	dir    string
}

// keep gives a folder of parameters a second name, so that what replaces it is another.
func keep(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Link(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// score gives the held-out bits per byte of snapshots, after all else.
func score(ctx context.Context, data string, threads int, snaps []snapshot) ([]point, error) {
	var out []point
	for _, s := range snaps {
		sc, err := node.HeldOut(ctx, data, s.config.Arch, s.dir, threads)
		if err != nil {
			return nil, err
		}
		out = append(out, point{s.t, sc.BitsPerByte()})
	}
	return out, nil
}

// watcher keeps each of the parameters that a training leaves as its best.
type watcher struct {
	folder string // of the training
	to     string
	begin  time.Time

	seen  time.Time
	snaps []snapshot
}

// look takes what is there, if it is new. Files that are being replaced are taken at the
// next look.
func (w *watcher) look() {
	best := train.BestDir(w.folder)
	info, err := os.Stat(filepath.Join(best, "checkpoint.json"))
	if err != nil || !info.ModTime().After(w.seen) {
		return
	}
	b, err := os.ReadFile(filepath.Join(w.folder, "config.json"))
	if err != nil {
		return
	}
	s := snapshot{t: info.ModTime().Sub(w.begin).Seconds(), dir: filepath.Join(w.to, fmt.Sprint(len(w.snaps)))}
	if json.Unmarshal(b, &s.config) != nil {
		return
	}
	if keep(best, s.dir) != nil {
		os.RemoveAll(s.dir)
		return
	}
	if _, _, err := train.LoadCheckpoint(s.dir); err != nil {
		os.RemoveAll(s.dir)
		return
	}
	w.seen = info.ModTime()
	w.snaps = append(w.snaps, s)
}

// watch looks until ctx ends, and once more.
func (w *watcher) watch(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
		w.look()
	}
}

// build is our side: a build on a share of the clock.
func (o options) build(ctx context.Context, l drive.Lane, share float64, seed int, dir string) (result, error) {
	r := result{Side: "build", Share: share, Seed: seed}
	begin := time.Now()
	w := watcher{folder: filepath.Join(dir, "trials", "final"), to: dir + "-best", begin: begin}
	if err := os.RemoveAll(w.to); err != nil {
		return r, err
	}
	watching, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.watch(watching) })
	best := math.Inf(1)
	budget := fmt.Sprintf("%gs", share*o.seconds)
	err := l.Events(ctx, o.program, []string{"build", o.text, "--budget", budget, "--seed", fmt.Sprint(seed), "--out", dir}, func(e journal.Event) bool {
		switch t := e.Trial; {
		case e.Kind == journal.Decided && e.Decision.Rung == 0:
			r.Trials++
		case e.Kind == journal.TrialEnded && !t.Failed && t.Bits > 0 && t.Bits < best:
			best = t.Bits
			r.Validation = append(r.Validation, point{time.UnixMilli(e.At).Sub(begin).Seconds(), best})
		}
		return true
	})
	took := time.Since(begin).Seconds()
	stop()
	wg.Wait()
	if err != nil {
		return r, err
	}
	if r.HeldOut, err = score(ctx, dir, len(l.CPUs), w.snaps); err != nil {
		return r, err
	}
	var e node.Evaluation
	b, err := os.ReadFile(filepath.Join(dir, "bundle", "eval.json"))
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	r.Final = e.BitsPerByte
	r.HeldOut = append(r.HeldOut, point{took, r.Final})
	return r, err
}

// rungs of Optuna's Hyperband: of 1, 3, 9 and 27 parts of the longest trial.
var rungs = []int{1, 3, 9, 27}

// margin is what a piece of a trial takes besides its training, seconds: the start of the
// program and the score.
const margin = 1.5

// study is a run of Optuna. Its slots train side by side, and one at a time asks.
type study struct {
	options
	lane  drive.Lane
	dir   string
	data  string // of the build that read the text
	dims  []space.Dimension
	space *space.Space
	width int // at which rates are meant
	begin time.Time
	until float64 // of trials, seconds

	mu     sync.Mutex // guards what follows, while the slots are at work
	driver *peer.Driver
	best   float64
	champ  int             // the best trial
	at     map[int]float64 // training seconds of each trial
	snaps  []snapshot
	r      result
}

// optuna is their side.
func (o options) optuna(ctx context.Context, l drive.Lane, seed int, dir string) (result, error) {
	s := study{options: o, lane: l, dir: dir, data: dir + "-data", until: o.seconds * (1 - o.final), best: math.Inf(1), at: map[int]float64{}}
	s.r = result{Side: "optuna", Share: 1, Seed: seed}
	st, err := l.Prepare(ctx, o.program, o.text, fmt.Sprintf("%gs", o.seconds), seed, s.data)
	if err != nil {
		return s.r, err
	}
	if s.space, err = node.SearchSpace(s.data, st); err != nil {
		return s.r, err
	}
	s.dims, s.width = s.space.Dimensions(), st.Plan.BaseWidth
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return s.r, err
	}
	python, err := peer.Python("optuna", "optuna")
	if err != nil {
		return s.r, err
	}
	if s.driver, err = peer.Start(l.Command(ctx, python, o.script)); err != nil {
		return s.r, err
	}
	hello := map[string]any{
		"peer": "optuna-tpe-hyperband", "space": peer.Dims(s.dims), "seed": seed, "epochs": rungs[len(rungs)-1],
		"options": map[string]any{"multivariate": true, "constant_liar": true},
	}
	if o.first {
		hello["first"] = peer.First(s.dims, st.Decisions[0].Config)
	}
	if _, err := s.driver.Call(hello); err != nil {
		return s.r, errors.Join(err, s.driver.Close())
	}
	s.driver.Took = 0
	s.begin = time.Now()
	errs := make([]error, len(l.CPUs))
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = s.slot(ctx) })
	}
	wg.Wait()
	s.r.Asking = s.driver.Took.Seconds()
	if err := errors.Join(errors.Join(errs...), s.driver.Close()); err != nil {
		return s.r, err
	}
	if len(s.snaps) == 0 {
		return s.r, fmt.Errorf("no trial came to a score in %.0f s; give more -seconds, or a smaller -top", s.until)
	}
	if o.final > 0 {
		if err := s.last(ctx); err != nil {
			return s.r, err
		}
	}
	if s.r.HeldOut, err = score(ctx, s.data, len(l.CPUs), s.snaps); err != nil {
		return s.r, err
	}
	s.r.Final = s.r.HeldOut[len(s.r.HeldOut)-1].Bits
	return s.r, nil
}

// now is the time that counts, seconds: what Optuna thinks is not held against it. While it
// does for one slot the others train, so that each loses its share.
func (s *study) now() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.elapsed()
}

// elapsed is now; the caller holds the lock.
func (s *study) elapsed() float64 {
	return (time.Since(s.begin) - s.driver.Took/time.Duration(len(s.lane.CPUs))).Seconds()
}

// slot trains one trial after the other.
func (s *study) slot(ctx context.Context) error {
	for s.now() < s.until-margin {
		name, n, cfg, err := s.ask()
		if err != nil {
			return err
		}
		b, err := json.MarshalIndent(cfg, "", "  ")
		if err != nil {
			return err
		}
		file := filepath.Join(s.dir, fmt.Sprintf("t%03d.json", n))
		if err := os.WriteFile(file, b, 0o644); err != nil {
			return err
		}
		for _, rung := range rungs {
			more, err := s.piece(ctx, name, n, cfg, file, rung)
			if err != nil {
				return err
			}
			if !more {
				break
			}
		}
	}
	return nil
}

// ask asks until a configuration is one of the space.
func (s *study) ask() (name string, n int, cfg train.Config, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 100_000 {
		a, err := s.driver.Call(map[string]any{"next": true})
		if err != nil {
			return "", 0, cfg, err
		}
		c, err := peer.Config(s.space, s.dims, a.Config)
		if err != nil {
			s.r.Refused++
			if _, err := s.driver.Call(map[string]any{"refuse": a.Trial}); err != nil {
				return "", 0, cfg, err
			}
			continue
		}
		s.r.Trials++
		cfg = train.FromSpace(c, uint64(s.r.Seed))
		cfg.Precision, cfg.BaseWidth = "auto", s.width
		return a.Trial, s.r.Trials, cfg, nil
	}
	return "", 0, cfg, errors.New("100,000 configurations in a row were none of the space")
}

// piece trains a trial up to a rung and reports its score; false where it does not go on.
func (s *study) piece(ctx context.Context, name string, n int, cfg train.Config, file string, rung int) (bool, error) {
	left := s.until - s.now() - margin
	s.mu.Lock()
	from := s.at[n]
	s.mu.Unlock()
	to := s.top * s.until * float64(rung) / float64(rungs[len(rungs)-1])
	cut := to-from > left
	if cut {
		to = from + left
	}
	if to <= from {
		return false, nil
	}
	folder := filepath.Join(s.dir, fmt.Sprintf("t%03d", n))
	bits, err := s.trial(ctx, 1, "--config", file, "--resume", folder, "--for", fmt.Sprintf("%.3fs", to))
	if err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at[n] = to
	if t := s.elapsed(); bits < s.best && t < s.until+margin {
		s.best, s.champ = bits, n
		snap := snapshot{t: min(t, s.until), config: cfg, dir: filepath.Join(s.dir, fmt.Sprintf("best%03d", len(s.snaps)))}
		if err := keep(train.BestDir(folder), snap.dir); err != nil {
			return false, err
		}
		s.snaps = append(s.snaps, snap)
		s.r.Validation = append(s.r.Validation, point{snap.t, bits})
	}
	if cut {
		return false, nil
	}
	a, err := s.driver.Call(map[string]any{"report": name, "epoch": rung, "value": min(bits, 100)}) // a failure is the worst
	return a.Decision == "continue", err
}

// trial runs autoglm trial and gives its last score, +Inf where the training failed.
func (s *study) trial(ctx context.Context, cpus int, args ...string) (float64, error) {
	score, failed, err := s.lane.Trial(ctx, s.program, s.data, cpus, args...)
	if failed != "" {
		return math.Inf(1), nil
	}
	return score.Bits, err
}

// last trains the best trial on with what is left of the clock, on all processors.
func (s *study) last(ctx context.Context) error {
	folder := filepath.Join(s.dir, fmt.Sprintf("t%03d", s.champ))
	st, err := train.CheckpointState(filepath.Join(folder, "checkpoint"))
	if err != nil {
		return err
	}
	begin := time.Now().Add(-time.Duration(s.now() * float64(time.Second)))
	w := watcher{folder: folder, to: filepath.Join(s.dir, "final"), begin: begin, seen: time.Now()}
	watching, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { w.watch(watching) })
	left := s.seconds - s.now() - margin
	_, err = s.trial(ctx, len(s.lane.CPUs), "--resume", folder, "--final", "--decay", "0.6", "--for", fmt.Sprintf("%.3fs", st.Seconds+left))
	stop()
	wg.Wait()
	s.snaps = slices.Concat(s.snaps, w.snaps)
	return err
}
