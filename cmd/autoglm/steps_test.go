package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// stepsJob is a job whose data a step makes, with steps between and after.
const stepsJob = `hardware_constraint: cpu-any
budget: {tokens: 30000}
space: {dim: 64, layers: 1, context: 32, vocab: 320, batch_tokens: 256, warmup_steps: 2}
data: {files: steps/fetch/corpus.txt}
steps:
  - name: fetch
    run: ./fetch.sh
    before: [probe]
    retries: 2
    backoff: 50ms
    timeout: 1m
    resources: {cpus: 1, memory: 512MiB}
  - name: mix
    run: "date >> times; ls ../../data; until test -e ../../go; do sleep 0.02; done"
    needs: [clean]
    before: [search]
  - name: publish
    run: [cp, ../../bundle/config.json, published.json]
    needs: [bundle]
`

func stepsFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	corpus(t, dir)
	write(t, filepath.Join(dir, "steps.yaml"), stepsJob)
	write(t, filepath.Join(dir, "fetch.sh"), `#!/bin/sh
date >> times
test $AUTOGLM_ATTEMPT -ge 2 || { echo the mirror is down; exit 3; }
cp `+filepath.Join(dir, "log.txt")+` corpus.txt
`)
	return dir
}

func TestStepsAreOffByDefault(t *testing.T) {
	dir := stepsFolder(t)
	_, stderr, code := autoglm(t, dir, "build", "--job", "steps.yaml", "--out", "run")
	if code != 2 || !strings.Contains(stderr, "steps: name programs") || !strings.Contains(stderr, "--allow-steps") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "run", "steps")); err == nil {
		t.Error("a step began")
	}
	if err := os.Remove(filepath.Join(dir, "fetch.sh")); err != nil {
		t.Fatal(err)
	}
	_, stderr, code = autoglm(t, dir, "build", "--job", "steps.yaml", "--out", "run", "--allow-steps")
	if code != 2 || !strings.Contains(stderr, "steps[0].files[0]") || !strings.Contains(stderr, "fetch.sh") {
		t.Errorf("a program that is missing: exit %d: %s", code, stderr)
	}
}

func TestPlanPrintsTheGraph(t *testing.T) {
	dir := stepsFolder(t)
	stdout, stderr, code := autoglm(t, dir, "plan", "--job", "steps.yaml")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, want := range []string{"fetch – 1m0s 2 after 50ms, doubled 1 CPUs, 512MiB sh -c ./fetch.sh", "search tokenize, mix – 2", "publish bundle – 0 – cp ../../bundle/config.json"} {
		if !strings.Contains(strings.Join(strings.Fields(stdout), " "), want) {
			t.Errorf("%q is not in\n%s", want, stdout)
		}
	}
	stdout, _, _ = autoglm(t, dir, "plan", "--job", "steps.yaml", "--json")
	var out struct {
		Graph []struct {
			Name  string
			Needs []string
		}
	}
	if err := json.Unmarshal([]byte(stdout), &out); err != nil || len(out.Graph) != 10 || out.Graph[0].Name != "fetch" {
		t.Errorf("%v: %s", err, stdout)
	}
}

// A build that is killed while steps and stages run goes on: what was finished is not
// run again, attempts that failed count, and what was running leaves nothing behind.
func TestStepsKillNineAndResume(t *testing.T) {
	dir := stepsFolder(t)
	times := func(step string) int {
		b, err := os.ReadFile(filepath.Join(dir, "run", "steps", step, "times"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "\n")
	}
	var events []string
	stderr, code := follow(t, dir, func(event, stage string, c *exec.Cmd) {
		if events = append(events, event+" "+stage); event == "stage_done" && stage == "tokenize" {
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
				if _, err := os.Stat(filepath.Join(dir, "run", "steps", "mix", "times")); err == nil {
					break
				}
			}
			if err := c.Process.Kill(); err != nil {
				t.Error(err)
			}
		}
	}, "build", "--job", "steps.yaml", "--out", "run", "--allow-steps")
	if code != -1 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if want := []string{"stage_started fetch", "stage_failed fetch", "stage_started fetch", "stage_done fetch", "stage_started probe"}; !slices.Equal(events[1:6], want) {
		t.Errorf("%q", events)
	}
	if times("fetch") != 2 || times("mix") != 1 {
		t.Errorf("fetch began %d times, mix %d", times("fetch"), times("mix"))
	}
	// Resume says so itself where steps aren't allowed.
	if _, stderr, code := autoglm(t, dir, "resume", "run"); code != 2 || !strings.Contains(stderr, "--allow-steps") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	write(t, filepath.Join(dir, "run", "go"), "")
	events = nil
	stderr, code = follow(t, dir, func(event, stage string, _ *exec.Cmd) { events = append(events, event+" "+stage) }, "resume", "run", "--allow-steps")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	if times("fetch") != 2 || times("mix") != 2 || slices.Contains(events, "stage_started clean") || !slices.Contains(events, "stage_done publish") {
		t.Errorf("fetch began %d times, mix %d: %q", times("fetch"), times("mix"), events)
	}
	if _, err := os.Stat(filepath.Join(dir, "run", "steps", "publish", "published.json")); err != nil {
		t.Error(err)
	}
	made(t, filepath.Join(dir, "run"))
}

// A step that takes too long is ended with all that it started, and the build fails
// with the end of its log.
func TestStepTakesTooLong(t *testing.T) {
	dir := t.TempDir()
	corpus(t, dir)
	write(t, filepath.Join(dir, "late.yaml"), `steps:
  - name: late
    run: "echo begun; (sleep 600; true) & echo $! > child; echo working; sleep 600"
    before: [probe]
    timeout: 700ms
`)
	begin := time.Now()
	_, stderr, code := autoglm(t, dir, "build", "log.txt", "--job", "late.yaml", "--out", "run", "--allow-steps")
	if code != 1 || !strings.Contains(stderr, "late: took longer than 700ms") {
		t.Errorf("exit %d after %v: %s", code, time.Since(begin), stderr)
	}
	b, err := os.ReadFile(filepath.Join(dir, "run", "steps", "late", "child"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(stat), ") Z ") && syscall.Kill(pid, 0) == nil {
		t.Errorf("its child %d lives: %s", pid, stat)
	}
}
