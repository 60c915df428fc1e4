package rest

import (
	_ "embed"
	"net/http"
)

//go:embed page.html
var pageHTML []byte

// page is a page to try the models. It loads nothing from elsewhere.
func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
	_, _ = w.Write(pageHTML) // the client may be gone
}
