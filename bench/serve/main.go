// Command serve measures what serving adds to generating, in one process and on one
// model of random weights:
//
//	go run ./bench/serve                      # 12.2 million parameters, one thread
//	go run ./bench/serve -tokens 128 -rounds 5
//
// It prints one JSON object: tokens a second of the decoder alone, of the scheduler and
// of a stream over HTTP, one text and eight together; milliseconds to the first token of
// a prompt of 256 tokens, new and seen before; how fast a full queue refuses, health
// answers meanwhile and a slot is free again after its client went. The rounds of what
// is compared alternate; figures are medians.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/metrics"
	"github.com/open-autoglm/autoglm/runtime/serve/rest"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// result is the output. Rates are tokens a second, times milliseconds.
type result struct {
	Params         int64   `json:"params"`
	Threads        int     `json:"threads"`
	Decoder        float64 `json:"decoder_tokens_s"`
	Scheduler      float64 `json:"scheduler_tokens_s"`
	Stream         float64 `json:"stream_tokens_s"`
	StreamOverhead float64 `json:"stream_overhead"`     // of the decoder's time, the share on top
	StreamCPU      float64 `json:"stream_cpu_overhead"` // the same of processor time, the client's included: neighbours don't count
	Eight          float64 `json:"stream_8_tokens_s"`
	FirstCold      float64 `json:"first_token_256_ms"`
	FirstSeen      float64 `json:"first_token_256_seen_ms"`
	SeenOverCold   float64 `json:"first_token_seen_over_cold"`
	Refused        int     `json:"refused"`
	Answered       int     `json:"answered"`
	Other          int     `json:"other_answers"`
	RefusalP99     float64 `json:"refusal_p99_ms"`
	HealthP99      float64 `json:"health_p99_ms"`
	CancelMax      float64 `json:"cancel_to_free_max_ms"`
	MemoryBefore   float64 `json:"live_before_mb"` // what the heap holds, before the overload and after it
	MemoryAfter    float64 `json:"live_after_mb"`
}

func main() {
	tokens := flag.Int("tokens", 96, "tokens of a text")
	rounds := flag.Int("rounds", 5, "rounds of each measurement")
	threads := flag.Int("threads", 1, "threads of the decoder")
	load := flag.Duration("load", 5*time.Second, "how long the server is overloaded")
	flag.Parse()
	if err := run(*tokens, *rounds, *threads, *load); err != nil {
		fmt.Fprintln(os.Stderr, "bench/serve:", err)
		os.Exit(1)
	}
}

// model is of random weights, with a tokenizer that knows bytes.
func model() (*bundle.Bundle, error) {
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: 320, MinFrequency: 1, Threads: 1})
	if err != nil {
		return nil, err
	}
	tr.Add([]byte("the quick brown fox"))
	tok, err := tr.Train(context.Background())
	if err != nil {
		return nil, err
	}
	a := glm.Arch{Vocab: 4096, Dim: 384, Layers: 6, Heads: 6, KVHeads: 6, FFN: 1024, Context: 1024, Tied: true, RopeTheta: 10000, NormEps: 1e-5}
	r := rand.New(rand.NewPCG(1, 1))
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

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}

func p99(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[min(len(v)-1, len(v)*99/100)]
}

// cpu is the processor time that this process has used.
func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// live is what the heap holds after a collection, in MB.
func live() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / 1e6
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// bench is a server under measurement.
type bench struct {
	b    *bundle.Bundle
	hub  *serve.Hub
	url  string
	http *http.Client
}

func run(tokens, rounds, threads int, load time.Duration) error {
	b, err := model()
	if err != nil {
		return err
	}
	counts := metrics.New()
	cfg := serve.DefaultSchedulerConfig()
	cfg.Queue = 8
	hub := serve.NewHub(func(_ string, seqs int) (*bundle.Bundle, engine.Decoder, error) {
		dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{Threads: threads, MaxSeqs: seqs})
		return b, dec, err
	}, cfg, counts.Events)
	if err := hub.Load("m", ""); err != nil {
		return err
	}
	handler, err := rest.New(rest.DefaultConfig(hub, counts))
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	web := &http.Server{Handler: handler}
	go func() { _ = web.Serve(ln) }() // until Close
	defer func() { _ = web.Close() }()
	m := &bench{b: b, hub: hub, url: "http://" + ln.Addr().String(), http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}}
	out := result{Params: b.Arch.Params(), Threads: threads}

	alone, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{Threads: threads})
	if err != nil {
		return err
	}
	defer alone.Close()
	var decoder, scheduler, stream, eight []float64
	used := map[*[]float64]time.Duration{}
	for range rounds {
		for _, f := range []struct {
			to   *[]float64
			rate func() (float64, error)
		}{
			{&decoder, func() (float64, error) { return m.decode(alone, tokens) }},
			{&scheduler, func() (float64, error) { return m.schedule(tokens) }},
			{&stream, func() (float64, error) { return m.streams(1, tokens) }},
			{&eight, func() (float64, error) { return m.streams(8, tokens) }},
		} {
			begin := cpu()
			rate, err := f.rate()
			used[f.to] += cpu() - begin
			if err != nil {
				return err
			}
			*f.to = append(*f.to, rate)
		}
	}
	var shares []float64
	for i := range decoder {
		shares = append(shares, decoder[i]/stream[i]-1)
	}
	out.StreamOverhead = median(shares)
	out.StreamCPU = used[&stream].Seconds()/used[&decoder].Seconds() - 1
	out.Decoder, out.Scheduler, out.Stream, out.Eight = median(decoder), median(scheduler), median(stream), median(eight)

	var cold, seen []float64
	for i := range rounds {
		for _, to := range []*[]float64{&cold, &seen} {
			t, err := m.first(i)
			if err != nil {
				return err
			}
			*to = append(*to, t)
		}
	}
	out.FirstCold, out.FirstSeen = median(cold), median(seen)
	out.SeenOverCold = out.FirstSeen / out.FirstCold
	for range rounds {
		t, err := m.cancel()
		if err != nil {
			return err
		}
		out.CancelMax = max(out.CancelMax, t)
	}
	if err := m.overload(load, &out); err != nil {
		return err
	}
	hub.Drain(context.Background())
	return json.NewEncoder(os.Stdout).Encode(out)
}

// decode is the decoder's rate for one greedy text after a short prompt.
func (m *bench) decode(dec engine.Decoder, tokens int) (float64, error) {
	defer dec.Drop(0)
	if _, err := dec.Prefill(0, make([]int32, 16)); err != nil {
		return 0, err
	}
	begin := time.Now()
	for range tokens {
		if _, err := dec.Decode([]int{0}, []int32{1}); err != nil {
			return 0, err
		}
	}
	return float64(tokens) / time.Since(begin).Seconds(), nil
}

// schedule is the same through the scheduler, from the first token on.
func (m *bench) schedule(tokens int) (float64, error) {
	model, release, err := m.hub.Get("m", "")
	if err != nil {
		return 0, err
	}
	defer release()
	var first time.Time
	_, err = model.Generate(context.Background(), serve.Request{IDs: make([]int32, 16), Context: m.b.Arch.Context, MaxTokens: tokens + 1, MinTokens: tokens + 1, EOS: m.b.Generation.EOS}, func(serve.Piece) error {
		if first.IsZero() {
			first = time.Now()
		}
		return nil
	})
	return float64(tokens) / time.Since(first).Seconds(), err
}

// ask begins a stream and calls event at each of its pieces.
func (m *bench) ask(ctx context.Context, ids []int32, tokens int, event func()) (status int, err error) {
	body, err := json.Marshal(map[string]any{"prompt": ids, "max_tokens": tokens, "ignore_eos": true, "temperature": 0, "stream": true})
	if err != nil {
		return 0, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := m.http.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = res.Body.Close() }()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data: {") {
			event()
		}
	}
	return res.StatusCode, lines.Err()
}

// streams is the rate of n streams together, from the first event on.
func (m *bench) streams(n, tokens int) (float64, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var begin time.Time
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			ids := make([]int32, 16)
			ids[0] = int32(i)
			_, errs[i] = m.ask(context.Background(), ids, tokens+1, func() {
				mu.Lock()
				if begin.IsZero() {
					begin = time.Now()
				}
				mu.Unlock()
			})
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return float64(n*tokens) / time.Since(begin).Seconds(), nil
}

// first is the time to the first token of a prompt of 256 tokens.
func (m *bench) first(seed int) (float64, error) {
	r := rand.New(rand.NewPCG(uint64(seed), 2))
	ids := make([]int32, 256)
	for i := range ids {
		ids[i] = int32(r.IntN(m.b.Tokenizer.VocabSize()))
	}
	begin := time.Now()
	var first time.Duration
	_, err := m.ask(context.Background(), ids, 1, func() {
		if first == 0 {
			first = time.Since(begin)
		}
	})
	return ms(first), err
}

// cancel is the time from a client's leaving to its slot being free.
func (m *bench) cancel() (float64, error) {
	ctx, leave := context.WithCancel(context.Background())
	defer leave()
	var left time.Time
	n := 0
	_, _ = m.ask(ctx, make([]int32, 16), 900, func() { // ends by being cancelled
		if n++; n == 10 {
			left = time.Now()
			leave()
		}
	})
	model := m.hub.Models()[0]
	for model.Status().Running > 0 {
		if time.Since(left) > 10*time.Second {
			return 0, fmt.Errorf("a slot is not free 10 s after its client went")
		}
		time.Sleep(100 * time.Microsecond)
	}
	return ms(time.Since(left)), nil
}

// overload asks from 64 clients, four times what is taken, without waiting as told.
func (m *bench) overload(d time.Duration, out *result) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	out.MemoryBefore = live()
	var mu sync.Mutex
	var refusals, healths []float64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for ctx.Err() == nil {
				begin := time.Now()
				status, err := m.ask(context.Background(), make([]int32, 16), 32, func() {})
				took := ms(time.Since(begin))
				mu.Lock()
				switch {
				case err == nil && status == http.StatusOK:
					out.Answered++
				case err == nil && status == http.StatusTooManyRequests:
					out.Refused++
					refusals = append(refusals, took)
				default:
					out.Other++
				}
				mu.Unlock()
				if status == http.StatusTooManyRequests {
					time.Sleep(200 * time.Millisecond)
				}
			}
		})
	}
	for ctx.Err() == nil {
		begin := time.Now()
		res, err := m.http.Get(m.url + "/healthz")
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		healths = append(healths, ms(time.Since(begin)))
		time.Sleep(20 * time.Millisecond)
	}
	wg.Wait()
	out.MemoryAfter = live()
	out.RefusalP99, out.HealthP99 = p99(refusals), p99(healths)
	return nil
}
