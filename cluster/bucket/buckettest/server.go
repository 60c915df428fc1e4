// Package buckettest is a small S3-compatible store for tests: objects in memory, put
// whole, read in ranges, listed and removed. It takes signed requests alone.
package buckettest

import (
	"bufio"
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// What a client signs with.
const (
	AccessKey = "AKIATEST"
	SecretKey = "secret"
)

// Server is a store with one bucket.
type Server struct {
	URL    string
	Bucket string

	mu      sync.Mutex
	objects map[string]object
	asked   map[string]int // requests that were answered, by method
	fail    func(r *http.Request) int
}

type object struct {
	data []byte
	at   time.Time
}

// New starts a store, and has clients in this process find its credentials.
func New(t *testing.T, bucket string) *Server {
	t.Setenv("AWS_ACCESS_KEY_ID", AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", SecretKey)
	t.Setenv("AWS_REGION", "us-east-1")
	s := &Server{Bucket: bucket, objects: map[string]object{}, asked: map[string]int{}}
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	s.URL = srv.URL
	return s
}

// Fail has requests fail with the status that f gives, 0 for none.
func (s *Server) Fail(f func(r *http.Request) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// Keys are the objects that are there.
func (s *Server) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.objects))
}

// Asked is how many requests of a method were answered.
func (s *Server) Asked(method string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[method]
}

// Age makes all objects older.
func (s *Server) Age(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, o := range s.objects {
		o.at = o.at.Add(-d)
		s.objects[k] = o
	}
}

func refuse(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message></Error>", code, code)
}

// signed tells whether a request carries a signature, version 4, of the key that is known.
func signed(r *http.Request) bool {
	auth := r.Header.Get("Authorization")
	return strings.HasPrefix(auth, "AWS4-HMAC-SHA256 Credential="+AccessKey+"/") && strings.Contains(auth, "SignedHeaders=") &&
		strings.Contains(auth, "Signature=") && r.Header.Get("X-Amz-Date") != "" && r.Header.Get("X-Amz-Content-Sha256") != ""
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !signed(r) {
		refuse(w, http.StatusForbidden, "AccessDenied")
		return
	}
	s.mu.Lock()
	fail := s.fail
	s.mu.Unlock()
	if fail != nil {
		if code := fail(r); code != 0 {
			refuse(w, code, "SlowDown")
			return
		}
	}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	if bucket != s.Bucket {
		refuse(w, http.StatusNotFound, "NoSuchBucket")
		return
	}
	var body []byte
	if r.Method == http.MethodPut {
		var err error
		if body, err = content(r); err != nil {
			refuse(w, http.StatusBadRequest, "IncompleteBody")
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[r.Method]++
	o, ok := s.objects[key]
	switch {
	case key == "" && r.Method == http.MethodGet:
		s.list(w, r.URL.Query().Get("prefix"))
	case r.Method == http.MethodPut:
		s.objects[key] = object{body, time.Now()}
		w.Header().Set("ETag", `"0"`)
	case r.Method == http.MethodDelete:
		delete(s.objects, key)
		w.WriteHeader(http.StatusNoContent)
	case !ok:
		refuse(w, http.StatusNotFound, "NoSuchKey")
	default:
		w.Header().Set("ETag", `"0"`)
		http.ServeContent(w, r, "", o.at, bytes.NewReader(o.data))
	}
}

// list answers GET /bucket?list-type=2; the lock is held.
func (s *Server) list(w http.ResponseWriter, prefix string) {
	type content struct {
		Key          string
		LastModified time.Time
		Size         int
	}
	out := struct {
		XMLName  xml.Name `xml:"ListBucketResult"`
		Contents []content
	}{}
	for _, k := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(k, prefix) {
			out.Contents = append(out.Contents, content{k, s.objects[k].at.UTC(), len(s.objects[k].data)})
		}
	}
	_ = xml.NewEncoder(w).Encode(out)
}

// content is what a PUT carries. Without TLS a client sends it in pieces, each signed:
//
//	length, hex;chunk-signature=… CRLF piece CRLF
func content(r *http.Request) ([]byte, error) {
	if !strings.HasPrefix(r.Header.Get("X-Amz-Content-Sha256"), "STREAMING-") {
		return io.ReadAll(r.Body)
	}
	var out []byte
	in := bufio.NewReader(r.Body)
	for {
		head, err := in.ReadString('\n')
		if err != nil {
			return nil, err
		}
		size, _, _ := strings.Cut(strings.TrimSpace(head), ";")
		n, err := strconv.ParseInt(size, 16, 64)
		if err != nil || n == 0 {
			return out, err
		}
		piece := make([]byte, n+2)
		if _, err := io.ReadFull(in, piece); err != nil {
			return nil, err
		}
		out = append(out, piece[:n]...)
	}
}
