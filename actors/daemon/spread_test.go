package daemon_test

import (
	"path/filepath"
	"testing"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

// A job that takes as many devices as there are is lent those of other nodes; what a
// lender that dies was doing is done elsewhere.
func TestSpread(t *testing.T) {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 600000)
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

// A training whose ranks are of three nodes goes on when one of them dies, from the
// step at which it was.
func TestRingOverNodes(t *testing.T) {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 0)
	spec.HardwareConstraint = "cpu-6"
	spec.Budget = job.Budget{Tokens: 1500000}
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	tn.start("b")
	tn.start("c")
	tn.settle(c, 3, 3)
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Follow(t.Context(), id, looking{t}, func(j daemon.Job) { t.Log(j.State, j.NodeName, j.Why, len(j.Lent)) })
	if err != nil || f.Job.State != daemon.Done {
		t.Fatalf("%+v, %v", f.Job, err)
	}
}

type looking struct{ t *testing.T }

func (l looking) Update(u driver.Update) {
	e := u.Event
	if e.Kind != journal.Tick {
		l.t.Log(e.Kind, e.Stage, e.Trial)
	}
}

func (l looking) Progress(p actors.Progress) {
	if p.Seq < 0 {
		l.t.Logf("final step %d: %+v", p.Metrics.Step, p.Metrics)
	}
}
