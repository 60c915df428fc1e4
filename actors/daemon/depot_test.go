package daemon

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/cluster/bucket"
	"github.com/open-autoglm/autoglm/cluster/bucket/buckettest"
	"github.com/open-autoglm/autoglm/cluster/files"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// log keeps what a node says.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) say(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, text)
}

func (l *log) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, s := range l.lines {
		if strings.Contains(s, part) {
			n++
		}
	}
	return n
}

// leads starts a node and waits until it leads.
func leads(t *testing.T, cfg Config) *Daemon {
	t.Helper()
	cfg.Listen, cfg.Locks = "127.0.0.1:0", t.TempDir()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	d, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	eventually(t, "nobody leads", func() bool { return d.chiefNow() != nil })
	return d
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for late := time.Now().Add(30 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal(what)
		}
	}
}

// needs has a job that waits for ever need a file.
func needs(t *testing.T, d *Daemon, text string) files.Ref {
	t.Helper()
	ref, err := d.files.Put(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.spread(t.Context(), ref); err != nil {
		t.Fatal(err)
	}
	spec := job.Default()
	spec.HardwareConstraint = "gpu-512"
	if _, err := d.chiefNow().submit(Job{Spec: spec, Files: []Upload{{Name: "a.txt", Ref: ref}}}); err != nil {
		t.Fatal(err)
	}
	return ref
}

// What jobs need is in the bucket, as soon as it answers, and comes back from it; what
// they don't need is removed, by the cluster whose bucket it is.
func TestDepot(t *testing.T) {
	s := buckettest.New(t, "models")
	said := &log{}
	d := leads(t, Config{Log: said.say, Bucket: bucket.Config{URL: "s3://models/x", Endpoint: s.URL}})
	key := func(ref files.Ref) string { return "x/" + ref.Hash[:2] + "/" + ref.Hash }
	has := func(ref files.Ref) bool { return slices.Contains(s.Keys(), key(ref)) }
	eventually(t, "the bucket is nobody's", func() bool { return slices.Contains(s.Keys(), "x/cluster") })

	first := needs(t, d, "first")
	if !has(first) {
		t.Errorf("%s is not there: %v", key(first), s.Keys())
	}
	lost := func(ref files.Ref) {
		t.Helper()
		if err := d.files.Sweep(nil, 0, 0); err != nil || d.files.Has(ref) {
			t.Fatal("still here", err)
		}
		if err := d.fetch(t.Context(), ref); err != nil || !d.files.Has(ref) {
			t.Fatalf("fetched: %v", err)
		}
	}
	lost(first)

	// A store in trouble holds nothing up, and is spoken of once.
	s.Fail(func(*http.Request) int { return http.StatusServiceUnavailable })
	second, third := needs(t, d, "second"), needs(t, d, "third")
	if has(second) || has(third) || said.count("jobs go on") != 1 {
		t.Errorf("in trouble: %v, said %v", s.Keys(), said.lines)
	}
	s.Fail(nil)
	eventually(t, "what is late is never put there", func() bool { return has(second) && has(third) })
	eventually(t, "that all is well again is not said", func() bool { return said.count("can be used again;") == 1 })
	lost(third)

	// The janitor puts there what is missing, and removes what no job needs.
	if err := d.depot.b.Remove(t.Context(), first.Hash); err != nil {
		t.Fatal(err)
	}
	if err := d.fetch(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	stray, err := d.files.Put(strings.NewReader("stray"))
	if err != nil {
		t.Fatal(err)
	}
	d.depot.keep(t.Context(), stray)
	for _, grace := range []time.Duration{time.Hour, 0} {
		if !has(stray) {
			t.Error("a file whose job may be on its way is gone")
		}
		if err := d.tidyOnce(t.Context(), grace); err != nil {
			t.Fatal(err)
		}
	}
	if has(stray) || !has(second) || !has(third) {
		t.Errorf("left: %v", s.Keys())
	}
	if again, err := d.files.Put(strings.NewReader("first")); err != nil || again != first {
		t.Fatal(err)
	}
	if err := d.tidyOnce(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the janitor does not put back what is missing", func() bool { return has(first) })

	// Another cluster uses it too, and removes nothing.
	other := &log{}
	o := leads(t, Config{Log: other.say, Bucket: d.cfg.Bucket})
	if ref := needs(t, o, "other"); !has(ref) {
		t.Error("another cluster may not write")
	}
	for range 2 {
		if err := o.tidyOnce(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
	}
	if !has(first) || !has(second) || other.count("nothing is removed there") != 1 {
		t.Errorf("left: %v, said %v", s.Keys(), other.lines)
	}
}

// A quota that is full of files that nobody needs makes room by itself.
func TestQuotaMakesRoom(t *testing.T) {
	d := leads(t, Config{Quota: 100})
	old, err := d.files.Put(strings.NewReader(strings.Repeat("x", 80)))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.cfg.Dir, "files", old.Hash[:2], old.Hash)
	long := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, long, long); err != nil {
		t.Fatal(err)
	}
	if d.files, err = files.New(filepath.Join(d.cfg.Dir, "files"), 100); err != nil { // as after a start
		t.Fatal(err)
	}
	eventually(t, "there is never room", func() bool {
		_, err := d.files.Put(strings.NewReader(strings.Repeat("y", 50)))
		return d.noRoom(err) == nil
	})
	if d.files.Has(old) {
		t.Error("the idle file is still here")
	}
}
