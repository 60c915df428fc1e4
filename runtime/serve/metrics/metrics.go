// Package metrics counts what a hub of models does, in Prometheus's text format: under
// names of its own (autoglm_…) and under those of vLLM (vllm:…), which dashboards and
// autoscalers know.
//
//	m := metrics.New()
//	hub := serve.NewHub(open, cfg, m.Events)
//	m.Watch(hub)
//	mux.Handle("/metrics", m)
package metrics

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
)

// Buckets of times, in seconds, and of tokens: vLLM's.
var (
	firstBuckets = []float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}
	tokenBuckets = []float64{0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5}
	longBuckets  = []float64{0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120}
	countBuckets = []float64{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000}
	stepBuckets  = []float64{1, 8, 16, 32, 64, 128, 256, 512, 1024}
)

// Metrics is a set of counters. Any goroutine may use it.
type Metrics struct {
	registry *prometheus.Registry
	handler  http.Handler

	prompt, generated, success, failed, refused             counters
	rules, gates, votes, outcomes                           counters
	first, gap, perToken, total, queue, prefill, decode     histograms
	promptTokens, generatedTokens, stepTokens, stepSequence histograms
}

// counters and histograms are one thing under several names.
type (
	counters   []*prometheus.CounterVec
	histograms []prometheus.ObserverVec
)

func (c counters) add(n float64, labels ...string) {
	for _, v := range c {
		v.WithLabelValues(labels...).Add(n)
	}
}

func (h histograms) observe(v float64, labels ...string) {
	for _, x := range h {
		x.WithLabelValues(labels...).Observe(v)
	}
}

// New is a set with nothing counted.
func New() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.handler = promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
	counter := func(help string, labels []string, names ...string) (out counters) {
		for _, n := range names {
			c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: n, Help: help}, append([]string{"model_name"}, labels...))
			m.registry.MustRegister(c)
			out = append(out, c)
		}
		return out
	}
	histogram := func(help string, buckets []float64, names ...string) (out histograms) {
		for _, n := range names {
			h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: n, Help: help, Buckets: buckets}, []string{"model_name"})
			m.registry.MustRegister(h)
			out = append(out, h)
		}
		return out
	}
	m.prompt = counter("Tokens of prompts.", nil, "autoglm_prompt_tokens_total", "vllm:prompt_tokens_total")
	m.generated = counter("Tokens generated.", nil, "autoglm_generation_tokens_total", "vllm:generation_tokens_total")
	m.success = counter("Requests that ended well, by the reason.", []string{"finished_reason"}, "autoglm_request_success_total", "vllm:request_success_total")
	m.failed = counter("Requests that did not end well, by the cause.", []string{"cause"}, "autoglm_request_failed_total")
	m.refused = counter("Requests refused because the queue was full.", nil, "autoglm_request_refused_total", "vllm:admission_rejections_total")
	m.rules = counter("What a policy's rules did.", []string{"rule", "did"}, "autoglm_policy_rule_total")
	m.gates = counter("What a policy's gate did.", []string{"outcome"}, "autoglm_policy_gate_total")
	m.votes = counter("How votes on whole answers ended.", []string{"outcome"}, "autoglm_policy_vote_total")
	m.outcomes = counter("What became of answers that a policy decided on.", []string{"outcome"}, "autoglm_policy_answer_total")
	m.first = histogram("Seconds from a request to its first token.", firstBuckets, "autoglm_time_to_first_token_seconds", "vllm:time_to_first_token_seconds")
	m.gap = histogram("Seconds between two tokens of a request.", tokenBuckets, "autoglm_inter_token_latency_seconds", "vllm:inter_token_latency_seconds")
	m.perToken = histogram("Mean seconds of a request's token after the first.", tokenBuckets, "vllm:request_time_per_output_token_seconds")
	m.total = histogram("Seconds from a request to its end.", longBuckets, "autoglm_request_seconds", "vllm:e2e_request_latency_seconds")
	m.queue = histogram("Seconds that a request waited for a slot.", longBuckets, "autoglm_request_queue_seconds", "vllm:request_queue_time_seconds")
	m.prefill = histogram("Seconds from a slot to the first token.", longBuckets, "autoglm_request_prefill_seconds", "vllm:request_prefill_time_seconds")
	m.decode = histogram("Seconds from the first token to the last.", longBuckets, "autoglm_request_decode_seconds", "vllm:request_decode_time_seconds")
	m.promptTokens = histogram("Tokens of a prompt.", countBuckets, "vllm:request_prompt_tokens")
	m.generatedTokens = histogram("Tokens that a request generated.", countBuckets, "vllm:request_generation_tokens")
	m.stepTokens = histogram("Tokens computed in one round.", stepBuckets, "vllm:iteration_tokens_total")
	m.stepSequence = histogram("Texts that grew in one round.", []float64{1, 2, 4, 8, 16, 32, 64, 128}, "autoglm_batch_size")
	return m
}

// ServeHTTP writes all metrics.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.handler.ServeHTTP(w, r) }

// Refused counts a request that a full queue refused.
func (m *Metrics) Refused(model string) { m.refused.add(1, model) }

// Policy counts what policies do.
func (m *Metrics) Policy() policy.Events {
	return policy.Events{
		Rule:    func(served, rule, did string) { m.rules.add(1, served, rule, did) },
		Gate:    func(served, outcome string) { m.gates.add(1, served, outcome) },
		Vote:    func(served, outcome string) { m.votes.add(1, served, outcome) },
		Outcome: func(served, outcome string) { m.outcomes.add(1, served, outcome) },
	}
}

// Events are what a scheduler of that model tells.
func (m *Metrics) Events(model string) serve.Events {
	return serve.Events{
		First: func(wait time.Duration) { m.first.observe(wait.Seconds(), model) },
		Token: func(gap time.Duration) { m.gap.observe(gap.Seconds(), model) },
		Step: func(prompt, decoded int) {
			m.stepTokens.observe(float64(prompt+decoded), model)
			if decoded > 0 {
				m.stepSequence.observe(float64(decoded), model)
			}
		},
		Done: func(res serve.Result, err error, t serve.Timing) { m.done(model, res, err, t) },
	}
}

func (m *Metrics) done(model string, res serve.Result, err error, t serve.Timing) {
	n := len(res.IDs)
	m.generated.add(float64(n), model)
	if n > 0 || err == nil { // it was read
		m.prompt.add(float64(res.PromptTokens), model)
	}
	var decoder *serve.DecoderError
	switch {
	case err == nil:
		reason := "stop"
		if res.Reason == serve.ReasonLength {
			reason = "length"
		}
		m.success.add(1, model, reason)
	case errors.Is(err, context.Canceled):
		m.failed.add(1, model, "cancelled")
		return
	case errors.Is(err, serve.ErrDrained):
		m.failed.add(1, model, "shutdown")
		return
	case errors.As(err, &decoder):
		m.failed.add(1, model, "decoder")
		return
	default:
		m.failed.add(1, model, "error")
		return
	}
	m.queue.observe(t.Queue.Seconds(), model)
	m.prefill.observe(t.Prefill.Seconds(), model)
	m.decode.observe(t.Decode.Seconds(), model)
	m.total.observe((t.Queue + t.Prefill + t.Decode).Seconds(), model)
	m.promptTokens.observe(float64(res.PromptTokens), model)
	m.generatedTokens.observe(float64(n), model)
	if n > 1 {
		m.perToken.observe(t.Decode.Seconds()/float64(n-1), model)
	}
}

// Watch adds the gauges of a hub.
func (m *Metrics) Watch(hub *serve.Hub) { m.registry.MustRegister(&gauges{hub}) }

// gauges asks the schedulers when it is asked.
type gauges struct{ hub *serve.Hub }

var gaugeDescs = func() (out []*prometheus.Desc) {
	for _, d := range [][2]string{
		{"autoglm_requests_running", "Requests that have a slot."},
		{"vllm:num_requests_running", "Requests that have a slot."},
		{"autoglm_requests_waiting", "Requests that wait for a slot."},
		{"vllm:num_requests_waiting", "Requests that wait for a slot."},
		{"autoglm_kv_cache_usage", "Share of the pages of keys and values that texts under way have, 0 to 1."},
		{"vllm:kv_cache_usage_perc", "Share of the pages of keys and values that texts under way have, 0 to 1."},
		{"autoglm_heartbeat_age_seconds", "How long the round that runs has been running."},
		{"vllm:prefix_cache_queries_total", "Tokens of prompts looked for among earlier ones."},
		{"vllm:prefix_cache_hits_total", "Tokens of prompts found among earlier ones."},
	} {
		out = append(out, prometheus.NewDesc(d[0], d[1], []string{"model_name", "version"}, nil))
	}
	return out
}()

// deviceDescs are of a model that computes on either of two devices.
var deviceDescs = func() (out []*prometheus.Desc) {
	for _, d := range [][2]string{
		{"autoglm_device_requests_running", "Requests that have a slot, by device."},
		{"autoglm_device_requests_total", "Requests that went to the device; one that a GPU failed may go to the CPU after it."},
		{"autoglm_device_requests_failed_total", "Requests that the device let down."},
		{"autoglm_device_load", "Load of the GPU as requests were last routed by, 0 to 1; negative where it is not known."},
	} {
		out = append(out, prometheus.NewDesc(d[0], d[1], []string{"model_name", "version", "device"}, nil))
	}
	return out
}()

// Describe implements prometheus.Collector.
func (g *gauges) Describe(c chan<- *prometheus.Desc) {
	for _, d := range slices.Concat(gaugeDescs, deviceDescs) {
		c <- d
	}
}

// Collect implements prometheus.Collector.
func (g *gauges) Collect(c chan<- prometheus.Metric) {
	for _, m := range g.hub.Models() {
		st := m.Status()
		used := 0.0 // of a decoder without pages nothing is known
		if st.Pages > 0 {
			used = float64(st.PagesHeld) / float64(st.Pages)
		}
		for i, v := range []float64{
			float64(st.Running), float64(st.Running), float64(st.Waiting), float64(st.Waiting), used, used,
			st.Stalled.Seconds(), float64(st.PrefixQueries), float64(st.PrefixHits),
		} {
			kind := prometheus.GaugeValue
			if i >= 7 {
				kind = prometheus.CounterValue
			}
			c <- prometheus.MustNewConstMetric(gaugeDescs[i], kind, v, m.Name, m.Version)
		}
		for _, d := range st.Devices {
			tell := func(i int, kind prometheus.ValueType, v float64) {
				c <- prometheus.MustNewConstMetric(deviceDescs[i], kind, v, m.Name, m.Version, string(d.Device))
			}
			tell(0, prometheus.GaugeValue, float64(d.Running))
			tell(1, prometheus.CounterValue, float64(d.Requests))
			tell(2, prometheus.CounterValue, float64(d.Failed))
			if d.Device == device.GPU {
				tell(3, prometheus.GaugeValue, d.Load)
			}
		}
	}
}
