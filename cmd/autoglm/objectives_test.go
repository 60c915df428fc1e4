package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// A build of two objectives under a constraint, as its user meets it.
func TestTwoObjectives(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	text, err := os.ReadFile(filepath.Join(dir, "job.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "two.yaml"), string(text)+"objectives: [bits_per_byte, latency]\nconstraints: {max_latency: 1s, max_size_mb: 20}\nserves_on: cpu-2\n")
	ok := func(args ...string) string {
		t.Helper()
		stdout, stderr, code := autoglm(t, dir, args...)
		if code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, stderr)
		}
		return stdout
	}
	says := func(what, text string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("%s does not say %q:\n%.3000s", what, w, text)
			}
		}
	}
	says("plan", ok("plan", "log.txt", "--job", "two.yaml"), "Objectives: bits_per_byte, latency;", "Constraints: latency at most 1 s, size at most 20.00 MB", "generate on cpu-2, latency ")
	built := ok("build", "log.txt", "--job", "two.yaml", "--out", "run")
	says("build", built, " tokens/s, latency ", "s/token", "knee")
	if strings.Contains(built, "MISSED") {
		t.Errorf("a second for a token is missed:\n%s", built)
	}
	says("trials", ok("trials", "run"), "s/token", "size", "mark", "knee")
	says("leaderboard", ok("leaderboard", "run"), "s/token", "the knee of the front")
	says("trials --csv", ok("trials", "run", "--csv"), "latency_s,memory_bytes,size_bytes,energy_j,task_error,mark,misses", ",knee,")
	says("trials --optuna", ok("trials", "run", "--optuna"), `"directions":["minimize","minimize"]`, `"values":[`)
	var rows []standing
	if err := json.Unmarshal([]byte(ok("leaderboard", "run", "--json")), &rows); err != nil {
		t.Fatal(err)
	}
	knees, last := 0, rows[len(rows)-1]
	for _, r := range rows {
		if r.Knee {
			knees++
		}
		if r.Cost == nil || r.Cost.Threads != 2 {
			t.Errorf("%s costs %+v", r.Model, r.Cost)
		}
	}
	if knees != 1 {
		t.Errorf("%d knees", knees)
	}
	page, err := os.ReadFile(filepath.Join(dir, "run", "report.html"))
	if err != nil {
		t.Fatal(err)
	}
	says("the report", string(page), `id="chart-goals"`, `id="chart-volume"`, "latency at most 1 s")
	says("bundle", ok("bundle", "run", "--trial", last.Model, "--out", "other"), "bits per byte on held-out text, latency ")
	ok("generate", "other", "--prompt", "a", "--max-tokens", "4")
	for _, args := range [][]string{{"bundle", "run", "--trial", "t099", "--out", "x"}, {"bundle", "run"}, {"bundle", "nowhere", "--trial", "t001", "--out", "x"}} {
		if _, stderr, code := autoglm(t, dir, args...); code != exitUsage {
			t.Errorf("%v: exit %d: %s", args, code, stderr)
		}
	}
	write(t, filepath.Join(dir, "clash.yaml"), string(text)+"constraints: {max_size_mb: 0.1}\n")
	if _, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "clash.yaml", "--out", "clash"); code != exitUsage || !strings.Contains(stderr, "max_size_mb allows 0.10 MB") {
		t.Errorf("a tenth of a megabyte: exit %d: %s", code, stderr)
	}
}

// What a user is told who gets a model that misses a constraint.
func TestRemedy(t *testing.T) {
	score := 2.0
	b := journal.Leaderboard{Objectives: []string{job.BitsPerByte, job.Latency}, Final: &journal.Entry{ID: "final", Parent: "t001"}, Trials: []journal.Entry{
		{ID: "t001", Score: &score, Misses: []string{"latency"}, Cost: &train.Cost{Latency: 1}},
		{ID: "t002", Score: &score, Misses: []string{"latency"}, Cost: &train.Cost{Latency: 1}},
	}}
	if got := remedy("run", &b); !strings.Contains(got, "No trial held them all") {
		t.Error(got)
	}
	b.Trials[1] = journal.Entry{ID: "t002", Score: &score, Front: true, Cost: &train.Cost{Latency: 0.002}}
	if got := remedy("run", &b); !strings.Contains(got, "autoglm bundle run --trial t002 --out DIR") {
		t.Error(got)
	}
	if got, want := fronters(b), "t002 2.0000, latency 2 ms"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
