package daemon_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/cluster/cert"
)

// A node is revoked in the middle of a job, and a person: both are out at once, in words;
// the job goes on elsewhere and ends as if nothing had been. Old and forged lists change
// nothing, a node that starts later gets the list, and one that starts again has it.
func TestRevokedNode(t *testing.T) {
	t.Parallel() // it waits most of the time
	spec, want := calm(t)
	tn := newTown(t)
	ca := tn.authority()
	paper := func(r cert.Request) string {
		dir := filepath.Join(tn.dir, "tls-"+r.Name)
		if err := ca.Issue(r, dir); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	start := func(name string) *process {
		return tn.start(name, func(cfg *daemon.Config) {
			cfg.TLS = filepath.Join(tn.dir, "tls-"+name)
			if _, err := os.Stat(cfg.TLS); err != nil {
				cfg.TLS = paper(cert.Request{Name: name, Hosts: []string{"127.0.0.1"}})
			}
		})
	}
	client := func(p *process, dir string) *driver.Client {
		id, err := cert.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		c := driver.NewClient(p.addr, id)
		t.Cleanup(c.Close)
		return c
	}
	for _, name := range []string{"a", "b", "c"} {
		start(name)
	}
	admin, reader := paper(cert.Request{Name: "root", Role: cert.Admin}), paper(cert.Request{Name: "eve", Role: cert.Read})
	tn.settle(client(tn.nodes["a"], admin), 3, 3)
	if _, err := ca.Revoke(); err != nil { // an empty list, to be replayed
		t.Fatal(err)
	}
	empty, err := ca.List()
	if err != nil {
		t.Fatal(err)
	}

	id, err := client(tn.nodes["a"], admin).Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	var bad string
	waitFor(t, func() bool {
		d, err := client(tn.nodes["a"], admin).Job(t.Context(), id)
		bad = d.NodeName
		return err == nil && d.State == daemon.Running && len(d.Board.Trials) > 2
	})
	good := "a"
	if bad == good {
		good = "b"
	}
	c := client(tn.nodes[good], admin)
	eve := client(tn.nodes[good], reader)
	if _, err := eve.Jobs(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	following := make(chan error, 1)
	go func() {
		following <- eve.Events(ctx, id, 0, true, func(daemon.Line) error { return nil })
	}()

	if _, err := ca.Revoke(bad, "eve"); err != nil {
		t.Fatal(err)
	}
	list, err := ca.List()
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Revoke(t.Context(), list)
	if err != nil || s.Number != 2 || len(s.Nodes) != 2 || len(s.Missing) > 0 {
		t.Errorf("%+v, %v", s, err)
	}
	<-following // its connection was closed
	if ctx.Err() != nil {
		t.Error("who is revoked still follows")
	}
	if _, err := eve.Jobs(t.Context()); err == nil || !strings.Contains(err.Error(), "the certificate of eve was revoked") {
		t.Errorf("a revoked person: %v", err)
	}
	tn.settle(c, 2, 1)
	f, err := c.Follow(t.Context(), id, nil, nil)
	if err != nil || f.Job.State != daemon.Done || f.Job.NodeName == bad {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := c.Fetch(t.Context(), id, out, nil); err != nil {
		t.Fatal(err)
	}
	if outcome(t, out) != want {
		t.Error("the job ended otherwise than undisturbed")
	}
	if err := tn.nodes[bad].cmd.Process.Signal(os.Signal(nil)); errors.Is(err, os.ErrProcessDone) {
		t.Error("the revoked node's process ended")
	}
	waitFor(t, func() bool {
		return strings.Contains(tn.nodes[bad].out.String(), "revoked")
	})
	if !strings.Contains(tn.nodes[good].out.String(), "its certificate was revoked") {
		t.Error("nobody says that the node is gone, and why")
	}

	// A replay, and a list of another authority.
	var refused *daemon.StatusError
	if _, err := c.Revoke(t.Context(), empty); !errors.As(err, &refused) || refused.Code != http.StatusConflict || !strings.Contains(err.Error(), "older") {
		t.Errorf("a replay: %v", err)
	}
	other := filepath.Join(tn.dir, "other")
	if err := cert.InitCA(other); err != nil {
		t.Fatal(err)
	}
	forger, err := cert.LoadCA(other)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := forger.Revoke(strings.Repeat("a", 16) + time.Now().Format("150405.000000000")[7:15]); err != nil {
			t.Fatal(err)
		}
	}
	forged, err := forger.List()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Revoke(t.Context(), forged); err == nil || !strings.Contains(err.Error(), "not this authority's") {
		t.Errorf("a forged list: %v", err)
	}
	if _, err := eve.Jobs(t.Context()); err == nil {
		t.Error("eve is back")
	}
	// Only an admin may give lists.
	if _, err := client(tn.nodes[good], paper(cert.Request{Name: "sub", Role: cert.Submit})).Revoke(t.Context(), list); err == nil || !strings.Contains(err.Error(), "role admin") {
		t.Errorf("a submitter gives a list: %v", err)
	}

	// One that was not there when it came, and one that starts again.
	start("d")
	held := func(name string) bool {
		b, err := os.ReadFile(filepath.Join(tn.dir, name, "crl.pem"))
		return err == nil && string(b) == string(list)
	}
	waitFor(t, func() bool { return held("d") })
	tn.nodes["d"].kill()
	again := start("d")
	if _, err := client(again, reader).Jobs(t.Context()); err == nil || !strings.Contains(err.Error(), "was revoked") {
		t.Errorf("eve asks a node that has started again: %v", err)
	}
}
