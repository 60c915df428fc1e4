// Package chaos runs a cluster under faults and proves afterwards that it kept its
// promises.
//
//	go test ./bench/chaos -duration 10m -seed 7 -v
//
// Five nodes are processes in network namespaces on one switch (root, iproute2,
// util-linux). While three jobs run at a time, a seeded schedule kills nodes (-9, and
// starts them again), stops them (SIGSTOP, and lets them go on), pulls their plugs,
// throttles their links until packets are dropped, drains them, and has new ones
// join. At its end all heals, the jobs end, and the journals are audited: no
// finished trial lost or run twice, no job with two owners, and every model equal
// bit for bit to that of an undisturbed build. daemon's TestAudit shows that the
// audit finds what is planted.
//
// Packet loss comes from a link's full queue: the kernels at hand have neither
// netem nor a classifier that drops at random.
package chaos

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
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
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/ring/ringtest"
	"github.com/open-autoglm/autoglm/runtime/job"
)

var (
	duration = flag.Duration("duration", 20*time.Second, "how long faults are made")
	seed     = flag.Uint64("seed", 1, "of the schedule")
)

const (
	nodeEnv   = "AUTOGLM_CHAOS_NODE"   // the configuration of a node's process
	driverEnv = "AUTOGLM_CHAOS_DRIVER" // the hosts, in the process that drives the test from the last of them
	started   = 5                      // nodes at the start
	more      = 2                      // that may join
	atOnce    = 3                      // jobs
)

func TestMain(m *testing.M) {
	if conf := os.Getenv(nodeEnv); conf != "" {
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
	cfg.Log = func(text string) { fmt.Fprintln(os.Stderr, time.Now().Format("15:04:05.000"), cfg.Name+":", text) }
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	d, err := daemon.Start(ctx, cfg)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	return d.Wait(ctx)
}

// TestChaos makes the hosts, and goes on as a process on one of them.
func TestChaos(t *testing.T) {
	if hosts := os.Getenv(driverEnv); hosts != "" {
		var hs []ringtest.Host
		if err := json.Unmarshal([]byte(hosts), &hs); err != nil {
			t.Fatal(err)
		}
		drive(t, hs)
		return
	}
	hosts := ringtest.Hosts(t, started+more+1)
	conf, err := json.Marshal(hosts)
	if err != nil {
		t.Fatal(err)
	}
	argv := append(append([]string{}, hosts[len(hosts)-1].Prefix...), os.Args[0], "-test.run=^TestChaos$", "-test.v", "-test.timeout=0",
		fmt.Sprintf("-duration=%v", *duration), fmt.Sprintf("-seed=%d", *seed))
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), driverEnv+"="+string(conf))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "chaos:") {
			t.Log(strings.TrimSpace(line))
		}
	}
}

// box is a node on a host of its own.
type box struct {
	t    *testing.T
	host ringtest.Host
	name string
	addr string
	dir  string

	cmd     *exec.Cmd // nil while it is down
	out     *actorstest.Output
	stopped bool
	cut     bool
	slow    bool
}

// start starts the node, which joins those given unless it is the first of all.
func (b *box) start(join []string) {
	b.t.Helper()
	cfg := daemon.Config{Dir: b.dir, Locks: b.dir + "-locks", Listen: b.addr, Name: b.name, Join: join, Insecure: true, Software: "chaos"}
	conf, err := json.Marshal(cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	argv := append(append([]string{}, b.host.Prefix...), os.Args[0])
	b.cmd = exec.Command(argv[0], argv[1:]...)
	b.cmd.Env = append(os.Environ(), nodeEnv+"="+string(conf))
	b.cmd.Stderr = b.out
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, err := b.cmd.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
		_ = b.cmd.Wait()
		b.t.Fatalf("%s does not start: %v\n%s", b.name, err, b.out)
	}
}

// kill ends the process at once.
func (b *box) kill() {
	if b.cmd == nil {
		return
	}
	b.signal(syscall.SIGCONT)
	b.signal(syscall.SIGKILL)
	_ = b.cmd.Wait()
	b.cmd, b.stopped = nil, false
}

func (b *box) signal(s syscall.Signal) { _ = b.cmd.Process.Signal(s) }

func (b *box) heal(join []string) {
	if b.stopped {
		b.signal(syscall.SIGCONT)
		b.stopped = false
	}
	if b.cut {
		b.host.Connect(b.t)
		b.cut = false
	}
	if b.slow {
		b.host.Unlimit(b.t)
		b.slow = false
	}
	if b.cmd == nil {
		b.start(join)
	}
}

func (b *box) well() bool { return b.cmd != nil && !b.stopped && !b.cut && !b.slow }

func spec(file string, seed uint64) job.Spec {
	s := job.Default()
	s.Data.Files = []string{file}
	s.Seed = seed
	s.Budget = job.Budget{Tokens: 60000}
	s.HardwareConstraint = "cpu-2"
	s.Space = map[string]job.Expr{
		"dim": "64", "layers": "int(1, 2)", "context": "32", "vocab": "categorical([320, 384])", "batch_tokens": "256", "warmup_steps": "2",
	}
	s.Resolve()
	return s
}

func model(t *testing.T, dir string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "bundle", "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// drive is the test, on a host that reaches all others.
func drive(t *testing.T, hosts []ringtest.Host) {
	file := actorstest.Corpus(t, t.TempDir())
	want := map[uint64][]byte{} // by seed
	for s := range uint64(atOnce) {
		dir := filepath.Join(t.TempDir(), "alone")
		n, err := node.Open(node.Options{Dir: dir, Spec: spec(file, s)})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		want[s] = model(t, dir)
	}
	root := t.TempDir()
	boxes := make([]*box, started+more)
	for i := range boxes {
		name := fmt.Sprintf("n%d", i)
		boxes[i] = &box{t: t, host: hosts[i], name: name, addr: hosts[i].Address + ":7400", dir: filepath.Join(root, name), out: &actorstest.Output{}}
	}
	up := boxes[:0:0] // that have been started
	defer func() {
		for _, b := range up {
			b.kill()
		}
		if t.Failed() {
			for _, b := range up {
				fmt.Println(b.out)
			}
		}
	}()
	seeds := func(b *box) []string {
		var out []string
		for _, o := range up {
			if o != b {
				out = append(out, o.addr)
			}
		}
		return out
	}
	for _, b := range boxes[:started] {
		b.start(seeds(b))
		up = append(up, b)
	}
	clients := map[*box]*driver.Client{}
	for _, b := range boxes {
		clients[b] = driver.NewClient(b.addr, nil)
		defer clients[b].Close()
	}
	// ask puts a question to nodes that should answer, until one does.
	ask := func(patience time.Duration, f func(ctx context.Context, c *driver.Client) error) error {
		var err error
		for late := time.Now().Add(patience); time.Now().Before(late); {
			for _, b := range up {
				if b.cmd == nil || b.stopped || b.cut {
					continue
				}
				ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
				err = f(ctx, clients[b])
				cancel()
				if err == nil {
					return nil
				}
			}
			time.Sleep(200 * time.Millisecond)
		}
		return err
	}
	settled := func() {
		t.Helper()
		err := ask(60*time.Second, func(ctx context.Context, c *driver.Client) error {
			n, err := c.Nodes(ctx)
			if err != nil {
				return err
			}
			if len(n.Nodes) != len(up) || n.Voters != 5 || !slices.ContainsFunc(n.Nodes, func(i daemon.NodeInfo) bool { return i.Leader }) {
				return fmt.Errorf("%d of %d nodes, %d voters", len(n.Nodes), len(up), n.Voters)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("the cluster is not one again: %v", err)
		}
	}
	settled()

	r := rand.New(rand.NewPCG(*seed, 1))
	struck := map[string]int{}
	jobs := map[string]uint64{} // by id: the seed
	running := map[string]bool{}
	submit := func() {
		s := uint64(len(jobs)) % atOnce
		var id string
		err := ask(60*time.Second, func(ctx context.Context, c *driver.Client) error {
			var err error
			id, err = c.Submit(ctx, fmt.Sprintf("s%d", s), spec(file, s), nil)
			return err
		})
		if err != nil {
			t.Fatalf("submit: %v", err)
		}
		jobs[id], running[id] = s, true
	}
	over := func() {
		_ = ask(5*time.Second, func(ctx context.Context, c *driver.Client) error {
			all, err := c.Jobs(ctx)
			if err != nil {
				return err
			}
			for _, j := range all {
				if _, mine := jobs[j.ID]; !mine {
					jobs[j.ID], running[j.ID] = j.Spec.Seed, true // submitted, and the answer was lost
				}
				if j.State.Over() {
					delete(running, j.ID)
				}
			}
			return nil
		})
	}
	for range atOnce {
		submit()
	}
	healAt := map[*box]time.Time{}
	lateJoins := boxes[started:]
	for end := time.Now().Add(*duration); time.Now().Before(end); {
		time.Sleep(time.Duration(300+r.IntN(1200)) * time.Millisecond)
		for _, b := range up {
			if at, ok := healAt[b]; ok && time.Now().After(at) {
				b.heal(seeds(b))
				delete(healAt, b)
			}
		}
		ill := 0
		for _, b := range up {
			if !b.well() {
				ill++
			}
		}
		// Of five voters two may be away; sometimes a third goes, and all wait.
		if ill >= 2 && !(ill == 2 && r.IntN(8) == 0) {
			over()
			continue
		}
		b := up[r.IntN(len(up))]
		if !b.well() {
			continue
		}
		lasts := time.Duration(500+r.IntN(5000)) * time.Millisecond
		what := ""
		switch k := r.IntN(20); {
		case k < 6:
			what = "kill -9"
			b.kill()
		case k < 10:
			what = "stop"
			b.signal(syscall.SIGSTOP)
			b.stopped = true
		case k < 14:
			what = "cut off"
			b.host.Disconnect(t)
			b.cut = true
		case k < 17:
			what = "slow link"
			b.host.Limit(t, "2mbit")
			b.slow = true
		case k < 19 && len(lateJoins) > 0:
			what = "join"
			j := lateJoins[0]
			lateJoins = lateJoins[1:]
			j.start(seeds(j))
			up = append(up, j)
		default:
			what = "stop in good order" // gives its jobs back
			b.signal(syscall.SIGTERM)
			_ = b.cmd.Wait()
			b.cmd = nil
		}
		struck[what]++
		if what != "join" {
			healAt[b] = time.Now().Add(lasts)
		}
		over()
		if len(running) < atOnce {
			submit()
		}
	}
	for _, b := range up {
		b.heal(seeds(b))
	}
	healed := time.Now()
	settled()
	fmt.Printf("chaos: one cluster again %v after the last fault\n", time.Since(healed).Round(10*time.Millisecond))
	for id, s := range jobs {
		err := ask(3*time.Minute, func(_ context.Context, c *driver.Client) error {
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			f, err := c.Follow(ctx, id, nil, nil)
			if err == nil && f.Job.State != daemon.Done {
				t.Errorf("job %s: %s %s", id, f.Job.State, f.Job.Why)
			}
			return err
		})
		if err != nil {
			t.Fatalf("job %s: %v", id, err)
		}
		out := filepath.Join(root, "out-"+id)
		if err := ask(time.Minute, func(ctx context.Context, c *driver.Client) error { return c.Fetch(ctx, id, out, nil) }); err != nil {
			t.Fatalf("fetch %s: %v", id, err)
		}
		if !bytes.Equal(model(t, out), want[s]) {
			t.Errorf("job %s: its model is not that of an undisturbed build", id)
		}
	}
	// All copies say the same, and keep the promises.
	for _, b := range up {
		var backup bytes.Buffer
		if err := clients[b].Backup(t.Context(), &backup); err != nil {
			t.Fatalf("%s: %v", b.name, err)
		}
		found, err := daemon.Audit(&backup)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			t.Errorf("audit: %s", f)
		}
	}
	kinds := []string{"kill -9", "stop", "cut off", "slow link", "join", "stop in good order"}
	for _, k := range kinds {
		fmt.Printf("chaos: %s: %d times\n", k, struck[k])
		if struck[k] == 0 && *duration >= 2*time.Minute {
			t.Errorf("%s never struck: choose another seed or a longer duration", k)
		}
	}
	fmt.Printf("chaos: %d jobs, all as undisturbed\n", len(jobs))
}
