package daemon_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/daemon/api"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/replica"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

// A node of these tests is a process: this program, started again.
const nodeRole = "AUTOGLM_TEST_NODE"

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "worker" { // a node's device process
		if err := node.ServeWorker(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if conf := os.Getenv(nodeRole); conf != "" {
		if err := serve(conf); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serve(conf string) error {
	var cfg daemon.Config
	if err := json.Unmarshal([]byte(conf), &cfg); err != nil {
		return err
	}
	cfg.Log = func(text string) { fmt.Fprintln(os.Stderr, cfg.Name+":", text) }
	cfg.Timing = replica.Timing{Heartbeat: 500 * time.Millisecond, Lease: 400 * time.Millisecond, Steer: 200 * time.Millisecond}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	d, err := daemon.Start(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Println(d.Addr())
	return d.Wait(ctx)
}

// town is some nodes of one cluster, each with devices of its own.
type town struct {
	t     *testing.T
	dir   string
	tls   string
	nodes map[string]*process
}

type process struct {
	name, addr string
	cmd        *exec.Cmd
	out        *actorstest.Output
}

func newTown(t *testing.T) *town {
	t.Helper()
	tn := &town{t: t, dir: t.TempDir(), nodes: map[string]*process{}}
	t.Cleanup(func() {
		for _, p := range tn.nodes {
			p.kill()
			if t.Failed() {
				t.Logf("%s said:\n%s", p.name, p.out)
			}
		}
	})
	return tn
}

func (p *process) kill() {
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// start starts a node; the first makes the cluster.
func (tn *town) start(name string, change ...func(*daemon.Config)) *process {
	tn.t.Helper()
	cfg := daemon.Config{
		Dir: filepath.Join(tn.dir, name), Listen: "127.0.0.1:0", Name: name, TLS: tn.tls, Locks: filepath.Join(tn.dir, name+"-locks"), Software: "test",
	}
	for _, p := range tn.nodes {
		cfg.Join = append(cfg.Join, p.addr)
	}
	for _, f := range change {
		f(&cfg)
	}
	conf, err := json.Marshal(cfg)
	if err != nil {
		tn.t.Fatal(err)
	}
	p := &process{name: name, cmd: exec.Command(os.Args[0]), out: &actorstest.Output{}}
	p.cmd.Env = append(os.Environ(), nodeRole+"="+string(conf))
	p.cmd.Stderr = p.out
	r, err := p.cmd.StdoutPipe()
	if err != nil {
		tn.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		tn.t.Fatal(err)
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		_ = p.cmd.Wait()
		tn.t.Fatalf("%s: %v\n%s", name, err, p.out)
	}
	p.addr = strings.TrimSpace(line)
	tn.nodes[name] = p
	return p
}

// authority makes certificates for the nodes that are started from now on, and for
// people.
func (tn *town) authority() *cert.CA {
	tn.t.Helper()
	dir := filepath.Join(tn.dir, "ca")
	if err := cert.InitCA(dir); err != nil {
		tn.t.Fatal(err)
	}
	ca, err := cert.LoadCA(dir)
	if err != nil {
		tn.t.Fatal(err)
	}
	tn.tls = filepath.Join(tn.dir, "tls")
	if err := ca.Issue(cert.Request{Hosts: []string{"127.0.0.1"}}, tn.tls); err != nil {
		tn.t.Fatal(err)
	}
	return ca
}

func (tn *town) client(p *process) *driver.Client {
	var id *cert.Identity
	if tn.tls != "" {
		var err error
		if id, err = cert.Load(tn.tls); err != nil {
			tn.t.Fatal(err)
		}
	}
	c := driver.NewClient(p.addr, id)
	tn.t.Cleanup(c.Close)
	return c
}

// settle waits until so many nodes are there, so many of whom vote, and one leads.
func (tn *town) settle(c *driver.Client, nodes, voters int) daemon.Nodes {
	tn.t.Helper()
	var last daemon.Nodes
	waitFor(tn.t, func() bool {
		ctx, cancel := context.WithTimeout(tn.t.Context(), 3*time.Second)
		defer cancel()
		var err error
		last, err = c.Nodes(ctx)
		return err == nil && len(last.Nodes) == nodes && last.Voters == voters && slices.ContainsFunc(last.Nodes, func(n daemon.NodeInfo) bool { return n.Leader })
	})
	return last
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	late := time.Now().Add(60 * time.Second)
	for !f() {
		if time.Now().After(late) {
			t.Fatal("never")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tinySpec is a job of 12 trials.
func tinySpec(file string, tokens int64) job.Spec { return actorstest.TinySpec(file, tokens) }

// outcome of a fetched job: what must not depend on what happened on the way.
func outcome(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "leaderboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var lb journal.Leaderboard
	if err := json.Unmarshal(b, &lb); err != nil {
		t.Fatal(err)
	}
	lb.Job = ""
	for i := range lb.Trials {
		lb.Trials[i].Seconds, lb.Trials[i].PerSecond = 0, 0
	}
	if lb.Final == nil {
		t.Fatal("no final training on the leaderboard")
	}
	lb.Final.Seconds, lb.Final.PerSecond = 0, 0
	out, err := json.Marshal(lb)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"eval.json", "config.json", "metrics.jsonl"} { // a node that goes on needs them
		if _, err := os.Stat(filepath.Join(dir, "trials", "final", f)); err != nil {
			t.Error(err)
		}
	}
	model, err := os.ReadFile(filepath.Join(dir, "bundle", "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	return string(out) + string(model)
}

// alone is the outcome of the same job on one machine without a cluster.
func alone(t *testing.T, spec job.Spec) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	n, err := node.Open(node.Options{Dir: dir, Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	return outcome(t, dir)
}

func TestSubmitFollowFetch(t *testing.T) {
	tn := newTown(t)
	a := tn.start("a")
	c := tn.client(a)
	tn.settle(c, 1, 1)
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 24000)
	id, err := c.Submit(t.Context(), "whales", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := c.Follow(t.Context(), id, nil, nil)
	if err != nil || f.Job.State != daemon.Done {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	if !f.State.Finished || f.State.Score == nil {
		t.Fatal("the events end before the job does")
	}
	out := filepath.Join(t.TempDir(), "out")
	for range 2 { // the second finds all of it there
		if err := c.Fetch(t.Context(), id, out, nil); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := outcome(t, out), alone(t, spec); got != want {
		t.Error("a cluster of one gives another result than build")
	}
	jobs, err := c.Jobs(t.Context())
	if err != nil || len(jobs) != 1 || jobs[0].Name != "whales" || jobs[0].NodeName != "a" {
		t.Fatalf("%+v, %v", jobs, err)
	}
	d, err := c.Job(t.Context(), id)
	if err != nil || len(d.Board.Trials) == 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	if err := c.Remove(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if jobs, err := c.Jobs(t.Context()); err != nil || len(jobs) != 0 {
		t.Fatalf("%+v, %v", jobs, err)
	}
	if _, err := c.Job(t.Context(), id); err == nil || !strings.Contains(err.Error(), "no such job") {
		t.Fatalf("a removed job: %v", err)
	}
}

// Whoever is killed, the job ends as one that was not disturbed, and no trial that
// finished is run again.
func TestKills(t *testing.T) {
	t.Parallel() // it waits most of the time
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 250000)
	want := alone(t, spec)
	for _, victim := range []string{"home", "leader"} {
		t.Run(victim, func(t *testing.T) {
			tn := newTown(t)
			first := tn.start("a")
			tn.start("b")
			tn.start("c")
			c := tn.client(first)
			tn.settle(c, 3, 3)
			id, err := c.Submit(t.Context(), "", spec, nil)
			if err != nil {
				t.Fatal(err)
			}
			// The kill comes once some trials have ended.
			var p *process
			waitFor(t, func() bool {
				d, err := c.Job(t.Context(), id)
				if err != nil || d.State.Over() {
					t.Fatalf("%+v, %v", d.Job, err)
				}
				ended := 0
				for _, e := range d.Board.Trials {
					if e.Status == "finished" || e.Status == "stopped" || e.Status == "paused" {
						ended++
					}
				}
				if d.State != daemon.Running || ended < 3 {
					return false
				}
				nodes := tn.settle(c, 3, 3)
				for _, n := range nodes.Nodes {
					if victim == "home" && n.Name == d.NodeName || victim == "leader" && n.Leader {
						p = tn.nodes[n.Name]
					}
				}
				return p != nil
			})
			p.kill()
			killed := time.Now()
			for _, o := range tn.nodes {
				if o != p {
					c = tn.client(o)
				}
			}
			var after time.Duration
			f, err := c.Follow(t.Context(), id, nil, func(j daemon.Job) {
				if j.Epoch == 2 && j.State == daemon.Running && after == 0 {
					after = time.Since(killed)
				}
			})
			if err != nil || f.Job.State != daemon.Done {
				t.Fatalf("%+v, %v", f.Job, err)
			}
			t.Logf("%s was killed; %d attempts, given anew after %v", victim, f.Job.Epoch, after)
			out := filepath.Join(t.TempDir(), "out")
			if err := c.Fetch(t.Context(), id, out, nil); err != nil {
				t.Fatal(err)
			}
			if outcome(t, out) != want {
				t.Error("another result than undisturbed")
			}
		})
	}
}

// A paused node that wakes up commits nothing more.
func TestZombie(t *testing.T) {
	t.Parallel() // it waits most of the time
	tn := newTown(t)
	a := tn.start("a")
	tn.start("b")
	tn.start("c")
	c := tn.client(a)
	tn.settle(c, 3, 3)
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 250000)
	id, err := c.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	var home *process
	waitFor(t, func() bool {
		d, err := c.Job(t.Context(), id)
		if err != nil || d.State.Over() {
			t.Fatalf("%+v, %v", d.Job, err)
		}
		home = tn.nodes[d.NodeName]
		return d.State == daemon.Running && len(d.Board.Trials) > 2
	})
	if err := home.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, o := range tn.nodes {
		if o != home {
			c = tn.client(o)
		}
	}
	waitFor(t, func() bool {
		d, err := c.Job(t.Context(), id)
		return err == nil && d.Epoch == 2 && d.State == daemon.Running
	})
	if err := home.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	f, err := c.Follow(t.Context(), id, nil, nil)
	if err != nil || f.Job.State != daemon.Done {
		t.Fatalf("%+v, %v", f.Job, err)
	}
	tn.settle(c, 3, 3) // it is one of them again
	seen := map[int]bool{}
	for seq := range f.State.Outcomes {
		seen[seq] = true
	}
	if len(seen) != len(f.State.Decisions) {
		t.Errorf("%d outcomes of %d decisions", len(seen), len(f.State.Decisions))
	}
	out := filepath.Join(t.TempDir(), "out")
	if err := c.Fetch(t.Context(), id, out, nil); err != nil {
		t.Fatal(err)
	}
	if outcome(t, out) != alone(t, spec) {
		t.Error("another result than undisturbed")
	}
}

func TestCancelAndDrain(t *testing.T) {
	tn := newTown(t)
	a := tn.start("a")
	tn.start("b")
	c := tn.client(a)
	tn.settle(c, 2, 1)
	long := tinySpec(actorstest.Corpus(t, t.TempDir()), 50_000_000)
	id, err := c.Submit(t.Context(), "", long, nil)
	if err != nil {
		t.Fatal(err)
	}
	state := func(id string) daemon.Job {
		d, err := c.Job(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return d.Job
	}
	waitFor(t, func() bool { return state(id).State == daemon.Running })
	second, err := c.Submit(t.Context(), "", long, nil)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return state(second).State == daemon.Running })
	if state(id).NodeName == state(second).NodeName {
		t.Error("two jobs on one node, and none on the other")
	}
	third, err := c.Submit(t.Context(), "", long, nil)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		jobs, err := c.Jobs(t.Context())
		return err == nil && strings.Contains(jobs[2].Why, "a: ") && strings.Contains(jobs[2].Why, "b: ")
	})
	if err := c.Cancel(t.Context(), third); err != nil {
		t.Fatal(err)
	}
	if s := state(third); s.State != daemon.Cancelled {
		t.Fatalf("a queued job, cancelled: %+v", s)
	}
	onB := id
	if state(second).NodeName == "b" {
		onB = second
	}
	onA := map[string]string{id: second, second: id}[onB]
	if err := c.Cancel(t.Context(), onA); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return state(onA).State == daemon.Cancelled })
	// Drained, b gives its job back and leaves; a takes it.
	if err := c.Drain(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { j := state(onB); return j.NodeName == "a" && j.State == daemon.Running && j.Epoch == 2 })
	if err := tn.nodes["b"].cmd.Wait(); err != nil {
		t.Errorf("a drained node ends with %v", err)
	}
	tn.settle(c, 1, 1)
	if err := c.Cancel(t.Context(), onB); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return state(onB).State == daemon.Cancelled })
}

func TestRolesAndHostileRequests(t *testing.T) {
	tn := newTown(t)
	ca := tn.authority()
	a := tn.start("a")
	b := tn.start("b")
	tn.settle(tn.client(a), 2, 1)
	person := func(role cert.Role) *driver.Client {
		dir := filepath.Join(tn.dir, string(role))
		if err := ca.Issue(cert.Request{Name: "ada", Role: role}, dir); err != nil {
			t.Fatal(err)
		}
		id, err := cert.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		c := driver.NewClient(b.addr, id) // not the leader: it passes on
		t.Cleanup(c.Close)
		return c
	}
	reader, submitter := person(cert.Read), person(cert.Submit)
	if _, err := reader.Jobs(t.Context()); err != nil {
		t.Error(err)
	}
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()), 24000)
	if _, err := reader.Submit(t.Context(), "", spec, nil); err == nil || !strings.Contains(err.Error(), "needs the role submit") {
		t.Errorf("a reader submits: %v", err)
	}
	id, err := submitter.Submit(t.Context(), "", spec, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := reader.Job(t.Context(), id); err != nil || d.By != "ada" {
		t.Errorf("%+v, %v", d.Job, err)
	}
	if err := submitter.Drain(t.Context(), "b"); err == nil || !strings.Contains(err.Error(), "needs the role admin") {
		t.Errorf("a submitter drains: %v", err)
	}
	if err := person(cert.Admin).RotateKeys(t.Context()); err != nil {
		t.Error(err)
	}
	var backup bytes.Buffer
	if err := person(cert.Admin).Backup(t.Context(), &backup); err != nil || backup.Len() == 0 {
		t.Errorf("backup of %d bytes, %v", backup.Len(), err)
	}
	plain := driver.NewClient(a.addr, nil)
	defer plain.Close()
	if _, err := plain.Jobs(t.Context()); err == nil || !strings.Contains(err.Error(), "--tls") {
		t.Errorf("plaintext: %v", err)
	}
	bad := spec
	bad.SearchStrategy = "magic"
	var s *daemon.StatusError
	program := spec
	program.Data.Plugin = []string{"/bin/true"}
	if _, err := submitter.Submit(t.Context(), "", program, nil); !errors.As(err, &s) || s.Code != http.StatusBadRequest || !strings.Contains(err.Error(), "data.plugin") {
		t.Errorf("a job that brings a program: %v", err)
	}
	if _, err := submitter.Submit(t.Context(), "", bad, nil); !errors.As(err, &s) || s.Code != http.StatusBadRequest || !strings.Contains(err.Error(), "search_strategy") {
		t.Errorf("a bad job: %v", err)
	}
	if f, err := submitter.Follow(t.Context(), id, nil, nil); err != nil || f.Job.State != daemon.Done {
		t.Errorf("%+v, %v", f.Job, err)
	}
}

// What a web page can make a browser send is refused.
func TestBrowsers(t *testing.T) {
	tn := newTown(t)
	a := tn.start("a")
	tn.settle(tn.client(a), 1, 1)
	for _, c := range []struct {
		method, host, origin string
		code                 int
	}{
		{http.MethodGet, "", "", http.StatusOK},
		{http.MethodPost, "", "", http.StatusBadRequest},                       // no job in it
		{http.MethodPost, "", "https://example.org", http.StatusForbidden},     // a page of another origin
		{http.MethodGet, "rebound.example.org:7400", "", http.StatusForbidden}, // a name pointed here
		{http.MethodGet, "localhost", "", http.StatusOK},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://"+a.addr+"/v1/jobs", strings.NewReader("{"))
		if err != nil {
			t.Fatal(err)
		}
		if c.host != "" {
			req.Host = c.host
		}
		if c.origin != "" {
			req.Header.Set("Origin", c.origin)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != c.code {
			t.Errorf("%+v: %s", c, res.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// A driver that sends gigabytes, and thousands that say nothing, are turned away,
// and the node goes on.
func TestFloods(t *testing.T) {
	tn := newTown(t)
	a := tn.start("a")
	c := tn.client(a)
	tn.settle(c, 1, 1)
	res, err := http.Post("http://"+a.addr+"/v1/jobs", "application/json", io.LimitReader(&endless{}, 2<<30))
	if err == nil {
		res.Body.Close()
		if res.StatusCode != http.StatusRequestEntityTooLarge {
			t.Errorf("an endless job file: %s", res.Status)
		}
	}
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := range 10_000 {
		conn, err := net.Dial("tcp", a.addr)
		if err != nil {
			t.Fatal(err)
		}
		if conns = append(conns, conn); len(conns) > 2000 { // the node has closed the first of them long ago
			conns[0].Close()
			conns = conns[1:]
		}
		if i%2 == 0 { // it begins to speak HTTP/2, and says nothing more
			_, _ = conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.Nodes(ctx); err != nil {
		t.Errorf("among %d silent connections: %v", len(conns), err)
	}
	if _, err := call(t, a.addr, nil).Nodes(ctx, &api.NodesRequest{}); err != nil {
		t.Errorf("a call among %d silent connections: %v", len(conns), err)
	}
	said := func(what string) int { return strings.Count(a.out.String(), what) }
	if n := said("said nothing: closed to make room"); n < 1 || n > 2 { // a minute may have passed
		t.Errorf("it speaks %d times of silent connections", n)
	}
	if n := said("larger than 4 MB"); n != 1 {
		t.Errorf("it speaks %d times of the endless job file", n)
	}
}

// endless is a JSON string that never ends.
type endless struct{ begun bool }

func (e *endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = 'x'
	}
	if !e.begun {
		copy(b, `{"name":"`)
		e.begun = true
	}
	return len(b), nil
}

func TestFirstErrors(t *testing.T) {
	for _, c := range []struct {
		cfg  daemon.Config
		want string
	}{
		{daemon.Config{Listen: "0.0.0.0:0"}, "autoglm ca init"},
		{daemon.Config{Listen: "nonsense"}, "HOST:PORT"},
		{daemon.Config{Listen: "127.0.0.1:0", TLS: "/nowhere"}, "autoglm ca issue"},
		{daemon.Config{Listen: "0.0.0.0:0", Insecure: true}, "--advertise"},
		{daemon.Config{Listen: "127.0.0.1:0", CA: "/nowhere"}, "--tls"},
	} {
		c.cfg.Dir = t.TempDir()
		d, err := daemon.Start(t.Context(), c.cfg)
		if err == nil {
			d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
	dir := t.TempDir()
	d, err := daemon.Start(t.Context(), daemon.Config{Listen: "127.0.0.1:0", Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := daemon.Start(t.Context(), daemon.Config{Listen: "127.0.0.1:0", Dir: dir}); err == nil || !strings.Contains(err.Error(), "in use by another node") {
		t.Errorf("a folder twice: %v", err)
	}
}
