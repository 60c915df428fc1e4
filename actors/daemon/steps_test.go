package daemon_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// A job with steps waits for a node that allows them, says so, and takes its programs
// along.
func TestStepsOnACluster(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	a := tn.start("a")
	c := tn.client(a)
	tn.settle(c, 1, 1)
	dir := t.TempDir()
	corpus := actorstest.Corpus(t, dir)
	text, err := os.ReadFile(corpus)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "fetch.sh")
	if err := os.WriteFile(program, append([]byte("#!/bin/sh\ncat > corpus.txt <<'END'\n"), append(text, "END\n"...)...), 0o644); err != nil { // without the right to run it
		t.Fatal(err)
	}
	spec := tinySpec("", 24000)
	spec.Data.Files = []string{"steps/fetch/corpus.txt"}
	spec.Steps = []job.Step{
		{Name: "fetch", Run: job.Line("./fetch.sh"), Files: []string{program}, Before: []string{job.StageProbe}},
		{Name: "look", Run: job.Command{"ls", "../../bundle"}, Needs: []string{job.StageBundle}},
	}
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		d, err := c.Job(t.Context(), id)
		return err == nil && d.State == daemon.Queued && strings.Contains(d.Why, "allow-steps")
	})
	tn.start("b", func(cfg *daemon.Config) { cfg.AllowSteps = true })
	f, err := c.Follow(t.Context(), id, nil, nil)
	if err != nil || f.Job.State != daemon.Done || f.Job.NodeName != "b" {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	d, err := c.Job(t.Context(), id)
	if err != nil || len(d.Graph) != 9 || d.Graph[0].Stage != "fetch" || !d.Graph[0].Step || d.Graph[8].Status != job.Done {
		t.Errorf("%+v, %v", d.Graph, err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := c.Fetch(t.Context(), id, out, nil); err != nil {
		t.Fatal(err)
	}
	if log, err := os.ReadFile(filepath.Join(out, "steps", "look", "log")); err != nil || !strings.Contains(string(log), "model.safetensors") {
		t.Errorf("%q, %v", log, err)
	}

	spec.Steps[0].Files, spec.Data.Files = nil, []string{"steps/nobody/corpus.txt"}
	if _, err := c.Submit(t.Context(), "", spec, nil); err == nil || !strings.Contains(err.Error(), "steps/nobody") {
		t.Errorf("data that nobody makes: %v", err)
	}
}

// When the node of a job is lost, another goes on: steps that were finished are not run
// again, what they made is there, and one that was running is run anew.
func TestStepsOutliveANode(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	allow := func(cfg *daemon.Config) { cfg.AllowSteps = true }
	a := tn.start("a", allow)
	tn.start("b", allow)
	tn.start("c", allow)
	c := tn.client(a)
	tn.settle(c, 3, 3)
	dir := t.TempDir()
	corpus := actorstest.Corpus(t, dir)
	count := func(name string) int {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return 0
		}
		return strings.Count(string(b), "\n")
	}
	spec := tinySpec("", 24000)
	spec.Data.Files = []string{"steps/make/corpus.txt"}
	spec.Steps = []job.Step{
		{Name: "make", Run: job.Line("echo x >> " + dir + "/made; cp " + corpus + " corpus.txt"), Before: []string{job.StageProbe}},
		{Name: "hold", Run: job.Line("sleep 600 & echo $! >> " + dir + "/held; until test -e " + dir + "/go; do sleep 0.02; done"), Needs: []string{"make"}, Before: []string{job.StageClean}},
	}
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return count("held") == 1 })
	d, err := c.Job(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	home := tn.nodes[d.NodeName]
	home.kill()
	for _, p := range tn.nodes {
		if p != home {
			c = tn.client(p)
		}
	}
	waitFor(t, func() bool { return count("held") == 2 })
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := c.Follow(t.Context(), id, nil, nil)
	if err != nil || f.Job.State != daemon.Done || f.Job.NodeName == d.NodeName {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	if count("made") != 1 || count("held") != 2 {
		t.Errorf("make ran %d times, hold %d", count("made"), count("held"))
	}
	// What the step left on the node that was killed ends when that starts again.
	b, err := os.ReadFile(filepath.Join(dir, "held"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	lives := func() bool {
		stat, err := os.ReadFile("/proc/" + first + "/stat")
		return err == nil && !strings.Contains(string(stat), ") Z ")
	}
	if !lives() {
		t.Error("it left nothing")
	}
	tn.start(d.NodeName, allow)
	if lives() {
		t.Error("it is still there")
	}
}
