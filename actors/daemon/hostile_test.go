package daemon_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmihailenco/msgpack/v5"
	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/cluster"
	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/port"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// alive tells whether a node's process runs.
func (p *process) alive() bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	return err == nil && !bytes.Contains(b, []byte(") Z "))
}

// greeting is what a node says first, as far as it matters here.
type greeting struct {
	Min, Max           int
	ID                 string
	Boot               uint64
	Name, Addr         string
	Cluster            string
	Since, Now         int64
	Software           string
	Refusal            string
	Final              bool
	Labels, Keys, Card any
}

var undisturbed string // calm's outcome, once it was asked for

// calm is a job, and how it ends where nothing disturbs it.
func calm(t *testing.T) (job.Spec, string) {
	t.Helper()
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 90000)
	if undisturbed == "" {
		undisturbed = alone(t, spec)
	}
	return spec, undisturbed
}

// Strangers, liars and the clumsy, twenty times each, while a job runs: no process and no
// job ends, and each kind is said once, with what to do.
func TestHostile(t *testing.T) {
	spec, want := calm(t)
	tn := newTown(t)
	ca := tn.authority()
	a := tn.start("a", func(cfg *daemon.Config) { cfg.CA = filepath.Join(tn.dir, "ca") })
	tn.start("b")
	tn.start("c")
	c := tn.client(a)
	tn.settle(c, 3, 3)
	issue := func(ca *cert.CA, r cert.Request) *cert.Identity {
		t.Helper()
		dir := t.TempDir()
		if err := ca.Issue(r, dir); err != nil {
			t.Fatal(err)
		}
		id, err := cert.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	foreignDir := filepath.Join(tn.dir, "foreign")
	if err := cert.InitCA(foreignDir); err != nil {
		t.Fatal(err)
	}
	foreignCA, err := cert.LoadCA(foreignDir)
	if err != nil {
		t.Fatal(err)
	}
	here := []string{"127.0.0.1"}
	node, foreign := issue(ca, cert.Request{Hosts: here}), issue(foreignCA, cert.Request{Hosts: here, Name: "foreign"})
	short := issue(ca, cert.Request{Hosts: here, Name: "short", Valid: time.Second})
	reader := issue(ca, cert.Request{Name: "eve", Role: cert.Read})
	token, err := ca.Token(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if err := cluster.Ask(t.Context(), []string{a.addr}, token, here, filepath.Join(tn.dir, "asked")); err != nil {
		t.Fatal(err)
	}
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(token, "agl1."))
	if err != nil {
		t.Fatal(err)
	}
	raw[0] ^= 1
	bent := "agl1." + base64.RawURLEncoding.EncodeToString(raw)

	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		d, err := c.Job(t.Context(), id)
		return err == nil && d.State == daemon.Running
	})

	// shake shows a certificate, whoever is at the other end.
	shake := func(id *cert.Identity) {
		conf := id.Client()
		conf.InsecureSkipVerify, conf.VerifyConnection = true, nil
		conn, err := tls.Dial("tcp", a.addr, conf)
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Read(make([]byte, 1))
	}
	// speak says something in a protocol of nodes and reads until the other side hangs up.
	speak := func(protocol string, b []byte) {
		conn, err := port.Dial(t.Context(), node, port.Call{Addr: a.addr, Protocol: protocol})
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Write(b)
		_ = conn.(*tls.Conn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
	}
	greet := func(change func(*greeting)) {
		g := greeting{Min: 1, Max: 1, ID: "ff", Boot: 1, Name: "stranger", Addr: "127.0.0.1:1", Now: time.Now().UnixMilli()}
		change(&g)
		body, err := msgpack.Marshal(g)
		if err != nil {
			t.Fatal(err)
		}
		speak("autoglm-hello/1", append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...))
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: reader.Client()}, Timeout: 10 * time.Second}
	defer web.CloseIdleConnections()
	for _, h := range []struct {
		name string
		do   func()
		said string
	}{
		{"a wrong token", func() { _ = cluster.Ask(t.Context(), []string{a.addr}, bent, here, t.TempDir()) }, "the token is not this authority's: make one"},
		{"a token again", func() { _ = cluster.Ask(t.Context(), []string{a.addr}, token, here, t.TempDir()) }, "used before: make a new one"},
		{"another authority", func() { shake(foreign) }, "the certificate of foreign is from another authority; both sides need"},
		{"an expired certificate", func() {
			for time.Now().Before(short.Until) {
				time.Sleep(10 * time.Millisecond)
			}
			shake(short)
		}, "the certificate of short expired on"},
		{"plaintext", func() {
			conn, err := net.Dial("tcp", a.addr)
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
		}, "does not speak TLS: one of the two runs with --insecure"},
		{"another version", func() { greet(func(g *greeting) { g.Min, g.Max = 99, 99 }) }, "upgrade one of them"},
		{"a name that is taken", func() { greet(func(g *greeting) { g.Name = "b" }) }, "give another with --name"},
		{"a truncated frame", func() { speak("autoglm-hello/1", []byte{200, 0, 0, 0, 1}) }, "a frame of 200 bytes is cut off after 1: unexpected EOF; another version, or no autoglm node?"},
		{"an endless frame", func() { speak("autoglm-hello/1", []byte{255, 255, 255, 255}) }, "a frame of 4294967295 bytes"},
		{"a frame of something else", func() { speak("autoglm-hello/1", append([]byte{40, 0, 0, 0}, bytes.Repeat([]byte{0xc1}, 40)...)) }, "a frame that is no"},
		{"a protocol that nobody speaks", func() {
			_, _ = port.Dial(t.Context(), node, port.Call{Addr: a.addr, Protocol: "autoglm-next/9"})
		}, "speaks no protocol of this node: another version?"},
		{"too little a role", func() {
			res, err := web.Post("https://"+a.addr+"/v1/jobs", "application/json", strings.NewReader("{}"))
			if err == nil {
				res.Body.Close()
			}
		}, "needs the role submit"},
	} {
		before := strings.Count(a.out.String(), h.said)
		for range 20 {
			h.do()
		}
		waitFor(t, func() bool { return strings.Contains(a.out.String(), h.said) })
		if n := strings.Count(a.out.String(), h.said) - before; n > 2 { // a minute may have passed
			t.Errorf("%s: said %d times", h.name, n)
		}
	}

	// Records of the job's journal again, cut off, and of nobody.
	records := &http.Client{Transport: &http.Transport{TLSClientConfig: node.Client()}, Timeout: 10 * time.Second}
	defer records.CloseIdleConnections()
	for _, p := range tn.nodes {
		for _, b := range [][]byte{{5, 0, 0, 0, '{'}, {255, 255, 255, 255}, {2, 0, 0, 0, '{', '}'}} {
			for _, epoch := range []string{"1", "7"} {
				res, err := records.Post("https://"+p.addr+"/internal/jobs/"+id+"/log?seq=0&epoch="+epoch, "", bytes.NewReader(b))
				if err != nil {
					t.Error(err)
					continue
				}
				res.Body.Close()
			}
		}
	}

	f, err := c.Follow(t.Context(), id, nil, nil)
	if err != nil || f.Job.State != daemon.Done || f.Job.Epoch != 1 {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := c.Fetch(t.Context(), id, out, nil); err != nil {
		t.Fatal(err)
	}
	if outcome(t, out) != want {
		t.Error("the job ended otherwise than undisturbed")
	}
	for _, p := range tn.nodes {
		if !p.alive() {
			t.Errorf("%s has ended", p.name)
		}
	}
	tn.settle(c, 3, 3)
	sound(t, c)
}

// sound has the journals audited.
func sound(t *testing.T, c *driver.Client) {
	t.Helper()
	var backup bytes.Buffer
	if err := c.Backup(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	found, err := daemon.Audit(&backup)
	if err != nil || len(found) > 0 {
		t.Errorf("audit: %v, %v", found, err)
	}
}

// The leader's disk is full while a job runs: the job ends as if nothing had been, no
// process ends, and the node is one of them again when there is room.
func TestLeadersDiskFull(t *testing.T) {
	t.Parallel() // it waits most of the time
	spec, want := calm(t)
	tn := newTown(t)
	for _, name := range []string{"a", "b", "c"} {
		dir := filepath.Join(tn.dir, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
			t.Skipf("a small disk can't be mounted: %v", err)
		}
		defer func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		}()
	}
	for _, name := range []string{"a", "b", "c"} {
		tn.start(name)
	}
	defer func() { // before the disks go
		for _, p := range tn.nodes {
			p.kill()
		}
	}()
	c := tn.client(tn.nodes["a"])
	var leader string
	for _, n := range tn.settle(c, 3, 3).Nodes {
		if n.Leader {
			leader = n.Name
		}
	}
	for name, p := range tn.nodes {
		if name != leader {
			c = tn.client(p)
		}
	}
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		d, err := c.Job(t.Context(), id)
		return err == nil && d.State == daemon.Running && len(d.Board.Trials) > 0
	})
	ballast := filepath.Join(tn.dir, leader, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 64<<10))
	}
	f.Close()
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	done, err := c.Follow(ctx, id, nil, nil)
	if err != nil || done.Job.State != daemon.Done {
		t.Fatalf("%+v, %v", done.Job, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	tn.settle(c, 3, 3)
	out := filepath.Join(t.TempDir(), "out")
	if err := c.Fetch(t.Context(), id, out, nil); err != nil {
		t.Fatal(err)
	}
	if outcome(t, out) != want {
		t.Error("the job ended otherwise than undisturbed")
	}
	for _, p := range tn.nodes {
		if !p.alive() {
			t.Errorf("%s has ended", p.name)
		}
	}
	if !strings.Contains(tn.nodes[leader].out.String(), "no space left") {
		t.Errorf("nobody speaks of the full disk")
	}
	sound(t, c)
}

// A follower comes back with a journal that was damaged meanwhile: it is made anew from
// the others', the job does not notice, and the node votes again.
func TestFollowersJournalDamaged(t *testing.T) {
	spec, want := calm(t)
	tn := newTown(t)
	for _, name := range []string{"a", "b", "c"} {
		tn.start(name)
	}
	var leader string
	for _, n := range tn.settle(tn.client(tn.nodes["a"]), 3, 3).Nodes {
		if n.Leader {
			leader = n.Name
		}
	}
	c := tn.client(tn.nodes[leader])
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	var home string
	waitFor(t, func() bool {
		d, err := c.Job(t.Context(), id)
		home = d.NodeName
		return err == nil && d.State == daemon.Running && len(d.Board.Trials) > 0
	})
	var victim *process
	for name, p := range tn.nodes {
		if name != leader && name != home {
			victim = p
		}
	}
	victim.kill()
	segments, err := filepath.Glob(filepath.Join(tn.dir, victim.name, "journal", "log", "*"))
	if err != nil || len(segments) == 0 {
		t.Fatal(segments, err)
	}
	for _, path := range segments {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range min(len(b), 64) {
			b[i] ^= 0x5a
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	delete(tn.nodes, victim.name)
	again := tn.start(victim.name)
	if f, err := c.Follow(t.Context(), id, nil, nil); err != nil || f.Job.State != daemon.Done || f.Job.Epoch != 1 {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	tn.settle(c, 3, 3)
	if said := again.out.String(); strings.Count(said, "the journal's copy was damaged") != 1 || !strings.Contains(said, "made anew from the others") {
		t.Errorf("it says %s", said)
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := c.Fetch(t.Context(), id, out, nil); err != nil {
		t.Fatal(err)
	}
	if outcome(t, out) != want {
		t.Error("the job ended otherwise than undisturbed")
	}
	sound(t, tn.client(again))
}
