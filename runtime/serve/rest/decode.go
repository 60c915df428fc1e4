package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
)

// readJSON decodes a body strictly.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return newError(http.StatusUnsupportedMediaType, badRequest, "", "", "send Content-Type: application/json, not %q", r.Header.Get("Content-Type"))
	}
	ctl := http.NewResponseController(w)
	_ = ctl.SetReadDeadline(time.Now().Add(slow)) // tests' recorders have none
	body, err := io.ReadAll(r.Body)
	_ = ctl.SetReadDeadline(time.Time{})
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return newError(http.StatusRequestEntityTooLarge, badRequest, "", "", "the request is larger than the %d bytes that are taken here", large.Limit)
	case err != nil:
		return invalid("", "the request could not be read: %v", err)
	}
	return parseJSON(body, v)
}

func parseJSON(body []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	err := d.Decode(v)
	var kind *json.UnmarshalTypeError
	var own *apiError
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &kind):
		field := strings.TrimPrefix(kind.Field, "common.")
		return invalid(field, "%s is a %s, which it can't be", orBody(field), kind.Value)
	case err != nil:
		if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
			field, _ = strconv.Unquote(field)
			return newError(http.StatusBadRequest, badRequest, "unknown_parameter", field, "%s is not a field that is known here", field)
		}
		return invalid("", "the request is no JSON: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return invalid("", "something follows the JSON of the request")
	}
	return nil
}

func orBody(field string) string {
	if field == "" {
		return "the request"
	}
	return field
}

// common are the fields that completions and chats share.
type common struct {
	Model            string             `json:"model"`
	Stream           bool               `json:"stream"`
	StreamOptions    *streamOptions     `json:"stream_options"`
	N                *int               `json:"n"`
	Seed             *int64             `json:"seed"`
	Stop             stops              `json:"stop"`
	Temperature      *float64           `json:"temperature"`
	TopP             *float64           `json:"top_p"`
	FrequencyPenalty *float64           `json:"frequency_penalty"`
	PresencePenalty  *float64           `json:"presence_penalty"`
	LogitBias        map[string]float64 `json:"logit_bias"`
	MaxTokens        *int               `json:"max_tokens"`
	ResponseFormat   *responseFormat    `json:"response_format"`

	// What vLLM and others add.
	TopK              *int     `json:"top_k"`
	MinP              *float64 `json:"min_p"`
	RepetitionPenalty *float64 `json:"repetition_penalty"`
	MinTokens         int      `json:"min_tokens"`
	IgnoreEOS         bool     `json:"ignore_eos"`

	// What changes nothing here.
	User             string          `json:"user"`
	Metadata         json.RawMessage `json:"metadata"`
	Store            *bool           `json:"store"`
	ServiceTier      string          `json:"service_tier"`
	SafetyIdentifier string          `json:"safety_identifier"`
	PromptCacheKey   string          `json:"prompt_cache_key"`
}

type streamOptions struct {
	IncludeUsage       bool  `json:"include_usage"`
	IncludeObfuscation *bool `json:"include_obfuscation"`
}

// stops is a string or a list of them.
type stops []string

func (t *stops) UnmarshalJSON(b []byte) error {
	var one *string
	if json.Unmarshal(b, &one) == nil {
		*t = nil
		if one != nil {
			*t = stops{*one}
		}
		return nil
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return invalid("stop", "stop is neither a text nor a list of texts: %s", clip(string(b)))
	}
	*t = many
	return nil
}

func clip(s string) string {
	if len(s) > 60 {
		s = strings.ToValidUTF8(s[:60], "") + "…"
	}
	return s
}

// Bounds of fields.
const (
	maxChoices = 16
	maxStops   = 4
	maxBias    = 1024
)

// request is what the fields ask of a bundle, without the prompt.
func (c *common) request(b *bundle.Bundle, maxTokens *int) (serve.Request, error) {
	req := serve.Defaults(b)
	s := &req.Sampling
	number := func(name string, v *float64, lo, hi float64, to *float64) error {
		if v == nil {
			return nil
		}
		if !(*v >= lo && *v <= hi) {
			return invalid(name, "%s is %g, must be in %g to %g", name, *v, lo, hi)
		}
		*to = *v
		return nil
	}
	if err := errors.Join(
		number("temperature", c.Temperature, 0, 2, &s.Temperature),
		number("top_p", c.TopP, 0, 1, &s.TopP),
		number("min_p", c.MinP, 0, 1, &s.MinP),
		number("frequency_penalty", c.FrequencyPenalty, -2, 2, &s.FrequencyPenalty),
		number("presence_penalty", c.PresencePenalty, -2, 2, &s.PresencePenalty),
		number("repetition_penalty", c.RepetitionPenalty, 0, math.MaxFloat64, &s.RepetitionPenalty),
	); err != nil {
		return req, err
	}
	switch {
	case c.TopK != nil && *c.TopK < -1:
		return req, invalid("top_k", "top_k is %d, must be 0 (off) or more", *c.TopK)
	case c.StreamOptions != nil && !c.Stream:
		return req, invalid("stream_options", "stream_options are for requests with stream")
	case c.N != nil && (*c.N < 1 || *c.N > maxChoices):
		return req, invalid("n", "n is %d, must be in 1 to %d", *c.N, maxChoices)
	case len(c.Stop) > maxStops:
		return req, invalid("stop", "%d stop texts, at most %d are taken", len(c.Stop), maxStops)
	case slices.Contains(c.Stop, ""):
		return req, invalid("stop", "a stop text is empty")
	case maxTokens != nil && *maxTokens < 1:
		return req, invalid("max_tokens", "max_tokens is %d, must be 1 or more", *maxTokens)
	case c.MinTokens < 0:
		return req, invalid("min_tokens", "min_tokens is %d, must be 0 or more", c.MinTokens)
	case len(c.LogitBias) > maxBias:
		return req, invalid("logit_bias", "%d biases, at most %d are taken", len(c.LogitBias), maxBias)
	}
	if c.TopK != nil {
		s.TopK = max(0, *c.TopK)
	}
	if maxTokens != nil {
		req.MaxTokens = *maxTokens
	}
	req.Stop, req.MinTokens = c.Stop, c.MinTokens
	if c.IgnoreEOS {
		req.MinTokens = b.Arch.Context
	}
	for k, v := range c.LogitBias {
		id, err := strconv.ParseInt(k, 10, 32)
		if err != nil || id < 0 || int(id) >= b.Tokenizer.VocabSize() {
			return req, invalid("logit_bias", "logit_bias: %q is no token of this model", clip(k))
		}
		if !(v >= -100 && v <= 100) {
			return req, invalid("logit_bias", "logit_bias: %g for token %d, must be in -100 to 100", v, id)
		}
		if s.Bias == nil {
			s.Bias = map[int32]float64{}
		}
		s.Bias[int32(id)] = v
	}
	return req, nil
}

// choices is how many texts are wanted of a prompt.
func (c *common) choices() int {
	if c.N == nil {
		return 1
	}
	return *c.N
}
