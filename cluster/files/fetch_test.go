package files

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// counting counts what a holder was asked for, and has it send after a while, or
// something else.
type counting struct {
	http.Handler
	asked atomic.Int64
	wait  chan struct{}                         // if set: nothing is sent before it is closed
	other func(http.ResponseWriter, int64) bool // if set: told how often it was asked; true where it has answered
}

func (c *counting) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n := c.asked.Add(1)
	if c.wait != nil {
		select {
		case <-c.wait:
		case <-r.Context().Done():
			return
		}
	}
	if c.other != nil && c.other(w, n) {
		return
	}
	c.Handler.ServeHTTP(w, r)
}

// put keeps a file of some chunks in a store.
func put(t *testing.T, s *Store, size int, seed uint64) (Ref, []byte) {
	t.Helper()
	b := content(size, seed)
	ref, err := s.Put(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return ref, b
}

// Three holders, of which one never sends, one sends other bytes, and one dies in the
// middle; the fourth is asked late and has to finish.
func TestHoldersInTrouble(t *testing.T) {
	a, b := store(t, 0), store(t, 0)
	ref, want := put(t, a, 9*chunkSize+1000, 1)
	never := make(chan struct{})
	defer close(never)
	slow := &counting{Handler: a, wait: never}
	lying := store(t, 0)
	damaged := bytes.Clone(want)
	for i := range 10 {
		damaged[i*chunkSize+7] ^= 1
	}
	if err := os.MkdirAll(filepath.Dir(lying.path(ref.Hash)), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lying.path(ref.Hash), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	liar := &counting{Handler: lying}
	dying := &counting{Handler: a, other: func(w http.ResponseWriter, n int64) bool {
		if n < 2 {
			return false
		}
		w.Header().Set("Content-Length", "4194304")
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(want[:1<<20])
		panic(http.ErrAbortHandler)
	}}
	good := &counting{Handler: a}
	var told []string
	b.Liar = func(holder string, _ Ref) { told = append(told, holder) }
	lies := serve(t, liar)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := b.Fetch(ctx, http.DefaultClient, ref, []string{serve(t, slow), lies, serve(t, dying), serve(t, good)}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, b, ref), want) {
		t.Fatal("other content")
	}
	if len(told) != 1 || told[0] != lies {
		t.Errorf("told of the liars %v, there is %s", told, lies)
	}
	if slow.asked.Load() == 0 || liar.asked.Load() == 0 || dying.asked.Load() < 2 || good.asked.Load() < 5 {
		t.Errorf("asked: the slow one %d times, the liar %d, the dying one %d, the good one %d", slow.asked.Load(), liar.asked.Load(), dying.asked.Load(), good.asked.Load())
	}
	if left, _ := filepath.Glob(filepath.Join(b.dir, "*.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// All of several holders send at a time.
func TestHoldersAtOnce(t *testing.T) {
	a, b := store(t, 0), store(t, 0)
	ref, want := put(t, a, 6*chunkSize, 2)
	var all sync.WaitGroup // of the holders: each waits for the first request of every other
	all.Add(3)
	var urls []string
	for range 3 {
		var once sync.Once
		urls = append(urls, serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			once.Do(all.Done)
			all.Wait()
			a.ServeHTTP(w, r)
		})))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := b.Fetch(ctx, http.DefaultClient, ref, urls); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, b, ref), want) {
		t.Fatal("other content")
	}
}

// Only liars: the fetch ends, and says of whom.
func TestOnlyLiars(t *testing.T) {
	a, b := store(t, 0), store(t, 0)
	ref, _ := put(t, a, 3*chunkSize, 3)
	wrong := content(3*chunkSize, 4)
	lie := func() string {
		return serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(wrong))
		}))
	}
	err := b.Fetch(t.Context(), http.DefaultClient, ref, []string{lie(), lie(), lie()})
	if !errors.Is(err, ErrNone) || strings.Count(err.Error(), "other content") != 3 {
		t.Fatal(err)
	}
	if b.Has(ref) || b.Used() != 0 {
		t.Fatal("it was kept")
	}
}

// A process that was killed in the middle leaves chunks, of which some never reached the
// disk: the next one asks for no more than it has to.
func TestResumeAfterKill(t *testing.T) {
	a, b := store(t, 0), store(t, 0)
	ref, want := put(t, a, 8*chunkSize, 5)
	dying := &counting{Handler: a, other: func(_ http.ResponseWriter, n int64) bool {
		if n > 5 {
			panic(http.ErrAbortHandler)
		}
		return false
	}}
	if err := b.Fetch(t.Context(), http.DefaultClient, ref, []string{serve(t, dying)}); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	part := filepath.Join(b.dir, ref.Hash+".part")
	f, err := os.OpenFile(part, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 4096), 2*chunkSize); err != nil { // chunk 2 was lost
		t.Fatal(err)
	}
	f.Close()
	have, err := os.OpenFile(filepath.Join(b.dir, ref.Hash+".have"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := have.Write([]byte{1, 0, 0}); err != nil { // an entry was cut off
		t.Fatal(err)
	}
	have.Close()
	again, err := New(b.dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	good := &counting{Handler: a}
	if err := again.Fetch(t.Context(), http.DefaultClient, ref, []string{serve(t, good)}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, again, ref), want) {
		t.Fatal("other content")
	}
	if n := good.asked.Load(); n != 4 {
		t.Errorf("%d chunks were asked for, 3 had not come and 1 was damaged", n)
	}
}

// What came before and has a good checksum, but is other content, is no dead end.
func TestResumeFromALiar(t *testing.T) {
	a, b := store(t, 0), store(t, 0)
	ref, want := put(t, a, 3*chunkSize, 6)
	wrong := content(3*chunkSize, 7)
	liar := &counting{other: func(w http.ResponseWriter, n int64) bool {
		if n > 2 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(wrong[:chunkSize])
		return true
	}}
	if err := b.Fetch(t.Context(), http.DefaultClient, ref, []string{serve(t, liar)}); err == nil {
		t.Fatal("a part was taken for the whole")
	}
	if err := b.Fetch(t.Context(), http.DefaultClient, ref, []string{serve(t, a)}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, b, ref), want) {
		t.Fatal("other content")
	}
}

// A disk that is full says so before anything is sent, and keeps nothing of the file.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=6m"); err != nil {
		t.Skipf("a small disk can't be mounted: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	a := store(t, 0)
	b, err := New(filepath.Join(dir, "files"), 0)
	if err != nil {
		t.Fatal(err)
	}
	small, want := put(t, a, 1<<20, 8)
	large, _ := put(t, a, 2*chunkSize, 9)
	holder := &counting{Handler: a}
	url := serve(t, holder)
	if err := b.Fetch(t.Context(), http.DefaultClient, large, []string{url}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "8388608 bytes") {
		t.Fatalf("fetched: %v", err)
	}
	if _, err := b.Put(bytes.NewReader(content(2*chunkSize, 9))); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("put: %v", err)
	}
	if holder.asked.Load() > 0 {
		t.Error("it was asked for all the same")
	}
	if left, _ := os.ReadDir(b.dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := b.Fetch(t.Context(), http.DefaultClient, small, []string{url}); err != nil || !bytes.Equal(read(t, b, small), want) {
		t.Fatalf("what has room: %v", err)
	}
}

// Files in use are never evicted, nor those of which nobody knows yet whether they are;
// what is coming has its room.
func TestQuotaSparesWhatIsInUse(t *testing.T) {
	a, s := store(t, 0), store(t, 100)
	pinned, _ := put(t, s, 40, 10)
	fresh, _ := put(t, s, 40, 11)
	one, _ := put(t, a, 30, 12)
	url := serve(t, a)
	fetch := func() error { return s.Fetch(t.Context(), http.DefaultClient, one, []string{url}) }
	if err := fetch(); !errors.Is(err, ErrQuota) {
		t.Fatalf("before anybody said what is in use: %v", err)
	}
	if err := s.Sweep(map[string]bool{pinned.Hash: true}, time.Hour, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := fetch(); !errors.Is(err, ErrQuota) || !s.Has(fresh) {
		t.Fatalf("what came a short while ago: %v", err)
	}
	if err := s.Sweep(map[string]bool{pinned.Hash: true}, 0, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := fetch(); err != nil || !s.Has(pinned) || s.Has(fresh) || s.Used() != 70 {
		t.Fatalf("an idle file makes room: %v, %d bytes", err, s.Used())
	}
	if _, err := s.Put(bytes.NewReader(content(31, 13))); !errors.Is(err, ErrQuota) || !s.Has(pinned) || !s.Has(one) {
		t.Fatalf("files in use make no room: %v", err)
	}
	if _, err := s.Put(bytes.NewReader(content(1000, 14))); !errors.Is(err, ErrQuota) {
		t.Fatalf("more than the quota: %v", err)
	}
	// What nobody fetches any more goes with the rest.
	two, _ := put(t, a, 20, 15)
	if err := s.Fetch(t.Context(), http.DefaultClient, two, []string{"http://127.0.0.1:1"}); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	if err := s.Sweep(map[string]bool{pinned.Hash: true, one.Hash: true}, 0, 0); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, "*.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
