package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
)

// town is some nodes, each a process of the binary with devices of its own.
type town struct {
	t   *testing.T
	dir string
}

// member is one of them.
type member struct {
	addr string
	cmd  *exec.Cmd
	said *actorstest.Output
}

func newTown(t *testing.T) *town {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "state"))
	corpus(t, dir)
	return &town{t, dir}
}

// run runs the binary, which must end well.
func (tn *town) run(args ...string) string {
	tn.t.Helper()
	out, errs, code := autoglm(tn.t, tn.dir, args...)
	if code != 0 {
		tn.t.Fatalf("autoglm %s: exit %d: %s", strings.Join(args, " "), code, errs)
	}
	return strings.TrimSpace(out)
}

// node starts a node and waits until it is ready.
func (tn *town) node(name string, args ...string) *member {
	tn.t.Helper()
	m := &member{said: &actorstest.Output{}}
	m.cmd = exec.Command(binary, append([]string{"node", "--listen", "127.0.0.1:0", "--data", name, "--name", name, "--json"}, args...)...)
	m.cmd.Dir = tn.dir
	m.cmd.Env = append(os.Environ(), "AUTOGLM_LOCKS="+filepath.Join(tn.dir, name+"-locks"))
	m.cmd.Stderr = m.said
	r, err := m.cmd.StdoutPipe()
	if err != nil {
		tn.t.Fatal(err)
	}
	if err := m.cmd.Start(); err != nil {
		tn.t.Fatal(err)
	}
	ready := make(chan string, 1)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer close(ready)
		for s := bufio.NewScanner(r); s.Scan(); {
			_, _ = m.said.Write(append(s.Bytes(), '\n'))
			var line struct{ Event, Addr string }
			if json.Unmarshal(s.Bytes(), &line) == nil && line.Event == "ready" {
				ready <- line.Addr
			}
		}
	}()
	tn.t.Cleanup(func() {
		_ = m.cmd.Process.Kill()
		<-read
		_ = m.cmd.Wait()
		if tn.t.Failed() {
			tn.t.Logf("%s said:\n%s", name, m.said)
		}
	})
	select {
	case m.addr = <-ready:
	case <-time.After(30 * time.Second):
	}
	if m.addr == "" {
		tn.t.Fatalf("%s is not ready", name)
	}
	return m
}

// settle waits until so many nodes are there, so many of whom vote.
func (tn *town) settle(nodes, voters int) daemon.Nodes {
	tn.t.Helper()
	var n daemon.Nodes
	until(tn.t, func() bool {
		out, _, code := autoglm(tn.t, tn.dir, "nodes", "--json")
		return code == 0 && json.Unmarshal([]byte(out), &n) == nil && len(n.Nodes) == nodes && n.Voters == voters &&
			slices.ContainsFunc(n.Nodes, func(i daemon.NodeInfo) bool { return i.Leader })
	})
	return n
}

func until(t *testing.T, f func() bool) {
	t.Helper()
	for late := time.Now().Add(60 * time.Second); !f(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("never")
		}
	}
}

// Nodes with certificates and tokens build what a person submits, who leaves and
// comes back, while a machine is added and another is drained.
func TestClusterFromTheCommandLine(t *testing.T) {
	tn := newTown(t)
	tn.run("ca", "init")
	tn.run("ca", "issue", "127.0.0.1", "localhost", "--out", "tls")
	tn.run("ca", "issue", "--role", "submit", "ada", "--out", "config/autoglm/tls") // where it is looked for
	tn.run("ca", "issue", "--role", "admin", "root", "--out", "root")
	tn.run("ca", "issue", "--role", "read", "eve", "--out", "eve")
	a := tn.node("a", "--tls", "tls", "--ca", "config/autoglm/ca")
	tn.node("b", "--tls", "tls", "--join", a.addr)
	token := tn.run("ca", "token")
	write(t, filepath.Join(tn.dir, "token"), token+"\n")
	c := tn.node("c", "--join", a.addr, "--token-file", "token", "--label", "rack=7")
	tn.run("nodes", "--attach", a.addr) // the others go there too
	if n := tn.settle(3, 3); !slices.ContainsFunc(n.Nodes, func(i daemon.NodeInfo) bool { return i.Labels["rack"] == "7" }) {
		t.Errorf("no label: %+v", n)
	}

	write(t, filepath.Join(tn.dir, "job.yaml"), `hardware_constraint: cpu-2
budget: {tokens: 250000}
space: {dim: 64, layers: "int(1, 2)", context: 32, vocab: [320, 384], batch_tokens: 256, warmup_steps: 2}
`)
	var submitted struct{ Job string }
	if err := json.Unmarshal([]byte(tn.run("submit", "log.txt", "--job", "job.yaml", "--name", "whales", "--json", "--attach", c.addr)), &submitted); err != nil || submitted.Job == "" {
		t.Fatal(submitted, err)
	}
	id := submitted.Job
	cmd, out, errs := start(t, tn.dir, "attach", "--json")
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() && !strings.Contains(lines.Text(), `"trial_ended"`) {
	}
	_ = cmd.Process.Signal(os.Interrupt)
	for lines.Scan() {
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(errs.String(), "autoglm attach "+id) {
		t.Fatalf("Ctrl-C: exit %d: %s", code, errs)
	}
	d := tn.node("d", "--tls", "tls", "--join", a.addr+","+c.addr)
	tn.settle(4, 3)
	seen := tn.run("attach", id)
	if !strings.Contains(seen, "final     trained") || !strings.Contains(seen, "fetch "+id) {
		t.Errorf("attach: %s", seen)
	}
	fetched := tn.run("fetch", id, "--out", "run")
	if !strings.Contains(fetched, "Next: autoglm generate run/bundle") {
		t.Errorf("fetch: %s", fetched)
	}
	if text := tn.run("generate", "run/bundle", "--prompt", "On day", "--max-tokens", "8"); !strings.HasPrefix(text, "On day") {
		t.Errorf("generate: %q", text)
	}
	tn.run("report", "run")
	var jobs []daemon.Job
	if err := json.Unmarshal([]byte(tn.run("jobs", "--json")), &jobs); err != nil || len(jobs) != 1 || jobs[0].State != daemon.Done || jobs[0].By != "ada" || jobs[0].Name != "whales" {
		t.Errorf("%+v, %v", jobs, err)
	}
	if out := tn.run("jobs"); !strings.Contains(out, "whales") || !strings.Contains(out, "ada") {
		t.Error(out)
	}
	if out := tn.run("status", id); !strings.Contains(out, "log.txt") || !strings.Contains(out, "final") {
		t.Error(out)
	}
	if out := tn.run("logs", id); !strings.Contains(out, "held-out") {
		t.Error(out)
	}
	if out := tn.run("logs", id, "--json"); !strings.HasPrefix(out, `{"kind":`) {
		t.Error(out)
	}

	other := filepath.Join(tn.dir, "other")
	tn.run("ca", "init", "--ca", other)
	late, spent := tn.run("ca", "token", "--valid", "1ms"), token
	for _, tc := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"node", "--listen", "127.0.0.1:0", "--data", "x", "--join", a.addr, "--token", "agl1.nonsense"}, exitUsage, "autoglm ca token"},
		{[]string{"node", "--listen", "127.0.0.1:0", "--data", "x", "--join", a.addr, "--token", tn.run("ca", "token", "--ca", other)}, exitUsage, "another authority"},
		{[]string{"node", "--listen", "127.0.0.1:0", "--data", "x", "--join", a.addr, "--token", late}, exitUsage, "expired"},
		{[]string{"node", "--listen", "127.0.0.1:0", "--data", "x", "--join", a.addr, "--token", spent}, exitUsage, "used before"},
		{[]string{"node", "--listen", "127.0.0.1:0", "--data", "x", "--join", c.addr, "--token", tn.run("ca", "token")}, exitUsage, "--ca"},
		{[]string{"node", "--listen", "127.0.0.1:0", "--data", "x", "--token", spent}, exitUsage, "--join"},
		{[]string{"node", "--listen", "0.0.0.0:0", "--data", "x", "--join", a.addr, "--token", spent}, exitUsage, "--advertise"},
		{[]string{"node", "--listen", "127.0.0.1:0", "--data", "a", "--tls", "tls"}, exitUsage, "in use"},
		{[]string{"node", "--listen", a.addr, "--data", "x", "--tls", "tls"}, exitUsage, "in use"},
		{[]string{"node", "--listen", "127.0.0.1:0", "--data", "x", "--tls", "eve"}, exitUsage, "role read"},
		{[]string{"jobs", "--tls", "none"}, exitUsage, "--tls"},
		{[]string{"jobs", "--tls", "x"}, exitUsage, "autoglm ca issue"},
		{[]string{"submit", "log.txt", "--tls", "eve"}, exitUsage, "role submit"},
		{[]string{"drain", "d"}, exitUsage, "role admin"},
		{[]string{"drain", "nobody", "--tls", "root"}, exitUsage, "no node nobody"},
		{[]string{"status", "j99"}, exitUsage, "no such job"},
		{[]string{"attach", "j99"}, exitUsage, "no such job"},
		{[]string{"attach"}, exitUsage, "no job runs"},
		{[]string{"fetch", id, "--out", "config"}, exitUsage, "not empty"},
		{[]string{"submit", "nothing.txt"}, exitUsage, "nothing.txt"},
	} {
		_, stderr, code := autoglm(t, tn.dir, tc.args...)
		if code != tc.code || !strings.Contains(stderr, tc.want) {
			t.Errorf("%v: exit %d, want %d and %q in %s", tc.args, code, tc.code, tc.want, stderr)
		}
	}
	if _, err := os.Stat(filepath.Join(tn.dir, "x", "tls")); err == nil {
		t.Error("a refused token left a certificate")
	}

	tn.run("drain", "d", "--tls", "root")
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("a drained node ends with %v: %s", err, d.said)
	}
	tn.settle(3, 3)
	tn.run("keys", "rotate", "--tls", "root")
	if out := tn.run("ca", "revoke", "eve"); !strings.Contains(out, "Nodes that run do not know of it yet") {
		t.Errorf("revoke: %s", out)
	}
	tn.run("jobs", "--tls", "eve")
	var spread struct{ Nodes, Missing []string }
	if err := json.Unmarshal([]byte(tn.run("ca", "revoke", "--attach", a.addr, "--tls", "root", "--json")), &spread); err != nil || len(spread.Nodes) != 3 || len(spread.Missing) > 0 {
		t.Errorf("revoke: %+v, %v", spread, err)
	}
	for _, m := range []*member{a, c} {
		if _, stderr, code := autoglm(t, tn.dir, "jobs", "--tls", "eve", "--attach", m.addr); code == 0 || !strings.Contains(stderr, "the certificate of eve was revoked") {
			t.Errorf("a revoked person: exit %d, %s", code, stderr)
		}
	}
	tn.run("backup", "--out", "backup", "--tls", "root")
	tn.run("rm", id)
	if out := tn.run("jobs", "--json"); out != "[]" {
		t.Errorf("after rm: %s", out)
	}

	// What was lost with all nodes is there again; its files are not.
	tn.run("restore", "backup", "--data", "restored")
	if _, stderr, code := autoglm(t, tn.dir, "restore", "backup", "--data", "restored"); code != exitUsage || !strings.Contains(stderr, "holds a journal") {
		t.Errorf("restored twice: exit %d, %s", code, stderr)
	}
	r := tn.node("restored", "--tls", "tls")
	if out := tn.run("jobs", "--attach", r.addr); !strings.Contains(out, "whales") || !strings.Contains(out, "done") {
		t.Errorf("restored: %s", out)
	}
	if _, stderr, code := autoglm(t, tn.dir, "fetch", id, "--out", "lost"); code != exitFailed || !strings.Contains(stderr, "no node has the file") {
		t.Errorf("the files of a restored job: exit %d, %s", code, stderr)
	}
	_ = r.cmd.Process.Signal(syscall.SIGTERM)
	if err := r.cmd.Wait(); err != nil {
		t.Errorf("SIGTERM: %v: %s", err, r.said)
	}
}

// The first of --join begins the cluster, however many are told the same; build and
// cancel do their part on it.
func TestSameJoinForAll(t *testing.T) {
	tn := newTown(t)
	a := tn.node("a")
	_ = a.cmd.Process.Signal(syscall.SIGTERM)
	if err := a.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	join := a.addr + ",127.0.0.1:1"
	a = tn.node("again", "--listen", a.addr, "--join", join)
	b := tn.node("b", "--join", join)
	tn.node("c", "--join", join)
	t.Setenv("AUTOGLM_ATTACH", b.addr)
	tn.settle(3, 3)
	// With as many devices the model is the same; a job that takes what there is would be
	// lent more.
	same, err := os.ReadFile(filepath.Join(tn.dir, "job.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(tn.dir, "job.yaml"), strings.Replace(string(same), "cpu-any", "cpu-2", 1))
	out, errs, code := autoglm(t, tn.dir, "build", "log.txt", "--job", "job.yaml", "--out", "run", "--attach", a.addr, "--json")
	if code != 0 || !strings.Contains(out, `"submitted"`) || !strings.Contains(out, `"done"`) {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	if _, errs, code := autoglm(t, tn.dir, "build", "log.txt", "--job", "job.yaml", "--out", "here"); code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	for _, f := range []string{"model.safetensors", "tokenizer.json", "config.json"} {
		got, err := os.ReadFile(filepath.Join(tn.dir, "run", "bundle", f))
		if err != nil {
			t.Fatal(err)
		}
		if want, err := os.ReadFile(filepath.Join(tn.dir, "here", "bundle", f)); err != nil || !bytes.Equal(got, want) {
			t.Errorf("a cluster makes another %s than this machine: %v", f, err)
		}
	}
	write(t, filepath.Join(tn.dir, "long.yaml"), `hardware_constraint: cpu-2
budget: {tokens: 50000000}
space: {dim: 64, layers: 1, context: 32, vocab: 320, batch_tokens: 256, warmup_steps: 2}
`)
	id := tn.run("submit", "log.txt", "--job", "long.yaml")
	tn.run("cancel", id)
	until(t, func() bool { return strings.Contains(tn.run("status", id), "cancelled") })
	if _, errs, code := autoglm(t, tn.dir, "attach", id); code != exitFailed || !strings.Contains(errs, "was cancelled") {
		t.Errorf("exit %d: %s", code, errs)
	}
	// Without its folder the first of --join does not begin another cluster.
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
	tn.settle(2, 1)
	tn.run("jobs", "--attach", a.addr+","+b.addr)
	anew := tn.node("anew", "--listen", a.addr, "--join", a.addr+","+b.addr)
	tn.settle(3, 3)
	tn.run("drain", "anew", "--attach", anew.addr) // which then answers no more
}

func TestNobodyListens(t *testing.T) {
	tn := newTown(t)
	if _, stderr, code := autoglm(t, tn.dir, "nodes"); code != exitUsage || !strings.Contains(stderr, "--attach") {
		t.Errorf("no address: exit %d, %s", code, stderr)
	}
	if _, stderr, code := autoglm(t, tn.dir, "nodes", "--attach", "127.0.0.1:1"); code != exitFailed || !strings.Contains(stderr, "no node listens at 127.0.0.1:1") {
		t.Errorf("nobody: exit %d, %s", code, stderr)
	}
	for _, tc := range []struct{ args, want string }{
		{"nodes --attach here", "HOST:PORT"},
		{"attach a b", "address comes first"},
		{"node --listen 0.0.0.0:7400", "certificates"},
		{"node --listen 0.0.0.0:0 --insecure", "--advertise"},
		{"node --copies 0", "--copies"},
		{"node --label rack", "KEY=VALUE"},
		{"node --quota much", "50GB"},
		{"node --join nowhere:1 --token a --token-file b", "give one"},
		{"node --config nothing.yaml", "nothing.yaml"},
		{"ca issue --role king ada", "king"},
		{"ca issue host", "autoglm ca init"},
		{"ca revoke", "--attach"},
		{"ca revoke ada", "autoglm ca init"},
		{"ca issue --role read ada bob", "one NAME"},
		{"build log.txt --attach 127.0.0.1:1 --share", "--share is about this machine"},
		{"build log.txt --attach 127.0.0.1:1 --out .", "not empty"},
		{"backup", "--out"},
		{"restore nothing --data x", "nothing"},
		{"deploy cloud", "unknown command"},
	} {
		if _, stderr, code := autoglm(t, tn.dir, strings.Fields(tc.args)...); code != exitUsage || !strings.Contains(stderr, tc.want) {
			t.Errorf("%s: exit %d, want %q in %s", tc.args, code, tc.want, stderr)
		}
	}
	// An authority that can't be reached is no fault of the command line.
	tn.run("ca", "init")
	if _, stderr, code := autoglm(t, tn.dir, "node", "--data", "x", "--join", "127.0.0.1:1", "--token", tn.run("ca", "token")); code != exitFailed || !strings.Contains(stderr, "127.0.0.1:1") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if left, _ := filepath.Glob(filepath.Join(tn.dir, "config", "autoglm", "attach")); len(left) > 0 {
		t.Error("an address at which nobody answered was kept")
	}
}
