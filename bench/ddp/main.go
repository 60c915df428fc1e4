// Command ddp measures data-parallel training: ranks that are processes, as users
// start them, with the product's own training loop.
//
//	go run ./bench/ddp -ranks 2 -transport shm,tcp                 scaling and overlap, PyTorch DDP with Gloo beside it
//	go run ./bench/ddp -ranks 2 -transport tcp -peers none         without a peer
//	go run ./bench/ddp -link 100mbit -compress none,powersgd,auto  time to the same loss over a slow link (root: it makes
//	                                                               network namespaces)
//
// The interpreter of the peer is AUTOGLM_PYTHON. Prints one JSON object a line.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/bench/stat"
	"github.com/open-autoglm/autoglm/gpu/ddp"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// config is what the flags say.
type config struct {
	arch      glm.Arch
	batch     int // sequences of a step, of each rank
	ranks     int
	rounds    int
	seconds   float64
	steps     int // of the plain training over a link
	precision string
	lr        float64
	text      string
	link      string
	transport []string
	compress  []string
	peers     []string

	dir string // of the corpora
	exe string
}

func main() {
	if os.Getenv(rankEnv) != "" {
		if err := rankMain(os.Getenv(rankEnv)); err != nil {
			fmt.Fprintln(os.Stderr, "ddp: rank:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "ddp:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	c := config{}
	a := &c.arch
	flag.IntVar(&a.Dim, "d", 256, "width")
	flag.IntVar(&a.Layers, "layers", 4, "layers")
	flag.IntVar(&a.Heads, "heads", 4, "query heads")
	flag.IntVar(&a.KVHeads, "kv", 4, "key and value heads")
	flag.IntVar(&a.FFN, "ffn", 704, "inner width of the feed-forward block")
	flag.IntVar(&a.Context, "T", 256, "tokens of a sequence")
	flag.IntVar(&c.batch, "B", 8, "sequences of a step of each rank")
	flag.IntVar(&a.Vocab, "V", 4096, "vocabulary")
	flag.IntVar(&c.ranks, "ranks", 2, "ranks, each a process of one thread")
	flag.IntVar(&c.rounds, "rounds", 3, "alternations")
	flag.Float64Var(&c.seconds, "seconds", 6, "length of one timing, s")
	flag.IntVar(&c.steps, "steps", 120, "with -link: steps of the plain training, whose last loss the others must reach")
	flag.StringVar(&c.precision, "precision", "f32", "of the products: f32, bf16 or auto")
	flag.Float64Var(&c.lr, "lr", 1e-3, "learning rate")
	flag.StringVar(&c.text, "text", "cmd/autoglm/sample/mobydick.txt.gz", "text to learn, plain or .gz")
	flag.StringVar(&c.link, "link", "", "rate of the link between the ranks, as tc writes it (100mbit): each rank gets a network namespace of its own")
	transport := flag.String("transport", "shm,tcp", "how the ranks join, a list")
	compress := flag.String("compress", "none,bf16,int8,powersgd,auto", "with -link: compression of gradients, a list that begins with none")
	peers := flag.String("peers", "torch", "torch: PyTorch DDP with Gloo in the same run; none")
	flag.Bool("json", true, "print JSON (always)")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case c.ranks < 2 || c.rounds < 1 || c.seconds <= 0 || c.batch < 1 || c.steps < 20:
		return errors.New("-ranks must be 2 or more, -steps 20 or more, -rounds, -seconds and -B positive")
	case c.link != "" && c.ranks != 2:
		return errors.New("-link joins two ranks")
	}
	a.Tied = true
	*a = a.WithDefaults()
	c.transport, c.compress, c.peers = strings.Split(*transport, ","), strings.Split(*compress, ","), strings.Split(*peers, ",")
	for _, m := range c.compress {
		if !slices.Contains(ddp.Modes(), m) {
			return fmt.Errorf("-compress %s; there are %s", m, strings.Join(ddp.Modes(), ", "))
		}
	}
	for _, p := range c.peers {
		if p != "torch" && p != "none" {
			return fmt.Errorf("-peers %s; there are torch and none", p)
		}
	}
	if slices.Contains(c.peers, "torch") && c.link == "" && os.Getenv("AUTOGLM_PYTHON") == "" {
		return errors.New("peer torch: set AUTOGLM_PYTHON to an interpreter with torch (.ci/peers installs one), or -peers=none")
	}
	var err error
	if c.exe, err = os.Executable(); err != nil {
		return err
	}
	if c.dir, err = os.MkdirTemp("", "autoglm-ddp-"); err != nil {
		return err
	}
	defer os.RemoveAll(c.dir)
	if err := c.corpus(ctx); err != nil {
		return err
	}
	if c.link != "" {
		return c.overLink(ctx)
	}
	return c.scaling(ctx)
}

// scaled is one line of scaling. Rates are tokens a second over all ranks, medians
// of the rounds.
type scaled struct {
	System     string  `json:"system"`
	Ranks      int     `json:"ranks"`
	One        float64 `json:"one_rank_tokens_per_s"`
	All        float64 `json:"tokens_per_s"`
	Gain       float64 `json:"gain"`                 // all ranks over one, median of the rounds' gains
	LoopGain   float64 `json:"loop_gain"`            // of a loop that touches no memory: the limit
	OfLoop     float64 `json:"gain_of_loop"`         // the two over each other
	Exposed    float64 `json:"sync_share,omitempty"` // of the time, in which a rank only waited
	Efficiency float64 `json:"sync_efficiency,omitempty"`
	Alone      float64 `json:"sums_alone_ms,omitempty"` // the same sums without training
	Overlap    float64 `json:"overlap,omitempty"`       // 1 − waiting/alone: what training hid of them
	Ratio      float64 `json:"over_torch,omitempty"`    // tokens a second over the peer's
}

func (c *config) scaling(ctx context.Context) error {
	type system struct {
		name string
		run  func(ctx context.Context, ranks int) (result, error)
	}
	var systems []system
	for _, t := range c.transport {
		systems = append(systems, system{t, func(ctx context.Context, ranks int) (result, error) {
			return c.ours(ctx, ranks, rankConfig{Backend: t, Seconds: c.seconds})
		}})
	}
	if slices.Contains(c.peers, "torch") {
		systems = append(systems, system{"torch", c.torch})
	}
	one, all, gain, ofLoop := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	var loops []float64
	last := map[string]result{}
	for range c.rounds {
		loop, err := c.loopGain(ctx)
		if err != nil {
			return err
		}
		loops = append(loops, loop)
		for _, s := range systems {
			single, err := s.run(ctx, 1)
			if err != nil {
				return fmt.Errorf("%s, one rank: %w", s.name, err)
			}
			r, err := s.run(ctx, c.ranks)
			if err != nil {
				return fmt.Errorf("%s, %d ranks: %w", s.name, c.ranks, err)
			}
			one[s.name], all[s.name] = append(one[s.name], single.Rate), append(all[s.name], r.Rate)
			gain[s.name], ofLoop[s.name] = append(gain[s.name], r.Rate/single.Rate), append(ofLoop[s.name], r.Rate/single.Rate/loop)
			last[s.name] = r
		}
	}
	out := json.NewEncoder(os.Stdout)
	for _, s := range systems {
		r := last[s.name]
		line := scaled{
			System: s.name, Ranks: c.ranks, One: stat.Median(one[s.name]), All: stat.Median(all[s.name]), Gain: stat.Median(gain[s.name]),
			LoopGain: stat.Median(loops), OfLoop: stat.Median(ofLoop[s.name]), Exposed: r.Exposed, Efficiency: r.Efficiency, Alone: r.Alone,
		}
		if r.Alone > 0 {
			line.Overlap = max(0, 1-r.Exposed*r.StepSeconds*1e3/r.Alone)
		}
		if p := all["torch"]; len(p) > 0 && s.name != "torch" {
			line.Ratio = line.All / stat.Median(p)
		}
		if err := out.Encode(line); err != nil {
			return err
		}
	}
	return nil
}

// result is what rank 0 says of a run.
type result struct {
	Rate        float64 `json:"tokens_per_s"`
	StepSeconds float64 `json:"step_s"`
	Exposed     float64 `json:"sync_share"`
	Efficiency  float64 `json:"sync_efficiency"`
	Alone       float64 `json:"sums_alone_ms"`
	steps       []train.StepMetrics
}

// ours starts the ranks of a run and gathers what rank 0 prints.
func (c *config) ours(ctx context.Context, ranks int, rc rankConfig) (result, error) {
	rc.Dir, rc.Arch, rc.Batch, rc.Precision, rc.LR = c.dir, c.arch, c.batch, c.precision, c.lr
	b, err := json.Marshal(rc)
	if err != nil {
		return result{}, err
	}
	master, err := freePort("127.0.0.1")
	if err != nil {
		return result{}, err
	}
	var r result
	err = c.together(ctx, ranks, func(ctx context.Context, rank int) *exec.Cmd {
		cmd := exec.CommandContext(ctx, c.exe)
		if rc.Namespaces != nil {
			cmd = exec.CommandContext(ctx, "ip", "netns", "exec", rc.Namespaces[rank], c.exe)
		}
		host := "127.0.0.1"
		if rc.Addresses != nil {
			host = rc.Addresses[0]
		}
		cmd.Env = append(os.Environ(), rankEnv+"="+string(b), fmt.Sprint("RANK=", rank), fmt.Sprint("WORLD_SIZE=", ranks),
			"MASTER_ADDR="+host, "MASTER_PORT="+strconv.Itoa(master), "GOMAXPROCS=2")
		return cmd
	}, func(line []byte) error {
		var l struct {
			result
			Metrics *train.StepMetrics `json:"metrics"`
		}
		if err := json.Unmarshal(line, &l); err != nil {
			return fmt.Errorf("%s: %w", line, err)
		}
		if l.Metrics != nil {
			r.steps = append(r.steps, *l.Metrics)
			return nil
		}
		l.result.steps = r.steps
		r = l.result
		return nil
	})
	return r, err
}

// torch runs PyTorch DDP with Gloo.
func (c *config) torch(ctx context.Context, ranks int) (result, error) {
	master, err := freePort("127.0.0.1")
	if err != nil {
		return result{}, err
	}
	var r result
	err = c.together(ctx, ranks, func(ctx context.Context, rank int) *exec.Cmd {
		a := c.arch
		cmd := exec.CommandContext(ctx, os.Getenv("AUTOGLM_PYTHON"), filepath.Join("bench", "peers", "ddp_torch.py"))
		for name, v := range map[string]int{"d": a.Dim, "layers": a.Layers, "heads": a.Heads, "kv": a.KVHeads, "ffn": a.FFN, "T": a.Context, "B": c.batch, "V": a.Vocab} {
			cmd.Args = append(cmd.Args, "-"+name, strconv.Itoa(v))
		}
		cmd.Args = append(cmd.Args, "-seconds", fmt.Sprint(c.seconds))
		cmd.Env = append(os.Environ(), fmt.Sprint("RANK=", rank), fmt.Sprint("WORLD_SIZE=", ranks), "MASTER_ADDR=127.0.0.1", "MASTER_PORT="+strconv.Itoa(master),
			"GLOO_SOCKET_IFNAME=lo", "OMP_NUM_THREADS=1")
		return cmd
	}, func(line []byte) error { return json.Unmarshal(line, &r) })
	return r, err
}

// together runs one process a rank and hands rank 0's lines over. The first that
// fails ends the others.
func (c *config) together(ctx context.Context, ranks int, command func(ctx context.Context, rank int) *exec.Cmd, line func([]byte) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make(chan error, ranks)
	for rank := range ranks {
		cmd := command(ctx, rank)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		pipe, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			return err // ctx ends those that run
		}
		go func() {
			sc := bufio.NewScanner(pipe)
			sc.Buffer(nil, 1<<20)
			var err error
			for sc.Scan() {
				if rank == 0 && err == nil {
					err = line(sc.Bytes())
				}
			}
			if werr := cmd.Wait(); werr != nil {
				err = fmt.Errorf("rank %d: %w: %s", rank, werr, strings.TrimSpace(stderr.String()))
			}
			errs <- err
		}()
	}
	var first error
	for range ranks {
		if err := <-errs; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	return first
}

// freePort is one that nobody listens on now.
func freePort(host string) (int, error) {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// loopGain is how many times one process's work all ranks' processes do at once
// when nothing but the cores limits them.
func (c *config) loopGain(ctx context.Context) (float64, error) {
	count := func(n int) (sum float64, err error) {
		counts := make(chan float64, n)
		err = c.together(ctx, n, func(ctx context.Context, _ int) *exec.Cmd {
			cmd := exec.CommandContext(ctx, c.exe)
			cmd.Env = append(os.Environ(), rankEnv+"=loop")
			return cmd
		}, func(b []byte) error {
			x, err := strconv.ParseFloat(string(b), 64)
			counts <- x
			return err
		})
		close(counts)
		for x := range counts {
			sum += x
		}
		return sum * float64(n), err // rank 0's, as good as any
	}
	one, err := count(1)
	if err != nil {
		return 0, err
	}
	all, err := count(c.ranks)
	return all / one, err
}

// loop counts rounds of arithmetic in registers for a second.
func loop() float64 {
	x, n := uint64(88172645463325252), 0.0
	for end := time.Now().Add(time.Second); time.Now().Before(end); n++ {
		for range 1 << 16 {
			x ^= x << 13
			x ^= x >> 7
			x ^= x << 17
		}
	}
	if x == 0 {
		n = 0
	}
	return n
}
