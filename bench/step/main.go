// Command step times whole training steps of the CPU engine on one shape, alone,
// as several ranks, or alternately with PyTorch, and prints one JSON object.
//
//	go run ./bench/step -d 128 -layers 4 -heads 4 -kv 4 -ffn 352 -T 128 -B 16 -V 512 -threads 1
//	go run ./bench/step -threads 2 -peer torch      (interpreter in AUTOGLM_PYTHON)
//	go run ./bench/step -ranks 2
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"sort"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
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
	optimizer engine.Optimizer
	precision engine.Precision
	peer      string
}

// report is what is printed. Rates are medians over rounds.
type report struct {
	TokensPerS  float64   `json:"tokens_per_s"`
	LossFirst   float64   `json:"loss_first"`
	LossLast    float64   `json:"loss_last"`
	GFLOPs      float64   `json:"gflops"` // GFLOP/s
	Threads     int       `json:"threads"`
	Params      int64     `json:"params"`
	Steps       int       `json:"steps"`
	Level       string    `json:"level"`
	Optimizer   string    `json:"optimizer"`
	Precision   string    `json:"precision"`
	Arch        string    `json:"arch"`
	Ranks       int       `json:"ranks"`
	OneRank     float64   `json:"one_rank_tokens_per_s,omitempty"`
	RankGain    float64   `json:"rank_gain,omitempty"`    // all ranks over one
	LoopGain    float64   `json:"loop_gain,omitempty"`    // the same for a loop that touches no memory
	GainOfLoop  float64   `json:"gain_of_loop,omitempty"` // rank_gain / loop_gain
	PerCPU      float64   `json:"tokens_per_cpu_s"`       // by processor time used: what neighbours take does not count
	PeerPerCPU  float64   `json:"peer_tokens_per_cpu_s,omitempty"`
	CPURatio    float64   `json:"peer_cpu_ratio,omitempty"`
	PeerTokens  float64   `json:"peer_tokens_per_s,omitempty"`
	PeerLoss    float64   `json:"peer_loss_last,omitempty"`
	PeerRatio   float64   `json:"peer_ratio,omitempty"` // ours over the peer's, median of rounds
	RoundRatios []float64 `json:"round_ratios,omitempty"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "step:", err)
		os.Exit(1)
	}
}

func run() error {
	var c config
	a := &c.arch
	flag.IntVar(&a.Dim, "d", 128, "width")
	flag.IntVar(&a.Layers, "layers", 4, "layers")
	flag.IntVar(&a.Heads, "heads", 4, "query heads")
	flag.IntVar(&a.KVHeads, "kv", 4, "key and value heads")
	flag.IntVar(&a.FFN, "ffn", 352, "inner width of the feed-forward block")
	flag.IntVar(&a.Context, "T", 128, "tokens of a sequence")
	flag.IntVar(&c.batch, "B", 16, "sequences of a step (of each rank)")
	flag.IntVar(&a.Vocab, "V", 512, "vocabulary")
	flag.BoolVar(&a.Tied, "tied", true, "output projection shares the embedding")
	flag.IntVar(&c.threads, "threads", 1, "threads of a rank")
	flag.IntVar(&c.ranks, "ranks", 1, "ranks that sum their gradients each step, one thread each")
	flag.IntVar(&c.rounds, "rounds", 3, "with -peer or -ranks: alternations")
	flag.Float64Var(&c.seconds, "seconds", 5, "length of one timing, s")
	optimizer := flag.String("optimizer", string(engine.AdamW), "adamw or muon")
	precision := flag.String("precision", string(engine.F32), "of the products: f32, bf16 or auto")
	flag.StringVar(&c.peer, "peer", "", "torch: alternate with PyTorch of the interpreter in AUTOGLM_PYTHON")
	flag.Bool("json", true, "print JSON (always)")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	c.optimizer, c.precision = engine.Optimizer(*optimizer), engine.Precision(*precision)
	c.arch = a.WithDefaults()
	if c.ranks > 1 && c.threads != 1 {
		return errors.New("-ranks has one thread a rank; leave -threads at 1")
	}
	if c.seconds <= 0 || c.rounds < 1 || c.ranks < 1 || c.batch < 1 {
		return errors.New("-seconds, -rounds, -ranks and -B must be positive")
	}
	r, err := c.measure()
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// measure runs the alternations that the flags ask for.
func (c *config) measure() (report, error) {
	rounds := c.rounds
	if c.peer == "" && c.ranks == 1 {
		rounds = 1
	}
	var last timing
	var own, one, peer, gains, loops, ratios, cpu, peerCPU, cpuRatios []float64
	r := report{Threads: c.threads, Params: c.arch.Params(), Level: kernel.Level(), Optimizer: string(c.optimizer), Precision: string(c.precision), Arch: c.arch.String(), Ranks: c.ranks}
	for range rounds {
		t, err := c.train(c.ranks)
		if err != nil {
			return r, err
		}
		last = t
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
		if c.peer != "" {
			p, err := c.runPeer()
			if err != nil {
				return r, err
			}
			peer = append(peer, p.TokensPerS)
			ratios = append(ratios, t.rate/p.TokensPerS)
			peerCPU, cpuRatios = append(peerCPU, p.PerCPU), append(cpuRatios, t.perCPU/p.PerCPU)
			r.PeerLoss = p.LossLast
		}
	}
	r.TokensPerS, r.PerCPU = median(own), median(cpu)
	r.GFLOPs = r.TokensPerS * c.arch.FLOPsPerToken(c.arch.Context) / 1e9
	r.LossFirst, r.LossLast, r.Steps = last.first, last.last, last.steps
	if c.ranks > 1 {
		r.OneRank, r.RankGain, r.LoopGain = median(one), median(gains), median(loops)
		r.GainOfLoop = r.RankGain / r.LoopGain
	}
	if c.peer != "" {
		r.PeerPerCPU, r.CPURatio = median(peerCPU), median(cpuRatios)
		r.PeerTokens, r.PeerRatio, r.RoundRatios = median(peer), median(ratios), ratios
	}
	return r, nil
}

func median(x []float64) float64 {
	s := append([]float64(nil), x...)
	sort.Float64s(s)
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// timing is what one run of steps gave.
type timing struct {
	rate        float64 // tokens/s over all ranks
	perCPU      float64 // tokens per second of processor time
	first, last float64 // loss
	steps       int
}

// train times steps of a number of ranks for c.seconds, after one to warm up.
func (c *config) train(ranks int) (timing, error) {
	ring := newSummer(ranks)
	type result struct {
		timing
		err error
	}
	results := make(chan result, ranks)
	for rank := range ranks {
		go func() {
			t, err := c.rank(ring, rank)
			if err != nil {
				ring.abort()
			}
			results <- result{t, err}
		}()
	}
	var total timing
	var failed error
	for range ranks {
		r := <-results
		failed = errors.Join(failed, r.err)
		total.rate += r.rate
		total.steps = r.steps
		total.first += r.first
		total.last += r.last
		// Each rank saw the whole process's time.
		total.perCPU += r.perCPU
	}
	return total, failed
}

// rank trains one replica until the ring says that time is up.
func (c *config) rank(ring *summer, rank int) (t timing, err error) {
	m, err := native.New(c.arch, native.Options{Threads: c.threads, MaxBatch: c.batch, MaxSeq: c.arch.Context, Optimizer: c.optimizer, Precision: c.precision, Seed: 1})
	if err != nil {
		return t, err
	}
	defer m.Close()
	h := engine.DefaultHyper()
	h.Optimizer = c.optimizer
	tokens := c.batch * c.arch.Context
	b := engine.Batch{B: c.batch, T: c.arch.Context, Inputs: make([]int32, tokens), Targets: make([]int32, tokens), Norm: float64(tokens * ring.ranks)}
	source := sequence{state: uint64(rank + 1), vocab: c.arch.Vocab}
	var sync engine.GradientSync
	if ring.ranks > 1 {
		sync = ring.rank(rank)
	}
	step := func() (float64, error) {
		source.fill(b)
		loss, err := m.Backward(b, sync)
		if err != nil {
			return 0, err
		}
		if sync != nil {
			if err := sync.Wait(); err != nil {
				return 0, err
			}
		}
		_, err = m.Update(h)
		return loss, err
	}
	if t.first, err = step(); err != nil {
		return t, err
	}
	start, cpu := time.Now(), cpuSeconds()
	for {
		if t.last, err = step(); err != nil {
			return t, err
		}
		t.steps++
		elapsed := time.Since(start).Seconds()
		if ring.agree(rank, elapsed >= c.seconds) {
			t.rate = float64(tokens*t.steps) / elapsed
			t.perCPU = float64(tokens*t.steps) / (cpuSeconds() - cpu)
			return t, nil
		}
	}
}

// cpuSeconds is the processor time that this process has used.
func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return math.NaN()
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// sequence makes learnable batches: sequences that count up from a random start
// by a random stride of 1 to 4 (modulo the vocabulary).
type sequence struct {
	state uint64
	vocab int
}

func (s *sequence) fill(b engine.Batch) {
	for i := range b.B {
		s.state = s.state*6364136223846793005 + 1442695040888963407
		id, stride := int(s.state>>33%uint64(s.vocab)), int(1+s.state>>20%4)
		for t := range b.T {
			b.Inputs[i*b.T+t] = int32(id)
			id = (id + stride) % s.vocab
			b.Targets[i*b.T+t] = int32(id)
		}
	}
}
