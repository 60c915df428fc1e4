package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

const (
	noopTrials  = 10_000
	noopWorkers = 32
	reportFor   = 3 * time.Second
)

// idle is the Executor of a task that does nothing but report without a pause for so
// long, and write the trial's config.json as a node does, where it is given a folder.
func idle(report time.Duration, dir string) actors.Executor {
	return func(_ context.Context, a *actors.Assign, progress func(train.StepMetrics)) (train.Report, error) {
		if dir != "" {
			if err := writeConfig(filepath.Join(dir, "trials", a.Task.Trial), a.Task.Config); err != nil {
				return train.Report{}, err
			}
		}
		for i, until := 0, time.Now().Add(report); report > 0 && time.Now().Before(until); i++ {
			progress(train.StepMetrics{Step: i + 1, Tokens: int64(i) * 4096, Seconds: float64(i) / 10, Loss: 3.14, LR: 0.5, GradNorm: 0.7, PerSecond: 11_000})
		}
		return train.Report{State: train.State{Step: 120, Tokens: 491_520, Seconds: 11}, Bits: 2 + 1/float64(len(a.Task.Trial)+int(a.Epoch%97)), Params: 4_200_000, PerSecond: 11_000}, nil
	}
}

func writeConfig(folder string, c train.Config) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(folder, "config.json"), b)
}

// nothing is the Work of a job whose stages are empty.
type nothing struct {
	trials, slots int
	dir           string
	sp            *space.Space
}

func (nothing) Stage(context.Context, string, journal.State) error { return nil }

func (w nothing) Plan(context.Context, float64) (search.Plan, error) {
	return search.Plan{Unit: search.Tokens, Slots: w.slots, SearchTrials: w.trials, Brackets: []search.Bracket{{Trials: w.trials, Keep: []int{w.trials}, Resources: []float64{1}}}}, nil
}

func (w nothing) Search(p search.Plan, slots int) (*search.Search, error) {
	s, err := search.NewStrategy("random", w.sp, search.Options{Seed: 1, Architecture: space.IsArchitecture})
	if err != nil {
		return nil, err
	}
	return search.New(s, search.NewHyperband(p.Brackets), slots), nil
}

func (nothing) Size(context.Context, journal.State, string) (*search.Sizing, error) { return nil, nil }

func (w nothing) Task(_ journal.State, d *search.Decision) (train.Task, error) {
	t := train.Task{Trial: "final", Dir: w.dir, Segment: train.Segment{Steps: 120}}
	if d != nil {
		t.Trial, t.Config = d.Trial, train.FromSpace(d.Config, 1)
	}
	return t, nil
}

func (nothing) Evaluate(context.Context, journal.State) (train.Score, *journal.Placed, error) {
	return train.Score{Bytes: 1}, nil, nil
}

// jobRun is a job whose Supervisor is here and whose workers are another process'.
type jobRun struct {
	trials, workers int
	report          time.Duration // of each task
	files           bool
	log             journal.Log
	event           func(journal.Event)
	progress        func()
}

func (j jobRun) run(dir string) error {
	s, err := newSite()
	if err != nil {
		return err
	}
	defer s.end()
	files := ""
	if j.files {
		files = dir
	}
	h, err := startHost(hostConfig{Workers: j.workers, Report: j.report, Dir: files})
	if err != nil {
		return err
	}
	defer h.kill()
	sp, err := space.Decoder(space.Limits{MinMatrix: 100_000, MaxMatrix: 20_000_000, MaxVocab: 4096, MaxContext: 512, MaxBytes: 4 << 30, Threads: 1}, nil)
	if err != nil {
		return err
	}
	var pids []*actor.PID
	for i := range j.workers {
		pids = append(pids, s.PID(h.life, worker(i)))
	}
	ended := make(chan error, 1)
	epoch, begin := uint64(0), time.Now()
	pid := s.system.Root.Spawn(actors.SupervisorProps(actors.SupervisorConfig{
		Spec: job.Default(), Log: j.log, Work: nothing{trials: j.trials, slots: j.workers, dir: dir, sp: sp}, Workers: pids,
		TrialConfig: actors.TrialConfig{Epochs: func() uint64 { epoch++; return epoch }},
		Clock:       func() time.Duration { return time.Since(begin) }, Now: time.Now, Tick: time.Second,
		Events: actors.Events{
			Journal:  func(e journal.Event, _ *journal.State) { j.event(e) },
			Progress: func(actors.Progress) { j.progress() },
			End:      func(err error, _ bool) { ended <- err },
		},
	}))
	defer s.system.Root.Stop(pid)
	select {
	case err := <-ended:
		return err
	case <-time.After(5 * time.Minute):
		return errors.New("the job has not ended after 5 minutes")
	}
}

// noops measures trials that do nothing on the workers of another process: each is
// decided, committed, assigned, run, reported and committed again.
func noops(dir string, rounds int, show func(result)) error {
	sync, err := syncTime(filepath.Join(dir, "sync"))
	if err != nil {
		return err
	}
	var ours, written, rays []float64
	for i := range rounds {
		v, err := noopRound(filepath.Join(dir, fmt.Sprint("noop", i)), noopTrials, false)
		if err != nil {
			return err
		}
		ours = append(ours, v)
		if v, err = noopRound(filepath.Join(dir, fmt.Sprint("written", i)), noopTrials/10, true); err != nil {
			return err
		}
		written = append(written, v)
		if i > 0 && rays == nil {
			continue // it is not there
		}
		if v, err = ray(); err != nil {
			fmt.Fprintf(os.Stderr, "no-op trials of Ray Tune are left out: %v; run it at the top of the repository with AUTOGLM_PYTHON naming a python that has ray[tune]\n", err)
			continue
		}
		rays = append(rays, v)
	}
	show(of("a record appended and synced to the journal", 1, "ms", "", sync))
	show(of(fmt.Sprintf("no-op trials through %d remote workers, journal synced", noopWorkers), 2, "/s", "2000", ours))
	show(of("the same, and each trial's config.json synced", 2, "/s", "", written))
	if rays != nil {
		show(of("no-op trials, Ray Tune with reuse_actors", 1, "/s", "", rays))
	}
	return nil
}

func noopRound(dir string, trials int, files bool) (perSecond float64, err error) {
	log, err := journal.OpenFile(dir)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	var first, last time.Time
	n := 0
	j := jobRun{trials: trials, workers: noopWorkers, files: files, log: log, progress: func() {}, event: func(e journal.Event) {
		switch e.Kind {
		case journal.Planned:
			first = time.Now()
		case journal.TrialEnded:
			last = time.Now()
			n++
		}
	}}
	if err := j.run(dir); err != nil {
		return 0, err
	}
	if n != trials {
		return 0, fmt.Errorf("%d trials of %d", n, trials)
	}
	return float64(trials) / last.Sub(first).Seconds(), nil
}

func syncTime(dir string) ([]float64, error) {
	log, err := journal.OpenFile(dir)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	var v []float64
	for range 500 {
		begin := time.Now()
		if err := log.Append(make([]byte, 500), true); err != nil {
			return nil, err
		}
		v = append(v, time.Since(begin).Seconds()*1e3)
	}
	return v, nil
}

// metrics measures reports of one remote worker on their way to the Supervisor, as many
// as it has credit for.
func metrics(dir string, rounds int, show func(result)) error {
	var v []float64
	for i := range rounds {
		perSecond, err := metricsRound(filepath.Join(dir, fmt.Sprint("reports", i)))
		if err != nil {
			return err
		}
		v = append(v, perSecond)
	}
	show(of("reports of a remote worker to the Supervisor", 2, "/s", "20000", v))
	return nil
}

func metricsRound(dir string) (perSecond float64, err error) {
	log, err := journal.OpenFile(dir)
	if err != nil {
		return 0, err
	}
	defer log.Close()
	n := 0
	j := jobRun{trials: 1, workers: 1, report: reportFor, log: log, event: func(journal.Event) {}, progress: func() { n++ }}
	if err := j.run(dir); err != nil {
		return 0, err
	}
	return float64(n) / (2 * reportFor.Seconds()), nil // the final training reports too
}

// ray has Ray Tune do the same with one trial at a time, which is its fastest here,
// where $AUTOGLM_PYTHON or python3 has it.
func ray() (perSecond float64, err error) {
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		python = "python3"
	}
	out, err := exec.Command(python, "bench/peers/noop_ray.py", "500", "1").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return 0, fmt.Errorf("%w: %s", err, lastLine(exit.Stderr))
		}
		return 0, err
	}
	var m struct {
		PerSecond float64 `json:"trials_per_s"`
	}
	if err := json.Unmarshal([]byte(lastLine(out)), &m); err != nil {
		return 0, fmt.Errorf("noop_ray.py: %w", err)
	}
	return m.PerSecond, nil
}
