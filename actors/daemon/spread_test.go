package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// A job that takes as many devices as there are is lent those of other nodes; what a
// lender that dies was doing is done elsewhere.
func TestSpread(t *testing.T) {
	t.Parallel() // it waits most of the time
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 400000)
	spec.HardwareConstraint = "cpu-any"
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	tn.start("b")
	tn.settle(c, 2, 1)
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	lenders := func(n int) (j daemon.Job) {
		t.Helper()
		waitFor(t, func() bool {
			d, err := c.Job(t.Context(), id)
			if err != nil || d.State.Over() {
				t.Fatalf("%+v, %v", d.Job, err)
			}
			j = d.Job
			return len(d.Lent) == n
		})
		return j
	}
	lenders(1)
	tn.start("c") // in its middle
	j := lenders(2)
	home, victim := tn.nodes[j.NodeName], tn.nodes[j.Lent[0].NodeName]
	waitFor(t, func() bool { // it trains
		worked, _ := filepath.Glob(filepath.Join(tn.dir, victim.name, "jobs", id, "trials", "*", "metrics.jsonl"))
		return len(worked) > 1
	})
	victim.kill()
	c = tn.client(home)
	f, err := c.Follow(t.Context(), id, nil, nil)
	if err != nil || f.Job.State != daemon.Done {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	if f.Job.Epoch != 1 {
		t.Errorf("it was given to a node %d times", f.Job.Epoch)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := c.Fetch(t.Context(), id, out, nil); err != nil {
		t.Fatal(err)
	}
	outcome(t, out)
}

// What is lent goes back when another job could have it, and when its node is drained.
func TestLoansGoBack(t *testing.T) {
	t.Parallel() // it waits most of the time
	corpus := actorstest.Corpus(t, t.TempDir())
	spec := tinySpec(corpus, 500000)
	spec.HardwareConstraint = "cpu-any"
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	tn.start("b")
	tn.start("c")
	tn.settle(c, 3, 3)
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	look := func(id string) daemon.Job {
		t.Helper()
		d, err := c.Job(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return d.Job
	}
	lent := func(n int) { waitFor(t, func() bool { return len(look(id).Lent) == n }) }
	lent(2)
	other, err := c.Submit(t.Context(), "", tinySpec(corpus, 20000), nil)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return look(other).State == daemon.Running })
	if j := look(id); len(j.Lent) != 1 || j.Epoch != 1 || j.Node == look(other).Node {
		t.Errorf("%+v", j)
	}
	waitFor(t, func() bool { return look(other).State == daemon.Done })
	lent(2)
	for _, l := range look(id).Lent {
		if l.NodeName != "a" { // which is asked
			if err := c.Drain(t.Context(), l.NodeName); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	lent(1)
	f, err := c.Follow(t.Context(), id, nil, nil)
	if err != nil || f.Job.State != daemon.Done || f.Job.Epoch != 1 {
		t.Fatalf("%+v, %v", f.Job, err)
	}
}

// A training whose ranks are of three nodes, each in its node's process or in one of
// its own, goes on when a node dies, from the step at which it was.
func TestRingOverNodes(t *testing.T) {
	t.Parallel() // it waits most of the time
	for _, isolation := range []string{"none", "process"} {
		t.Run(isolation, func(t *testing.T) { testRingOverNodes(t, isolation) })
	}
}

func testRingOverNodes(t *testing.T, isolation string) {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 250000)
	spec.HardwareConstraint, spec.Backend = "cpu-6", "tcp"
	spec.Isolation = isolation
	tn := newTown(t)
	tn.authority()
	c := tn.client(tn.start("a"))
	tn.start("b")
	tn.start("c")
	tn.settle(c, 3, 3)
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := &ringWatch{at: func() {
		d, err := c.Job(context.Background(), id)
		if err != nil || len(d.Lent) != 2 {
			t.Errorf("%+v, %v", d.Job, err)
			return
		}
		for _, l := range d.Lent {
			if l.NodeName != "a" { // which is asked
				_ = tn.nodes[l.NodeName].cmd.Process.Kill()
				return
			}
		}
	}}
	f, err := c.Follow(t.Context(), id, r, nil)
	if err != nil || f.Job.State != daemon.Done || f.Job.Epoch != 1 {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	if r.after == 0 {
		t.Fatal("it was over before the loss was felt")
	}
	t.Logf("killed at step %d, goes on after %v", r.steps, r.after)
	if rings := ringsOf(t, c, id); len(rings) < 2 || !strings.HasPrefix(rings[0], "tcp") {
		t.Errorf("the ranks were joined by %q", rings)
	}
}

// A training takes in the devices of a node that joins while it runs.
func TestRingGrows(t *testing.T) {
	t.Parallel() // it waits most of the time
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 400000)
	spec.HardwareConstraint = "cpu-any"
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	began := make(chan struct{})
	go func() {
		<-began
		tn.start("b")
	}()
	f, err := c.Follow(t.Context(), id, &ringWatch{at: func() { close(began) }}, nil)
	if err != nil || f.Job.State != daemon.Done || f.Job.Epoch != 1 {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	if rings := ringsOf(t, c, id); !slices.ContainsFunc(rings, func(r string) bool { return strings.HasPrefix(r, "shm") }) {
		t.Errorf("the ranks were joined by %q", rings)
	}
}

// ringsOf is what joined the ranks of a job's final training.
func ringsOf(t *testing.T, c *driver.Client, id string) (out []string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "out")
	if err := c.Fetch(t.Context(), id, dir, nil); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "trials", "final", "metrics.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var m train.StepMetrics
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatal(err)
		}
		if m.Ring != "" {
			out = append(out, m.Ring)
		}
	}
	return out
}

// ringWatch looks at a final training, and does something in its middle.
type ringWatch struct {
	at     func()
	struck time.Time
	steps  int // at that moment
	after  time.Duration
}

// Update implements driver.View.
func (r *ringWatch) Update(driver.Update) {}

// Notice implements driver.View.
func (r *ringWatch) Notice(string) {}

// Progress implements driver.View.
func (r *ringWatch) Progress(p actors.Progress) {
	switch {
	case p.Seq >= 0 || p.Metrics.Step < 50:
	case r.struck.IsZero():
		r.at()
		r.struck, r.steps = time.Now(), p.Metrics.Step
	case r.after == 0 && p.Metrics.Step > r.steps+20:
		r.after = time.Since(r.struck)
	}
}

// What an earlier epoch of a trial keeps is refused, as is what an earlier epoch of
// the job does.
func TestStaleTrialKeepsNothing(t *testing.T) {
	tn := newTown(t)
	a := tn.start("a")
	c := tn.client(a)
	tn.settle(c, 1, 1)
	id, err := c.Submit(t.Context(), "", tinySpec(actorstest.Corpus(t, t.TempDir()), 1<<30), nil)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		d, err := c.Job(t.Context(), id)
		return err == nil && d.State == daemon.Running
	})
	for _, w := range []struct {
		epoch int
		body  string
		code  int
	}{
		{1, `{"trial": "x", "fence": 7}`, http.StatusOK},
		{1, `{"trial": "x", "fence": 7, "put": {}}`, http.StatusOK},
		{1, `{"trial": "x", "fence": 6}`, http.StatusConflict},
		{1, `{"trial": "y", "fence": 6}`, http.StatusOK},
		{0, `{"trial": "x", "fence": 9}`, http.StatusConflict},
	} {
		r, err := http.Post(fmt.Sprintf("http://%s/internal/jobs/%s/folder?epoch=%d", a.addr, id, w.epoch), "application/json", strings.NewReader(w.body))
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != w.code {
			t.Errorf("epoch %d, %s: %s, want %d", w.epoch, w.body, r.Status, w.code)
		}
	}
}
