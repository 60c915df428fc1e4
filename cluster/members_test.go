package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/port"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// box is a node in this process and what it was told.
type box struct {
	*Members
	p  *port.Port
	wg sync.WaitGroup

	mu    sync.Mutex
	lines []string
	wake  chan struct{}
}

func (b *box) note(format string, a ...any) {
	b.mu.Lock()
	b.lines = append(b.lines, fmt.Sprintf(format, a...))
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// until waits for a line that holds text.
func (b *box) until(t *testing.T, text string) string {
	t.Helper()
	late := time.After(20 * time.Second)
	for {
		b.mu.Lock()
		for _, l := range b.lines {
			if strings.Contains(l, text) {
				b.mu.Unlock()
				return l
			}
		}
		all := strings.Join(b.lines, "\n")
		b.mu.Unlock()
		select {
		case <-b.wake:
		case <-late:
			t.Fatalf("never told of %q; was told:\n%s", text, all)
		}
	}
}

func (b *box) forget() {
	b.mu.Lock()
	b.lines = nil
	b.mu.Unlock()
}

// sees waits until exactly these names are there.
func (b *box) sees(t *testing.T, names ...string) {
	t.Helper()
	want := strings.Join(names, " ")
	late := time.Now().Add(20 * time.Second)
	for {
		var got []string
		for _, o := range b.Members.Members() {
			got = append(got, o.Name)
		}
		if strings.Join(got, " ") == want {
			return
		}
		if time.Now().After(late) {
			b.mu.Lock()
			defer b.mu.Unlock()
			t.Fatalf("%s sees %v, want %s\n%s", b.self.Name, got, want, strings.Join(b.lines, "\n"))
		}
		select {
		case <-b.wake:
		case <-time.After(50 * time.Millisecond):
		}
	}
}

type setup struct {
	name, dir, listen string
	seeds             []string
	id                *cert.Identity
	card, software    string
	advertise         string // a host without a port
	before            func(*Members)
}

// boot starts a node.
func boot(t *testing.T, s setup) *box {
	t.Helper()
	b, err := tryBoot(t, s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func tryBoot(t *testing.T, s setup) (*box, error) {
	t.Helper()
	b := &box{wake: make(chan struct{}, 1)}
	if s.listen == "" {
		s.listen = "127.0.0.1:0"
	}
	if s.dir == "" {
		s.dir = t.TempDir()
	}
	p, err := port.Listen(port.Config{Listen: s.listen, Identity: s.id, Refused: func(from net.Addr, why error) { b.note("refused: %v", why) }})
	if err != nil {
		return nil, err
	}
	b.p = p
	if s.advertise != "" {
		s.advertise = fmt.Sprintf("%s:%d", s.advertise, p.Addr().Port)
	}
	b.Members, err = Start(context.Background(), Config{
		Dir: s.dir, Port: p, Advertise: s.advertise, Name: s.name, Seeds: s.seeds, Software: s.software, Card: func() []byte { return []byte(s.card) },
		Events: Events{
			Joined: func(m Member) { b.note("joined %s", m.Name) },
			Gone:   func(m Member, why string) { b.note("gone %s: %s", m.Name, why) },
			Warn:   func(about, addr string, err error) { b.note("warn %s %s: %v", about, addr, err) },
		},
	})
	if err != nil {
		p.Close()
		return nil, err
	}
	if s.before != nil {
		s.before(b.Members)
	}
	b.wg.Go(p.Serve)
	t.Cleanup(func() {
		b.Close()
		b.wg.Wait()
	})
	return b, nil
}

func authority(t testing.TB) func(hosts ...string) *cert.Identity {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if err := cert.InitCA(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := cert.LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	return func(hosts ...string) *cert.Identity {
		d := t.TempDir()
		if err := ca.Issue(cert.Request{Hosts: hosts}, d); err != nil {
			t.Fatal(err)
		}
		id, err := cert.Load(d)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
}

func TestLife(t *testing.T) {
	issue := authority(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("secure=%v", secure), func(t *testing.T) {
			var id *cert.Identity
			if secure {
				id = issue("127.0.0.1")
			}
			a := boot(t, setup{name: "a", id: id, card: "8 GPUs"})
			seeds := []string{a.self.Addr}
			b := boot(t, setup{name: "b", id: id, seeds: seeds})
			dir := t.TempDir()
			c := boot(t, setup{name: "c", id: id, seeds: seeds, dir: dir})
			for _, n := range []*box{a, b, c} {
				n.sees(t, "a", "b", "c")
			}
			if a.Cluster() == "" || a.Cluster() != c.Cluster() {
				t.Fatalf("clusters %q and %q", a.Cluster(), c.Cluster())
			}
			if card, err := c.Card(t.Context(), a.self.ID); err != nil || string(card) != "8 GPUs" {
				t.Fatalf("card %q, %v", card, err)
			}
			if err := b.Publish([]byte("load 0.5")); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { return string(c.News()[b.self.ID]) == "load 0.5" })
			late := boot(t, setup{name: "d", id: id, seeds: seeds}) // hears what was said before it came
			waitFor(t, func() bool { return string(late.News()[b.self.ID]) == "load 0.5" })
			if err := late.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			a.sees(t, "a", "b", "c")

			// A connection to a killed node breaks: whoever had it need not wait for gossip.
			addr := c.self.Addr
			c.Close()
			start := time.Now()
			a.Suspect(c.self.ID)
			a.until(t, "gone c: its process is gone")
			if d := time.Since(start); d > time.Second {
				t.Errorf("known after %v", d)
			}
			// It comes back at its address: a newcomer under its id, with its boot number one up.
			again := boot(t, setup{name: "c", id: id, dir: dir, listen: addr}) // no seeds: it remembers
			again.sees(t, "a", "b", "c")
			a.sees(t, "a", "b", "c")
			b.sees(t, "a", "b", "c")
			waitFor(t, func() bool { o, _ := b.Member(c.self.ID); return o.Boot == c.self.Boot+1 })

			// One that leaves is not missed.
			a.forget()
			if err := again.Leave(t.Context()); err != nil {
				t.Fatal(err)
			}
			a.until(t, "gone c: left")
			b.sees(t, "a", "b")
		})
	}
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	late := time.Now().Add(20 * time.Second)
	for !f() {
		if time.Now().After(late) {
			t.Fatal("never")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Gossip alone finds a silent node, and a healed partition is one cluster again by
// itself.
func TestPartition(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for gossip")
	}
	a := boot(t, setup{name: "a"})
	seeds := []string{a.self.Addr}
	b := boot(t, setup{name: "b", seeds: seeds})
	c := boot(t, setup{name: "c", seeds: seeds})
	for _, n := range []*box{a, b, c} {
		n.sees(t, "a", "b", "c")
	}
	cut := func(m *box, from ...*box) {
		m.Members.mu.Lock()
		defer m.Members.mu.Unlock()
		m.cuts = func(addr string) bool {
			for _, o := range from {
				if addr == o.self.Addr {
					return true
				}
			}
			return false
		}
	}
	cut(a, c)
	cut(b, c)
	cut(c, a, b)
	a.sees(t, "a", "b")
	c.sees(t, "c")
	for _, n := range []*box{a, b, c} {
		cut(n)
	}
	healed := time.Now()
	for _, n := range []*box{a, b, c} {
		n.sees(t, "a", "b", "c")
	}
	t.Logf("one cluster again after %v", time.Since(healed))
}

func TestRefusals(t *testing.T) {
	a := boot(t, setup{name: "a"})
	seeds := []string{a.self.Addr}
	dir := t.TempDir()
	b := boot(t, setup{name: "b", seeds: seeds, dir: dir})
	a.sees(t, "a", "b")

	other := boot(t, setup{name: "other"})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := a.greet(ctx, other.self.Addr, ""); err == nil || !strings.Contains(err.Error(), "belongs to cluster") {
		t.Errorf("two clusters: %v", err)
	}
	same := boot(t, setup{name: "b", seeds: seeds})
	same.until(t, "the name b is that of node "+b.self.ID)

	copied := t.TempDir()
	for _, name := range []string{keptFile, keysFile} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(copied, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	twin := boot(t, setup{name: "b2", seeds: seeds, dir: copied})
	twin.until(t, "its folder ") // was copied, or is a copy of this one's
	a.sees(t, "a", "b")

	old := boot(t, setup{name: "old", seeds: seeds, software: "0.1"})
	old.sees(t, "a", "b", "old") // the software's version alone is no reason
	h := old.hello(false)
	h.ID, h.Name, h.Min, h.Max = "ff", "ancient", 0, 0
	if why, final := a.objection(h); !final || !strings.Contains(why, "upgrade one of them") {
		t.Errorf("an ancient node: %q", why)
	}
	lone := boot(t, setup{name: "lone", seeds: []string{"127.0.0.1:1"}})
	lone.until(t, "warn join 127.0.0.1:1: ")
	late := boot(t, setup{name: "late", seeds: []string{lone.self.Addr}})
	late.until(t, "belongs to no cluster yet")
	if _, err := tryBoot(t, setup{listen: "0.0.0.0:0"}); err == nil || !strings.Contains(err.Error(), "--advertise") {
		t.Errorf("all addresses: %v", err)
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, keptFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := tryBoot(t, setup{dir: damaged}); err == nil || !strings.Contains(err.Error(), "node.json") {
		t.Errorf("a damaged folder: %v", err)
	}
}

func TestStrangers(t *testing.T) {
	issue, foreign := authority(t), authority(t)
	a := boot(t, setup{name: "a", id: issue("127.0.0.1")})
	seeds := []string{a.self.Addr}
	boot(t, setup{name: "x", id: foreign("127.0.0.1"), seeds: seeds}).until(t, "another authority")
	boot(t, setup{name: "y", seeds: seeds}).until(t, "--insecure")
	wrong := boot(t, setup{name: "w", id: issue("10.9.9.9"), seeds: seeds})
	a.until(t, "autoglm ca issue") // its certificate does not name the address under which it is reached
	wrong.until(t, "joined w")
	a.sees(t, "a")
}

func TestClock(t *testing.T) {
	a := boot(t, setup{name: "a"})
	p, err := port.Listen(port.Config{Listen: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	p.Handle(helloProtocol, cert.Node, func(c net.Conn) {
		defer c.Close()
		var h hello
		if err := readFrame(c, &h); err != nil {
			return
		}
		h.ID, h.Boot, h.Name, h.Addr = "0123", 1, "late", p.Addr().String()
		h.Now -= (10 * time.Minute).Milliseconds()
		h.Keys = keySet{Serial: 1, Keys: [][]byte{make([]byte, 32)}}
		_ = writeFrame(c, h)
	})
	var wg sync.WaitGroup
	wg.Go(p.Serve)
	defer wg.Wait()
	defer p.Close()
	if _, err := a.greet(t.Context(), p.Addr().String(), ""); err != nil {
		t.Fatal(err)
	}
	a.until(t, "the clock of late is -10m0s off")
}

func TestRotateKeys(t *testing.T) {
	issue := authority(t)
	a := boot(t, setup{name: "a", id: issue("127.0.0.1")})
	b := boot(t, setup{name: "b", id: issue("127.0.0.1"), seeds: []string{a.self.Addr}})
	dir := t.TempDir()
	c := boot(t, setup{name: "c", id: issue("127.0.0.1"), seeds: []string{a.self.Addr}, dir: dir})
	for _, n := range []*box{a, b, c} {
		n.sees(t, "a", "b", "c")
	}
	old := a.keySet()
	if err := c.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	a.sees(t, "a", "b")
	b.sees(t, "a", "b")
	if err := a.RotateKeys(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, n := range []*box{a, b} {
		k := n.keySet()
		if len(k.Keys) != 1 || bytes.Equal(k.Keys[0], old.Keys[0]) || !bytes.Equal(n.ring.GetPrimaryKey(), k.Keys[0]) || len(n.ring.GetKeys()) != 1 {
			t.Fatalf("%s: %d keys, ring %d", n.self.Name, len(k.Keys), len(n.ring.GetKeys()))
		}
	}
	// Who was away learns them.
	c = boot(t, setup{name: "c", id: issue("127.0.0.1"), seeds: []string{a.self.Addr}, dir: dir})
	c.sees(t, "a", "b", "c")
	b.sees(t, "a", "b", "c")
	if err := b.Publish([]byte("sealed")); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return string(c.News()[b.self.ID]) == "sealed" })
}

func TestToken(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ca")
	if err := cert.InitCA(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := cert.LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	tls := t.TempDir()
	if err := ca.Issue(cert.Request{Hosts: []string{"127.0.0.1"}}, tls); err != nil {
		t.Fatal(err)
	}
	id, err := cert.Load(tls)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 10)
	a := boot(t, setup{name: "a", id: id, before: func(m *Members) {
		ServeJoin(m.cfg.Port, ca, func(_ net.Addr, err error) { told <- err })
	}})
	token, err := ca.Token(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(t.TempDir(), "tls")
	if err := Ask(t.Context(), []string{"127.0.0.1:1", a.self.Addr}, token, []string{"127.0.0.1"}, mine); err != nil {
		t.Fatal(err)
	}
	got, err := cert.Load(mine)
	if err != nil {
		t.Fatal(err)
	}
	b := boot(t, setup{name: "b", id: got, seeds: []string{a.self.Addr}})
	b.sees(t, "a", "b")
	if err := Ask(t.Context(), []string{a.self.Addr}, token, []string{"127.0.0.1"}, t.TempDir()); err == nil || !strings.Contains(err.Error(), "used before") {
		t.Errorf("the token again: %v", err)
	}
	if err := Ask(t.Context(), []string{b.self.Addr}, token, []string{"127.0.0.1"}, t.TempDir()); !errors.Is(err, ErrNoAuthority) {
		t.Errorf("a node without the authority: %v", err)
	}
	if err := <-told; err != nil {
		t.Error(err)
	}
	if err := <-told; !errors.Is(err, cert.ErrTokenUsed) {
		t.Error(err)
	}
}

func TestSeeds(t *testing.T) {
	a := boot(t, setup{name: "a"})
	list := filepath.Join(t.TempDir(), "seeds")
	if err := os.WriteFile(list, []byte("# the first node\n\n127.0.0.1:1\n"+a.self.Addr+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, number, _ := net.SplitHostPort(a.self.Addr)
	boot(t, setup{name: "b", seeds: []string{"file:" + list}}).sees(t, "a", "b")
	boot(t, setup{name: "c", seeds: []string{"localhost:" + number}}).sees(t, "a", "b", "c")
	boot(t, setup{name: "d", seeds: []string{"nowhere"}}).until(t, "give HOST:PORT, srv:NAME or file:PATH")
}

func FuzzFrames(f *testing.F) {
	var b bytes.Buffer
	_ = writeFrame(&b, hello{Min: 1, Max: 1, ID: "a", Boot: 1, Addr: "127.0.0.1:1", Keys: keySet{Serial: 1, Keys: [][]byte{make([]byte, 32)}}})
	f.Add(b.Bytes())
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add(encodeNews("a", update{boot: 1, serial: 2, body: []byte("x")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h hello
		if readFrame(bytes.NewReader(b), &h) == nil {
			_ = h.valid()
			_ = h.Keys.valid()
		}
		var j joinRequest
		_ = readFrame(bytes.NewReader(b), &j)
		if id, u, err := decodeNews(b); err == nil && !bytes.Equal(encodeNews(id, u), b) {
			t.Fatal("news changed")
		}
		_, _, _ = parseGossipName(string(b))
	})
}

// Nodes whose certificates name hosts alone find each other, though gossip knows
// addresses only.
func TestCertificatesThatNameHosts(t *testing.T) {
	dir := t.TempDir()
	if err := cert.InitCA(filepath.Join(dir, "ca")); err != nil {
		t.Fatal(err)
	}
	ca, err := cert.LoadCA(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Issue(cert.Request{Hosts: []string{"localhost"}}, filepath.Join(dir, "tls")); err != nil {
		t.Fatal(err)
	}
	id, err := cert.Load(filepath.Join(dir, "tls"))
	if err != nil {
		t.Fatal(err)
	}
	a := boot(t, setup{name: "a", id: id, advertise: "localhost"})
	b := boot(t, setup{name: "b", id: id, advertise: "localhost", seeds: []string{a.Self().Addr}})
	c := boot(t, setup{name: "c", id: id, advertise: "localhost", seeds: []string{a.Self().Addr}})
	for _, n := range []*box{a, b, c} {
		n.sees(t, "a", "b", "c")
	}
}
