package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/bench/stat"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/metrics"
	"github.com/open-autoglm/autoglm/runtime/serve/rest"
)

// result is the output. Rates are tokens a second, times milliseconds.
type result struct {
	Decoder        float64 `json:"decoder_tokens_s"`
	Scheduler      float64 `json:"scheduler_tokens_s"`
	Stream         float64 `json:"stream_tokens_s"`
	StreamOverhead float64 `json:"stream_overhead"`     // of the decoder's time, the share on top
	StreamCPU      float64 `json:"stream_cpu_overhead"` // the same of processor time, the client's included: neighbours don't count
	Eight          float64 `json:"stream_8_tokens_s"`
	FirstCold      float64 `json:"first_token_256_ms"`
	FirstSeen      float64 `json:"first_token_256_seen_ms"`
	SeenOverCold   float64 `json:"first_token_seen_over_cold"`
	CancelMax      float64 `json:"cancel_to_free_max_ms"`
}

// bench is a server under measurement.
type bench struct {
	b    *bundle.Bundle
	hub  *serve.Hub
	web  *http.Server
	url  string
	http *http.Client
}

// newBench serves a model over HTTP on this machine.
func newBench(b *bundle.Bundle, threads, slots, queue int) (*bench, error) {
	counts := metrics.New()
	cfg := serve.DefaultSchedulerConfig()
	cfg.Slots, cfg.Queue = slots, queue
	hub := serve.NewHub(func(_ string, seqs int) (*bundle.Bundle, engine.Decoder, error) {
		dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{Threads: threads, MaxSeqs: seqs})
		return b, dec, err
	}, cfg, counts.Events)
	if err := hub.Load("m", ""); err != nil {
		return nil, err
	}
	handler, err := rest.New(rest.DefaultConfig(hub, counts))
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m := &bench{
		b: b, hub: hub, web: &http.Server{Handler: handler}, url: "http://" + ln.Addr().String(),
		http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}},
	}
	go func() { _ = m.web.Serve(ln) }() // until close
	return m, nil
}

func (m *bench) close() {
	_ = m.web.Close()
	m.http.CloseIdleConnections()
	m.hub.Drain(context.Background())
}

// server measures what serving adds to generating.
func server(b *bundle.Bundle, o options) (*result, error) {
	m, err := newBench(b, o.threads, serve.DefaultSchedulerConfig().Slots, 8)
	if err != nil {
		return nil, err
	}
	defer m.close()
	out := &result{}
	tokens, rounds := o.tokens, o.rounds
	alone, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{Threads: o.threads})
	if err != nil {
		return nil, err
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
				return nil, err
			}
			*f.to = append(*f.to, rate)
		}
	}
	var shares []float64
	for i := range decoder {
		shares = append(shares, decoder[i]/stream[i]-1)
	}
	out.StreamOverhead = stat.Median(shares)
	out.StreamCPU = used[&stream].Seconds()/used[&decoder].Seconds() - 1
	out.Decoder, out.Scheduler, out.Stream, out.Eight = stat.Median(decoder), stat.Median(scheduler), stat.Median(stream), stat.Median(eight)

	var cold, seen []float64
	for i := range rounds {
		for _, to := range []*[]float64{&cold, &seen} {
			t, err := m.first(i)
			if err != nil {
				return nil, err
			}
			*to = append(*to, t)
		}
	}
	out.FirstCold, out.FirstSeen = stat.Median(cold), stat.Median(seen)
	out.SeenOverCold = out.FirstSeen / out.FirstCold
	for range rounds {
		t, err := m.cancel()
		if err != nil {
			return nil, err
		}
		out.CancelMax = max(out.CancelMax, t)
	}
	return out, nil
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

// ask begins a stream and calls event at each of its pieces. The response's body is read.
func (m *bench) ask(ctx context.Context, ids []int32, tokens int, event func()) (*http.Response, error) {
	body, err := json.Marshal(map[string]any{"prompt": ids, "max_tokens": tokens, "ignore_eos": true, "temperature": 0, "stream": true})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, m.url+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := m.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "data: {") {
			event()
		}
	}
	return res, lines.Err()
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
