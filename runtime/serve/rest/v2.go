package rest

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
	"github.com/open-autoglm/autoglm/runtime/token"
)

// Tensor is one of the Open Inference Protocol's, of no more than one dimension: Texts
// with datatype BYTES, Ints with INT64, Values with FP32, Bools with BOOL.
type Tensor struct {
	Name     string
	Datatype string
	Shape    []int64
	Texts    []string
	Ints     []int64
	Values   []float64
	Bools    []bool
}

// TensorInfo is a tensor's name and kind.
type TensorInfo struct {
	Name     string  `json:"name"`
	Datatype string  `json:"datatype"`
	Shape    []int64 `json:"shape"`
}

// Inputs and Outputs are what every model takes and gives. One of the first two is to
// be given; names of other inputs, and of parameters, are those of OpenAI's API.
var (
	Inputs = []TensorInfo{
		{"text_input", "BYTES", []int64{1}},
		{"input_ids", "INT64", []int64{-1}},
		{"max_tokens", "INT32", []int64{1}},
		{"temperature", "FP32", []int64{1}},
		{"top_p", "FP32", []int64{1}},
		{"top_k", "INT32", []int64{1}},
		{"seed", "INT64", []int64{1}},
		{"stop", "BYTES", []int64{-1}},
		{"sampling_parameters", "BYTES", []int64{1}},
		{"stream", "BOOL", []int64{1}},
		{"exclude_input_in_output", "BOOL", []int64{1}},
	}
	Outputs = []TensorInfo{{"text_output", "BYTES", []int64{1}}, {"output_ids", "INT64", []int64{-1}}, {"finish_reason", "BYTES", []int64{1}}}
)

// Inference is a request of the Open Inference Protocol.
type Inference struct {
	Model, Version string
	Params         map[string]any // bool, int64, uint64, float64 or string
	Inputs         []Tensor
	Outputs        []string // names of those wanted; none is all
}

// Answered is who answered, and what a policy decided; nil is none.
type Answered struct {
	Model, Version string
	Verdict        *policy.Verdict
}

// Infer generates a text. piece, which may be nil, is called with what the text grew by,
// where the request's input or parameter stream does not say no; the answer is whole
// then without it.
func (s *Server) Infer(ctx context.Context, in Inference, piece func(Answered, []Tensor) error) (Answered, []Tensor, error) {
	if s.cfg.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.Timeout)
		defer cancel()
	}
	q, err := s.find(in.Model, in.Version)
	if err != nil {
		return Answered{}, nil, err
	}
	defer q.release()
	who := Answered{Model: q.name, Version: q.Version}
	for _, o := range in.Outputs {
		if !slices.ContainsFunc(Outputs, func(t TensorInfo) bool { return t.Name == o }) {
			return who, nil, invalid("outputs", "there is no output %q", clip(o))
		}
	}
	a, err := ask(q.Model, in)
	if err != nil {
		return who, nil, err
	}
	q.prompts = []string{a.prompt}
	q.build = func(m *serve.Model) ([]serve.Request, error) {
		other, err := ask(m, in)
		return []serve.Request{other.req}, err
	}
	wants := func(name string) bool { return len(in.Outputs) == 0 || slices.Contains(in.Outputs, name) }
	a.req.Whole = piece == nil || !a.stream
	answers, err := s.generate(ctx, q, []serve.Request{a.req}, func(_ int, p serve.Piece) error {
		if piece == nil || !a.stream || !wants("text_output") {
			return nil
		}
		return piece(who, []Tensor{{Name: "text_output", Datatype: "BYTES", Shape: []int64{1}, Texts: []string{p.Text}}})
	}, nil)
	if err != nil {
		return who, nil, err
	}
	res := answers[0]
	who.Verdict = res.verdict
	if !res.kept() {
		res.IDs = q.Bundle.Tokenizer.Encode(nil, res.Text) // none of those that were withheld
	}
	var out []Tensor
	if wants("text_output") && (piece == nil || !a.stream) {
		text := res.Text
		if a.echo {
			text = a.prompt + text
		}
		out = append(out, Tensor{Name: "text_output", Datatype: "BYTES", Shape: []int64{1}, Texts: []string{text}})
	}
	if wants("output_ids") {
		t := Tensor{Name: "output_ids", Datatype: "INT64", Shape: []int64{int64(len(res.IDs))}}
		for _, id := range res.IDs {
			t.Ints = append(t.Ints, int64(id))
		}
		out = append(out, t)
	}
	if wants("finish_reason") {
		out = append(out, Tensor{Name: "finish_reason", Datatype: "BYTES", Shape: []int64{1}, Texts: []string{*finishReason(res.Reason)}})
	}
	return who, out, nil
}

// asked is what an Inference comes to.
type asked struct {
	req          serve.Request
	prompt       string
	stream, echo bool
}

// ask reads tensors and parameters, strictly.
func ask(m *serve.Model, in Inference) (asked, error) {
	a := asked{stream: true}
	fields := map[string]any{}
	var text *string
	var ids []int32
	set := func(name string, v any) error {
		if _, ok := fields[name]; ok {
			return invalid(name, "%s is given twice", name)
		}
		fields[name] = v
		return nil
	}
	flag := func(name string, v any, to *bool) error {
		b, ok := v.(bool)
		if !ok {
			return invalid(name, "%s must be a boolean", name)
		}
		*to = b
		return nil
	}
	one := func(name string, v any) error {
		switch name {
		case "stream":
			return flag(name, v, &a.stream)
		case "exclude_input_in_output":
			var exclude bool
			err := flag(name, v, &exclude)
			a.echo = !exclude
			return err
		case "sampling_parameters":
			s, _ := v.(string)
			var more map[string]json.RawMessage
			if err := json.Unmarshal([]byte(s), &more); err != nil {
				return invalid(name, "sampling_parameters are no JSON object: %v", err)
			}
			for k, v := range more {
				if err := set(k, v); err != nil {
					return err
				}
			}
			return nil
		}
		return set(name, v)
	}
	for k, v := range in.Params {
		if strings.HasPrefix(k, "triton_") { // about how to answer, not what
			continue
		}
		if s, ok := v.(string); ok && !slices.Contains([]string{"sampling_parameters", "stop", "user"}, k) && json.Valid([]byte(s)) { // Triton's clients send numbers as text
			v = json.RawMessage(s)
		}
		if err := one(k, v); err != nil {
			return a, err
		}
	}
	for _, t := range in.Inputs {
		switch {
		case t.Name == "text_input":
			if len(t.Texts) != 1 || text != nil {
				return a, invalid(t.Name, "text_input must be one text of datatype BYTES, once")
			}
			text = ptr(token.ValidUTF8(t.Texts[0]))
		case t.Name == "input_ids":
			if len(t.Ints) == 0 || ids != nil {
				return a, invalid(t.Name, "input_ids must be tokens of an integer datatype, once")
			}
			for _, id := range t.Ints {
				if id < 0 || id >= int64(m.Bundle.Tokenizer.VocabSize()) {
					return a, invalid(t.Name, "input_ids: %d is no token of this model", id)
				}
				ids = append(ids, int32(id))
			}
		default:
			v, err := t.value()
			if err == nil {
				err = one(t.Name, v)
			}
			if err != nil {
				return a, err
			}
		}
	}
	if (text == nil) == (ids == nil) {
		return a, invalid("inputs", "give text_input or input_ids, one of them")
	}
	for _, not := range []string{"n", "model", "stream_options"} {
		if _, ok := fields[not]; ok {
			return a, unsupported(not)
		}
	}
	var c common
	body, err := json.Marshal(fields)
	if err != nil {
		return a, invalid("inputs", "an input can't be read: %v", err)
	}
	if err := parseJSON(body, &c); err != nil {
		return a, err
	}
	if a.req, err = c.request(m.Bundle, c.MaxTokens); err != nil {
		return a, err
	}
	grammar, err := c.grammar(m)
	if err != nil {
		return a, err
	}
	a.req.IDs = ids
	if text != nil {
		a.req.Prompt, a.prompt = *text, *text
	} else {
		a.prompt = token.ValidUTF8(m.Bundle.Tokenizer.Decode(ids))
	}
	a.req = c.copies(a.req, grammar)[0]
	return a, nil
}

// value is what a tensor says: of one element that, else the list.
func (t Tensor) value() (any, error) {
	var all []any
	for _, v := range t.Texts {
		all = append(all, v)
	}
	for _, v := range t.Ints {
		all = append(all, v)
	}
	for _, v := range t.Values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, invalid(t.Name, "%s is %g", clip(t.Name), v)
		}
		// A float32 such as 0.7 is a long decimal in float64.
		all = append(all, float64(float32(v)))
	}
	for _, v := range t.Bools {
		all = append(all, v)
	}
	switch {
	case len(all) == 0:
		return nil, invalid(t.Name, "the input %q is empty", clip(t.Name))
	case len(all) == 1 && t.Name != "stop":
		return all[0], nil
	}
	return all, nil
}

// v2 are the paths of the Open Inference Protocol.
func (s *Server) v2() map[string]func(http.ResponseWriter, *http.Request) error {
	out := map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /v2":                   s.v2Server,
		"POST /v2/repository/index": s.v2Index,
		"POST /v2/repository/models/{model}/load": s.v2Load,
	}
	for _, at := range []string{"/v2/models/{model}", "/v2/models/{model}/versions/{version}"} {
		out["GET "+at] = s.v2Model
		out["GET "+at+"/ready"] = s.v2Ready
		out["POST "+at+"/infer"] = s.v2Infer
		out["POST "+at+"/generate"] = s.v2Generate
		out["POST "+at+"/generate_stream"] = s.v2GenerateStream
	}
	return out
}

// Extensions are those of the Open Inference Protocol that are served.
var Extensions = []string{"generate", "model_repository"}

func (s *Server) v2Server(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, map[string]any{"name": "autoglm", "version": s.cfg.Version, "extensions": Extensions})
	return nil
}

func (s *Server) v2Index(w http.ResponseWriter, _ *http.Request) error {
	out := []map[string]string{}
	for _, m := range s.Served() {
		out = append(out, map[string]string{"name": m[0], "version": m[1], "state": "READY", "reason": ""})
	}
	writeJSON(w, http.StatusOK, out)
	return nil
}

// Served are the names that are served with their versions, a pair for each version.
func (s *Server) Served() (out [][2]string) {
	for _, m := range s.modelInfos() {
		for _, v := range m.Versions {
			out = append(out, [2]string{m.ID, v})
		}
	}
	return out
}

// v2Load reads a bundle anew; requests go on meanwhile.
func (s *Server) v2Load(w http.ResponseWriter, r *http.Request) error {
	if err := s.cfg.Hub.Reload(r.PathValue("model")); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// versions are those of a model that are served; an empty version is any.
func (s *Server) versions(name, version string) ([]string, error) {
	var out []string
	for _, m := range s.Served() {
		if m[0] == name && (version == "" || version == m[1]) {
			out = append(out, m[1])
		}
	}
	if out == nil {
		return nil, fmt.Errorf("%w: %q", serve.ErrNoModel, clip(name))
	}
	return out, nil
}

// Versions are those of a model that are served, or the one that is asked for.
func (s *Server) Versions(name, version string) ([]string, error) { return s.versions(name, version) }

func (s *Server) v2Model(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("model")
	versions, err := s.versions(name, r.PathValue("version"))
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, map[string]any{"name": name, "versions": versions, "platform": "autoglm", "inputs": Inputs, "outputs": Outputs})
	return nil
}

func (s *Server) v2Ready(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.versions(r.PathValue("model"), r.PathValue("version")); err != nil {
		return err
	}
	s.readyz(w, r)
	return nil
}

type v2Request struct {
	ID         string         `json:"id"`
	Parameters map[string]any `json:"parameters"`
	Inputs     []v2Tensor     `json:"inputs"`
	Outputs    []struct {
		Name       string         `json:"name"`
		Parameters map[string]any `json:"parameters"`
	} `json:"outputs"`
}

type v2Tensor struct {
	Name       string          `json:"name"`
	Datatype   string          `json:"datatype"`
	Shape      []int64         `json:"shape"`
	Parameters map[string]any  `json:"parameters,omitempty"`
	Data       json.RawMessage `json:"data"`
}

// Count is how many elements a shape has; an error names the tensor.
func Count(name string, shape []int64) (int, error) {
	n := int64(1)
	for _, d := range shape {
		if d < 0 || d > 1<<24 || n*d > 1<<24 {
			return 0, invalid(name, "the shape %v of %q is too large, or negative", shape, clip(name))
		}
		n *= d
	}
	return int(n), nil
}

func (t v2Tensor) tensor() (Tensor, error) {
	out := Tensor{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape}
	n, err := Count(t.Name, t.Shape)
	if err != nil {
		return out, err
	}
	var data any
	if err := json.Unmarshal(t.Data, &data); err != nil {
		return out, invalid(t.Name, "the data of %q is missing", clip(t.Name))
	}
	flat := flatten(nil, data)
	if len(flat) != n {
		return out, invalid(t.Name, "%q has %d elements, its shape %v says %d", clip(t.Name), len(flat), t.Shape, n)
	}
	for _, v := range flat {
		ok := false
		switch v := v.(type) {
		case string:
			out.Texts, ok = append(out.Texts, v), t.Datatype == "BYTES"
		case bool:
			out.Bools, ok = append(out.Bools, v), t.Datatype == "BOOL"
		case float64:
			switch {
			case strings.HasPrefix(t.Datatype, "FP"):
				out.Values, ok = append(out.Values, v), true
			case strings.HasPrefix(t.Datatype, "INT"), strings.HasPrefix(t.Datatype, "UINT"):
				out.Ints, ok = append(out.Ints, int64(v)), v == math.Trunc(v) && math.Abs(v) < 1<<53
			}
		}
		if !ok {
			return out, invalid(t.Name, "%q holds something that is no %s", clip(t.Name), clip(t.Datatype))
		}
	}
	return out, nil
}

func flatten(dst []any, v any) []any {
	list, ok := v.([]any)
	if !ok {
		return append(dst, v)
	}
	for _, x := range list {
		dst = flatten(dst, x)
	}
	return dst
}

func (s *Server) v2Infer(w http.ResponseWriter, r *http.Request) error {
	var in v2Request
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	req := Inference{Model: r.PathValue("model"), Version: r.PathValue("version"), Params: in.Parameters}
	for _, t := range in.Inputs {
		v, err := t.tensor()
		if err != nil {
			return err
		}
		req.Inputs = append(req.Inputs, v)
	}
	for _, o := range in.Outputs {
		req.Outputs = append(req.Outputs, o.Name)
	}
	who, out, err := s.Infer(r.Context(), req, nil)
	if err != nil {
		return err
	}
	tensors := []v2Tensor{}
	for _, t := range out {
		var data any = t.Texts
		if t.Datatype == "INT64" {
			data = t.Ints
		}
		b, err := json.Marshal(data)
		if err != nil {
			return err
		}
		tensors = append(tensors, v2Tensor{Name: t.Name, Datatype: t.Datatype, Shape: t.Shape, Data: b})
	}
	body := map[string]any{"model_name": who.Model, "model_version": who.Version, "id": in.ID, "outputs": tensors}
	if who.Verdict != nil {
		body["parameters"] = who.Verdict.Parameters()
	}
	writeJSON(w, http.StatusOK, body)
	return nil
}

// v2GenerateRequest is Triton's: fields beside the text, or in parameters.
type v2GenerateRequest struct {
	ID         string                     `json:"id"`
	TextInput  *string                    `json:"text_input"`
	Parameters map[string]json.RawMessage `json:"parameters"`
}

func (s *Server) readGenerate(w http.ResponseWriter, r *http.Request) (Inference, error) {
	var in v2GenerateRequest
	if err := readJSON(w, r, &in); err != nil {
		return Inference{}, err
	}
	if in.TextInput == nil {
		return Inference{}, invalid("text_input", "give text_input")
	}
	req := Inference{
		Model: r.PathValue("model"), Version: r.PathValue("version"), Params: map[string]any{}, Outputs: []string{"text_output", "finish_reason"},
		Inputs: []Tensor{{Name: "text_input", Datatype: "BYTES", Shape: []int64{1}, Texts: []string{*in.TextInput}}},
	}
	for k, v := range in.Parameters {
		if k == "stream" || k == "exclude_input_in_output" {
			var b bool
			if err := json.Unmarshal(v, &b); err != nil {
				return req, invalid(k, "%s must be a boolean", k)
			}
			req.Params[k] = b
			continue
		}
		req.Params[k] = v
	}
	return req, nil
}

func generated(who Answered, out []Tensor) map[string]any {
	v := map[string]any{"model_name": who.Model, "model_version": who.Version}
	if who.Verdict != nil {
		v["autoglm"] = who.Verdict
	}
	for _, t := range out {
		v[t.Name] = t.Texts[0]
	}
	return v
}

func (s *Server) v2Generate(w http.ResponseWriter, r *http.Request) error {
	in, err := s.readGenerate(w, r)
	if err != nil {
		return err
	}
	who, out, err := s.Infer(r.Context(), in, nil)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, generated(who, out))
	return nil
}

func (s *Server) v2GenerateStream(w http.ResponseWriter, r *http.Request) error {
	in, err := s.readGenerate(w, r)
	if err != nil {
		return err
	}
	st := newStream(w, s.cfg.Ping)
	defer st.close()
	who, out, err := s.Infer(r.Context(), in, func(who Answered, out []Tensor) error { return st.send(generated(who, out)) })
	if err == nil {
		err = st.send(generated(who, out))
	}
	if err != nil {
		return st.finish(err)
	}
	return nil
}

// Admit lets a request in by its key, where there are keys.
func (s *Server) Admit(key string) error {
	if s.cfg.Keys == nil {
		return nil
	}
	_, err := s.cfg.Keys.Check(key)
	return err
}

// Reload reads a model's bundle anew.
func (s *Server) Reload(name string) error { return s.cfg.Hub.Reload(name) }

// Status is the HTTP status of an error, what a client is told of it, and after how long
// it is worth trying again; 0 is unknown.
func Status(err error) (code int, message string, after time.Duration) {
	e := apiErrorOf(err)
	return e.status, e.Message, e.after
}
