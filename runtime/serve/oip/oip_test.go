package oip

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/keys"
	"github.com/open-autoglm/autoglm/runtime/serve/metrics"
	"github.com/open-autoglm/autoglm/runtime/serve/oip/api"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
	"github.com/open-autoglm/autoglm/runtime/serve/rest"
	"github.com/open-autoglm/autoglm/runtime/serve/servetest"
)

type fixture struct {
	addr   string
	web    *httptest.Server
	hub    *serve.Hub
	server *Server
	client api.GRPCInferenceServiceClient
	conn   *grpc.ClientConn
	gate   *servetest.Gate
}

func start(t *testing.T, gated bool, change func(*rest.Config)) *fixture {
	t.Helper()
	f := &fixture{}
	counts := metrics.New()
	f.hub = serve.NewHub(func(_ string, seqs int) (*bundle.Bundle, engine.Decoder, error) {
		b := servetest.Bundle(t, 1)
		dec, err := native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{MaxSeqs: seqs})
		if err != nil || !gated {
			return b, dec, err
		}
		f.gate = servetest.NewGate(dec)
		return b, f.gate, nil
	}, serve.DefaultSchedulerConfig(), counts.Events)
	cfg := rest.DefaultConfig(f.hub, counts)
	if change != nil {
		change(&cfg)
	}
	handler, err := rest.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.hub.Load("tiny", "a"); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = ln.Addr().String()
	f.server = New(Config{Rest: handler, Hub: f.hub, MaxMessage: 1 << 20, Version: "test"})
	done := make(chan error, 1)
	go func() { done <- f.server.Serve(ln) }()
	f.web = httptest.NewServer(handler)
	if f.conn, err = grpc.NewClient(f.addr, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatal(err)
	}
	f.client = api.NewGRPCInferenceServiceClient(f.conn)
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if gated {
			f.gate.Open()
		}
		_ = f.conn.Close()
		f.hub.Drain(ctx)
		f.web.Close()
		f.server.Stop(ctx)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func typed(text string, tokens int32) *api.ModelInferRequest {
	return &api.ModelInferRequest{
		ModelName: "tiny", Id: "r",
		Inputs: []*api.ModelInferRequest_InferInputTensor{
			{Name: "text_input", Datatype: "BYTES", Shape: []int64{1}, Contents: &api.InferTensorContents{BytesContents: [][]byte{[]byte(text)}}},
			{Name: "max_tokens", Datatype: "INT32", Shape: []int64{1}, Contents: &api.InferTensorContents{IntContents: []int32{tokens}}},
			{Name: "temperature", Datatype: "FP32", Shape: []int64{1}, Contents: &api.InferTensorContents{Fp32Contents: []float32{0.75}}},
		},
		Parameters: map[string]*api.InferParameter{
			"seed":       {ParameterChoice: &api.InferParameter_Int64Param{Int64Param: 7}},
			"ignore_eos": {ParameterChoice: &api.InferParameter_BoolParam{BoolParam: true}},
		},
	}
}

func TestInferEverywhere(t *testing.T) {
	f := start(t, false, nil)
	whole, err := f.client.ModelInfer(t.Context(), typed("the fox", 12))
	if err != nil {
		t.Fatal(err)
	}
	text := string(whole.Outputs[0].Contents.BytesContents[0])
	if len(whole.Outputs) != 3 || len(whole.Outputs[1].Contents.Int64Contents) != 12 || string(whole.Outputs[2].Contents.BytesContents[0]) != "length" || whole.Id != "r" || text == "" {
		t.Errorf("%v", whole)
	}
	st, err := f.client.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(typed("the fox", 12)); err != nil {
		t.Fatal(err)
	}
	streamed, pieces := "", 0
	for {
		r, err := st.Recv()
		if err != nil || r.ErrorMessage != "" {
			t.Fatal(err, r)
		}
		if r.InferResponse.Parameters["triton_final_response"].GetBoolParam() {
			break
		}
		pieces++
		streamed += string(r.InferResponse.Outputs[0].Contents.BytesContents[0])
	}
	if streamed != text || pieces < 2 {
		t.Errorf("%d pieces: %q, whole %q", pieces, streamed, text)
	}
	bad := typed("x", 12)
	bad.Inputs = bad.Inputs[1:]
	if err := st.Send(bad); err != nil {
		t.Fatal(err)
	}
	if r, err := st.Recv(); err != nil || !strings.Contains(r.ErrorMessage, "text_input") {
		t.Errorf("%v, %v", r, err)
	}
	if err := st.CloseSend(); err != nil {
		t.Fatal(err)
	}
	// The same over HTTP.
	post := func(path, body string) string {
		t.Helper()
		res, err := http.Post(f.web.URL+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		var b bytes.Buffer
		_, _ = b.ReadFrom(res.Body)
		if res.StatusCode != 200 {
			t.Fatalf("%s: %d %s", path, res.StatusCode, b.String())
		}
		return b.String()
	}
	quoted, _ := json.Marshal(text)
	infer := `{"id":"q","inputs":[{"name":"text_input","shape":[1],"datatype":"BYTES","data":["the fox"]},{"name":"max_tokens","shape":[1,1],"datatype":"INT32","data":[[12]]}],
		"parameters":{"seed":7,"temperature":0.75,"ignore_eos":true},"outputs":[{"name":"text_output"}]}`
	if got := post("/v2/models/tiny/infer", infer); !strings.Contains(got, string(quoted)) || !strings.Contains(got, `"id":"q"`) {
		t.Errorf("infer: %s, want %s", got, quoted)
	}
	gen := `{"text_input":"the fox","parameters":{"seed":7,"temperature":0.75,"ignore_eos":true,"max_tokens":12,"stream":true}}`
	if got := post("/v2/models/tiny/versions/1/generate", gen); !strings.Contains(got, string(quoted)) {
		t.Errorf("generate: %s", got)
	}
	streamed = ""
	for line := range strings.Lines(post("/v2/models/tiny/generate_stream", gen)) {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			var v map[string]string
			if err := json.Unmarshal([]byte(data), &v); err != nil {
				t.Fatal(err)
			}
			streamed += v["text_output"]
		}
	}
	if streamed != text {
		t.Errorf("generate_stream: %q", streamed)
	}
	post("/v2/repository/models/tiny/load", "")
	if got := post("/v2/repository/index", ""); !strings.Contains(got, `"version":"2"`) {
		t.Errorf("index: %s", got)
	}
	m, err := f.client.ModelMetadata(t.Context(), &api.ModelMetadataRequest{Name: "tiny"})
	if err != nil || !slices.Equal(m.Versions, []string{"2"}) {
		t.Errorf("%v, %v", m, err)
	}
}

func TestRefuses(t *testing.T) {
	f := start(t, false, nil)
	for name, c := range map[string]struct {
		change func(*api.ModelInferRequest)
		code   codes.Code
		want   string
	}{
		"model":    {func(r *api.ModelInferRequest) { r.ModelName = "none" }, codes.NotFound, "none"},
		"version":  {func(r *api.ModelInferRequest) { r.ModelVersion = "9" }, codes.NotFound, "9"},
		"input":    {func(r *api.ModelInferRequest) { r.Inputs[1].Name = "max_token" }, codes.InvalidArgument, "max_token"},
		"twice":    {func(r *api.ModelInferRequest) { r.Inputs[2].Name = "seed" }, codes.InvalidArgument, "seed"},
		"shape":    {func(r *api.ModelInferRequest) { r.Inputs[0].Shape = []int64{2} }, codes.InvalidArgument, "text_input"},
		"huge":     {func(r *api.ModelInferRequest) { r.Inputs[0].Shape = []int64{1 << 40, 1 << 40} }, codes.InvalidArgument, "shape"},
		"negative": {func(r *api.ModelInferRequest) { r.Inputs[0].Shape = []int64{-1} }, codes.InvalidArgument, "shape"},
		"type":     {func(r *api.ModelInferRequest) { r.Inputs[0].Datatype = "FP8" }, codes.InvalidArgument, "FP8"},
		"output": {func(r *api.ModelInferRequest) {
			r.Outputs = []*api.ModelInferRequest_InferRequestedOutputTensor{{Name: "logits"}}
		}, codes.InvalidArgument, "logits"},
		"parameter":   {func(r *api.ModelInferRequest) { r.Parameters["x"] = &api.InferParameter{} }, codes.InvalidArgument, "x"},
		"raw, number": {func(r *api.ModelInferRequest) { r.RawInputContents = [][]byte{{}} }, codes.InvalidArgument, "raw"},
		"long":        {func(r *api.ModelInferRequest) { r.Inputs[0].Contents.BytesContents[0] = bytes.Repeat([]byte("x"), 999) }, codes.InvalidArgument, "context"},
	} {
		req := typed("the fox", 3)
		c.change(req)
		_, err := f.client.ModelInfer(t.Context(), req)
		if s := status.Convert(err); s.Code() != c.code || !strings.Contains(s.Message(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestHealthReflectionAndKeys(t *testing.T) {
	key, line, err := keys.New("ada", 0)
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
	f := start(t, false, func(c *rest.Config) { c.Keys = ring })
	h := grpc_health_v1.NewHealthClient(f.conn)
	for _, service := range []string{"", "inference.GRPCInferenceService"} {
		if r, err := h.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{Service: service}); err != nil || r.Status != grpc_health_v1.HealthCheckResponse_SERVING {
			t.Errorf("%q: %v, %v", service, r, err)
		}
	}
	refl, err := grpc_reflection_v1.NewServerReflectionClient(f.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := refl.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	if r, err := refl.Recv(); err != nil || !strings.Contains(r.String(), "inference.GRPCInferenceService") {
		t.Errorf("%v, %v", r, err)
	}
	_ = refl.CloseSend()
	if _, err := f.client.ModelInfer(t.Context(), typed("x", 1)); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a key: %v", err)
	}
	ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "Bearer "+key)
	if _, err := f.client.ModelInfer(ctx, typed("x", 1)); err != nil {
		t.Error(err)
	}
	f.hub.Refuse()
	f.server.Refuse()
	if r, err := h.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{}); err != nil || r.Status != grpc_health_v1.HealthCheckResponse_NOT_SERVING {
		t.Errorf("draining: %v, %v", r, err)
	}
	if r, err := f.client.ServerReady(t.Context(), &api.ServerReadyRequest{}); err != nil || r.Ready {
		t.Errorf("draining: %v, %v", r, err)
	}
	_, err = f.client.ModelInfer(ctx, typed("x", 1))
	if st := status.Convert(err); st.Code() != codes.Unavailable || len(st.Details()) != 1 { // when to try again
		t.Errorf("draining: %v, %v", err, st.Details())
	}
}

func TestCancel(t *testing.T) {
	f := start(t, true, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := f.client.ModelInfer(ctx, typed("the fox", 200))
		done <- err
	}()
	model := f.hub.Models()[0]
	wait(t, func() bool { return model.Status().Running == 1 })
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	st, err := f.client.ModelStreamInfer(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Send(typed("the fox", 200)); err != nil {
		t.Fatal(err)
	}
	f.gate.Open()
	if _, err := st.Recv(); err != nil {
		t.Error(err)
	}
	_ = f.conn.Close() // the client goes in mid-stream
	wait(t, func() bool { st := model.Status(); return st.Running == 0 && st.Waiting == 0 })
}

func wait(t *testing.T, until func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !until(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never came")
		}
	}
}

// Triton's own client understands every answer.
func TestTritonClient(t *testing.T) {
	path := os.Getenv("AUTOGLM_PYTHON")
	if path == "" {
		const why = "AUTOGLM_PYTHON is unset: no Python with tritonclient to ask with"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	f := start(t, false, nil)
	cmd := exec.CommandContext(t.Context(), path, "../../../bench/peers/triton_client.py", f.addr, "tiny")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var got struct {
		Live, Ready             bool
		ModelReady              bool `json:"model_ready"`
		NoneReady               bool `json:"none_ready"`
		Server                  string
		Inputs                  []string
		Text, Again, Finish, ID string
		IDs                     []int
		Streamed                string
		Outputs, Pieces         int
		Errors                  map[string]string
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if !got.Live || !got.Ready || !got.ModelReady || got.NoneReady || got.Server != "autoglm" || !slices.Contains(got.Inputs, "text_input") {
		t.Errorf("%+v", got)
	}
	if got.Text == "" || got.Text != got.Again || got.Text != got.Streamed || len(got.IDs) != 12 || got.Finish != "length" || got.ID != "r1" || got.Outputs != 1 || got.Pieces < 2 {
		t.Errorf("%+v", got)
	}
	for name, want := range map[string]string{"model": "StatusCode.NOT_FOUND", "input": "StatusCode.INVALID_ARGUMENT", "long": "StatusCode.INVALID_ARGUMENT", "shared": "StatusCode.UNIMPLEMENTED"} {
		if got.Errors[name] != want {
			t.Errorf("%s: %s", name, got.Errors[name])
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, r := range []*api.ModelInferRequest{
		typed("x", 3),
		{Inputs: []*api.ModelInferRequest_InferInputTensor{{Name: "text_input", Datatype: "BYTES", Shape: []int64{1}}, {Name: "seed", Datatype: "INT8", Shape: []int64{1}}}, RawInputContents: [][]byte{{1, 0, 0, 0, 'x'}, {255}}},
	} {
		b, err := proto.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var in api.ModelInferRequest
		if proto.Unmarshal(b, &in) != nil {
			return
		}
		req, err := decode(&in)
		if err == nil && len(req.Inputs) != len(in.Inputs) {
			t.Error("inputs are lost")
		}
	})
}

func TestRawContents(t *testing.T) {
	in := &api.ModelInferRequest{
		Inputs: []*api.ModelInferRequest_InferInputTensor{
			{Name: "a", Datatype: "BYTES", Shape: []int64{2}}, {Name: "b", Datatype: "INT16", Shape: []int64{2}}, {Name: "c", Datatype: "FP32", Shape: []int64{1}}, {Name: "d", Datatype: "BOOL", Shape: []int64{1}}, {Name: "e", Datatype: "UINT32", Shape: []int64{1}},
		},
		RawInputContents: [][]byte{{1, 0, 0, 0, 'x', 0, 0, 0, 0}, {1, 0, 0xfe, 0xff}, {0, 0, 0x80, 0x3f}, {1}, {255, 255, 255, 255}},
	}
	out, err := decode(in)
	if err != nil {
		t.Fatal(err)
	}
	v := out.Inputs
	if !slices.Equal(v[0].Texts, []string{"x", ""}) || !slices.Equal(v[1].Ints, []int64{1, -2}) || !slices.Equal(v[2].Values, []float64{1}) || !slices.Equal(v[3].Bools, []bool{true}) || !slices.Equal(v[4].Ints, []int64{1<<32 - 1}) {
		t.Errorf("%+v", v)
	}
	for i, cut := range [][]byte{{1, 0, 0, 0}, {1, 0, 0}, {0, 0, 0x80}, {}, {1, 2, 3, 4, 5}} {
		bad := proto.CloneOf(in)
		bad.RawInputContents[i] = cut
		if _, err := decode(bad); err == nil {
			t.Errorf("input %d is read from %v", i, cut)
		}
	}
}

// Answers over gRPC pass through the policy, and their parameters say what it decided.
func TestPolicy(t *testing.T) {
	p, err := policy.Parse([]byte(`models: {tiny: {rules: [{name: fox, when: 'prompt.contains("fox")', then: reject, reason: no foxes}], gate: {confidence: 0.000001, below: abstain}}}`), "p")
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, false, func(c *rest.Config) { c.Policy = func() *policy.Policy { return p } })
	for prompt, outcome := range map[string]string{"the fox": policy.Rejected, "the dog": policy.Accepted} {
		whole, err := f.client.ModelInfer(t.Context(), typed(prompt, 12))
		if err != nil {
			t.Fatal(err)
		}
		st, err := f.client.ModelStreamInfer(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := st.Send(typed(prompt, 12)); err != nil {
			t.Fatal(err)
		}
		text := ""
		var last *api.ModelInferResponse
		for last == nil {
			m, err := st.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if r := m.InferResponse; r.Parameters["triton_final_response"].GetBoolParam() {
				last = r
			} else {
				text += string(r.Outputs[0].Contents.BytesContents[0])
			}
		}
		if err := st.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if got := string(whole.Outputs[0].Contents.BytesContents[0]); got != text || (text == "") != (outcome == policy.Rejected) {
			t.Errorf("%s: whole %q, streamed %q", prompt, got, text)
		}
		ids := 12
		if outcome == policy.Rejected {
			ids = 0
		}
		if n := len(whole.Outputs[1].Contents.GetInt64Contents()); n != ids {
			t.Errorf("%s: %d ids", prompt, n)
		}
		for _, r := range []*api.ModelInferResponse{whole, last} {
			if r.Parameters["autoglm_outcome"].GetStringParam() != outcome || r.Parameters["autoglm_attempts"].GetInt64Param() != 1 || r.Parameters["autoglm_confidence"].GetDoubleParam() <= 0 {
				t.Errorf("%s: %v", prompt, r.Parameters)
			}
		}
	}
}
