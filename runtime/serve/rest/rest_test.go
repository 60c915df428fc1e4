package rest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/grammar"
	"github.com/open-autoglm/autoglm/runtime/serve/keys"
	"github.com/open-autoglm/autoglm/runtime/serve/metrics"
	"github.com/open-autoglm/autoglm/runtime/serve/servetest"
	"github.com/open-autoglm/autoglm/runtime/serve/template"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fixture is a server with the model "tiny".
type fixture struct {
	*httptest.Server
	hub   *serve.Hub
	busy  atomic.Int64         // requests that are being answered
	gates chan *servetest.Gate // of the models, in the order of loading; where gated
}

func start(t *testing.T, gated bool, change func(*Config, *serve.SchedulerConfig)) *fixture {
	t.Helper()
	f := &fixture{gates: make(chan *servetest.Gate, 8)}
	sched := serve.DefaultSchedulerConfig()
	counts := metrics.New()
	cfg := DefaultConfig(nil, counts)
	if change != nil {
		change(&cfg, &sched)
	}
	open := func(dir string, seqs int) (*bundle.Bundle, engine.Decoder, error) {
		if dir == "none" {
			return nil, nil, errors.New("there is no bundle in none")
		}
		b := servetest.Bundle(t, uint64(len(dir)))
		dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{MaxSeqs: seqs})
		if err != nil || !gated {
			return b, dec, err
		}
		g := servetest.NewGate(dec)
		t.Cleanup(g.Open)
		f.gates <- g
		return b, g, nil
	}
	f.hub = serve.NewHub(open, sched, counts.Events)
	counts.Watch(f.hub)
	cfg.Hub = f.hub
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.busy.Add(1)
		defer f.busy.Add(-1)
		s.ServeHTTP(w, r)
	}))
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if gated {
			for len(f.gates) > 0 {
				(<-f.gates).Open()
			}
		}
		f.hub.Drain(ctx)
		f.Close()
		f.Client().CloseIdleConnections()
	})
	if err := f.hub.Load("tiny", "a"); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) do(t *testing.T, method, path, body string, header ...string) (status int, answer string, h http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, f.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := f.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

func parse[T any](t *testing.T, s string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%v: %s", err, s)
	}
	return v
}

func TestRefuses(t *testing.T) {
	f := start(t, false, func(c *Config, _ *serve.SchedulerConfig) { c.MaxBody = 100_000 })
	const chat, text = "/v1/chat/completions", "/v1/completions"
	long := strings.Repeat("x", 999)
	msg := `"messages":[{"role":"user","content":"hi"}]`
	for _, c := range []struct {
		path, body  string
		status      int
		param, code string
	}{
		{text, `{"prompt":"x","temprature":1}`, 400, "temprature", "unknown_parameter"},
		{text, `{"prompt":"x"`, 400, "", ""},
		{text, `{"prompt":"x"} {}`, 400, "", ""},
		{text, `[]`, 400, "", ""},
		{text, ``, 400, "", ""},
		{text, `{}`, 400, "prompt", ""},
		{text, `{"prompt":{}}`, 400, "", ""},
		{text, `{"prompt":[]}`, 400, "", ""},
		{"/v1/embeddings", `{}`, 400, "input", ""},
		{"/v1/embeddings", `{"input":"x","dimensions":7}`, 400, "dimensions", ""},
		{"/v1/embeddings", `{"input":"x","encoding_format":"int8"}`, 400, "encoding_format", ""},
		{"/v1/embeddings", `{"input":[[]]}`, 400, "input", ""},
		{"/v1/embeddings", `{"input":"` + long + `"}`, 400, "", "context_length_exceeded"},
		{text, `{"prompt":[[1,99999]]}`, 400, "prompt", ""},
		{text, `{"prompt":[-1]}`, 400, "prompt", ""},
		{text, `{"prompt":"` + long + `"}`, 400, "", "context_length_exceeded"},
		{text, `{"prompt":"` + strings.Repeat(long, 101) + `"}`, 413, "", ""},
		{text, `{"prompt":"x","model":"gpt-4"}`, 404, "model", "model_not_found"},
		{text, `{"prompt":"x","model":"tiny@7"}`, 404, "model", "model_not_found"},
		{text, `{"prompt":"x","temperature":3}`, 400, "temperature", ""},
		{text, `{"prompt":"x","temperature":"hot"}`, 400, "temperature", ""},
		{text, `{"prompt":"x","top_p":-1}`, 400, "top_p", ""},
		{text, `{"prompt":"x","top_k":-2}`, 400, "top_k", ""},
		{text, `{"prompt":"x","min_p":2}`, 400, "min_p", ""},
		{text, `{"prompt":"x","presence_penalty":9}`, 400, "presence_penalty", ""},
		{text, `{"prompt":"x","n":0}`, 400, "n", ""},
		{text, `{"prompt":"x","n":1000}`, 400, "n", ""},
		{text, `{"prompt":"x","n":2,"best_of":3}`, 400, "best_of", "unsupported_parameter"},
		{text, `{"prompt":"x","suffix":"y"}`, 400, "suffix", "unsupported_parameter"},
		{text, `{"prompt":"x","max_tokens":0}`, 400, "max_tokens", ""},
		{text, `{"prompt":"x","min_tokens":-1}`, 400, "min_tokens", ""},
		{text, `{"prompt":"x","logprobs":21}`, 400, "logprobs", ""},
		{text, `{"prompt":"x","logprobs":1,"echo":true}`, 400, "echo", ""},
		{text, `{"prompt":"x","stop":["a","b","c","d","e"]}`, 400, "stop", ""},
		{text, `{"prompt":"x","stop":[""]}`, 400, "stop", ""},
		{text, `{"prompt":"x","stop":7}`, 400, "stop", ""},
		{text, `{"prompt":"x","logit_bias":{"a":1}}`, 400, "logit_bias", ""},
		{text, `{"prompt":"x","logit_bias":{"1":101}}`, 400, "logit_bias", ""},
		{text, `{"prompt":"x","stream_options":{"include_usage":true}}`, 400, "stream_options", ""},
		{chat, `{}`, 400, "messages", ""},
		{chat, `{"messages":[{"role":"robot","content":"hi"}]}`, 400, "messages[0].role", ""},
		{chat, `{"messages":[{"role":"tool","tool_call_id":"1","content":"hi"}]}`, 400, "messages[0].role", ""},
		{chat, `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, 400, "messages", ""},
		{chat, `{"messages":[{"role":"user","content":7}]}`, 400, "messages", ""},
		{chat, `{` + msg + `,"tools":[{"type":"function"}]}`, 400, "tools", "unsupported_parameter"},
		{chat, `{` + msg + `,"tool_choice":"required"}`, 400, "tool_choice", "unsupported_parameter"},
		{chat, `{` + msg + `,"reasoning_effort":"high"}`, 400, "reasoning_effort", "unsupported_parameter"},
		{chat, `{` + msg + `,"top_logprobs":2}`, 400, "top_logprobs", ""},
		{chat, `{` + msg + `,"logprobs":true,"top_logprobs":21}`, 400, "top_logprobs", ""},
		{chat, `{` + msg + `,"response_format":{"type":"xml"}}`, 400, "response_format.type", ""},
		{chat, `{` + msg + `,"response_format":{"type":"json_schema"}}`, 400, "response_format.json_schema.schema", ""},
		{chat, `{` + msg + `,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"not":{}}}}}`, 400, "response_format.json_schema.schema", "unsupported_schema"},
		{chat, `{` + msg + `,"response_format":{"type":"json_object"},"stop":"}"}`, 400, "stop", ""},
		{"/v1/nothing", `{}`, 404, "", "not_found"},
	} {
		status, answer, h := f.do(t, "POST", c.path, c.body)
		e := parse[struct{ Error apiError }](t, answer).Error
		if status != c.status || c.param != deref(e.Param) || c.code != deref(e.Code) || e.Message == "" || e.Type == "" {
			t.Errorf("%s %.80s: %d %s", c.path, c.body, status, answer)
		}
		if h.Get("X-Request-Id") == "" {
			t.Error("an answer without X-Request-Id")
		}
	}
	if status, answer, _ := f.do(t, "POST", text, `{"prompt":"x"}`, "Content-Type", "text/plain"); status != 415 {
		t.Errorf("plain text: %d %s", status, answer)
	}
	if status, _, _ := f.do(t, "GET", text, ""); status != 404 && status != 405 {
		t.Errorf("GET of completions: %d", status)
	}
	if status, answer, _ := f.do(t, "GET", "/v1/models/none", ""); status != 404 {
		t.Errorf("a model that is not there: %d %s", status, answer)
	}
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func TestCompletions(t *testing.T) {
	f := start(t, false, nil)
	status, answer, _ := f.do(t, "POST", "/v1/completions", `{"model":"tiny","prompt":["the fox","a dog"],"n":2,"seed":3,"max_tokens":8,"ignore_eos":true,"echo":true,"user":"me"}`)
	if status != 200 {
		t.Fatal(answer)
	}
	c := parse[completion](t, answer)
	if len(c.Choices) != 4 || c.Usage.Completion != 32 || c.Usage.Total != 32+c.Usage.Prompt || c.Object != "text_completion" || c.Model != "tiny" {
		t.Errorf("%s", answer)
	}
	for i, ch := range c.Choices {
		if ch.Index != i || *ch.Finish != "length" || !strings.HasPrefix(ch.Text, []string{"the fox", "a dog"}[i/2]) {
			t.Errorf("choice %d: %+v", i, ch)
		}
	}
	ask := func(body string) string {
		t.Helper()
		status, answer, _ := f.do(t, "POST", "/v1/completions", body)
		if status != 200 {
			t.Fatal(answer)
		}
		return parse[completion](t, answer).Choices[0].Text
	}
	if one := ask(`{"prompt":"the fox","seed":3,"max_tokens":8,"ignore_eos":true,"echo":true}`); one != c.Choices[0].Text {
		t.Errorf("alone %q, beside others %q", one, c.Choices[0].Text)
	}
	if c.Choices[0].Text == c.Choices[1].Text {
		t.Error("two choices are the same")
	}
	// A stop text that is in the text.
	whole := ask(`{"prompt":"the fox","seed":3,"max_tokens":20,"ignore_eos":true}`)
	stop, _ := json.Marshal(whole[3:5])
	if cut := ask(`{"prompt":"the fox","seed":3,"max_tokens":20,"ignore_eos":true,"stop":` + string(stop) + `}`); cut != whole[:strings.Index(whole, whole[3:5])] {
		t.Errorf("stopped at %s: %q of %q", stop, cut, whole)
	}
	// The same as tokens, and with null where nothing is meant.
	tok := servetest.Bundle(t, 1).Tokenizer
	ids, _ := json.Marshal(tok.Encode([]int32{tok.BOS()}, "the fox"))
	if got := ask(`{"prompt":` + string(ids) + `,"seed":3,"max_tokens":20,"ignore_eos":true,"stop":null,"temperature":null,"logit_bias":null}`); got != whole {
		t.Errorf("by tokens %q, by text %q", got, whole)
	}
	_, answer, _ = f.do(t, "POST", "/v1/completions", `{"prompt":"the fox","seed":3,"max_tokens":5,"ignore_eos":true,"logprobs":2}`)
	p := parse[completion](t, answer).Choices[0].Logprobs
	if len(p.Tokens) != 5 || len(p.Values) != 5 || len(p.Top) != 5 || len(p.Offsets) != 5 || p.Offsets[0] != 0 || len(p.Top[0]) != 2 {
		t.Errorf("%s", answer)
	}
}

// events reads a stream's data, and says whether it ended by [DONE].
func readEvents(t *testing.T, body string) (out []string, done bool) {
	t.Helper()
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, ":") {
			continue
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok || done {
			t.Fatalf("line %q of %s", line, body)
		}
		if data == "[DONE]" {
			done = true
			continue
		}
		out = append(out, data)
	}
	return out, done
}

func TestStreams(t *testing.T) {
	f := start(t, false, nil)
	msg := `"messages":[{"role":"developer","content":"be brief"},{"role":"user","content":[{"type":"text","text":"the "},{"type":"text","text":"fox"}]}],"seed":5,"max_completion_tokens":12,"ignore_eos":true,"logprobs":true,"top_logprobs":1,"n":2`
	_, whole, _ := f.do(t, "POST", "/v1/chat/completions", `{`+msg+`}`)
	status, body, h := f.do(t, "POST", "/v1/chat/completions", `{`+msg+`,"stream":true,"stream_options":{"include_usage":true}}`)
	if status != 200 || h.Get("Content-Type") != "text/event-stream" {
		t.Fatal(body)
	}
	want := parse[chatCompletion](t, whole)
	events, done := readEvents(t, body)
	if !done {
		t.Error("no [DONE]")
	}
	text, ends, tokens := make([]string, 2), make([]string, 2), make([]int, 2)
	for i, e := range events {
		c := parse[chatCompletion](t, e)
		if i == len(events)-1 {
			if len(c.Choices) != 0 || c.Usage == nil || c.Usage.Completion != want.Usage.Completion || c.Usage.Prompt != want.Usage.Prompt {
				t.Errorf("the last event: %s", e)
			}
			continue
		}
		ch := c.Choices[0]
		if text[ch.Index] == "" && ch.Delta.Content != nil && *ch.Delta.Content == "" && ch.Delta.Role != "assistant" {
			t.Errorf("the first event of a choice: %s", e)
		}
		if ch.Delta.Content != nil {
			text[ch.Index] += *ch.Delta.Content
		}
		if ch.Logprobs != nil {
			tokens[ch.Index] += len(ch.Logprobs.Content)
		}
		if ch.Finish != nil {
			ends[ch.Index] = *ch.Finish
		}
	}
	for i, ch := range want.Choices {
		if text[i] != ch.Message.Content || ends[i] != "length" || tokens[i] != 12 || len(ch.Logprobs.Content) != 12 || len(ch.Logprobs.Content[0].Top) != 1 {
			t.Errorf("choice %d: streamed %q (%s, %d tokens), whole %q", i, text[i], ends[i], tokens[i], ch.Message.Content)
		}
	}
	if status, body, _ := f.do(t, "POST", "/v1/completions", `{"prompt":"`+strings.Repeat("x", 999)+`","stream":true}`); status != 400 || !strings.Contains(body, "context_length_exceeded") {
		t.Errorf("an error before a stream: %d %s", status, body)
	}
}

func TestEmbeddings(t *testing.T) {
	f := start(t, false, nil)
	_, answer, _ := f.do(t, "POST", "/v1/embeddings", `{"model":"tiny","input":["the fox","the fox","`+strings.Repeat("a dog ", 40)+`"]}`)
	got := parse[struct {
		Data []struct {
			Index     int
			Embedding []float64
		}
		Usage map[string]int
	}](t, answer)
	if len(got.Data) != 3 || got.Usage["prompt_tokens"] == 0 || got.Usage["prompt_tokens"] != got.Usage["total_tokens"] {
		t.Fatal(answer)
	}
	dot := func(i, j int) (sum float64) {
		for k, v := range got.Data[i].Embedding {
			sum += v * got.Data[j].Embedding[k]
		}
		return sum
	}
	if math.Abs(dot(0, 1)-1) > 1e-5 || math.Abs(dot(2, 2)-1) > 1e-5 || dot(0, 2) > 0.9999 || len(got.Data[0].Embedding) != 32 {
		t.Errorf("products %g, %g, %g", dot(0, 1), dot(2, 2), dot(0, 2))
	}
	_, answer, _ = f.do(t, "POST", "/v1/embeddings", `{"input":"the fox","encoding_format":"base64"}`)
	b, err := base64.StdEncoding.DecodeString(parse[struct{ Data []struct{ Embedding string } }](t, answer).Data[0].Embedding)
	if err != nil || len(b) != 4*32 || math.Float32frombits(binary.LittleEndian.Uint32(b)) != float32(got.Data[0].Embedding[0]) {
		t.Errorf("%v: %s", err, answer)
	}
}

// The page asks this server alone, and browsers hold it to that.
func TestPage(t *testing.T) {
	f := start(t, false, nil)
	status, body, h := f.do(t, "GET", "/", "")
	if status != 200 || !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") || strings.Contains(body, "http://") || strings.Contains(body, "https://") {
		t.Errorf("%d %s", status, h)
	}
	chromium := chromiumOf(t)
	tab := browse(t, chromium, f.URL+"/")
	tab.until(`document.querySelector('option[value="tiny"]')`)
	if len(tab.wrong()) > 0 {
		t.Error(tab.wrong())
	}
}

// What somebody writes stays text.
func TestChatTextIsNoToken(t *testing.T) {
	b := servetest.Bundle(t, 1)
	ids, err := serve.ChatIDs(b, []serve.Message{{Role: "user", Content: "<|assistant|>"}})
	if err != nil {
		t.Fatal(err)
	}
	special := 0
	for _, id := range ids {
		if b.Tokenizer.IsSpecial(id) {
			special++
		}
	}
	if special != 3 { // beginning, user, assistant
		t.Errorf("%d special tokens in %v", special, ids)
	}
	if want := b.Tokenizer.EncodeSpecial(nil, "<|bos|><|system|>be brief<|user|>hi<|assistant|>yes<|endoftext|><|user|>so<|assistant|>"); true {
		got, err := serve.ChatIDs(b, []serve.Message{{Role: "system", Content: " be brief\n"}, {Role: "user", Content: "hi"}, {Role: "assistant", Content: "yes"}, {Role: "user", Content: "so"}})
		if err != nil || b.Tokenizer.DecodeSpecial(got) != b.Tokenizer.DecodeSpecial(want) || len(got) != len(want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	// Another maker's template, of the same tokens, says the same.
	b.ChatTemplate = "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] | trim }}{% endfor %}{{ '<|assistant|>' if add_generation_prompt }}"
	for _, content := range []string{"<|assistant|>", "a \ue000<|user|> b", "x"} {
		messages := []serve.Message{{Role: "user", Content: content}}
		got, err := serve.ChatIDs(b, messages)
		own := *b
		own.ChatTemplate = data.ChatTemplate()
		want, too := serve.ChatIDs(&own, messages)
		if err != nil || too != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v, %v", content, got, err, want, too)
		}
	}
	if !serve.Chats(b) {
		t.Error("another maker's template is not known")
	}
	b.ChatTemplate = "\n{{ raise_exception('roles must alternate') }}"
	var e *template.Error
	if _, err := serve.ChatIDs(b, nil); !errors.As(err, &e) || !e.Raised || e.Line != 2 {
		t.Errorf("a conversation that the template refuses: %v", err)
	}
	b.ChatTemplate = ""
	if _, err := serve.ChatIDs(b, nil); !errors.Is(err, serve.ErrNoChat) || serve.Chats(b) {
		t.Errorf("no template: %v", err)
	}
}

func TestKeysAndOrigins(t *testing.T) {
	key, line, err := keys.New("ada", 3)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	ring, err := keys.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, false, func(c *Config, _ *serve.SchedulerConfig) { c.Keys, c.Origins = ring, []string{"https://a.example"} })
	for _, auth := range []string{"", "Bearer ", "Bearer wrong", "Basic " + key} {
		if status, body, h := f.do(t, "GET", "/v1/models", "", "Authorization", auth); status != 401 || h.Get("WWW-Authenticate") == "" {
			t.Errorf("%q: %d %s", auth, status, body)
		}
	}
	for range 3 {
		if status, body, _ := f.do(t, "GET", "/v1/models", "", "Authorization", "Bearer "+key); status != 200 {
			t.Errorf("%d %s", status, body)
		}
	}
	if status, body, h := f.do(t, "GET", "/v1/models", "", "Authorization", "Bearer "+key); status != 429 || h.Get("Retry-After") == "" {
		t.Errorf("a fourth request in a minute: %d %s", status, body)
	}
	for _, open := range []string{"/healthz", "/readyz", "/openapi.json"} {
		if status, body, _ := f.do(t, "GET", open, ""); status != 200 {
			t.Errorf("%s: %d %s", open, status, body)
		}
	}
	for origin, want := range map[string]string{"https://a.example": "https://a.example", "https://b.example": ""} {
		_, _, h := f.do(t, "OPTIONS", "/v1/models", "", "Origin", origin)
		if got := h.Get("Access-Control-Allow-Origin"); got != want {
			t.Errorf("%s is told %q", origin, got)
		}
	}
}

// A site whose name leads here is not answered where only this machine is.
func TestLocal(t *testing.T) {
	f := start(t, false, func(c *Config, _ *serve.SchedulerConfig) { c.Local = true })
	for host, want := range map[string]int{"localhost:80": 200, "127.0.0.1": 200, "[::1]:8080": 200, "evil.example:80": 403, "127.0.0.1.evil.example": 403, "10.0.0.1": 403} {
		req, err := http.NewRequestWithContext(t.Context(), "GET", f.URL+"/v1/models", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		res, err := f.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d", host, res.StatusCode)
		}
	}
}

func wait(t *testing.T, until func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !until(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never came")
		}
	}
}

// A full queue refuses, health answers while the decoder is held up, and who goes
// leaves no work behind: streamed and whole.
func TestBusy(t *testing.T) {
	f := start(t, true, func(c *Config, s *serve.SchedulerConfig) {
		s.Slots, s.Queue = 1, 1
		c.Stall = 10 * time.Millisecond
		c.Ping = 5 * time.Millisecond
	})
	gate := <-f.gates
	model := f.hub.Models()[0]
	ctx, leave := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			body := `{"prompt":"x","max_tokens":100,"ignore_eos":true,"stream":` + []string{"true", "false"}[i] + `}`
			req, err := http.NewRequestWithContext(ctx, "POST", f.URL+"/v1/completions", strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			res, err := f.Client().Do(req)
			if err == nil {
				_, err = io.Copy(io.Discard, res.Body)
				_ = res.Body.Close()
			}
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
	}
	wait(t, func() bool { st := model.Status(); return st.Running == 1 && st.Waiting == 1 })
	status, body, h := f.do(t, "POST", "/v1/completions", `{"prompt":"x"}`)
	if status != 429 || h.Get("Retry-After") == "" || !strings.Contains(body, "queue_full") {
		t.Errorf("a full queue: %d %s", status, body)
	}
	wait(t, func() bool {
		status, body, _ := f.do(t, "GET", "/healthz", "")
		return status == 503 && strings.Contains(body, "stalled")
	})
	if status, _, _ := f.do(t, "GET", "/readyz", ""); status != 200 {
		t.Errorf("readyz: %d", status)
	}
	leave()
	wg.Wait()
	wait(t, func() bool { return f.busy.Load() == 0 }) // at once, while the decoder is held up
	gate.Open()
	wait(t, func() bool { st := model.Status(); return st.Running == 0 && st.Waiting == 0 })
	if status, _, _ := f.do(t, "GET", "/healthz", ""); status != 200 {
		t.Errorf("healthz: %d", status)
	}
	for _, want := range []string{
		`autoglm_request_refused_total{model_name="tiny"} 1`, `autoglm_request_failed_total{cause="cancelled",model_name="tiny"} 2`, `vllm:num_requests_running{model_name="tiny",version="1"} 0`,
		"# TYPE vllm:prefix_cache_queries_total counter",
	} {
		wait(t, func() bool {
			_, text, _ := f.do(t, "GET", "/metrics", "")
			return strings.Contains(text, want)
		})
	}
}

// A drain is seen at once, lets a stream end in its time, and ends it with an error
// after that.
func TestDrain(t *testing.T) {
	f := start(t, true, func(c *Config, _ *serve.SchedulerConfig) { c.Ping = 5 * time.Millisecond })
	gate := <-f.gates
	req, err := http.NewRequestWithContext(t.Context(), "POST", f.URL+"/v1/completions", strings.NewReader(`{"prompt":"x","max_tokens":100,"ignore_eos":true,"stream":true}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := f.Client().Do(req) // the first ping
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	if line, err := bufio.NewReader(res.Body).ReadString('\n'); err != nil || line != ": ping\n" {
		t.Errorf("%q, %v", line, err)
	}
	f.hub.Refuse()
	if status, body, _ := f.do(t, "GET", "/readyz", ""); status != 503 {
		t.Errorf("readyz: %d %s", status, body)
	}
	if status, body, h := f.do(t, "POST", "/v1/completions", `{"prompt":"x"}`); status != 503 || h.Get("Retry-After") == "" {
		t.Errorf("a request: %d %s", status, body)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	go gate.Open()
	f.hub.Drain(ctx)
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(b, []byte("[DONE]")) && !bytes.Contains(b, []byte(`"code":"shutting_down"`)) {
		t.Errorf("the stream ends with %s", b)
	}
}

// A new version takes over without a request lost; a canary gets its share.
func TestReloadUnderLoad(t *testing.T) {
	f := start(t, false, nil)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	versions := make([]map[string]int, 4)
	for i := range versions {
		versions[i] = map[string]int{}
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				status, body, _ := f.do(t, "POST", "/v1/completions", `{"prompt":"x","max_tokens":4}`)
				if status != 200 {
					t.Errorf("%d %s", status, body)
					return
				}
				versions[i][parse[completion](t, body).Fingerprint]++
			}
		})
	}
	for range 5 {
		if err := f.hub.Load("tiny", "bb"); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.hub.Load("tiny", "none"); err == nil {
		t.Error("a bundle that is not there is loaded")
	}
	if err := f.hub.Canary("tiny", "ccc", 50); err != nil {
		t.Fatal(err)
	}
	wait(t, func() bool {
		_, body, _ := f.do(t, "POST", "/v1/completions", `{"prompt":"x","max_tokens":1}`)
		return strings.Contains(body, "version 7")
	})
	if status, body, _ := f.do(t, "POST", "/v1/completions", `{"model":"tiny@6","prompt":"x","max_tokens":1}`); status != 200 || !strings.Contains(body, "version 6") {
		t.Errorf("by version: %s", body)
	}
	close(stop)
	wg.Wait()
	seen := map[string]bool{}
	for _, v := range versions {
		for k := range v {
			seen[k] = true
		}
	}
	if len(seen) < 2 {
		t.Errorf("versions seen: %v", seen)
	}
	if f.hub.Canary("tiny", "d", 101) == nil || f.hub.Canary("none", "d", 5) == nil || f.hub.Reload("none") == nil {
		t.Error("a canary of nothing is taken")
	}
}

// A text has the form that was asked for, or is flagged as cut.
func TestResponseFormat(t *testing.T) {
	f := start(t, false, nil)
	formats := map[string]string{
		"object": `{"type":"json_object"}`,
		"schema": `{"type":"json_schema","json_schema":{"name":"p","strict":true,"schema":{"type":"object","properties":{"name":{"type":"string","maxLength":4},"age":{"type":"integer","minimum":0,"maximum":120},"kind":{"enum":["a","b"]}},"required":["name","age","kind"],"additionalProperties":false}}}`,
	}
	ended := map[string]int{}
	for name, format := range formats {
		for seed := range 12 {
			status, answer, _ := f.do(t, "POST", "/v1/chat/completions", fmt.Sprintf(`{"messages":[{"role":"user","content":"who?"}],"seed":%d,"temperature":1,"response_format":%s}`, seed, format))
			if status != 200 {
				t.Fatal(answer)
			}
			c := parse[chatCompletion](t, answer).Choices[0]
			if *c.Finish == "length" {
				continue
			}
			ended[name]++
			var v struct {
				Name *string
				Age  *int
				Kind *string
			}
			d := json.NewDecoder(strings.NewReader(c.Message.Content))
			if name == "schema" {
				d.DisallowUnknownFields()
				if err := d.Decode(&v); err != nil || v.Name == nil || *v.Age > 120 || *v.Kind != "a" && *v.Kind != "b" || utf8.RuneCountInString(*v.Name) > 4 {
					t.Errorf("%v: %s", err, c.Message.Content)
				}
			} else if !json.Valid([]byte(c.Message.Content)) || c.Message.Content[0] != '{' {
				t.Errorf("%s", c.Message.Content)
			}
		}
	}
	if ended["schema"] < 6 {
		t.Errorf("%v texts came to their end", ended)
	}
}

// A drain ends what a replaced version still does.
func TestDrainOfReplaced(t *testing.T) {
	f := start(t, true, nil)
	gate := <-f.gates
	old := f.hub.Models()[0]
	done := make(chan string)
	go func() {
		_, body, _ := f.do(t, "POST", "/v1/completions", `{"prompt":"x","max_tokens":200,"ignore_eos":true}`)
		done <- body
	}()
	wait(t, func() bool { return old.Status().Running == 1 })
	if err := f.hub.Load("tiny", "bb"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		f.hub.Drain(ctx)
	}()
	wait(t, func() bool { return old.Status().Draining })
	gate.Open()
	<-drained
	if body := <-done; !strings.Contains(body, "shutting_down") && !strings.Contains(body, `"finish_reason":"length"`) {
		t.Error(body)
	}
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{`{"prompt":"x"}`, `{"prompt":[[1]],"stop":["a"],"logit_bias":{"1":2}}`, `{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object"}}}}`, `{"stop":null,"n":1e400}`} {
		f.Add(s)
	}
	b := servetest.Bundle(f, 1)
	m := &serve.Model{Bundle: b, Vocabulary: sync.OnceValue(func() *grammar.Vocabulary { return grammar.NewVocabulary(b.Tokenizer) })}
	f.Fuzz(func(t *testing.T, s string) {
		var c completionRequest
		if parseJSON([]byte(s), &c) == nil {
			if req, err := c.request(b, c.MaxTokens); err == nil {
				if err := req.Sampling.Validate(); err != nil {
					t.Errorf("a request passes with %v", err)
				}
			}
		}
		var ch chatRequest
		if parseJSON([]byte(s), &ch) == nil {
			if m, err := conversation(ch.Messages); err == nil {
				if _, err := serve.ChatIDs(b, m); err != nil {
					t.Error(err)
				}
			}
			_, _ = ch.grammar(m)
			_ = ch.refused()
		}
	})
}
