package daemon_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
)

// elastic is a job that takes as many processors as there are.
func (tn *town) elastic(c *driver.Client, tokens int64) string {
	tn.t.Helper()
	spec := tinySpec(actorstest.Corpus(tn.t, tn.t.TempDir()), tokens)
	spec.HardwareConstraint = "cpu-any"
	id, err := c.Submit(tn.t.Context(), "", spec, nil)
	if err != nil {
		tn.t.Fatal(err)
	}
	return id
}

// lent waits until so many nodes lend a running job their devices.
func (tn *town) lent(c *driver.Client, id string, n int) (j daemon.Job) {
	tn.t.Helper()
	waitFor(tn.t, func() bool {
		d, err := c.Job(tn.t.Context(), id)
		if err != nil {
			return false // none leads: the leader may have been the one that was killed
		}
		if d.State.Over() {
			tn.t.Fatalf("%+v", d.Job)
		}
		j = d.Job
		return d.State == daemon.Running && len(d.Lent) == n
	})
	return j
}

// done follows a job to its good end: every decision has one outcome, none a failure.
func (tn *town) done(c *driver.Client, id string, epoch uint64) {
	tn.t.Helper()
	ctx, cancel := context.WithTimeout(tn.t.Context(), time.Minute)
	defer cancel()
	f, err := c.Follow(ctx, id, nil, nil)
	if err != nil || f.Job.State != daemon.Done || f.Job.Epoch != epoch {
		tn.t.Fatalf("%+v, %v", f.Job, err)
	}
	if n := len(f.State.Outcomes); n != len(f.State.Decisions) {
		tn.t.Errorf("%d outcomes of %d decisions", n, len(f.State.Decisions))
	}
	for seq, o := range f.State.Outcomes {
		if o.Failed {
			tn.t.Errorf("trial #%d failed: %s", seq, o.Err)
		}
	}
}

// trains waits until a node trains a trial of the job.
func (tn *town) trains(node, id string) {
	tn.t.Helper()
	waitFor(tn.t, func() bool {
		worked, _ := filepath.Glob(filepath.Join(tn.dir, node, "jobs", id, "trials", "*", "metrics.jsonl"))
		return len(worked) > 0
	})
}

// What a lending node outlived reaches who watches the job, of later ones too.
func TestLenderSays(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	tn.settle(c, 1, 1)
	tn.start("b")
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 1<<40)
	spec.HardwareConstraint, spec.Isolation = "cpu-any", "process"
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	guest := tn.lent(c, id, 1).Lent[0].NodeName
	tn.trains(guest, id)
	hears := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		said := make(listener, 64)
		followed := make(chan struct{})
		go func() {
			defer close(followed)
			_, _ = c.Follow(ctx, id, said, nil)
		}()
		defer func() {
			cancel()
			<-followed
		}()
		for {
			select {
			case text := <-said:
				if strings.HasPrefix(text, "node "+guest+": cpu:") && strings.HasSuffix(text, "its work is done anew") {
					return
				}
			case <-ctx.Done():
				t.Fatal("nothing was heard of it")
			}
		}
	}
	for _, pid := range actorstest.Children(t, tn.nodes[guest].cmd.Process.Pid) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	hears()
	hears() // who comes later
	if err := c.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// listener is a View that only listens.
type listener chan string

// Update implements driver.View.
func (listener) Update(driver.Update) {}

// Progress implements driver.View.
func (listener) Progress(actors.Progress) {}

// Notice implements driver.View.
func (l listener) Notice(text string) { l <- text }

// A lender that has no room for the job's data is left alone; no trial fails for it.
func TestLenderWithoutRoom(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	tn.settle(c, 1, 1)
	id := tn.elastic(c, 150000)
	tn.lent(c, id, 0)
	b := tn.start("b", func(cfg *daemon.Config) { cfg.Quota = 1 })
	tn.done(c, id, 1)
	if n := strings.Count(b.out.String(), "lends it"); n == 0 || n > 5 {
		t.Errorf("it lent its devices %d times", n)
	}
}

// When the node of a job dies its lenders let their devices go, also those that it had
// not heard of yet, and lend them to the job anew.
func TestHomeDies(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	for _, name := range []string{"b", "c", "d"} {
		tn.start(name)
	}
	tn.settle(c, 4, 3)
	id := tn.elastic(c, 400000)
	j := tn.lent(c, id, 3)
	for _, l := range j.Lent {
		tn.trains(l.NodeName, id)
	}
	tn.nodes[j.NodeName].kill()
	killed := time.Now()
	for name, p := range tn.nodes {
		if name != j.NodeName {
			c = tn.client(p)
		}
	}
	// Until it has begun anew its lenders leave it one by one.
	waitFor(t, func() bool {
		d, err := c.Job(t.Context(), id)
		return err == nil && d.Epoch == 2
	})
	tn.lent(c, id, 2)
	t.Logf("lent anew after %v", time.Since(killed))
	tn.done(c, id, 2)
}

// A lender that sleeps is one that is lost; when it wakes up it is a lender again, and
// what it did meanwhile counts for nothing.
func TestLenderSleeps(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	tn.settle(c, 1, 1)
	id := tn.elastic(c, 800000)
	tn.lent(c, id, 0)
	b := tn.start("b")
	tn.lent(c, id, 1)
	tn.trains("b", id)
	if err := b.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	tn.lent(c, id, 0)
	if err := b.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	tn.lent(c, id, 1)
	tn.done(c, id, 1)
}

// A job that needs devices of several nodes at once gets those that are lent: each is
// called back once.
func TestCalledBackOnce(t *testing.T) {
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	for _, name := range []string{"b", "c", "d"} {
		tn.start(name)
	}
	tn.settle(c, 4, 3)
	id := tn.elastic(c, 2000000)
	tn.lent(c, id, 3)
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 20000)
	spec.HardwareConstraint, spec.Backend = "cpu-6", "tcp"
	began := time.Now()
	fixed, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		d, err := c.Job(t.Context(), fixed)
		return err == nil && d.State == daemon.Running
	})
	took := time.Since(began)
	n := 0
	for _, p := range tn.nodes {
		n += strings.Count(p.out.String(), "job "+id+": lends it")
	}
	t.Logf("it began after %v; %d loans till then", took, n)
	if n != 3 {
		t.Errorf("devices were lent %d times until all were called back, want 3", n)
	}
	if err := c.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	tn.done(c, fixed, 1)
}

// A trial that a drained lender had begun goes on elsewhere from where it was.
func TestDrainedLenderHandsOn(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	tn.settle(c, 1, 1)
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 3000000)
	spec.HardwareConstraint = "cpu-any"
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	tn.lent(c, id, 0)
	tn.start("b")
	tn.lent(c, id, 1)
	tn.trains("b", id)
	begun := func() string { return filepath.Join(tn.dir, "b", "jobs", id, "trials", "*", "metrics.jsonl") }
	waitFor(t, func() bool { // it is in the middle of one
		return len(unscored(t, begun())) > 0
	})
	if err := c.Drain(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	tn.lent(c, id, 0)
	for _, metrics := range unscored(t, begun()) {
		dir := filepath.Dir(metrics)
		saved, err := filepath.Glob(filepath.Join(dir, "*", "step-*.safetensors"))
		if err != nil || len(saved) == 0 {
			continue // it had not learned anything yet
		}
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(saved[0]), "step-"), ".safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool {
			b, err := os.ReadFile(filepath.Join(tn.dir, "a", "jobs", id, "trials", filepath.Base(dir), "metrics.jsonl"))
			return err == nil && strings.Contains(string(b), fmt.Sprintf(`{"step":%d,`, n+1))
		})
	}
	if err := c.Cancel(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// unscored are the metrics of trials that have trained, and were not scored yet.
func unscored(t *testing.T, pattern string) (out []string) {
	t.Helper()
	all, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if b, err := os.ReadFile(path); err == nil && strings.Count(string(b), "\n") > 1 && !strings.Contains(string(b), "bits_per_byte") {
			out = append(out, path)
		}
	}
	return out
}
