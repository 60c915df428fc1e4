package rest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/keys"
	"github.com/open-autoglm/autoglm/runtime/serve/template"
)

// apiError is an error in OpenAI's form.
type apiError struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    *string `json:"code"`

	status int
	after  time.Duration // when it is worth trying again; 0 is unknown
}

func (e *apiError) Error() string { return e.Message }

// Types of errors.
const (
	badRequest  = "invalid_request_error"
	badKey      = "authentication_error"
	tooMany     = "rate_limit_error"
	serverError = "server_error"
)

func newError(status int, kind, code, param, format string, args ...any) *apiError {
	e := &apiError{Message: fmt.Sprintf(format, args...), Type: kind, status: status}
	if code != "" {
		e.Code = &code
	}
	if param != "" {
		e.Param = &param
	}
	return e
}

// invalid is a 400 that names a field.
func invalid(param, format string, args ...any) *apiError {
	return newError(http.StatusBadRequest, badRequest, "", param, format, args...)
}

// unsupported is a 400 for a field that is known but not supported.
func unsupported(param string) *apiError {
	return newError(http.StatusBadRequest, badRequest, "unsupported_parameter", param, "%s is not supported here; leave it out", param)
}

// apiErrorOf is what a client is told of err.
func apiErrorOf(err error) *apiError {
	var own *apiError
	var full *serve.ContextError
	var busy *serve.BusyError
	var rate *keys.RateError
	var bad *BadRequest
	var rendered *template.Error
	switch {
	case errors.As(err, &own):
		return own
	case errors.As(err, &bad):
		return invalid("", "%s", bad.Message)
	case errors.As(err, &full):
		return newError(http.StatusBadRequest, badRequest, "context_length_exceeded", "", "%s", full.Error())
	case errors.As(err, &busy):
		e := newError(http.StatusTooManyRequests, tooMany, "queue_full", "", "%s", busy.Error())
		e.after = busy.After
		return e
	case errors.As(err, &rate):
		e := newError(http.StatusTooManyRequests, tooMany, "rate_limit_exceeded", "", "%s", rate.Error())
		e.after = rate.After
		return e
	case errors.Is(err, keys.ErrUnknown):
		return newError(http.StatusUnauthorized, badKey, "invalid_api_key", "", "this API key is not known; send one as Authorization: Bearer KEY")
	case errors.Is(err, serve.ErrNoModel):
		return newError(http.StatusNotFound, badRequest, "model_not_found", "model", "%s; GET /v1/models lists those that are", err.Error())
	case errors.Is(err, serve.ErrNoEmbedding):
		return newError(http.StatusBadRequest, badRequest, "unsupported", "model", "%s", err.Error())
	case errors.Is(err, serve.ErrNoChat):
		return invalid("messages", "%s", err.Error())
	case errors.As(err, &rendered):
		return invalid("messages", "%s", err.Error())
	case errors.Is(err, serve.ErrDraining), errors.Is(err, serve.ErrDrained):
		e := newError(http.StatusServiceUnavailable, serverError, "shutting_down", "", "%s", err.Error())
		e.after = 5 * time.Second
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return newError(http.StatusGatewayTimeout, serverError, "deadline_exceeded", "", "the text was not finished in the time that requests have here")
	}
	return newError(http.StatusInternalServerError, serverError, "", "", "%s", err.Error())
}

// writeError answers with an error.
func writeError(w http.ResponseWriter, err error) {
	e := apiErrorOf(err)
	if e.after > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(e.after.Seconds()))))
	}
	if e.status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	writeJSON(w, e.status, map[string]*apiError{"error": e})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil { // a NaN of a model's, at worst
		b, status = []byte(`{"error":{"message":"the answer can't be written as JSON","type":"server_error","param":null,"code":null}}`), http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // the client may be gone
}

// BadRequest is a request that can't be read.
type BadRequest struct{ Message string }

func (e *BadRequest) Error() string { return e.Message }
