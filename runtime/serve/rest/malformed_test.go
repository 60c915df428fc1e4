package rest

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/serve"
)

// Thousands of requests that are nearly right crash nothing, leave nothing behind, and
// each get an answer in JSON.
func TestMalformed(t *testing.T) {
	f := start(t, false, func(_ *Config, s *serve.SchedulerConfig) { s.Prefix = 1 << 20 })
	seeds := [][2]string{
		{"/v1/completions", `{"model":"tiny","prompt":"the fox","max_tokens":2,"n":1,"stop":["a"],"logit_bias":{"1":2},"seed":1,"logprobs":2,"temperature":0.5}`},
		{"/v1/completions", `{"prompt":[1,2,3],"max_tokens":1,"echo":true,"top_k":3}`},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}],"max_tokens":2,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"a":{"type":"integer"}}}}}}`},
		{"/v1/embeddings", `{"input":["a","b"],"encoding_format":"base64"}`},
		{"/v2/models/tiny/infer", `{"id":"1","inputs":[{"name":"text_input","shape":[1],"datatype":"BYTES","data":["x"]},{"name":"max_tokens","shape":[1],"datatype":"INT32","data":[1]}],"parameters":{"temperature":0.5}}`},
		{"/v2/models/tiny/generate", `{"text_input":"x","parameters":{"max_tokens":1,"stream":false}}`},
	}
	r := rand.New(rand.NewPCG(1, 1))
	parts := []string{`"`, `{`, `}`, `[`, `]`, `:`, `,`, `null`, `-1`, `1e999`, `"\ud800"`, `9223372036854775808`, `true`, "\x00", "\xff", `""`, `[[[[`, `{"a":{"a":`, `"stream":true,`}
	mutate := func(s string) string {
		for range 1 + r.IntN(3) {
			i := r.IntN(len(s) + 1)
			j := min(len(s), i+r.IntN(6))
			switch r.IntN(3) {
			case 0:
				s = s[:i] + s[j:]
			case 1:
				s = s[:i] + parts[r.IntN(len(parts))] + s[i:]
			default:
				s = s[:i] + parts[r.IntN(len(parts))] + s[j:]
			}
		}
		return s
	}
	before := runtime.NumGoroutine()
	codes := map[int]int{}
	for range 10_000 {
		c := seeds[r.IntN(len(seeds))]
		req := httptest.NewRequestWithContext(t.Context(), "POST", c[0], strings.NewReader(mutate(c[1])))
		req.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		f.Config.Handler.ServeHTTP(w, req)
		codes[w.Code]++
		if w.Header().Get("Content-Type") == "application/json" && !json.Valid(w.Body.Bytes()) || w.Code >= 500 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	}
	if codes[http.StatusOK] == 0 || codes[http.StatusBadRequest] < 5000 {
		t.Errorf("answers: %v", codes)
	}
	wait(t, func() bool { st := f.hub.Models()[0].Status(); return st.Running == 0 && st.Waiting == 0 })
	wait(t, func() bool { return runtime.NumGoroutine() <= before })
	t.Logf("answers: %v", codes)
}
