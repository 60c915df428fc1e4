// Package chaos runs a cluster under faults and proves afterwards that it kept its
// promises.
//
//	go test ./bench/chaos -duration 10m -timeout 20m -seed 7 -v
//	go test ./bench/chaos -kills 100 -v
//
// Five nodes are processes in network namespaces on one switch (root, iproute2,
// util-linux). While three jobs run at a time, a seeded schedule kills nodes and the
// processes in which their ranks compute (-9, and starts nodes again), stops nodes
// (SIGSTOP, and lets them go on), pulls their plugs, throttles their links until packets
// are dropped, has links lose every fifth packet each way, slows disks down, drains
// nodes, and has new ones join. Each kind strikes at least once, however short the
// duration.
//
// At its end all heals, the jobs end, and the journals are audited: no finished trial
// lost or run twice, no job or device with two owners, no ranks that came apart, and
// every model equal bit for bit to that of an undisturbed build. All the time the locks
// of devices are watched: none may have two owners. What is planted is found:
// daemon's TestAudit (trials lost or twice, double leases, ranks apart), TestDoubleLease,
// train's TestRanksThatComeApart.
//
// Packets are lost by a program at both ends of a link (ringtest's Lose), since the
// kernels at hand have no netem; disks are slow for a node whose syncs the kernel holds
// up until the test lets them go on (disk.go).
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
	"strconv"
	"strings"
	"sync/atomic"
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
	duration = flag.Duration("duration", 2*time.Second, "how long faults are made, and longer until each kind has struck")
	kills    = flag.Int("kills", 0, "faults are made until so many processes were killed, most of them in this way")
	seed     = flag.Uint64("seed", 1, "of the schedule")
)

const (
	nodeEnv   = "AUTOGLM_CHAOS_NODE"   // the configuration of a node's process
	workerEnv = "AUTOGLM_CHAOS_WORKER" // set in the process of a rank
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
	if os.Getenv(workerEnv) != "" {
		if err := node.ServeWorker(); err != nil {
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
	cfg.Worker = func() *exec.Cmd {
		c := exec.Command(os.Args[0])
		c.Env = []string{workerEnv + "=1"}
		return c
	}
	held, err := holdSyncs()
	if err != nil {
		return err
	}
	fmt.Println(held)
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
	// After the faults the jobs end, and are built once more without any.
	need := *duration*3/2 + time.Minute
	if end, ok := t.Deadline(); ok && time.Until(end) < need-time.Second {
		t.Fatalf("-duration %v takes up to %v in all, and go test ends it after %v: add -timeout %v", *duration, need, time.Until(end).Round(time.Second), need)
	}
	hosts := ringtest.Hosts(t, started+more+1)
	hosts[0].Lose(t, 1).End() // skips the test where it can't be done
	conf, err := json.Marshal(hosts)
	if err != nil {
		t.Fatal(err)
	}
	argv := append(append([]string{}, hosts[len(hosts)-1].Prefix...), os.Args[0], "-test.run=^TestChaos$", "-test.v", "-test.timeout=0",
		fmt.Sprintf("-duration=%v", *duration), fmt.Sprintf("-kills=%d", *kills), fmt.Sprintf("-seed=%d", *seed))
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
	t      *testing.T
	host   ringtest.Host
	name   string
	addr   string
	dir    string
	leases *leases
	held   *atomic.Int64 // syncs that were held up, of all boxes

	cmd  *exec.Cmd // nil while it is down
	out  *actorstest.Output
	disk *disk
	mend func() // ends the fault that it suffers; nil while it is well
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
	said := bufio.NewReader(r)
	first, err := said.ReadString('\n')
	if err == nil {
		var fd int
		if fd, err = strconv.Atoi(strings.TrimSpace(first)); err == nil {
			b.disk, err = diskOf(b.cmd.Process.Pid, fd, b.held)
		}
	}
	if err == nil {
		_, err = said.ReadString('\n')
	}
	if err != nil {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait()
		b.t.Fatalf("%s does not start: %v\n%s", b.name, err, b.out)
	}
	b.leases.of(b.cmd.Process.Pid)
}

// kill ends the process at once.
func (b *box) kill() {
	if b.cmd == nil {
		return
	}
	b.signal(syscall.SIGKILL) // a stopped one too
	b.gone()
}

// gone waits for the process, which was told to end.
func (b *box) gone() {
	b.leases.notOf(b.cmd.Process.Pid)
	_ = b.cmd.Wait()
	b.disk.end()
	b.cmd, b.disk = nil, nil
}

func (b *box) signal(s syscall.Signal) { _ = b.cmd.Process.Signal(s) }

// heal ends what the box suffers.
func (b *box) heal() {
	if b.mend != nil {
		b.mend()
		b.mend = nil
	}
}

// workers are the live processes in which the node's ranks compute.
func (b *box) workers() []int {
	if b.cmd == nil {
		return nil
	}
	return actorstest.Children(b.t, b.cmd.Process.Pid)
}

// fault is one kind of trouble.
type fault struct {
	name string
	odds int // against the others, once all have struck
	// strike begins it and is how it ends, nil where it is over; false where there is
	// nothing to strike now.
	strike func(c *city, b *box) (mend func(), ok bool)
}

func faults() []fault {
	again := func(c *city, b *box) func() { return func() { b.start(c.seeds(b)) } }
	return []fault{
		{"kill -9", 6, func(c *city, b *box) (func(), bool) {
			b.kill()
			return again(c, b), true
		}},
		{"kill -9 of a rank's process", 6, func(c *city, _ *box) (func(), bool) {
			var all []int
			for _, b := range c.up {
				all = append(all, b.workers()...)
			}
			return nil, len(all) > 0 && syscall.Kill(all[c.rand.IntN(len(all))], syscall.SIGKILL) == nil
		}},
		{"stop", 4, func(_ *city, b *box) (func(), bool) {
			b.signal(syscall.SIGSTOP)
			return func() { b.signal(syscall.SIGCONT) }, true
		}},
		{"cut off", 4, func(c *city, b *box) (func(), bool) {
			b.host.Disconnect(c.t)
			return func() { b.host.Connect(c.t) }, true
		}},
		{"slow link", 3, func(c *city, b *box) (func(), bool) {
			b.host.Limit(c.t, "2mbit")
			return func() { b.host.Unlimit(c.t) }, true
		}},
		{"link that loses 20 %", 4, func(c *city, b *box) (func(), bool) {
			return b.host.Lose(c.t, 20).End, true
		}},
		{"slow disk", 4, func(_ *city, b *box) (func(), bool) { return b.disk.slowDown() }},
		{"join", 1, func(c *city, _ *box) (func(), bool) {
			if len(c.late) == 0 {
				return nil, false
			}
			j := c.late[0]
			c.late = c.late[1:]
			j.start(c.seeds(j))
			c.up = append(c.up, j)
			return nil, true
		}},
		{"stop in good order", 2, func(c *city, b *box) (func(), bool) { // gives its jobs back
			b.signal(syscall.SIGTERM)
			b.gone()
			return again(c, b), true
		}},
	}
}

// killed counts those of faults that killed a process.
func killed(struck map[string]int) int {
	return struck["kill -9"] + struck["kill -9 of a rank's process"]
}

// spread is the seed of jobs over several nodes, whose devices come and go, and with them
// what is summed in which order: their models are not those of undisturbed builds.
const spread = 1

func spec(file string, seed uint64) job.Spec {
	s := actorstest.TinySpec(file, 60000)
	s.Seed = seed
	s.Retries = 3 // a rank's process that is killed before it can answer counts as the trial's failure
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

// city is the cluster, as the process sees it that drives the test.
type city struct {
	t       *testing.T
	rand    *rand.Rand
	up      []*box // that have been started
	late    []*box // that may join
	clients map[*box]*driver.Client

	file    string
	jobs    map[string]uint64 // by id: the seed
	running map[string]bool
}

// drive is the test, on a host that reaches all others.
func drive(t *testing.T, hosts []ringtest.Host) {
	c := &city{
		t: t, rand: rand.New(rand.NewPCG(*seed, 1)), file: actorstest.Corpus(t, t.TempDir()),
		clients: map[*box]*driver.Client{}, jobs: map[string]uint64{}, running: map[string]bool{},
	}
	want := map[uint64][]byte{} // by seed
	for s := range uint64(atOnce) {
		if s == spread {
			continue
		}
		dir := filepath.Join(t.TempDir(), "alone")
		n, err := node.Open(node.Options{Dir: dir, Spec: spec(c.file, s)})
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		want[s] = model(t, dir)
	}
	root := t.TempDir()
	watched := newLeases()
	var held atomic.Int64
	for i, h := range hosts[:started+more] {
		name := fmt.Sprintf("n%d", i)
		b := &box{t: t, host: h, name: name, addr: h.Address + ":7400", dir: filepath.Join(root, name), leases: watched, held: &held, out: &actorstest.Output{}}
		c.late = append(c.late, b)
		c.clients[b] = driver.NewClient(b.addr, nil)
		defer c.clients[b].Close()
	}
	defer func() {
		for _, b := range c.up {
			b.kill()
		}
		if t.Failed() {
			for _, b := range c.up {
				fmt.Println(b.out)
			}
		}
	}()
	for range started {
		b := c.late[0]
		c.late = c.late[1:]
		b.start(c.seeds(b))
		c.up = append(c.up, b)
	}
	c.settled()
	watched.watch()
	struck := c.suffer()
	healed := time.Now()
	c.settled()
	fmt.Printf("chaos: one cluster again %v after the last fault\n", time.Since(healed).Round(10*time.Millisecond))
	trials := 0
	for id, s := range c.jobs {
		trials += c.finish(id, filepath.Join(root, "out-"+id), want[s])
	}
	for _, f := range watched.end() {
		t.Error(f)
	}
	if len(watched.held) == 0 {
		t.Error("no device was ever seen leased: the watcher looks at the wrong place")
	}
	// All copies say the same, and keep the promises.
	for _, b := range c.up {
		var backup bytes.Buffer
		if err := c.clients[b].Backup(t.Context(), &backup); err != nil {
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
	for _, f := range faults() {
		fmt.Printf("chaos: %s: %d times\n", f.name, struck[f.name])
		if struck[f.name] == 0 {
			t.Errorf("%s never struck", f.name)
		}
	}
	if held.Load() == 0 {
		t.Error("no sync was held up on a slow disk")
	}
	fmt.Printf("chaos: %d syncs took %v to %v; %d looks at %d leased devices\n", held.Load(), syncAtLeast, syncAtMost, watched.looks, len(watched.held))
	if !t.Failed() {
		fmt.Printf("chaos: %d processes killed; %d jobs, all that can be as undisturbed; %d finished trials: 0 lost, 0 run twice\n", killed(struck), len(c.jobs), trials)
	}
}

// suffer makes faults while jobs run, and counts them by kind. At its end all is well.
func (c *city) suffer() map[string]int {
	all := faults()
	struck := map[string]int{}
	var odds []int // an entry of all for each of its odds
	for i, f := range all {
		n := f.odds
		if *kills > 0 && strings.HasPrefix(f.name, "kill") {
			n *= 8
		}
		for range n {
			odds = append(odds, i)
		}
	}
	first := c.rand.Perm(len(all))                                    // each once, before any comes again
	longest := min(5000, max(500, int(*duration/time.Millisecond)/4)) // fault, ms
	if *kills > 0 {
		longest = max(longest, 1000)
	}
	healAt := map[*box]time.Time{}
	begin := time.Now()
	for late := begin.Add(*duration + time.Duration(*kills)*4*time.Second + 30*time.Second); time.Now().Before(late); {
		if len(first) == 0 && time.Since(begin) >= *duration && killed(struck) >= *kills {
			break
		}
		for c.over(); len(c.running) < atOnce; {
			c.submit()
		}
		time.Sleep(time.Duration(longest/10+c.rand.IntN(longest/5)) * time.Millisecond)
		ill := 0
		for _, b := range c.up {
			if at, ok := healAt[b]; ok && time.Now().After(at) {
				b.heal()
				delete(healAt, b)
			}
			if b.mend != nil {
				ill++
			}
		}
		// Of five voters two may be away; sometimes a third goes, and all wait.
		b := c.up[c.rand.IntN(len(c.up))]
		if b.mend != nil || ill >= 2 && !(ill == 2 && c.rand.IntN(8) == 0) {
			continue
		}
		k := odds[c.rand.IntN(len(odds))]
		if len(first) > 0 {
			k, first = first[0], first[1:]
		}
		mend, ok := all[k].strike(c, b)
		switch {
		case ok:
			struck[all[k].name]++
		case struck[all[k].name] == 0:
			first = append(first, k)
		}
		if b.mend = mend; mend != nil {
			healAt[b] = time.Now().Add(time.Duration(longest/10+c.rand.IntN(longest)) * time.Millisecond)
		}
	}
	if n := killed(struck); n < *kills {
		c.t.Errorf("%d processes were killed in %v, %d were to be", n, time.Since(begin).Round(time.Second), *kills)
	}
	for _, b := range c.up {
		b.heal()
	}
	return struck
}

func (c *city) seeds(b *box) []string {
	var out []string
	for _, o := range c.up {
		if o != b {
			out = append(out, o.addr)
		}
	}
	return out
}

// ask puts a question to nodes that should answer, until one does.
func (c *city) ask(patience time.Duration, f func(ctx context.Context, d *driver.Client) error) error {
	var err error
	for late := time.Now().Add(patience); time.Now().Before(late); time.Sleep(100 * time.Millisecond) {
		for _, b := range c.up {
			if b.mend != nil {
				continue
			}
			ctx, cancel := context.WithTimeout(c.t.Context(), 8*time.Second)
			err = f(ctx, c.clients[b])
			cancel()
			if err == nil {
				return nil
			}
		}
	}
	return err
}

// settled waits until all are one cluster with a leader.
func (c *city) settled() {
	c.t.Helper()
	err := c.ask(60*time.Second, func(ctx context.Context, d *driver.Client) error {
		n, err := d.Nodes(ctx)
		if err != nil {
			return err
		}
		if len(n.Nodes) != len(c.up) || n.Voters != 5 || !slices.ContainsFunc(n.Nodes, func(i daemon.NodeInfo) bool { return i.Leader }) {
			return fmt.Errorf("%d of %d nodes, %d voters", len(n.Nodes), len(c.up), n.Voters)
		}
		return nil
	})
	if err != nil {
		c.t.Fatalf("the cluster is not one again: %v", err)
	}
}

func (c *city) submit() {
	c.t.Helper()
	s := uint64(len(c.jobs)) % atOnce
	sp := spec(c.file, s)
	switch s {
	case 0:
		sp.Isolation = "process"
	case spread:
		sp.HardwareConstraint = []string{"cpu-any", "cpu-4"}[len(c.jobs)/atOnce%2]
	}
	var id string
	err := c.ask(60*time.Second, func(ctx context.Context, d *driver.Client) error {
		var err error
		id, err = d.Submit(ctx, fmt.Sprintf("s%d", s), sp, nil)
		return err
	})
	if err != nil {
		c.t.Fatalf("submit: %v", err)
	}
	c.jobs[id], c.running[id] = s, true
}

// over notes which jobs have ended.
func (c *city) over() {
	_ = c.ask(5*time.Second, func(ctx context.Context, d *driver.Client) error {
		all, err := d.Jobs(ctx)
		if err != nil {
			return err
		}
		for _, j := range all {
			if _, mine := c.jobs[j.ID]; !mine {
				c.jobs[j.ID], c.running[j.ID] = j.Spec.Seed, true // submitted, and the answer was lost
			}
			if j.State.Over() {
				delete(c.running, j.ID)
			}
		}
		return nil
	})
}

// finish waits for a job, compares its model with that of an undisturbed build, and
// counts the trials that finished.
func (c *city) finish(id, dir string, want []byte) (trials int) {
	err := c.ask(3*time.Minute, func(_ context.Context, d *driver.Client) error {
		ctx, cancel := context.WithTimeout(c.t.Context(), 2*time.Minute)
		defer cancel()
		f, err := d.Follow(ctx, id, nil, nil)
		if err == nil && f.Job.State != daemon.Done {
			c.t.Errorf("job %s: %s %s", id, f.Job.State, f.Job.Why)
		}
		trials = len(f.State.Outcomes)
		return err
	})
	if err != nil {
		c.t.Fatalf("job %s: %v", id, err)
	}
	if err := c.ask(time.Minute, func(ctx context.Context, d *driver.Client) error { return d.Fetch(ctx, id, dir, nil) }); err != nil {
		c.t.Fatalf("fetch %s: %v", id, err)
	}
	if got := model(c.t, dir); want != nil && !bytes.Equal(got, want) {
		c.t.Errorf("job %s: its model is not that of an undisturbed build", id)
	}
	return trials
}
