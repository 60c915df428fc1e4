package files

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func store(t *testing.T, quota int64) *Store {
	t.Helper()
	s, err := New(filepath.Join(t.TempDir(), "files"), quota)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func serve(t *testing.T, h http.Handler) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.Handle("GET /files/{hash}", h)
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv.URL + "/files"
}

func content(n int, seed uint64) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

func read(t *testing.T, s *Store, ref Ref) []byte {
	t.Helper()
	f, err := s.Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFetch(t *testing.T) {
	a, b := store(t, 0), store(t, 0)
	for _, n := range []int{0, 1, 3 << 20} {
		want := content(n, 1)
		ref, err := a.Put(bytes.NewReader(want))
		if err != nil {
			t.Fatal(err)
		}
		url := serve(t, a)
		var wg sync.WaitGroup
		for range 4 { // at the same time: one transfer
			wg.Go(func() {
				if err := b.Fetch(t.Context(), http.DefaultClient, ref, []string{"http://127.0.0.1:1/files", url}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if got := read(t, b, ref); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes came, %d wanted", len(got), len(want))
		}
	}
	if err := b.Fetch(t.Context(), http.DefaultClient, Ref{strings.Repeat("0", 64), 1}, []string{serve(t, a)}); !errors.Is(err, ErrNone) {
		t.Fatalf("a file that nobody has: %v", err)
	}
	if err := b.Fetch(t.Context(), http.DefaultClient, Ref{"../../etc/passwd", 1}, nil); err == nil {
		t.Fatal("a path was taken for a hash")
	}
}

// breaking ends a transfer after some bytes.
type breaking struct {
	http.Handler
	after int
	sent  int
}

type breakingWriter struct {
	http.ResponseWriter
	b *breaking
}

func (w breakingWriter) Write(p []byte) (int, error) {
	if w.b.after -= len(p); w.b.after < 0 {
		panic(http.ErrAbortHandler)
	}
	w.b.sent += len(p)
	return w.ResponseWriter.Write(p)
}

func (b *breaking) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.Handler.ServeHTTP(breakingWriter{w, b}, r)
}

func TestResume(t *testing.T) {
	a, b := store(t, 0), store(t, 0)
	want := content(8<<20, 2)
	ref, err := a.Put(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	first := &breaking{Handler: a, after: 5 << 20}
	second := &breaking{Handler: a, after: 1 << 30}
	if err := b.Fetch(t.Context(), http.DefaultClient, ref, []string{serve(t, first)}); err == nil {
		t.Fatal("a broken transfer")
	}
	if err := b.Fetch(t.Context(), http.DefaultClient, ref, []string{serve(t, second)}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, b, ref), want) {
		t.Fatal("other content")
	}
	if second.sent > len(want)-4<<20 {
		t.Errorf("%d bytes were sent again of %d", second.sent, len(want))
	}
}

func TestLiar(t *testing.T) {
	a, b := store(t, 0), store(t, 0)
	want := content(1<<20, 3)
	ref, err := a.Put(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	liar := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(content(1<<20, 4)) })
	endless := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(want); err != nil {
				return
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := b.Fetch(ctx, http.DefaultClient, ref, []string{serve(t, liar), serve(t, endless), serve(t, a)}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, b, ref), want) {
		t.Fatal("other content")
	}
}

func TestQuota(t *testing.T) {
	s := store(t, 100)
	var refs []Ref
	for i := range 3 {
		ref, err := s.Put(bytes.NewReader(content(30, uint64(10+i))))
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, ref)
	}
	if err := s.Sweep(map[string]bool{refs[0].Hash: true}, 0, time.Hour); err != nil {
		t.Fatal(err)
	}
	read(t, s, refs[1]) // used last
	if _, err := s.Put(bytes.NewReader(content(40, 20))); err != nil {
		t.Fatal(err)
	}
	if !s.Has(refs[0]) || !s.Has(refs[1]) || s.Has(refs[2]) || s.Used() != 100 {
		t.Fatalf("%v %v %v, %d bytes", s.Has(refs[0]), s.Has(refs[1]), s.Has(refs[2]), s.Used())
	}
	if _, err := s.Put(bytes.NewReader(content(90, 21))); !errors.Is(err, ErrQuota) {
		t.Fatalf("more than there is room for: %v", err)
	}
	if err := s.Sweep(map[string]bool{refs[0].Hash: true}, 0, 0); err != nil || !s.Has(refs[0]) || s.Has(refs[1]) || s.Used() != 30 {
		t.Fatalf("swept: %v, %d bytes", err, s.Used())
	}
	again, err := New(s.dir, 100)
	if err != nil {
		t.Fatal(err)
	}
	if again.Used() != s.Used() || !again.Has(refs[0]) {
		t.Fatalf("after a start: %d bytes, %d before", again.Used(), s.Used())
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, ".*")); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestLay(t *testing.T) {
	s := store(t, 0)
	dir := t.TempDir()
	path := filepath.Join(dir, "in.bin")
	want := content(1000, 5)
	if err := os.WriteFile(path, want, 0o644); err != nil {
		t.Fatal(err)
	}
	ref, err := s.PutFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		to := filepath.Join(dir, fmt.Sprint(i), "deep", "out.bin")
		if err := s.Lay(ref, to); err != nil {
			t.Fatal(err)
		}
		if err := s.Lay(ref, to); err != nil {
			t.Fatalf("over itself: %v", err)
		}
		if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
}
