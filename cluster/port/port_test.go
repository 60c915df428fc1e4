package port

import (
	"context"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/open-autoglm/autoglm/cluster/cert"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type papers struct{ node, person *cert.Identity }

func issue(t testing.TB) papers {
	t.Helper()
	dir := t.TempDir()
	if err := cert.InitCA(filepath.Join(dir, "ca")); err != nil {
		t.Fatal(err)
	}
	ca, err := cert.LoadCA(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	one := func(r cert.Request) *cert.Identity {
		d := t.TempDir()
		if err := ca.Issue(r, d); err != nil {
			t.Fatal(err)
		}
		id, err := cert.Load(d)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	return papers{one(cert.Request{Hosts: []string{"127.0.0.1"}}), one(cert.Request{Name: "ada", Role: cert.Read})}
}

type refusals struct {
	mu  sync.Mutex
	why []string
	ch  chan string
}

func (r *refusals) add(_ net.Addr, why error) {
	r.mu.Lock()
	r.why = append(r.why, why.Error())
	r.mu.Unlock()
	select {
	case r.ch <- why.Error():
	default:
	}
}

// start serves echo to nodes, whoami to all, and HTTP.
func start(t testing.TB, cfg Config) (*Port, *refusals) {
	t.Helper()
	ref := &refusals{ch: make(chan string, 100)}
	cfg.Listen, cfg.Refused = "127.0.0.1:0", ref.add
	p, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p.Handle("echo", cert.Node, func(c net.Conn) { defer c.Close(); _, _ = io.Copy(c, c) })
	p.Handle("whoami", "", func(c net.Conn) {
		defer c.Close()
		fmt.Fprintf(c, "%s %s", Peer(c).Name, Peer(c).Role)
	})
	srv := &nethttp.Server{Handler: nethttp.HandlerFunc(func(w nethttp.ResponseWriter, r *nethttp.Request) {
		fmt.Fprint(w, r.Proto, " ", r.TLS != nil)
	})}
	var protocols nethttp.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	srv.Protocols = &protocols
	web := p.HTTP()
	var wg sync.WaitGroup
	wg.Add(2)
	go func() { defer wg.Done(); p.Serve() }()
	go func() { defer wg.Done(); _ = srv.Serve(web) }()
	t.Cleanup(func() {
		p.Close()
		srv.Close()
		wg.Wait()
	})
	return p, ref
}

func ask(t *testing.T, id *cert.Identity, p *Port, protocol, text string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	c, err := Dial(ctx, id, Call{Addr: p.Addr().String(), Protocol: protocol})
	if err != nil {
		return "", err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if text == "" {
		b, err := io.ReadAll(c)
		return string(b), cert.Explain(err)
	}
	if _, err := io.WriteString(c, text); err != nil {
		return "", err
	}
	b := make([]byte, len(text))
	_, err = io.ReadFull(c, b)
	return string(b), err
}

func TestProtocols(t *testing.T) {
	w := issue(t)
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("secure=%v", secure), func(t *testing.T) {
			var cfg Config
			var node *cert.Identity
			if secure {
				cfg.Identity, node = w.node, w.node
			}
			p, ref := start(t, cfg)
			if got, err := ask(t, node, p, "echo", "hello"); err != nil || got != "hello" {
				t.Fatalf("echo: %q, %v", got, err)
			}
			scheme := "http"
			client := &nethttp.Client{Transport: &nethttp.Transport{}}
			if secure {
				scheme = "https"
				conf := w.person.Client()
				client.Transport = &nethttp.Transport{TLSClientConfig: conf, ForceAttemptHTTP2: true}
			}
			res, err := client.Get(scheme + "://" + p.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			client.CloseIdleConnections()
			if want := map[bool]string{false: "HTTP/1.1 false", true: "HTTP/2.0 true"}[secure]; string(b) != want {
				t.Errorf("http: %q, want %q", b, want)
			}
			if _, err := ask(t, node, p, "nonsense", "x"); err == nil {
				t.Error("an unknown protocol was served")
			}
			if !secure {
				if got := <-ref.ch; !strings.Contains(got, "no protocol of this node") {
					t.Error(got)
				}
				return
			}
			if got, err := ask(t, w.person, p, "whoami", ""); err != nil || got != "ada read" {
				t.Errorf("whoami: %q, %v", got, err)
			}
			<-ref.ch // of nonsense
			if got, err := ask(t, w.person, p, "echo", "hello"); err == nil {
				t.Errorf("a person was served a node's protocol: %q", got)
			}
			if got := <-ref.ch; !strings.Contains(got, `role "read" may not speak echo`) {
				t.Error(got)
			}
		})
	}
}

func TestMixedWorlds(t *testing.T) {
	w := issue(t)
	secure, ref := start(t, Config{Identity: w.node})
	if got, err := ask(t, nil, secure, "echo", "hello"); err == nil {
		t.Errorf("plaintext was served on a secure port: %q", got)
	}
	if got := <-ref.ch; !strings.Contains(got, "does not speak TLS") {
		t.Error(got)
	}
	plain, ref := start(t, Config{})
	if _, err := ask(t, w.node, plain, "echo", "hello"); err == nil {
		t.Error("TLS was served on a plaintext port")
	}
	if got := <-ref.ch; !strings.Contains(got, "--insecure") {
		t.Error(got)
	}
	other := issue(t)
	if _, err := ask(t, other.node, secure, "whoami", ""); err == nil || !strings.Contains(err.Error(), "another authority") {
		t.Errorf("a foreign node: %v", err)
	}
}

// Ten times as many silent connections as may wait keep nobody out.
func TestSilence(t *testing.T) {
	w := issue(t)
	p, ref := start(t, Config{Identity: w.node, Pending: 50})
	var conns []net.Conn
	for range 500 {
		c, err := net.Dial("tcp", p.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if got, err := ask(t, w.node, p, "echo", "hello"); err != nil || got != "hello" {
		t.Fatalf("echo among the silent: %q, %v", got, err)
	}
	for range 10 {
		if got := <-ref.ch; !strings.Contains(got, "said nothing") {
			t.Fatal(got)
		}
	}
	for _, c := range conns {
		c.Close()
	}
}

func TestPatience(t *testing.T) {
	for _, secure := range []bool{false, true} {
		cfg := Config{Patience: 20 * time.Millisecond}
		if secure {
			cfg.Identity = issue(t).node
		}
		p, ref := start(t, cfg)
		c, err := net.Dial("tcp", p.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got := <-ref.ch; !strings.Contains(got, "timeout") {
			t.Error(got)
		}
		_ = c.SetDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
			t.Errorf("still open: %v", err)
		}
		c.Close()
	}
}

func TestTaken(t *testing.T) {
	p, _ := start(t, Config{})
	if _, err := Listen(Config{Listen: p.Addr().String()}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a taken address: %v", err)
	}
	if _, err := Listen(Config{Listen: "7400"}); err == nil || !strings.Contains(err.Error(), "HOST:PORT") {
		t.Errorf("no host: %v", err)
	}
}

// Whatever a stranger sends first, the port answers or closes, and goes on.
func FuzzGreeting(f *testing.F) {
	w := issue(f)
	var ports []*Port
	for _, id := range []*cert.Identity{nil, w.node} {
		p, _ := start(f, Config{Identity: id, Patience: 50 * time.Millisecond})
		ports = append(ports, p)
	}
	f.Add([]byte("AGLP\x04echo"))
	f.Add([]byte("AGLP\xffecho"))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"))
	f.Add([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, p := range ports {
			c, err := net.Dial("tcp", p.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(b)
			_ = c.(*net.TCPConn).CloseWrite()
			_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	})
}
