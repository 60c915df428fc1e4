package bucket

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/cluster/bucket/buckettest"
	"github.com/open-autoglm/autoglm/cluster/files"
)

func open(t *testing.T, s *buckettest.Server, url string) *Bucket {
	t.Helper()
	b, err := Open(Config{URL: url, Endpoint: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func write(t *testing.T, n int, seed uint64) (files.Ref, *os.File) {
	t.Helper()
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(b)
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	return files.Of(bytes.NewReader(b)), f
}

// A file goes there once, comes back in ranges through a files.Store, is listed and
// removed; a store that is overloaded now and then is asked again.
func TestLife(t *testing.T) {
	s := buckettest.New(t, "models")
	var n atomic.Int64
	s.Fail(func(*http.Request) int {
		if n.Add(1)%3 == 1 {
			return http.StatusServiceUnavailable
		}
		return 0
	})
	for _, url := range []string{"s3://models/some/where", "s3://models"} {
		b := open(t, s, url)
		if err := b.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		ref, f := write(t, 9<<20, 1)
		before := s.Asked(http.MethodPut)
		for range 2 {
			if err := b.Put(t.Context(), ref, f); err != nil {
				t.Fatal(err)
			}
		}
		if puts := s.Asked(http.MethodPut) - before; puts != 1 {
			t.Errorf("%s: put %d times", url, puts)
		}
		want := strings.TrimPrefix(strings.TrimPrefix(url, "s3://models")+"/"+ref.Hash[:2]+"/"+ref.Hash, "/")
		if keys := s.Keys(); len(keys) != 1 || keys[0] != want {
			t.Errorf("%s: keys %v, want %s", url, keys, want)
		}
		to, err := files.New(t.TempDir(), 0)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{}
		transport.RegisterProtocol("s3", b)
		if err := to.Fetch(t.Context(), &http.Client{Transport: transport}, ref, []string{b.Holder()}); err != nil {
			t.Fatal(err)
		}
		if gets := s.Asked(http.MethodGet); gets < 3 {
			t.Errorf("%d requests brought three chunks", gets)
		}
		var listed []files.Ref
		if err := b.List(t.Context(), func(r files.Ref, at time.Time) {
			if time.Since(at) < time.Hour {
				listed = append(listed, r)
			}
		}); err != nil || len(listed) != 1 || listed[0] != ref {
			t.Errorf("%s: listed %v, %v", url, listed, err)
		}
		for range 2 {
			if err := b.Remove(t.Context(), ref.Hash); err != nil {
				t.Fatal(err)
			}
		}
		if err := to.Fetch(t.Context(), &http.Client{Transport: transport}, files.Ref{Hash: strings.Repeat("0", 64), Size: 1}, []string{b.Holder()}); !errors.Is(err, files.ErrNone) || !strings.Contains(err.Error(), "404") {
			t.Errorf("a file that is not there: %v", err)
		}
		if len(s.Keys()) != 0 {
			t.Errorf("%s: left %v", url, s.Keys())
		}
	}
}

// A bucket is the first cluster's that uses it.
func TestOwner(t *testing.T) {
	s := buckettest.New(t, "models")
	b := open(t, s, "s3://models/p")
	for _, cluster := range []string{"one", "two"} {
		if id, err := b.Owner(t.Context(), cluster); err != nil || id != "one" {
			t.Errorf("%s asks: %q, %v", cluster, id, err)
		}
	}
	if err := b.List(t.Context(), func(r files.Ref, _ time.Time) { t.Errorf("%v is listed as a file", r) }); err != nil {
		t.Error(err)
	}
}

// What is wrong is said with what to do.
func TestRefusals(t *testing.T) {
	s := buckettest.New(t, "models")
	for url, want := range map[string]string{"models": "s3://BUCKET/PREFIX", "https://models": "s3://", "s3://": "s3://", "s3://a/b?c": "s3://"} {
		if _, err := Open(Config{URL: url}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", url, err)
		}
	}
	if _, err := Open(Config{URL: "s3://models", Endpoint: "minio:9000"}); err == nil || !strings.Contains(err.Error(), "https://HOST:PORT") {
		t.Error(err)
	}
	if _, err := Open(Config{URL: "s3://models", Credentials: "nothing"}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := open(t, s, "s3://other").Check(t.Context()); err == nil || !strings.Contains(err.Error(), "make the bucket") {
		t.Error(err)
	}
	keys := filepath.Join(t.TempDir(), "credentials")
	profile := func(key string) {
		t.Helper()
		if err := os.WriteFile(keys, []byte("[default]\naws_access_key_id = "+key+"\naws_secret_access_key = x\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for key, want := range map[string]string{"AKIAOTHER": "AWS_ACCESS_KEY_ID", buckettest.AccessKey: ""} {
		profile(key)
		b, err := Open(Config{URL: "s3://models", Endpoint: s.URL, Credentials: keys})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		if err := b.Check(t.Context()); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", key, err)
		}
	}
	s.Fail(func(r *http.Request) int {
		if r.Method == http.MethodDelete {
			return http.StatusForbidden
		}
		return 0
	})
	if err := open(t, s, "s3://models").Check(t.Context()); err == nil || !strings.Contains(err.Error(), "deleting: ") {
		t.Error(err)
	}
}
