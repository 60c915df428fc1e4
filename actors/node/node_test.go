package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(workerRole); role != "" {
		if err := serveAs(role); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m,
		// protoactor's dead-letter throttle and scheduler live as long as the process.
		goleak.IgnoreAnyFunction("github.com/asynkron/protoactor-go/actor.NewThrottle.func1"),
		goleak.IgnoreAnyFunction("github.com/asynkron/protoactor-go/actor.NewThrottle"),
		goleak.IgnoreAnyFunction("github.com/asynkron/protoactor-go/actor.NewDeadLetter.NewThrottle.func4.1"),
		goleak.IgnoreAnyFunction("github.com/asynkron/protoactor-go/actor.startTimer"),
	)
}

// tinySpec is a job of 12 trials that takes a second.
func tinySpec(file string) job.Spec {
	s := job.Default()
	s.Data.Files = []string{file}
	s.Budget = job.Budget{Tokens: 24000}
	s.HardwareConstraint = "cpu-any"
	s.Space = map[string]job.Expr{
		"dim": "64", "layers": "int(1, 2)", "context": "32", "vocab": "categorical([320, 384])", "batch_tokens": "256", "warmup_steps": "2",
	}
	return s
}

func build(t testing.TB, o Options) error {
	t.Helper()
	n, err := Open(o)
	if err != nil {
		return err
	}
	return n.Run(t.Context())
}

// outcome is what must not depend on what happened on the way: the leaderboard
// without clocks, and the bundle's bytes.
func outcome(t testing.TB, dir string) string {
	t.Helper()
	var lb journal.Leaderboard
	b, err := os.ReadFile(filepath.Join(dir, "leaderboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &lb); err != nil {
		t.Fatal(err)
	}
	lb.Job = ""
	for i := range lb.Trials {
		lb.Trials[i].Seconds, lb.Trials[i].PerSecond = 0, 0
	}
	if lb.Final == nil {
		t.Fatal("no final training on the leaderboard")
	}
	lb.Final.Seconds, lb.Final.PerSecond = 0, 0
	out, err := json.Marshal(lb)
	if err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(filepath.Join(dir, "bundle"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		c, err := os.ReadFile(filepath.Join(dir, "bundle", f.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, f.Name()...)
		out = append(out, c...)
	}
	return string(out)
}

// What a job says of its rings goes to all its tasks.
func TestSettings(t *testing.T) {
	s := job.Default()
	if settings(s).Plaintext {
		t.Error("plaintext collectives are allowed by default")
	}
	s.Backend, s.PlaintextCollectives, s.ZeroStage = "nccl", true, 1
	if got := settings(s); got.Backend != "nccl" || !got.Plaintext || got.Zero != 1 || got.Compression != "none" {
		t.Errorf("%+v", got)
	}
}

// Each of the four actors panics once in mid-job; the job ends as if none had.
func TestPanicsOfActorsChangeNothing(t *testing.T) {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	calm := filepath.Join(t.TempDir(), "calm")
	if err := build(t, Options{Dir: calm, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	want := outcome(t, calm)
	for _, tc := range []struct {
		who string
		hit func(message any) bool // the message in whose place the actor panics
	}{
		{"supervisor", func(m any) bool { _, ok := m.(*actors.TrialEnded); return ok }},
		{"supervisor", func(m any) bool { d, ok := m.(*actors.Decide); return ok && d.Decision.Seq > 2 }},
		{"searchagent", func(m any) bool { o, ok := m.(*actors.Outcome); return ok && o.Seq > 2 }},
		{"trial", func(m any) bool { _, ok := m.(*actors.RankEnded); return ok }},
		{"trial", func(m any) bool { _, ok := m.(*actor.Started); return ok }},
		{"gpuworker", func(m any) bool { a, ok := m.(*actors.Assign); return ok && a.World == 1 }},
		{"gpuworker", func(m any) bool { a, ok := m.(*actors.Assign); return ok && a.World > 1 }},
	} {
		t.Run(tc.who, func(t *testing.T) {
			var mu sync.Mutex
			panicked := false
			count := 0
			hooks := actors.Hooks{Receive: func(who string, message any) {
				mu.Lock()
				defer mu.Unlock()
				if who != tc.who || panicked || !tc.hit(message) {
					return
				}
				if count++; count == 2 || tc.who == "gpuworker" {
					panicked = true
					panic("injected")
				}
			}}
			dir := filepath.Join(t.TempDir(), "run")
			if err := build(t, Options{Dir: dir, Spec: spec, Hooks: hooks}); err != nil {
				t.Fatal(err)
			}
			if !panicked {
				t.Skipf("%s had no such message on this machine", tc.who)
			}
			if got := outcome(t, dir); got != want {
				t.Errorf("the outcome differs from the undisturbed run's:\n%.3000s\nwant\n%.3000s", got, want)
			}
		})
	}
}

// Interrupted after every few events and resumed, the job ends as if it had not
// been, whatever rations its trials.
func TestInterruptAndResume(t *testing.T) {
	file := actorstest.Corpus(t, t.TempDir())
	for _, tc := range []struct {
		scheduler string
		tokens    int64
		stops     bool // its rule does stop trials
	}{{"auto", 24000, false}, {"asha", 24000, false}, {"wilcoxon", 40_000, true}} {
		if raceEnabled && tc.scheduler != "auto" {
			continue // the same goroutines, and minutes under the detector
		}
		t.Run(tc.scheduler, func(t *testing.T) {
			spec := tinySpec(file)
			spec.Scheduler, spec.Budget.Tokens = tc.scheduler, tc.tokens
			interruptAndResume(t, spec, tc.stops)
		})
	}
}

// interrupted runs a job to its end, interrupting each run at the event that its own
// watch names, and counts the interruptions.
func interrupted(t *testing.T, o Options, watch func() func(journal.Event) bool) int {
	t.Helper()
	for n := 0; ; n++ {
		ctx, cancel := context.WithCancel(t.Context())
		now := watch()
		o.Events.Journal = func(e journal.Event, _ *journal.State) {
			if now(e) {
				cancel()
			}
		}
		run, err := Open(o)
		if err != nil {
			t.Fatal(err)
		}
		err = run.Run(ctx)
		cancel()
		if err == nil {
			return n
		}
		if !errors.Is(err, ErrInterrupted) {
			t.Fatal(err)
		}
		o.Resume = true
	}
}

func interruptAndResume(t *testing.T, spec job.Spec, stops bool) {
	calm := filepath.Join(t.TempDir(), "calm")
	stopped := 0
	count := Options{Dir: calm, Spec: spec}
	count.Events.Journal = func(e journal.Event, _ *journal.State) {
		if e.Kind == journal.TrialEnded && e.Trial.Stopped != "" {
			stopped++
		}
	}
	if err := build(t, count); err != nil {
		t.Fatal(err)
	}
	if stops != (stopped > 0) {
		t.Errorf("%d trials were stopped by their rule", stopped)
	}
	dir := filepath.Join(t.TempDir(), "run")
	o := Options{Dir: dir, Spec: spec}
	interruptions := interrupted(t, o, func() func(journal.Event) bool {
		seen := 0
		return func(e journal.Event) bool {
			if e.Kind != journal.Tick {
				seen++
			}
			return e.Kind != journal.Tick && seen == 9
		}
	})
	if interruptions < 3 {
		t.Fatalf("only %d interruptions", interruptions)
	}
	if outcome(t, dir) != outcome(t, calm) {
		t.Error("the outcome differs from the undisturbed run's")
	}
}

func TestFolderRules(t *testing.T) {
	file := actorstest.Corpus(t, t.TempDir())
	spec := tinySpec(file)
	dir := filepath.Join(t.TempDir(), "run")
	n, err := Open(Options{Dir: dir, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir, Spec: spec}); !errors.Is(err, ErrInUse) {
		t.Errorf("a folder in use: %v", err)
	}
	if err := n.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir, Spec: spec}); !errors.Is(err, ErrHasJob) {
		t.Errorf("a second build over the first: %v", err)
	}
	if _, err := Open(Options{Dir: t.TempDir(), Resume: true}); !errors.Is(err, ErrNoJob) {
		t.Errorf("resume of an empty folder: %v", err)
	}
	if _, err := Open(Options{Dir: filepath.Dir(file), Spec: spec}); !errors.Is(err, ErrNoJob) {
		t.Errorf("a folder with other things in it: %v", err)
	}
	if _, err := Open(Options{Dir: file, Spec: spec}); err == nil {
		t.Error("a file as folder was accepted")
	}
	// A finished job is resumed to its end at once.
	if err := build(t, Options{Dir: dir, Resume: true}); err != nil {
		t.Errorf("resume of a finished job: %v", err)
	}
}
