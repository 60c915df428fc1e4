package daemon_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/cluster/cert"
)

// A job of higher priority has a lower one stopped, which goes on afterwards and ends
// as one that was not disturbed.
func TestPreemption(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	a := tn.start("a")
	c := tn.client(a)
	tn.settle(c, 1, 1)
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 80000)
	low, err := c.Submit(t.Context(), "low", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	get := func(id string) daemon.Detail {
		t.Helper()
		d, err := c.Job(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	waitFor(t, func() bool {
		d := get(low)
		if d.State.Over() {
			t.Fatalf("%+v", d.Job)
		}
		return d.State == daemon.Running && len(d.Board.Trials) > 0
	})
	urgent := tinySpec(actorstest.Corpus(t, t.TempDir()), 24000)
	urgent.Priority = 5
	high, err := c.Submit(t.Context(), "high", urgent, nil)
	if err != nil {
		t.Fatal(err)
	}
	var why string
	f, err := c.Follow(t.Context(), high, nil, func(daemon.Job) {
		if d := get(low); d.State == daemon.Queued {
			why = d.Why
		}
	})
	if err != nil || f.Job.State != daemon.Done {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	if !strings.Contains(why, high+" has 2") && !strings.Contains(why, high+" needs its devices, with priority 5 over 0") {
		t.Errorf("the lower one waited, it says, because %q", why)
	}
	f, err = c.Follow(t.Context(), low, nil, nil)
	if err != nil || f.Job.State != daemon.Done || f.Job.Epoch != 2 || len(f.Job.Preempted) != 1 {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := c.Fetch(t.Context(), low, out, nil); err != nil {
		t.Fatal(err)
	}
	if outcome(t, out) != alone(t, spec) {
		t.Error("another result than undisturbed")
	}
}

// What a job was seen to hold of a host's memory is known when it is given back: it
// does not go where less is free.
func TestMeasuredMemory(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	c := tn.client(tn.start("a"))
	tn.settle(c, 1, 1)
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 1<<40)
	spec.HardwareConstraint, spec.Isolation = "cpu-1", "process"
	ctx := t.Context()
	id, err := c.Submit(ctx, "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	var j daemon.Detail
	see := func(what func() bool) {
		t.Helper()
		waitFor(t, func() bool {
			d, err := c.Job(ctx, id)
			if err != nil {
				return false // another leads from now on
			}
			j = d
			if j.State.Over() {
				t.Fatalf("%+v", j.Job)
			}
			return what()
		})
	}
	tn.trains("a", id) // nobody knew what it needs
	for _, name := range []string{"full", "fuller"} {
		c = tn.client(tn.start(name, func(c *daemon.Config) { c.Reserve = 1 << 60 }))
	}
	tn.settle(c, 3, 3)
	if err := c.Drain(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	see(func() bool { return j.State == daemon.Queued && strings.Contains(j.Why, "MB of memory are free") })
	if m := j.Memory.Host; m < 10<<20 || m > 10<<30 || j.Memory.GPU != 0 {
		t.Errorf("measured %+v", j.Memory)
	}
	tn.start("roomy")
	see(func() bool { return j.State == daemon.Running })
	if j.NodeName != "roomy" {
		t.Errorf("it went on on %s", j.NodeName)
	}
}

// Jobs begin where their files are: on nodes that they were uploaded or copied to.
func TestJobsBeginAtTheirFiles(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	leader := tn.client(tn.start("a"))
	for _, name := range []string{"b", "c", "d"} {
		tn.start(name)
	}
	c := tn.client(tn.start("e"))
	tn.settle(leader, 5, 5)
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 1<<40)
	spec.HardwareConstraint = "gpu-1" // which none has: the files come, and the job waits
	if _, err := c.Submit(t.Context(), "", spec, nil); err != nil {
		t.Fatal(err)
	}
	at := map[string]bool{}
	for name := range tn.nodes {
		_ = filepath.WalkDir(filepath.Join(tn.dir, name, "files"), func(_ string, e os.DirEntry, err error) error {
			at[name] = at[name] || err == nil && len(e.Name()) == 64
			return nil
		})
	}
	spec.HardwareConstraint = "cpu-2" // all of a node
	for range 2 {
		id, err := c.Submit(t.Context(), "", spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool {
			d, err := c.Job(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			if d.State == daemon.Running && !at[d.NodeName] {
				t.Errorf("a job began on %s; its files were on %v", d.NodeName, at)
			}
			return d.State == daemon.Running
		})
	}
}

// Two owners, one of whom came first with four jobs, have a node each.
func TestFairShare(t *testing.T) {
	tn := newTown(t)
	ca := tn.authority()
	a := tn.start("a")
	tn.start("b")
	all := tn.client(a)
	tn.settle(all, 2, 1)
	person := func(name string) *driver.Client {
		dir := filepath.Join(tn.dir, name)
		if err := ca.Issue(cert.Request{Name: name, Role: cert.Submit}, dir); err != nil {
			t.Fatal(err)
		}
		id, err := cert.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		c := driver.NewClient(a.addr, id)
		t.Cleanup(c.Close)
		return c
	}
	ada, bob := person("ada"), person("bob")
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 50_000_000)
	submit := func(c *driver.Client) string {
		t.Helper()
		id, err := c.Submit(t.Context(), "", spec, nil)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	running := func() (by []string, ids []string) {
		jobs, err := all.Jobs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			if j.State == daemon.Running {
				by, ids = append(by, j.By), append(ids, j.ID)
			}
		}
		return by, ids
	}
	var last string
	for range 4 {
		last = submit(ada)
	}
	waitFor(t, func() bool { by, _ := running(); return strings.Join(by, " ") == "ada ada" })
	bobs := submit(bob)
	_, ids := running()
	if err := all.Cancel(t.Context(), ids[0]); err != nil {
		t.Fatal(err)
	}
	// It is the last one, and its owner has nothing yet.
	waitFor(t, func() bool { by, _ := running(); return strings.Join(by, " ") == "ada bob" })
	if d, err := all.Job(t.Context(), last); err != nil || d.State != daemon.Queued || !strings.Contains(d.Why, bobs+" has 2") {
		t.Errorf("%+v, %v", d.Job, err)
	}
	jobs, err := all.Jobs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range jobs {
		_ = all.Cancel(context.WithoutCancel(t.Context()), j.ID)
	}
}
