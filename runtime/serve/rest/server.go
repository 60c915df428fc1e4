package rest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/keys"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
)

// Metrics is what counts, and shows what it counted.
type Metrics interface {
	http.Handler
	Refused(model string)
	Policy() policy.Events
}

// Config says what a Server serves, and to whom.
type Config struct {
	Hub     *serve.Hub
	Metrics Metrics
	Policy  func() *policy.Policy // the one that counts now; nil, and a nil one, let all answers stand
	Keys    *keys.Ring            // nil lets everybody in
	MaxBody int64                 // bytes of a request
	Timeout time.Duration         // for a request, from its arrival to its end; 0 is no bound
	Ping    time.Duration         // between the comments that keep a silent stream alive
	Stall   time.Duration         // how long a round may take before the server calls itself sick
	Origins []string              // sites whose pages may ask, or *; empty is none
	Local   bool                  // only who calls it by a name of this machine's own: no site whose name leads here
	Version string                // of the program
}

// DefaultConfig is a server of hub without keys.
func DefaultConfig(hub *serve.Hub, m Metrics) Config {
	return Config{Hub: hub, Metrics: m, MaxBody: 4 << 20, Timeout: 10 * time.Minute, Ping: 15 * time.Second, Stall: 30 * time.Second}
}

// Server is an http.Handler.
type Server struct {
	cfg Config
	mux *http.ServeMux
}

// New is a Server.
func New(cfg Config) (*Server, error) {
	if cfg.MaxBody < 1 || cfg.Ping <= 0 || cfg.Stall <= 0 || cfg.Timeout < 0 {
		return nil, fmt.Errorf("rest: MaxBody %d, Ping %s, Stall %s and Timeout %s must be positive", cfg.MaxBody, cfg.Ping, cfg.Stall, cfg.Timeout)
	}
	s := &Server{cfg: cfg, mux: http.NewServeMux()}
	for pattern, f := range s.open() {
		s.mux.HandleFunc(pattern, f)
	}
	guarded := s.guarded()
	maps.Copy(guarded, s.v2())
	for pattern, f := range guarded {
		s.mux.HandleFunc(pattern, s.guard(f))
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeError(w, newError(http.StatusNotFound, badRequest, "not_found", "", "there is no %s %s here; GET /openapi.json says what there is", r.Method, clip(r.URL.Path)))
	})
	return s, nil
}

// open are the paths that need no key.
func (s *Server) open() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET /{$}":             s.page,
		"GET /healthz":         s.healthz,
		"GET /readyz":          s.readyz,
		"GET /openapi.json":    s.openapi,
		"GET /v2/health/live":  s.healthz,
		"GET /v2/health/ready": s.readyz,
	}
}

// guarded are the paths that need a key, where there are keys.
func (s *Server) guarded() map[string]func(http.ResponseWriter, *http.Request) error {
	return map[string]func(http.ResponseWriter, *http.Request) error{
		"GET /metrics": func(w http.ResponseWriter, r *http.Request) error {
			s.cfg.Metrics.ServeHTTP(w, r)
			return nil
		},
		"GET /v1/models":              s.models,
		"GET /v1/models/{model}":      s.model,
		"GET /v1/models/{model}/card": s.card,
		"POST /v1/completions":        s.completions,
		"POST /v1/chat/completions":   s.chat,
		"POST /v1/embeddings":         s.embeddings,
	}
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > 128 {
		id = newID("req")
	}
	w.Header().Set("X-Request-Id", id)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if s.cfg.Local && !Local(r.Host) {
		writeError(w, newError(http.StatusForbidden, badRequest, "wrong_host", "", "this server answers as localhost, not as %q", clip(r.Host)))
		return
	}
	if origin := r.Header.Get("Origin"); origin != "" && len(s.cfg.Origins) > 0 {
		w.Header().Add("Vary", "Origin")
		if slices.Contains(s.cfg.Origins, "*") || slices.Contains(s.cfg.Origins, origin) {
			w.Header().Set("Access-Control-Allow-Origin", origin)
			w.Header().Set("Access-Control-Expose-Headers", "X-Request-Id, Retry-After")
			if r.Method == http.MethodOptions {
				w.Header().Set("Access-Control-Allow-Methods", "GET, POST")
				w.Header().Set("Access-Control-Allow-Headers", "Authorization, Content-Type, X-Request-Id")
				w.Header().Set("Access-Control-Max-Age", "600")
				w.WriteHeader(http.StatusNoContent)
				return
			}
		}
	}
	r.Body = http.MaxBytesReader(w, r.Body, s.cfg.MaxBody)
	s.mux.ServeHTTP(w, r)
}

// Local tells whether an address, with a port or without, is of this machine alone.
func Local(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = strings.Trim(addr, "[]")
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// guard lets a request in that has a key, gives it its time, and answers its error.
func (s *Server) guard(f func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := s.Admit(Bearer(r.Header.Get("Authorization"))); err != nil {
			writeError(w, err)
			return
		}
		if s.cfg.Timeout > 0 {
			ctx, cancel := context.WithTimeout(r.Context(), s.cfg.Timeout)
			defer cancel()
			r = r.WithContext(ctx)
		}
		if err := f(w, r); err != nil && !errors.Is(err, context.Canceled) { // who has gone is told nothing
			writeError(w, err)
		}
	}
}

// Bearer is the key of an Authorization header; empty where there is none.
func Bearer(header string) string {
	scheme, key, _ := strings.Cut(header, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(key)
}

func newID(prefix string) string { return prefix + "-" + strings.ToLower(rand.Text()) }

// healthz tells whether the process works: every model's rounds come to an end.
func (s *Server) healthz(w http.ResponseWriter, _ *http.Request) {
	type model struct {
		Name      string  `json:"name"`
		Version   string  `json:"version"`
		Heartbeat float64 `json:"heartbeat_age_ms"`
		Running   int     `json:"running"`
		Waiting   int     `json:"waiting"`
	}
	out := struct {
		Status string  `json:"status"`
		Models []model `json:"models"`
	}{"ok", []model{}}
	status := http.StatusOK
	for _, m := range s.cfg.Hub.Models() {
		st := m.Status()
		if st.Stalled > s.cfg.Stall {
			out.Status, status = "stalled", http.StatusServiceUnavailable
		}
		out.Models = append(out.Models, model{m.Name, m.Version, float64(st.Stalled.Microseconds()) / 1000, st.Running, st.Waiting})
	}
	writeJSON(w, status, out)
}

// readyz tells whether new requests are taken.
func (s *Server) readyz(w http.ResponseWriter, _ *http.Request) {
	status, text := http.StatusOK, "ready"
	switch {
	case s.cfg.Hub.Draining():
		status, text = http.StatusServiceUnavailable, "draining"
	case len(s.cfg.Hub.Names()) == 0:
		status, text = http.StatusServiceUnavailable, "no model"
	}
	writeJSON(w, status, map[string]string{"status": text})
}

// modelInfo is a model as GET /v1/models lists it.
type modelInfo struct {
	ID          string   `json:"id"`
	Object      string   `json:"object"`
	Created     int64    `json:"created"`
	OwnedBy     string   `json:"owned_by"`
	MaxModelLen int      `json:"max_model_len"`
	Versions    []string `json:"versions"`
	Chat        bool     `json:"chat"`
}

func infoOf(name string, m *serve.Model) modelInfo {
	return modelInfo{name, "model", m.Loaded.Unix(), "autoglm", m.Bundle.Arch.Context, []string{m.Version}, serve.Chats(m.Bundle)}
}

func (s *Server) modelInfos() []modelInfo {
	out := []modelInfo{}
	for _, m := range s.cfg.Hub.Models() {
		if n := len(out); n > 0 && out[n-1].ID == m.Name { // its canary
			out[n-1].Versions = append(out[n-1].Versions, m.Version)
			continue
		}
		out = append(out, infoOf(m.Name, m))
	}
	for _, name := range s.voting() {
		if q, err := s.find(name, ""); err == nil {
			out = append(out, infoOf(name, q.Model))
			q.release()
		}
	}
	return out
}

func (s *Server) models(w http.ResponseWriter, _ *http.Request) error {
	writeJSON(w, http.StatusOK, map[string]any{"object": "list", "data": s.modelInfos()})
	return nil
}

func (s *Server) model(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("model")
	for _, m := range s.modelInfos() {
		if m.ID == name {
			writeJSON(w, http.StatusOK, m)
			return nil
		}
	}
	return fmt.Errorf("%w: %q", serve.ErrNoModel, clip(name))
}

// modelCard is a model's card as data, or, of another maker's model, as its text.
type modelCard struct {
	Card   bundle.Card `json:"card"`
	Readme string      `json:"readme,omitempty"`
}

func (s *Server) card(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("model")
	for _, m := range s.cfg.Hub.Models() {
		if m.Name == name { // the first, where there is a canary
			writeJSON(w, http.StatusOK, modelCard{m.Bundle.Card, m.Bundle.Readme})
			return nil
		}
	}
	return fmt.Errorf("%w: %q", serve.ErrNoModel, clip(name))
}
