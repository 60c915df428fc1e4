// Command serve measures serving on a model of random weights: what it adds to
// generating, and how it stands beside transformers and llama.cpp.
//
//	go run ./bench/serve                        # what serving adds; no peers
//	go run ./bench/serve -peers                 # all rows, beside the peers: under ten minutes
//	go run ./bench/serve -what neighbours       # some of the rows
//	go run ./bench/serve -what overload -seconds 60
//
// The model has 12.2 million parameters (6 layers, 384 wide, a vocabulary of 4,096). The
// peers read what our own export writes of it: transformers the bundle, in float32, and
// llama.cpp GGUF files of F32, F16 and Q8_0. They are started once, sleep but while they
// are asked, and have one thread. A peer that can't run is an error: AUTOGLM_PYTHON names
// a Python with transformers (.ci/peers makes one), AUTOGLM_LLAMA a folder with
// node-llama-cpp (.ci/llama).
//
// Rows, one by one in what is asked for with -what:
//
//	decode      tokens a second after a prompt of 256 tokens, of one text and of eight at
//	            once, and milliseconds to the first token of such a prompt
//	prefix      milliseconds to the first token after 256 tokens seen before
//	neighbours  tokens a second beside four busy processes: ours with one thread, as serve
//	            takes by itself on two processors, the peers with two
//	overload    twice the requests that are answered, from 64 clients
//	start       milliseconds from a start of the program until it is ready
//	server      what the scheduler and HTTP add; an object of its own
//
// The contestants take turns within a round; a figure is the median of the rounds, and a
// ratio the median of the rounds' ratios. cpu_ratio is the same in seconds of the
// processor, ours with all that the process did: it is the one to read where a machine is
// shared. A table goes to standard error, and one JSON object to standard output.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// kinds of measurements, in their order.
var kinds = []string{"decode", "prefix", "neighbours", "overload", "start", "server"}

// options are the flags.
type options struct {
	what                    []string
	tokens, rounds, threads int
	load                    time.Duration
}

// output is what is printed. Rows are absent where only the server was measured, and the
// server where only rows were.
type output struct {
	Params  int64   `json:"params"`
	Level   string  `json:"simd"`
	Threads int     `json:"threads"`
	Rows    []row   `json:"rows,omitempty"`
	Short   int     `json:"short"` // rows that are not what is wanted
	Server  *result `json:"server,omitempty"`
}

func main() {
	var o options
	peers := flag.Bool("peers", false, "measure all rows, beside transformers and llama.cpp")
	what := flag.String("what", "", "measure these, separated by commas: "+strings.Join(kinds, ", "))
	flag.IntVar(&o.tokens, "tokens", 96, "tokens of a text")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds of each measurement")
	flag.IntVar(&o.threads, "threads", 1, "threads of the decoder")
	seconds := flag.Int("seconds", 15, "how long the server is overloaded")
	flag.Parse()
	o.load = time.Duration(*seconds) * time.Second
	switch {
	case *what != "":
		o.what = strings.Split(*what, ",")
	case *peers:
		o.what = kinds[:len(kinds)-1]
	default:
		o.what = []string{"server"}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "bench/serve:", err)
		stop()
		os.Exit(1)
	}
}

func (o *options) run(ctx context.Context) error {
	for _, w := range o.what {
		if !slices.Contains(kinds, w) {
			return fmt.Errorf("-what %q: give some of %s", w, strings.Join(kinds, ", "))
		}
	}
	if flag.NArg() > 0 || o.tokens < 8 || o.rounds < 1 || o.threads < 1 || o.load < time.Second {
		return errors.New("-tokens must be 8 or more, -rounds, -threads and -seconds 1 or more, and nothing may follow the flags")
	}
	b, err := model()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench-serve-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	s := &session{o: *o, b: b, dir: dir}
	defer s.close()
	out := output{Params: b.Arch.Params(), Level: level(), Threads: o.threads}
	for _, kind := range kinds {
		if !slices.Contains(o.what, kind) {
			continue
		}
		if kind == "server" {
			if out.Server, err = server(b, *o); err != nil {
				return err
			}
			continue
		}
		rows, err := s.measure(ctx, kind)
		if err != nil {
			return fmt.Errorf("%s: %w", kind, err)
		}
		for _, r := range rows {
			r.print(os.Stderr)
			if !r.Holds {
				out.Short++
			}
		}
		out.Rows = append(out.Rows, rows...)
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

// model is of random weights, with a tokenizer of its whole vocabulary.
func model() (*bundle.Bundle, error) {
	a := glm.Arch{Vocab: 4096, Dim: 384, Layers: 6, Heads: 6, KVHeads: 6, FFN: 1024, Context: 1024, Tied: true, RopeTheta: 10000, NormEps: 1e-5}
	r := rand.New(rand.NewPCG(1, 1))
	tok, err := tokenizer(r, a.Vocab)
	if err != nil {
		return nil, err
	}
	layout, _ := a.Layout()
	var params engine.StateDict
	for _, p := range layout {
		data := make([]float32, p.Elems)
		for i := range data {
			data[i] = float32(r.NormFloat64() * 0.02)
			if p.Role == glm.Norm {
				data[i] = 1
			}
		}
		params = append(params, engine.Tensor{Name: p.Name, Shape: p.Shape, Data: data})
	}
	return &bundle.Bundle{Arch: a, Params: params, Tokenizer: tok, Generation: bundle.DefaultGeneration()}, nil
}

// tokenizer is learnt from random words, of which the first are the most frequent.
func tokenizer(r *rand.Rand, vocab int) (*token.Tokenizer, error) {
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: vocab, MinFrequency: 1, Threads: 1})
	if err != nil {
		return nil, err
	}
	var text []byte
	for i := range vocab {
		word := []byte{' '}
		for range 3 + r.IntN(6) {
			word = append(word, byte('a'+r.IntN(26)))
		}
		for range 1 + vocab/(i+1)/8 {
			text = append(text, word...)
		}
	}
	tr.Add(text)
	return tr.Train(context.Background())
}
