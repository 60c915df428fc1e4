// Command cluster measures nodes of a cluster as processes of this machine: how soon
// they are ready, how soon a join and a death are known, what an idle one takes, and
// how long nobody leads when the leader is killed, and what a journal of 10,000
// trials takes; of jobs over several nodes, how soon one uses a node that joins, and
// goes on without one that dies or falls silent; and of actors alone on several
// processes, how soon trials are placed and placed anew, and how many trials and
// reports a second pass through them.
//
//	go run ./bench/cluster -n 50 -what ready,join,kill,memory,traffic,leader,journal
//	go run ./bench/cluster -what spread -rounds 5
//	go run ./bench/cluster -what watch,noop,reports
//
// As root it runs in a network namespace of its own, so that the loopback's counters
// are its nodes' alone; traffic needs that. It prints one JSON object a line with
// -json, a table else. Times are those of the nodes' own clocks, which are one here.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
)

const (
	nodeEnv = "AUTOGLM_BENCH_NODE" // the configuration of a node's process
	netEnv  = "AUTOGLM_BENCH_NET"  // set in the network namespace
	logEnv  = "AUTOGLM_BENCH_LOG"  // the folder of a process that keeps a journal
	hostEnv = "AUTOGLM_BENCH_HOST" // what a process of actors hosts
)

func main() {
	if conf := os.Getenv(nodeEnv); conf != "" {
		if err := member(conf); err != nil {
			fmt.Fprintln(os.Stderr, "node:", err)
			os.Exit(1)
		}
		return
	}
	if dir := os.Getenv(logEnv); dir != "" {
		if err := journals(dir); err != nil {
			fmt.Fprintln(os.Stderr, "journal:", err)
			os.Exit(1)
		}
		return
	}
	if conf := os.Getenv(hostEnv); conf != "" {
		if err := host(conf); err != nil {
			fmt.Fprintln(os.Stderr, "host:", err)
			os.Exit(1)
		}
		return
	}
	n := flag.Int("n", 50, "nodes")
	what := flag.String("what", "ready,join,kill,memory,traffic,leader,journal", "what to measure")
	rounds := flag.Int("rounds", 10, "joins, kills and losses of a leader to measure")
	idle := flag.Duration("idle", 15*time.Second, "how long traffic is counted")
	asJSON := flag.Bool("json", false, "print one JSON object a line")
	flag.Parse()
	if os.Getenv(netEnv) == "" && os.Geteuid() == 0 {
		os.Exit(inNamespace())
	}
	if err := run(*n, strings.Split(*what, ","), *rounds, *idle, *asJSON); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		os.Exit(1)
	}
}

// inNamespace runs this program again where the loopback is its own.
func inNamespace() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), netEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	return 0
}

// said is a line of a node's.
type said struct {
	At   int64  // Unix nanoseconds
	Text string `json:",omitempty"`
	Addr string `json:",omitempty"` // it is ready
}

// member is the process of one node.
func member(conf string) error {
	begin := time.Now()
	var cfg daemon.Config
	if err := json.Unmarshal([]byte(conf), &cfg); err != nil {
		return err
	}
	var mu sync.Mutex
	enc := json.NewEncoder(os.Stdout)
	cfg.Log = func(text string) {
		mu.Lock()
		defer mu.Unlock()
		_ = enc.Encode(said{At: time.Now().UnixNano(), Text: text})
	}
	cfg.Log(fmt.Sprintf("begins %d", begin.UnixNano()))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	d, err := daemon.Start(ctx, cfg)
	if err != nil {
		return err
	}
	if err := d.Ready(ctx); err != nil {
		return err
	}
	mu.Lock()
	_ = enc.Encode(said{At: time.Now().UnixNano(), Addr: d.Addr()})
	mu.Unlock()
	return d.Wait(ctx)
}

// process is a node as this program holds it.
type process struct {
	name  string
	addr  string
	begun time.Time
	ready time.Time
	cmd   *exec.Cmd

	mu    sync.Mutex
	lines []said
}

func (p *process) read(r *bufio.Scanner, up chan<- error) {
	for r.Scan() {
		var s said
		if json.Unmarshal(r.Bytes(), &s) != nil {
			continue
		}
		p.mu.Lock()
		p.lines = append(p.lines, s)
		if s.Addr != "" {
			p.addr, p.ready = s.Addr, time.Unix(0, s.At)
		}
		p.mu.Unlock()
		if s.Addr != "" {
			up <- nil
		}
	}
	select {
	case up <- errors.New("it ended"):
	default:
	}
}

// saw tells when a line with this text was said after a moment.
func (p *process) saw(text string, after time.Time) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.lines {
		if at := time.Unix(0, s.At); at.After(after) && strings.Contains(s.Text, text) {
			return at, true
		}
	}
	return time.Time{}, false
}

type town struct {
	dir   string
	nodes []*process // alive
	next  int
	apart bool // each has the machine's processors, as if it were another machine
}

// start starts a node and waits until it belongs to the cluster.
func (t *town) start() (*process, error) {
	name := fmt.Sprintf("n%d", t.next)
	t.next++
	cfg := daemon.Config{Dir: filepath.Join(t.dir, name), Locks: filepath.Join(t.dir, "locks"), Listen: "127.0.0.1:0", Name: name, Software: "bench"}
	if t.apart {
		cfg.Locks = filepath.Join(t.dir, name+"-locks")
	}
	for _, o := range t.nodes[:min(3, len(t.nodes))] {
		cfg.Join = append(cfg.Join, o.addr)
	}
	conf, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	p := &process{name: name, cmd: exec.Command("/proc/self/exe")}
	p.cmd.Env = append(os.Environ(), nodeEnv+"="+string(conf))
	p.cmd.Stderr = os.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.begun = time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	up := make(chan error, 2)
	go p.read(bufio.NewScanner(out), up)
	select {
	case err = <-up:
	case <-time.After(30 * time.Second):
		err = errors.New("not ready after 30 s")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	t.nodes = append(t.nodes, p)
	return p, nil
}

func (t *town) kill(p *process) time.Time {
	at := time.Now()
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	t.nodes = slices.DeleteFunc(t.nodes, func(o *process) bool { return o == p })
	return at
}

func (t *town) end() {
	for len(t.nodes) > 0 {
		t.kill(t.nodes[0])
	}
	os.RemoveAll(t.dir)
}

// all waits until every node has said a text after a moment, and gives their times.
func (t *town) all(text string, after time.Time, within time.Duration) ([]time.Duration, error) {
	late := time.Now().Add(within)
	for {
		var out []time.Duration
		missing := ""
		for _, p := range t.nodes {
			if at, ok := p.saw(text, after); ok {
				out = append(out, at.Sub(after))
			} else {
				missing = p.name
			}
		}
		if missing == "" {
			return out, nil
		}
		if time.Now().After(late) {
			return nil, fmt.Errorf("%s has not said %q within %v", missing, text, within)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// leader asks a node who leads.
func (t *town) leader() (*process, error) {
	c := driver.NewClient(t.nodes[0].addr, nil)
	defer c.Close()
	for late := time.Now().Add(20 * time.Second); time.Now().Before(late); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		nodes, err := c.Nodes(ctx)
		cancel()
		if err != nil {
			continue
		}
		for _, n := range nodes.Nodes {
			for _, p := range t.nodes {
				if n.Leader && n.Name == p.name && nodes.Voters == min(5, (len(t.nodes)-1)/2*2+1) {
					return p, nil
				}
			}
		}
	}
	return nil, errors.New("no leader, or not as many voters as there should be, after 20 s")
}

// result is one line of output.
type result struct {
	What   string  `json:"what"`
	Nodes  int     `json:"nodes"`
	N      int     `json:"n"`
	P50    float64 `json:"p50"`
	P95    float64 `json:"p95"`
	Max    float64 `json:"max"`
	Unit   string  `json:"unit"`
	Target string  `json:"target"`
}

func of(what string, nodes int, unit, target string, v []float64) result {
	slices.Sort(v)
	at := func(q float64) float64 { return v[min(len(v)-1, int(q*float64(len(v))))] }
	return result{what, nodes, len(v), at(0.5), at(0.95), v[len(v)-1], unit, target}
}

func run(n int, what []string, rounds int, idle time.Duration, asJSON bool) error {
	if os.Getenv(netEnv) != "" {
		if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
			return fmt.Errorf("loopback: %w: %s (needs iproute2)", err, out)
		}
	}
	dir, err := os.MkdirTemp("", "bench-cluster-*")
	if err != nil {
		return err
	}
	t := &town{dir: dir}
	defer t.end()
	show := func(r result) {
		if asJSON {
			_ = json.NewEncoder(os.Stdout).Encode(r)
			return
		}
		fmt.Printf("%-46s %3d nodes  %3d times  median %8.3f  p95 %8.3f  max %8.3f %-6s (target %s)\n", r.What, r.Nodes, r.N, r.P50, r.P95, r.Max, r.Unit, r.Target)
	}
	var ready []float64
	for _, w := range what {
		if !slices.Contains([]string{"journal", "spread", "watch", "noop", "reports"}, w) && ready == nil {
			if ready, err = t.fill(n); err != nil {
				return err
			}
		}
		switch w {
		case "ready":
			show(of("process started to member of the cluster", n, "s", "0.2", ready))
		case "join":
			err = t.joins(rounds, show)
		case "kill":
			err = t.kills(rounds, show)
		case "memory":
			err = t.memory(show)
		case "traffic":
			err = t.traffic(idle, show)
		case "journal":
			err = t.journal(show)
		case "spread":
			err = spread(min(rounds, 5), show)
		case "leader":
			err = t.leaders(min(rounds, 5), show)
		case "watch":
			err = watches(rounds, show)
		case "noop":
			err = noops(dir, min(rounds, 5), show)
		case "reports":
			err = metrics(dir, min(rounds, 5), show)
		default:
			err = fmt.Errorf("-what %s is not known", w)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w, err)
		}
	}
	return nil
}

// fill starts so many nodes, and tells how long each took.
func (t *town) fill(n int) (ready []float64, err error) {
	for len(t.nodes) < n {
		p, err := t.start()
		if err != nil {
			return nil, err
		}
		ready = append(ready, p.ready.Sub(p.begun).Seconds())
	}
	_, err = t.leader()
	return ready, err
}

func (t *town) joins(rounds int, show func(result)) error {
	var v []float64
	nodes := len(t.nodes)
	for range rounds {
		p, err := t.start()
		if err != nil {
			return err
		}
		d, err := t.all("node "+p.name+" joined", p.begun, 30*time.Second)
		if err != nil {
			return err
		}
		v = append(v, slices.Max(d).Seconds())
	}
	show(of("a node's process started to known by all", nodes, "s", "0.5", v))
	return nil
}

// replace starts a node in place of a killed one, and waits until all know it.
func (t *town) replace() error {
	p, err := t.start()
	if err != nil {
		return err
	}
	_, err = t.all("node "+p.name+" joined", p.begun, 30*time.Second)
	time.Sleep(500 * time.Millisecond) // its connection to the leader
	return err
}

func (t *town) kills(rounds int, show func(result)) error {
	var gossip, stream []float64
	nodes := len(t.nodes)
	time.Sleep(500 * time.Millisecond)
	for range rounds {
		lead, err := t.leader()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(t.nodes, func(p *process) bool { return p != lead })
		p := t.nodes[len(t.nodes)-1]
		if p == lead {
			p = t.nodes[i]
		}
		at := t.kill(p)
		d, err := t.all("node "+p.name+" is gone", at, 60*time.Second)
		if err != nil {
			return err
		}
		gossip = append(gossip, slices.Max(d).Seconds())
		known, _ := lead.saw("node "+p.name+" is gone", at)
		stream = append(stream, known.Sub(at).Seconds())
		if err := t.replace(); err != nil {
			return err
		}
	}
	show(of("kill -9 known where a stream was open (leader)", nodes, "s", "0.05", stream))
	show(of("kill -9 known by all, by gossip", nodes, "s", "4.5", gossip))
	return nil
}

func (t *town) memory(show func(result)) error {
	var v []float64
	for _, p := range t.nodes {
		mb, err := resident(p.cmd.Process.Pid)
		if err != nil {
			return err
		}
		v = append(v, mb)
	}
	show(of("resident memory of an idle node", len(t.nodes), "MB", "40", v))
	return nil
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// resident is a process' memory in MB.
func resident(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kb / 1024, err
		}
	}
	return 0, errors.New("no VmRSS")
}

// traffic counts what crosses the loopback: each byte is sent once.
func (t *town) traffic(idle time.Duration, show func(result)) error {
	if os.Getenv(netEnv) == "" {
		return errors.New("needs a network namespace of its own: run it as root")
	}
	count := func() (float64, error) {
		b, err := os.ReadFile("/proc/self/net/dev")
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "lo:"); ok {
				return strconv.ParseFloat(strings.Fields(rest)[0], 64)
			}
		}
		return 0, errors.New("no loopback")
	}
	begin, err := count()
	if err != nil {
		return err
	}
	time.Sleep(idle)
	end, err := count()
	if err != nil {
		return err
	}
	show(of("sent by an idle node, all protocols", len(t.nodes), "kB/s", "30 at 256", []float64{(end - begin) / idle.Seconds() / float64(len(t.nodes)) / 1e3}))
	return nil
}

func (t *town) leaders(rounds int, show func(result)) error {
	var v []float64
	nodes := len(t.nodes)
	for range rounds {
		p, err := t.leader()
		if err != nil {
			return err
		}
		at := t.kill(p)
		c := driver.NewClient(t.nodes[0].addr, nil)
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			_, err := c.Jobs(ctx)
			cancel()
			if err == nil {
				break
			}
			if time.Since(at) > 30*time.Second {
				return err
			}
		}
		v = append(v, time.Since(at).Seconds())
		c.Close()
		if err := t.replace(); err != nil {
			return err
		}
	}
	show(of("leader killed to the next one answering", nodes, "s", "3", v))
	return nil
}
