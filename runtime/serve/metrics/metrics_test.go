package metrics

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/servetest"
)

// Dashboards find what they know.
func TestNames(t *testing.T) {
	m := New()
	router, err := serve.NewRouter(serve.RouterConfig{Load: func() float64 { return 0.25 }, Policy: device.DefaultLoadPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	hub := serve.NewHub(func(_ string, seqs int) (*bundle.Bundle, engine.Decoder, error) {
		b := servetest.Bundle(t, 1)
		var decs [2]engine.Decoder
		for i := range decs {
			dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{MaxSeqs: seqs})
			if err != nil {
				return nil, nil, err
			}
			decs[i] = dec
		}
		return b, &serve.Pair{Decoder: decs[0], GPU: decs[1], Router: router}, nil
	}, serve.DefaultSchedulerConfig(), m.Events)
	m.Watch(hub)
	if err := hub.Load("tiny", ""); err != nil {
		t.Fatal(err)
	}
	model := hub.Models()[0]
	req := serve.Request{Prompt: "the fox", Context: 256, MaxTokens: 5, MinTokens: 5, EOS: model.Bundle.Generation.EOS}
	if _, err := model.Generate(t.Context(), req, nil); err != nil {
		t.Fatal(err)
	}
	m.Refused("tiny")
	for _, err := range []error{context.Canceled, serve.ErrDrained, errors.New("boom"), &serve.DecoderError{Err: errors.New("gone")}} {
		m.Events("tiny").Done(serve.Result{}, err, serve.Timing{Queue: time.Second})
	}
	hub.Drain(t.Context())
	w := httptest.NewRecorder()
	m.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "/metrics", nil))
	text := w.Body.String()
	for _, want := range []string{
		`vllm:num_requests_running{model_name="tiny",version="1"} 0`, `vllm:num_requests_waiting{model_name="tiny",version="1"} 0`, `vllm:kv_cache_usage_perc{`,
		`vllm:prefix_cache_queries_total{`, `vllm:prefix_cache_hits_total{`, `vllm:generation_tokens_total{model_name="tiny"} 5`, `vllm:prompt_tokens_total{model_name="tiny"} `,
		`vllm:request_success_total{finished_reason="length",model_name="tiny"} 1`, `vllm:time_to_first_token_seconds_count{model_name="tiny"} 1`,
		`vllm:inter_token_latency_seconds_count{model_name="tiny"} 4`, `vllm:request_time_per_output_token_seconds_count`, `vllm:e2e_request_latency_seconds_count{model_name="tiny"} 1`,
		`vllm:request_queue_time_seconds_count`, `vllm:request_prefill_time_seconds_count`, `vllm:request_decode_time_seconds_count`, `vllm:request_prompt_tokens_count`,
		`vllm:request_generation_tokens_sum{model_name="tiny"} 5`, `vllm:iteration_tokens_total_count`, `vllm:admission_rejections_total{model_name="tiny"} 1`,
		`autoglm_request_failed_total{cause="cancelled",model_name="tiny"} 1`, `autoglm_request_failed_total{cause="shutdown",model_name="tiny"} 1`, `autoglm_request_failed_total{cause="error",model_name="tiny"} 1`,
		`autoglm_request_failed_total{cause="decoder",model_name="tiny"} 1`,
		`autoglm_device_requests_total{device="gpu",model_name="tiny",version="1"} 1`, `autoglm_device_requests_total{device="cpu",model_name="tiny",version="1"} 0`,
		`autoglm_device_requests_failed_total{device="gpu",model_name="tiny",version="1"} 0`, `autoglm_device_requests_running{device="cpu",`,
		`autoglm_device_load{device="gpu",model_name="tiny",version="1"} 0.25`,
		`autoglm_heartbeat_age_seconds{`, "go_goroutines", "process_resident_memory_bytes",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("there is no %s", want)
		}
	}
}
