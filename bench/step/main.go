// Command step times whole training steps of one shape: ours, as one rank or as
// several, in turn with PyTorch's modes, beside what the machine can do at most.
//
//	AUTOGLM_PYTHON=$(.ci/peers) go run ./bench/step -d 256 -layers 4 -heads 4 -kv 4 -ffn 704 -T 256 -B 8 -V 4096 -threads 2
//	go run ./bench/step … -loss-steps 200 -neighbour -peers eager,bf16,compile,compile-bf16
//	go run ./bench/step … -ranks 2 -peers none -json
//
// A peer that is named and cannot run is an error. Our rate counts against a peer
// when our loss after -loss-steps steps, from initial values of the same
// distribution and on the same data, is not worse than its.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/open-autoglm/autoglm/bench/stat"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// config is what the flags say.
type config struct {
	arch      glm.Arch
	batch     int // sequences of a step, of each rank
	threads   int
	ranks     int
	rounds    int
	seconds   float64
	lossSteps int
	neighbour bool
	engine    string
	optimizer engine.Optimizer
	precision engine.Precision
	peers     []string // modes of PyTorch
}

// report is what is printed. Rates and ratios are medians over rounds.
type report struct {
	Arch      string `json:"arch"`
	Params    int64  `json:"params"`
	Engine    string `json:"engine"`
	Level     string `json:"level"`
	Optimizer string `json:"optimizer"`
	Precision string `json:"precision"`
	Threads   int    `json:"threads"`
	Ranks     int    `json:"ranks"`
	Neighbour bool   `json:"neighbour"` // a process that keeps one core busy ran beside all of it

	TokensPerS float64 `json:"tokens_per_s"`
	PerCPU     float64 `json:"tokens_per_cpu_s"` // by processor time used: what neighbours take does not count
	Steps      int     `json:"steps"`
	LossFirst  float64 `json:"loss_first"`
	LossLast   float64 `json:"loss_last"`
	Loss       float64 `json:"loss,omitempty"` // mean of the last ten of loss_steps steps
	LossSteps  int     `json:"loss_steps,omitempty"`

	GFLOPs    float64 `json:"gflops"`      // GFLOP/s of the model: 6·N + 6·L·d·T a token, N with the output matrix once and no look-up
	PeakF32   float64 `json:"peak_f32"`    // GFLOP/s of multiply-adds on registers alone, by as many threads …
	PeakBF16  float64 `json:"peak_bf16"`   // … the same of bfloat16 products; 0 where the CPU has none
	PeakShare float64 `json:"peak_share"`  // gflops over the peak of the precision that ran
	CopyGBs   float64 `json:"copy_gbytes"` // GB/s read and written by a copy, by as many threads

	OneRank    float64 `json:"one_rank_tokens_per_s,omitempty"`
	RankGain   float64 `json:"rank_gain,omitempty"`    // all ranks over one
	LoopGain   float64 `json:"loop_gain,omitempty"`    // the same for a loop that touches no memory
	GainOfLoop float64 `json:"gain_of_loop,omitempty"` // rank_gain / loop_gain

	Peers []peerReport `json:"peers,omitempty"`
	// The fastest peer of those whose loss ours equals: our rate over its.
	BestPeer  string  `json:"best_peer,omitempty"`
	BestRatio float64 `json:"best_ratio,omitempty"`
}

// peerReport is one peer beside us.
type peerReport struct {
	Mode       string    `json:"mode"`
	TokensPerS float64   `json:"tokens_per_s"`
	PerCPU     float64   `json:"tokens_per_cpu_s"`
	Ratio      float64   `json:"ratio"`     // ours over the peer's
	CPURatio   float64   `json:"cpu_ratio"` // the same by processor time
	Rounds     []float64 `json:"round_ratios"`
	Loss       float64   `json:"loss,omitempty"`
	LossOK     bool      `json:"loss_equal_or_better"` // ours, within lossNoise
}

// lossNoise is the share by which two seeds' losses differ: less is equal.
const lossNoise = 0.01

func main() {
	if len(os.Args) == 2 && os.Args[1] == busyArg {
		busy()
		return
	}
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "step:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	var c config
	a := &c.arch
	f := flag.NewFlagSet("step", flag.ContinueOnError)
	f.IntVar(&a.Dim, "d", 128, "width")
	f.IntVar(&a.Layers, "layers", 4, "layers")
	f.IntVar(&a.Heads, "heads", 4, "query heads")
	f.IntVar(&a.KVHeads, "kv", 4, "key and value heads")
	f.IntVar(&a.FFN, "ffn", 352, "inner width of the feed-forward block")
	f.IntVar(&a.Context, "T", 128, "tokens of a sequence")
	f.IntVar(&c.batch, "B", 16, "sequences of a step (of each rank)")
	f.IntVar(&a.Vocab, "V", 512, "vocabulary")
	f.BoolVar(&a.Tied, "tied", true, "output projection shares the embedding")
	f.IntVar(&c.threads, "threads", 1, "threads of a rank, and of the peers")
	f.IntVar(&c.ranks, "ranks", 1, "ranks that sum their gradients each step, one thread each")
	f.IntVar(&c.rounds, "rounds", 3, "with peers or ranks: alternations")
	f.Float64Var(&c.seconds, "seconds", 3, "length of one timing, s")
	f.IntVar(&c.lossSteps, "loss-steps", 0, "compare losses after this many steps; 0: not at all")
	f.BoolVar(&c.neighbour, "neighbour", false, "keep one core busy in another process all the while")
	f.StringVar(&c.engine, "engine", "native", "native, or torch in a build with libtorch")
	optimizer := f.String("optimizer", string(engine.AdamW), "adamw or muon")
	precision := f.String("precision", string(engine.Auto), "of our products: f32, bf16, or auto, the fastest here")
	peers := f.String("peers", "eager,bf16,compile", "modes of PyTorch, of the interpreter in AUTOGLM_PYTHON: "+strings.Join(modes, ", ")+"; or none")
	old := f.String("peer", "", "torch: the same as -peers eager")
	asJSON := f.Bool("json", true, "print one JSON object; otherwise a table")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	switch *old {
	case "":
	case "torch":
		*peers = "eager"
	default:
		return fmt.Errorf("-peer %q is unknown, use torch, or -peers", *old)
	}
	if *peers != "none" {
		c.peers = strings.Split(*peers, ",")
	}
	for _, p := range c.peers {
		if !slices.Contains(modes, p) {
			return fmt.Errorf("-peers %q is unknown; there are %s, and none", p, strings.Join(modes, ", "))
		}
	}
	c.optimizer, c.precision = engine.Optimizer(*optimizer), engine.Precision(*precision)
	c.arch = a.WithDefaults()
	if c.ranks > 1 && c.threads != 1 {
		return errors.New("-ranks has one thread a rank; leave -threads at 1")
	}
	if c.seconds <= 0 || c.rounds < 1 || c.ranks < 1 || c.batch < 1 || c.threads < 1 || c.lossSteps < 0 {
		return errors.New("-seconds, -rounds, -ranks, -threads and -B must be positive, -loss-steps not negative")
	}
	r, err := c.measure()
	if err != nil {
		return err
	}
	if *asJSON {
		return json.NewEncoder(out).Encode(r)
	}
	return r.table(out)
}

// measure runs the alternations that the flags ask for.
func (c *config) measure() (r report, err error) {
	r = report{
		Arch: c.arch.String(), Params: c.arch.Params(), Engine: c.engine, Level: kernel.Level(), Optimizer: string(c.optimizer), Precision: string(c.resolved()),
		Threads: c.threads, Ranks: c.ranks, Neighbour: c.neighbour, LossSteps: c.lossSteps,
	}
	if _, err := c.maker(); err != nil {
		return r, err
	}
	var peers []*peer
	for _, mode := range c.peers {
		p, err := c.startPeer(mode)
		if err != nil {
			return r, err
		}
		defer p.close()
		peers = append(peers, p)
	}
	if c.lossSteps > 0 {
		if r.Loss, err = c.loss(); err != nil {
			return r, err
		}
	}
	if c.neighbour {
		stop, err := startNeighbour()
		if err != nil {
			return r, err
		}
		defer stop()
	}
	rounds := c.rounds
	if len(peers) == 0 && c.ranks == 1 {
		rounds = 1
	}
	var own, cpu, one, gains, loops, f32, bf16, copies []float64
	for range rounds {
		n := c.threads * c.ranks
		f32, bf16, copies = append(f32, peak(n, false)), append(bf16, peak(n, true)), append(copies, copyRate(n))
		t, err := c.train(c.ranks)
		if err != nil {
			return r, err
		}
		r.LossFirst, r.LossLast, r.Steps = t.first, t.last, t.steps
		own, cpu = append(own, t.rate), append(cpu, t.perCPU)
		if c.ranks > 1 {
			single, err := c.train(1)
			if err != nil {
				return r, err
			}
			one = append(one, single.rate)
			gains = append(gains, t.rate/single.rate)
			loops = append(loops, loopGain(c.ranks, c.seconds/2))
		}
		for _, p := range peers {
			if err := p.time(c.seconds, t); err != nil {
				return r, err
			}
		}
	}
	r.TokensPerS, r.PerCPU = stat.Median(own), stat.Median(cpu)
	r.PeakF32, r.PeakBF16, r.CopyGBs = stat.Median(f32), stat.Median(bf16), stat.Median(copies)
	r.GFLOPs = r.TokensPerS * c.arch.FLOPsPerToken(c.arch.Context) / 1e9
	r.PeakShare = r.GFLOPs / r.PeakF32
	if c.resolved() == engine.BF16 && r.PeakBF16 > 0 {
		r.PeakShare = r.GFLOPs / r.PeakBF16
	}
	if c.ranks > 1 {
		r.OneRank, r.RankGain, r.LoopGain = stat.Median(one), stat.Median(gains), stat.Median(loops)
		r.GainOfLoop = r.RankGain / r.LoopGain
	}
	for _, p := range peers {
		pr := p.report()
		pr.LossOK = c.lossSteps > 0 && r.Loss <= pr.Loss*(1+lossNoise)
		r.Peers = append(r.Peers, pr)
		if (c.lossSteps == 0 || pr.LossOK) && (r.BestPeer == "" || pr.Ratio < r.BestRatio) {
			r.BestPeer, r.BestRatio = pr.Mode, pr.Ratio
		}
	}
	return r, nil
}

// table prints the report to be read.
func (r report) table(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "%s, %d parameters, %s (%s), %s, %d ranks of %d threads\n", r.Arch, r.Params, r.Engine, r.Level, r.Optimizer, r.Ranks, r.Threads)
	fmt.Fprintf(w, "mode\ttokens/s\tours over it\tby CPU time\tloss after %d\n", r.LossSteps)
	fmt.Fprintf(w, "ours, %s\t%.0f\t\t\t%.4f\n", r.Precision, r.TokensPerS, r.Loss)
	for _, p := range r.Peers {
		fmt.Fprintf(w, "PyTorch %s\t%.0f\t%.2f\t%.2f\t%.4f\n", p.Mode, p.TokensPerS, p.Ratio, p.CPURatio, p.Loss)
	}
	if r.BestPeer != "" {
		fmt.Fprintf(w, "best, %s\t\t%.2f\n", r.BestPeer, r.BestRatio)
	}
	if r.Ranks > 1 {
		fmt.Fprintf(w, "gain of %d ranks\t%.3f\tof the loop's %.3f: %.3f\n", r.Ranks, r.RankGain, r.LoopGain, r.GainOfLoop)
	}
	fmt.Fprintf(w, "model GFLOP/s\t%.1f\t%.2f of the peak\n", r.GFLOPs, r.PeakShare)
	fmt.Fprintf(w, "peak GFLOP/s\t%.1f f32, %.1f bf16\tcopy %.1f GB/s\n", r.PeakF32, r.PeakBF16, r.CopyGBs)
	return w.Flush()
}
