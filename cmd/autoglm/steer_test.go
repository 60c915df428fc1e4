package main

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// steered is a build that runs: its events, as they come.
type steered struct {
	t      *testing.T
	dir    string
	lines  *bufio.Scanner
	signal func(os.Signal)
	wait   func() int
}

func steeredBuild(t *testing.T, dir string, args ...string) *steered {
	t.Helper()
	c, out, stderr := start(t, dir, append(args, "--json")...)
	s := &steered{t: t, dir: dir, lines: bufio.NewScanner(out), signal: func(sig os.Signal) { _ = c.Process.Signal(sig) }}
	s.lines.Buffer(nil, 1<<20)
	s.wait = func() int {
		for s.lines.Scan() {
		}
		_ = c.Wait()
		if t.Failed() {
			t.Log(stderr.String())
		}
		return c.ProcessState.ExitCode()
	}
	t.Cleanup(func() { _ = c.Process.Kill() })
	return s
}

// until reads events up to the first that f picks.
func (s *steered) until(f func(e journal.Event) bool) {
	s.t.Helper()
	for s.lines.Scan() {
		var e journal.Event
		if err := json.Unmarshal(s.lines.Bytes(), &e); err == nil && f(e) {
			return
		}
	}
	s.t.Fatal("the event never came")
}

func decided(n int) func(journal.Event) bool {
	return func(e journal.Event) bool { return e.Kind == journal.Decided && e.Decision.Seq == n }
}

// order gives one that must be taken.
func (s *steered) order(words ...string) search.Order {
	s.t.Helper()
	out, errs, code := autoglm(s.t, s.dir, append([]string{"steer", "run", "--json"}, words...)...)
	var o search.Order
	if err := json.Unmarshal([]byte(out), &o); code != 0 || err != nil {
		s.t.Fatalf("%v: exit %d, %v: %s", words, code, err, errs)
	}
	return o
}

// A build is steered in each way from another process while it runs, and refuses what
// makes no sense.
func TestSteer(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	refused := func(want string, words ...string) {
		t.Helper()
		if _, errs, code := autoglm(t, dir, append([]string{"steer"}, words...)...); code != exitUsage || !strings.Contains(errs, want) {
			t.Errorf("%v: exit %d, want %q: %s", words, code, want, errs)
		}
	}
	write(t, filepath.Join(dir, "job.yaml"), `hardware_constraint: cpu-any
budget: {tokens: 450000}
search_strategy: tpe
space: {dim: 64, layers: "int(1, 2)", context: 32, vocab: [320, 384], batch_tokens: 256, warmup_steps: 2}
`)
	s := steeredBuild(t, dir, "build", "log.txt", "--job", "job.yaml", "--out", "run")
	s.until(decided(0))
	stop := s.order("stop", "t001")
	enqueued := s.order("enqueue", "lr=0.004", "layers=1")
	narrowed := s.order("narrow", "lr=1e-3..5e-3", "dropout=0..0.1")
	extended := s.order("extend", "+150_000", "tokens")
	if info, err := os.Stat(filepath.Join(dir, "run", "steer.sock")); err != nil || info.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	refused("trial t001", "run", "stop", "t001")
	refused(`trial "t999" is unknown`, "run", "stop", "t999")
	refused("no dimension of the space", "run", "enqueue", "d_model=64")
	refused("lr is 3, outside log_uniform", "run", "enqueue", "lr=3")
	refused("is not within", "run", "narrow", "lr=1..2")
	refused("the budget of this job is in tokens", "run", "extend", "+10m")
	refused("write +10m", "run", "extend", "much")
	refused("there are [enqueue narrow extend stop]", "run", "halt")
	if code := s.wait(); code != 0 {
		t.Fatalf("the build ends with %d", code)
	}
	refused("no build runs in run", "run", "stop", "t002")
	if _, err := os.Stat(filepath.Join(dir, "run", "steer.sock")); !os.IsNotExist(err) {
		t.Errorf("the socket outlives the build: %v", err)
	}
	st, err := replay(filepath.Join(dir, "run"))
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Orders) != 4 || st.Spec.Budget.Tokens != 600_000 || st.Plan.SearchTrials != 12+extended.Brackets[0].Trials || st.Winner == "t001" {
		t.Errorf("%d orders, budget %+v, winner %s, plan %+v", len(st.Orders), st.Spec.Budget, st.Winner, st.Plan)
	}
	starts, asked := 0, 0
	for _, d := range st.Decisions {
		switch {
		case d.Trial == "t001" && d.Seq >= stop.Before:
			t.Errorf("%+v goes on with what was stopped", d)
		case d.Action != search.Start:
		default:
			starts++
			if d.Reason == search.EnqueuedByUser {
				asked++
				if d.Seq < enqueued.Before || d.Config.Key() != enqueued.Config.Key() || d.Config.Float("lr") != 0.004 {
					t.Errorf("%+v is not what was enqueued", d)
				}
			} else if lr := d.Config.Float("lr"); d.Seq >= narrowed.Before && (lr < 1e-3 || lr > 5e-3 || d.Config.Float("dropout") > 0.1) {
				t.Errorf("%+v is outside of what the search was narrowed to", d)
			}
		}
	}
	if asked != 1 || starts != st.Plan.SearchTrials {
		t.Errorf("%d of %d trials were enqueued, the plan has %d", asked, starts, st.Plan.SearchTrials)
	}
	b, err := os.ReadFile(filepath.Join(dir, "run", "report.html"))
	if err != nil || !strings.Contains(string(b), "How the search was steered") || !strings.Contains(string(b), "narrow dropout=0..0.1 lr=1e-3..5e-3") {
		t.Errorf("the report doesn't tell how the search was steered: %v", err)
	}
}

// Killed between an order and its effect, a build goes on with it.
func TestSteerSurvivesKillNine(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	write(t, filepath.Join(dir, "job.yaml"), `hardware_constraint: cpu-2
budget: {tokens: 4000000}
space: {dim: 64, layers: "int(1, 2)", context: 32, vocab: [320, 384], batch_tokens: 256, warmup_steps: 2}
`)
	s := steeredBuild(t, dir, "build", "log.txt", "--job", "job.yaml", "--out", "run")
	s.until(decided(1)) // both devices train, for a second or more
	s.order("enqueue", "dropout=0.07")
	narrowed := s.order("narrow", "lr=1e-3..2e-3")
	s.signal(syscall.SIGKILL)
	s.wait()
	st, err := replay(filepath.Join(dir, "run"))
	if err != nil || len(st.Orders) != 2 {
		t.Fatalf("%d orders, %v", len(st.Orders), err)
	}
	if len(st.Decisions) > narrowed.Before {
		t.Skip("the trials were faster than the kill")
	}
	s = steeredBuild(t, dir, "resume", "run")
	s.until(func(e journal.Event) bool {
		return e.Kind == journal.Decided && e.Decision.Reason == search.EnqueuedByUser && e.Decision.Config.Float("dropout") == 0.07
	})
	s.until(func(e journal.Event) bool {
		if e.Kind == journal.Decided {
			if lr := e.Decision.Config.Float("lr"); lr < 1e-3 || lr > 2e-3 {
				t.Errorf("%+v is outside of what the search was narrowed to", e.Decision)
			}
		}
		return e.Kind == journal.Decided && e.Decision.Seq >= narrowed.Before+2
	})
	s.order("stop", "t003") // the socket of the build that was killed is no hindrance
	s.signal(syscall.SIGKILL)
	s.wait()
}
