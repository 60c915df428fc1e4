package replica

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/cluster/port"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// house is some copies in this process and who of them is there.
type house struct {
	t testing.TB

	mu    sync.Mutex
	rooms map[string]*room // that are there, by name
}

type room struct {
	*Store
	name, dir string
	port      *port.Port
	wg        sync.WaitGroup
	leading   chan uint64
	rebuilt   chan string
}

func newHouse(t testing.TB) *house {
	h := &house{t: t, rooms: map[string]*room{}}
	t.Cleanup(func() {
		h.mu.Lock()
		all := h.rooms
		h.rooms = map[string]*room{}
		h.mu.Unlock()
		for _, r := range all {
			r.shut()
		}
	})
	return h
}

func (h *house) candidates() []Candidate {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []Candidate
	for _, r := range h.rooms {
		out = append(out, Candidate{r.server, r.cfg.Addr})
	}
	slices.SortFunc(out, func(a, b Candidate) int { return strings.Compare(a.Server, b.Server) })
	return out
}

func (h *house) try(name, dir, listen string, found bool) (*room, error) {
	r := &room{name: name, dir: dir, leading: make(chan uint64, 100), rebuilt: make(chan string, 1)}
	p, err := port.Listen(port.Config{Listen: listen})
	if err != nil {
		return nil, err
	}
	r.port = p
	r.Store, err = Open(Config{
		Dir: dir, Port: p, Node: name, Addr: p.Addr().String(), Found: found, Candidates: h.candidates,
		Events: Events{
			Leading: func(term uint64) { r.leading <- term },
			Rebuilt: func(why string) { r.rebuilt <- why },
			Warn:    func(err error) { h.t.Logf("%s: %v", name, err) },
		},
		Timing: Timing{Heartbeat: 300 * time.Millisecond, Lease: 200 * time.Millisecond, Steer: 100 * time.Millisecond},
	})
	if err != nil {
		p.Close()
		return nil, err
	}
	r.wg.Go(p.Serve)
	h.mu.Lock()
	h.rooms[name] = r
	h.mu.Unlock()
	return r, nil
}

func (h *house) open(name, dir, listen string, found bool) *room {
	h.t.Helper()
	r, err := h.try(name, dir, listen, found)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// drop ends a copy as a crash would look to the others.
func (h *house) drop(r *room) {
	h.mu.Lock()
	delete(h.rooms, r.name)
	h.mu.Unlock()
	r.shut()
}

func (r *room) shut() {
	r.port.Close() // nobody hears it any more
	r.Close()
	r.wg.Wait()
}

// leader waits for the one who leads.
func (h *house) leader() (*room, uint64) {
	h.t.Helper()
	var found *room
	var term uint64
	waitFor(h.t, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, r := range h.rooms {
			if term = r.Term(); term > 0 {
				found = r
				return true
			}
		}
		return false
	})
	return found, term
}

// folder is t.TempDir for a log: raft-wal may still make its next segment while it
// closes.
func folder(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "replica")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { waitFor(t, func() bool { return os.RemoveAll(dir) == nil }) })
	return dir
}

func waitFor(t testing.TB, f func() bool) {
	t.Helper()
	late := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(late) {
			t.Fatal("never")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func records(t testing.TB, s *Store, stream string) []string {
	t.Helper()
	var out []string
	if err := s.Replay(stream, func(b []byte) error { out = append(out, string(b)); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func (h *house) voters(n int) {
	h.t.Helper()
	waitFor(h.t, func() bool {
		l, _ := h.leader()
		there := h.candidates()
		votes := l.Voters()
		return len(votes) == n && !slices.ContainsFunc(votes, func(v Candidate) bool { return !slices.Contains(there, v) })
	})
}

func TestOneNode(t *testing.T) {
	h := newHouse(t)
	dir := folder(t)
	a := h.open("a", dir, "127.0.0.1:0", true)
	_, term := h.leader()
	log := a.Log("job", term)
	for i := range 100 {
		if err := log.Append(fmt.Appendf(nil, "record %d", i), i%10 == 9); err != nil {
			t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if got := records(t, a.Store, "job"); len(got) != 100 || got[99] != "record 99" {
		t.Fatalf("%d records, %v", len(got), got[len(got)-1])
	}
	if err := a.Log("gone", term).Append([]byte("x"), true); err != nil {
		t.Fatal(err)
	}
	if err := a.Delete("gone", term); err != nil {
		t.Fatal(err)
	}
	addr := a.cfg.Addr
	h.drop(a)
	a = h.open("a", dir, addr, true)
	_, again := h.leader()
	if again <= term {
		t.Fatalf("term %d after %d", again, term)
	}
	if got := records(t, a.Store, "job"); len(got) != 100 {
		t.Fatalf("%d records after a restart", len(got))
	}
	if got := a.Streams(); !slices.Equal(got, []string{"job"}) {
		t.Fatalf("streams %v", got)
	}
	// The former life's log is refused.
	if err := a.Log("job", term).Append([]byte("late"), true); !errors.Is(err, ErrStale) {
		t.Fatalf("a former term's record: %v", err)
	}
}

// Two of four are lost, one after the other, and nothing stops or is lost.
func TestLosses(t *testing.T) {
	h := newHouse(t)
	h.open("a", folder(t), "127.0.0.1:0", true)
	h.leader()
	for _, n := range []string{"b", "c", "d"} {
		h.open(n, folder(t), "127.0.0.1:0", false)
	}
	h.voters(3)
	want := 0
	write := func(n int) {
		t.Helper()
		for end := want + n; want < end; {
			l, term := h.leader()
			switch err := l.Log("job", term).Append(fmt.Appendf(nil, "%d", want), true); {
			case err == nil:
				want++
			case !errors.Is(err, ErrStale):
				t.Fatal(err)
			}
		}
	}
	check := func() {
		t.Helper()
		l, _ := h.leader()
		got := records(t, l.Store, "job")
		// A record whose writer did not hear of its end may be there twice.
		seen := map[string]bool{}
		for _, r := range got {
			seen[r] = true
		}
		if len(seen) != want {
			t.Fatalf("%d records, want %d", len(seen), want)
		}
	}
	write(20)
	for losses := range 2 {
		l, _ := h.leader()
		start := time.Now()
		h.drop(l)
		write(1)
		t.Logf("loss %d: writing again after %v", losses+1, time.Since(start))
		write(20)
		check()
		if losses == 0 {
			h.voters(3)
		} else {
			h.voters(1)
		}
	}
	h.open("e", folder(t), "127.0.0.1:0", false)
	h.voters(3)
	write(5)
	check()
	h.mu.Lock()
	e := h.rooms["e"]
	h.mu.Unlock()
	waitFor(t, func() bool { return len(records(t, e.Store, "job")) >= want })
}

// A follower whose log is damaged is rebuilt from the others under another name;
// the only copy is not.
func TestDamage(t *testing.T) {
	h := newHouse(t)
	dirs := map[string]string{"a": folder(t), "b": folder(t), "c": folder(t)}
	h.open("a", dirs["a"], "127.0.0.1:0", true)
	h.leader()
	h.open("b", dirs["b"], "127.0.0.1:0", false)
	h.open("c", dirs["c"], "127.0.0.1:0", false)
	h.voters(3)
	l, term := h.leader()
	log := l.Log("job", term)
	for i := range 50 {
		if err := log.Append(fmt.Appendf(nil, "%d", i), true); err != nil {
			t.Fatal(err)
		}
	}
	var victim *room
	h.mu.Lock()
	for _, r := range h.rooms {
		if r != l {
			victim = r
		}
	}
	h.mu.Unlock()
	old, addr := victim.server, victim.cfg.Addr
	waitFor(t, func() bool { return marked(victim.dir) >= 50 })
	h.drop(victim)
	damage(t, victim.dir)
	again := h.open(victim.name, victim.dir, addr, false)
	if again.server == old {
		t.Fatal("it votes under its old name")
	}
	t.Log(<-again.rebuilt)
	waitFor(t, func() bool { return len(records(t, again.Store, "job")) == 50 })
	h.voters(3)

	lone := newHouse(t)
	dir := folder(t)
	x := lone.open("x", dir, "127.0.0.1:0", true)
	_, term = lone.leader()
	if err := x.Log("job", term).Append([]byte("x"), true); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return marked(dir) >= 3 })
	lone.drop(x)
	damage(t, dir)
	if _, err := lone.try("x", dir, "127.0.0.1:0", true); !errors.Is(err, ErrLost) {
		t.Fatalf("the only copy, damaged: %v", err)
	}
}

func marked(dir string) (n int) {
	b, _ := os.ReadFile(filepath.Join(dir, markFile))
	_, _ = fmt.Sscan(string(b), &n)
	return n
}

func damage(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "log", "*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%v %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for i := range min(len(b), 64) {
			b[i] ^= 0x5a
		}
		if err := os.WriteFile(f, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A leader that is cut off can't append, and what it appends later is refused.
func TestStale(t *testing.T) {
	h := newHouse(t)
	h.open("a", folder(t), "127.0.0.1:0", true)
	h.leader()
	h.open("b", folder(t), "127.0.0.1:0", false)
	h.open("c", folder(t), "127.0.0.1:0", false)
	h.voters(3)
	l, term := h.leader()
	log := l.Log("job", term)
	if err := log.Append([]byte("kept"), true); err != nil {
		t.Fatal(err)
	}
	if err := l.Transfer(); err != nil {
		t.Fatal(err)
	}
	if err := log.Append([]byte("late"), true); !errors.Is(err, ErrStale) {
		t.Fatalf("after the leadership was handed on: %v", err)
	}
	n, term2 := l, term
	waitFor(t, func() bool { n, term2 = h.leader(); return term2 > term })
	if got := records(t, n.Store, "job"); !slices.Equal(got, []string{"kept"}) {
		t.Fatalf("%q", got)
	}
	// The same on the level of raft's log: the state machine itself refuses.
	out := n.streams.Apply(&raft.Log{Type: raft.LogCommand, Term: term2, Data: command{op: opAppend, term: term, stream: "job", record: []byte("zombie")}.encode()})
	if err, _ := out.(error); !errors.Is(err, ErrStale) {
		t.Fatalf("a zombie's record: %v", out)
	}
}

func TestSnapshot(t *testing.T) {
	s, err := newStreams(filepath.Join(t.TempDir(), "s"), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	var logs []*raft.Log
	for i := range 1000 {
		logs = append(logs, &raft.Log{Type: raft.LogCommand, Term: 1, Data: command{opAppend, 1, fmt.Sprint("stream/", i%7), fmt.Appendf(nil, "record %d", i)}.encode()})
	}
	for _, r := range s.ApplyBatch(logs) {
		if r != nil {
			t.Fatal(r)
		}
	}
	snap, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	s.ApplyBatch(logs[:10]) // after the snapshot: not in it
	var b bytes.Buffer
	if err := snap.(*snapshot).write(&b); err != nil {
		t.Fatal(err)
	}
	snap.Release()
	other, err := newStreams(filepath.Join(t.TempDir(), "s"), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	defer other.close()
	if err := other.Restore(nopCloser{bytes.NewReader(b.Bytes())}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range other.names() {
		if err := other.replay(name, func([]byte) error { n++; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n != 1000 {
		t.Fatalf("%d records", n)
	}
	for _, cut := range []int{1, 9, b.Len() / 2, b.Len() - 1} {
		if err := other.Restore(nopCloser{bytes.NewReader(b.Bytes()[:cut])}); err == nil {
			t.Errorf("a snapshot cut at %d was taken", cut)
		}
	}
}

type nopCloser struct{ *bytes.Reader }

func (nopCloser) Close() error { return nil }

// A full disk holds what is committed in memory until it has room again.
func TestFullDisk(t *testing.T) {
	var warned error
	s, err := newStreams(filepath.Join(t.TempDir(), "s"), func(err error) { warned = err })
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	entry := func(i int) *raft.Log {
		return &raft.Log{Type: raft.LogCommand, Term: 1, Data: command{opAppend, 1, "job", fmt.Appendf(nil, "%d", i)}.encode()}
	}
	s.Apply(entry(0))
	good := s.files["job"].f
	bad, err := os.Open(good.Name()) // read-only: each write fails
	if err != nil {
		t.Fatal(err)
	}
	s.files["job"].f = bad
	s.Apply(entry(1))
	if warned == nil {
		t.Fatal("no warning")
	}
	read := func() (got []string) {
		if err := s.replay("job", func(b []byte) error { got = append(got, string(b)); return nil }); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got := read(); !slices.Equal(got, []string{"0", "1"}) {
		t.Fatalf("%q", got)
	}
	if _, err := s.Snapshot(); err == nil {
		t.Fatal("a snapshot without the newest records")
	}
	bad.Close()
	s.files["job"].f = good
	s.Apply(entry(2))
	if got := read(); !slices.Equal(got, []string{"0", "1", "2"}) {
		t.Fatalf("%q", got)
	}
}

func TestNext(t *testing.T) {
	cands := func(names string) (out []Candidate) {
		for _, n := range strings.Fields(names) {
			out = append(out, Candidate{n, "addr-" + n})
		}
		return
	}
	for _, c := range []struct{ now, there, want string }{
		{"a", "a", ""},
		{"a", "a b", ""},
		{"a", "a b c", "+b"},
		{"a b", "a b c", "+c"},
		{"a b c", "a b c d", ""},
		{"a b c", "a b c d e", "+d"},
		{"a b c", "a b d", "-c"},
		{"a b", "a b d", "+d"},
		{"a b c", "a b", "-c"},
		{"a b", "a b", "-b"},
		{"a b c d e", "a b c d", "-e"},
		{"a b c d", "a b c d", "-d"},
		{"a b c", "b c", ""}, // the leader itself is leaving
	} {
		var now []raft.Server
		for _, v := range cands(c.now) {
			now = append(now, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(v.Server), Address: raft.ServerAddress(v.Addr)})
		}
		got := next(now, cands(c.there), "a")
		if s := map[changeKind]string{nothing: "", add: "+", remove: "-"}[got.kind] + got.server.Server; s != c.want {
			t.Errorf("%s of %s: %q, want %q", c.now, c.there, s, c.want)
		}
	}
}

func FuzzSnapshot(f *testing.F) {
	f.Add([]byte(snapMagic + "\x01a\x01\x00\x00\x00\x00\x00\x00\x00x"))
	f.Add(command{opAppend, 1, "job", []byte("x")}.encode())
	f.Add(appendRecord(nil, []byte("x")))
	f.Fuzz(func(t *testing.T, b []byte) {
		_ = readSnapshot(bufio.NewReader(bytes.NewReader(b)), func(_ string, body io.Reader, _ int64) error {
			return readRecords(body, func([]byte) error { return nil })
		})
		_ = readRecords(bytes.NewReader(b), func([]byte) error { return nil })
		if c, err := decodeCommand(b); err == nil && !bytes.Equal(c.encode(), b) {
			t.Fatal("a command changed")
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	h := newHouse(b)
	h.open("a", folder(b), "127.0.0.1:0", true)
	h.leader()
	for _, n := range []string{"b", "c"} {
		h.open(n, folder(b), "127.0.0.1:0", false)
	}
	h.voters(3)
	l, term := h.leader()
	rec := make([]byte, 500)
	for _, sync := range []int{1, 64} {
		b.Run(fmt.Sprintf("sync every %d", sync), func(b *testing.B) {
			log := l.Log("job", term)
			i := 0
			for b.Loop() {
				i++
				if err := log.Append(rec, i%sync == 0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
