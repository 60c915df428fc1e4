// Package files measures how soon a file comes from holders whose links are the limit.
//
//	go test ./bench/files -run '^$' -bench . -benchtime 3x
package files

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/cluster/files"
)

const (
	size = 128 << 20 // of the file, bytes
	rate = 50 << 20  // of each holder's link, bytes a second

	slack = 10 * time.Millisecond // that a link catches up with, since sleeps are too long
)

// link is what a holder sends through, all its answers together.
type link struct {
	mu   sync.Mutex
	free time.Time // when all that was sent so far has gone
}

type throttled struct {
	http.ResponseWriter
	l *link
}

// Write implements io.Writer.
func (t throttled) Write(b []byte) (int, error) {
	for at := 0; at < len(b); {
		n := min(64<<10, len(b)-at)
		t.l.mu.Lock()
		if late := time.Now().Add(-slack); t.l.free.Before(late) {
			t.l.free = late
		}
		t.l.free = t.l.free.Add(time.Duration(n) * time.Second / rate)
		wait := time.Until(t.l.free)
		t.l.mu.Unlock()
		time.Sleep(wait)
		if _, err := t.ResponseWriter.Write(b[at : at+n]); err != nil {
			return at, err
		}
		at += n
	}
	return len(b), nil
}

func BenchmarkFetch(b *testing.B) {
	from, err := files.New(b.TempDir(), 0)
	if err != nil {
		b.Fatal(err)
	}
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	ref, err := from.Put(bytes.NewReader(content))
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1, 2, 3} {
		b.Run(fmt.Sprintf("holders=%d", n), func(b *testing.B) {
			var urls []string
			for range n {
				l := &link{}
				mux := http.NewServeMux()
				mux.HandleFunc("GET /{hash}", func(w http.ResponseWriter, r *http.Request) { from.ServeHTTP(throttled{w, l}, r) })
				s := httptest.NewServer(mux)
				defer s.Close()
				urls = append(urls, s.URL)
			}
			b.SetBytes(size)
			for b.Loop() {
				to, err := files.New(b.TempDir(), 0)
				if err != nil {
					b.Fatal(err)
				}
				if err := to.Fetch(b.Context(), http.DefaultClient, ref, urls); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
