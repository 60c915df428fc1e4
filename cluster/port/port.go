// Package port is the one address at which all of a node's protocols meet: a TCP
// port whose connections name their protocol, and the UDP socket of the same
// number.
//
//	p, err := port.Listen(port.Config{Listen: "10.0.0.1:7400", Identity: id})
//	p.Handle("autoglm-hello/1", cert.Node, func(c net.Conn) { … })   // before Serve
//	web := p.HTTP()                                                   // a net.Listener
//	go p.Serve()
//	c, err := p.Dial(ctx, port.Call{Addr: "10.0.0.2:7400", Protocol: "autoglm-hello/1"})
//
// With an identity every connection is mutual TLS 1.3 and the protocol is chosen
// by ALPN (RFC 7301); h2, http/1.1 and no choice at all are HTTP. Without one a
// connection begins with
//
//	"AGLP" | u8 length | the protocol's name
//
// and one that does not is taken for HTTP, so that curl works on either.
//
// A connection has Patience to say what it wants. So many silent ones wait at a
// time; with more, the one that was silent longest is closed: who floods the port
// pushes out itself, and a node's connection is through in a round trip.
package port

import (
	"bufio"
	"container/list"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/cluster/cert"
)

// Config of a Port.
type Config struct {
	Listen   string         // host:port; port 0 picks one
	Identity *cert.Identity // nil speaks plaintext
	Pending  int            // silent connections at a time; 0 is 1024
	Patience time.Duration  // until a connection has said what it wants; 0 is 5 s
	// Refused is told of each connection that was closed without being served. Calls
	// overlap. May be nil.
	Refused func(from net.Addr, why error)
}

// Port listens. All methods may be called from any goroutine, Handle and HTTP
// before Serve only.
type Port struct {
	cfg    Config
	tcp    net.Listener
	udp    *net.UDPConn
	routes map[string]route
	web    *backlog
	wg     sync.WaitGroup // of connections that have not said what they want

	mu     sync.Mutex
	silent *list.List                  // of net.Conn, the oldest first
	links  map[*link]*x509.Certificate // TLS connections that are open, with whom
	closed bool
}

type route struct {
	need  cert.Role
	serve func(net.Conn)
}

const preamble = "AGLP"

// http is the protocol of who names none.
const http = "http/1.1"

// Errors of connections.
var (
	errSilent  = errors.New("said nothing: closed to make room")
	errClosed  = net.ErrClosed
	errUnknown = errors.New("speaks no protocol of this node: another version?")
)

// ErrProtocol means that the other side does not speak the protocol.
var ErrProtocol = errors.New("not spoken there: another version?")

// Listen binds the address; nothing is accepted before Serve.
func Listen(cfg Config) (*Port, error) {
	if cfg.Pending == 0 {
		cfg.Pending = 1024
	}
	if cfg.Patience == 0 {
		cfg.Patience = 5 * time.Second
	}
	host, number, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen address %q: %w; give HOST:PORT", cfg.Listen, err)
	}
	p := &Port{cfg: cfg, routes: map[string]route{}, silent: list.New(), links: map[*link]*x509.Certificate{}}
	p.web = newBacklog(p)
	for range 50 {
		if err = p.bind(host, number); err == nil {
			return p, nil
		}
		if number != "0" {
			break
		}
	}
	return nil, err
}

// bind takes TCP and UDP of one number.
func (p *Port) bind(host, number string) error {
	tcp, err := net.Listen("tcp", net.JoinHostPort(host, number))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	at := tcp.Addr().(*net.TCPAddr)
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Port: at.Port})
	if err != nil {
		tcp.Close()
		return fmt.Errorf("listen: %w", err)
	}
	_ = udp.SetReadBuffer(2 << 20) // the kernel may give less
	p.tcp, p.udp = tcp, udp
	return nil
}

// Addr is where the port listens.
func (p *Port) Addr() *net.TCPAddr { return p.tcp.Addr().(*net.TCPAddr) }

// Packets is the UDP socket of the same number; Close closes it.
func (p *Port) Packets() *net.UDPConn { return p.udp }

// Secure tells whether connections are mutual TLS.
func (p *Port) Secure() bool { return p.cfg.Identity != nil }

// Handle serves a protocol to peers of at least the role; "" serves everybody.
// Serve runs on a goroutine of its own, owns the connection and closes it.
func (p *Port) Handle(protocol string, need cert.Role, serve func(net.Conn)) {
	p.routes[protocol] = route{need, serve}
}

// HTTP is a listener of the connections that speak HTTP, h2 included: each is a
// *tls.Conn when the port is secure. Who may do what is its server's to decide.
func (p *Port) HTTP() net.Listener {
	p.routes[http] = route{serve: p.web.offer}
	p.routes["h2"] = p.routes[http]
	return p.web
}

// Listener gives a protocol's connections to Accept.
func (p *Port) Listener(protocol string, need cert.Role) net.Listener {
	b := newBacklog(p)
	p.Handle(protocol, need, b.offer)
	return b
}

// Serve accepts until Close.
func (p *Port) Serve() {
	var conf *tls.Config
	if p.cfg.Identity != nil {
		conf = p.cfg.Identity.Server()
		for name := range p.routes {
			conf.NextProtos = append(conf.NextProtos, name)
		}
		slices.Sort(conf.NextProtos) // h2 comes before http/1.1
		lenient(conf)
	}
	pause := time.Duration(0)
	for {
		c, err := p.tcp.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of files or memory: whoever holds them gives them back.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			p.refused(p.tcp.Addr(), err)
			time.Sleep(pause)
			continue
		}
		pause = 0
		e := p.wait(c)
		if e == nil {
			return
		}
		p.wg.Add(1)
		go func() {
			defer p.wg.Done()
			p.greet(c, e, conf)
		}()
	}
}

// wait enters a connection among the silent ones.
func (p *Port) wait(c net.Conn) *list.Element {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		c.Close()
		return nil
	}
	e := p.silent.PushBack(c)
	var oldest net.Conn
	if p.silent.Len() > p.cfg.Pending {
		oldest = p.silent.Remove(p.silent.Front()).(net.Conn)
	}
	p.mu.Unlock()
	if oldest != nil {
		oldest.Close()
		p.refused(oldest.RemoteAddr(), errSilent)
	}
	return e
}

// spoke takes it out again.
func (p *Port) spoke(e *list.Element) {
	p.mu.Lock()
	p.silent.Remove(e) // harmless when it is out
	p.mu.Unlock()
}

func (p *Port) refused(from net.Addr, why error) {
	if p.cfg.Refused != nil {
		p.cfg.Refused(from, why)
	}
}

// greet finds out what a connection wants and hands it on.
func (p *Port) greet(raw net.Conn, e *list.Element, conf *tls.Config) {
	_ = raw.SetDeadline(time.Now().Add(p.cfg.Patience))
	var l *link
	if conf != nil {
		l = &link{raw, p}
		raw = l
	}
	c, protocol, err := p.protocolOf(raw, conf)
	p.spoke(e)
	if t, ok := c.(*tls.Conn); ok && err == nil && len(t.ConnectionState().PeerCertificates) > 0 {
		if err = p.open(l, t.ConnectionState().PeerCertificates[0]); err != nil && protocol == http {
			turnAway(c, err)
		}
	}
	if err == nil {
		r, ok := p.routes[protocol]
		switch {
		case !ok:
			err = errUnknown
		case r.need != "" && !Peer(c).Role.May(r.need):
			err = fmt.Errorf("role %q may not speak %s", Peer(c).Role, protocol)
		default:
			_ = raw.SetDeadline(time.Time{})
			go r.serve(c)
			return
		}
	}
	raw.Close()
	if !errors.Is(err, net.ErrClosed) {
		p.refused(raw.RemoteAddr(), err)
	}
}

func (p *Port) protocolOf(raw net.Conn, conf *tls.Config) (net.Conn, string, error) {
	if conf != nil {
		c := tls.Server(raw, conf)
		if err := c.Handshake(); err != nil {
			return nil, "", cert.Explain(err)
		}
		name := c.ConnectionState().NegotiatedProtocol
		if name == "" {
			name = http
		}
		return c, name, nil
	}
	r := bufio.NewReaderSize(raw, 512)
	c := &peeked{Conn: raw, r: r}
	head, err := r.Peek(len(preamble))
	if err != nil {
		return nil, "", err
	}
	switch {
	case head[0] == 0x16: // a TLS handshake
		return nil, "", errors.New("speaks TLS, and this node runs with --insecure")
	case string(head) != preamble:
		return c, http, nil
	}
	_, _ = r.Discard(len(preamble))
	n, err := r.ReadByte()
	if err != nil {
		return nil, "", err
	}
	name := make([]byte, n)
	if _, err := io.ReadFull(r, name); err != nil {
		return nil, "", err
	}
	return c, string(name), nil
}

// peeked is a connection of which a little was read ahead.
type peeked struct {
	net.Conn
	r *bufio.Reader // nil when it is empty
}

func (c *peeked) Read(b []byte) (int, error) {
	if c.r != nil {
		if c.r.Buffered() > 0 {
			return c.r.Read(b[:min(len(b), c.r.Buffered())])
		}
		c.r = nil
	}
	return c.Conn.Read(b)
}

// Who is at the other end of a connection.
type Who struct {
	Name string
	Role cert.Role
}

// Peer is who a connection's certificate says it is; on a plaintext port everybody
// is a node.
func Peer(c net.Conn) Who {
	t, ok := c.(*tls.Conn)
	if !ok {
		return Who{Role: cert.Node}
	}
	name, role := cert.PeerOf(t.ConnectionState())
	return Who{name, role}
}

// Call is a dial to a protocol of another node's port.
type Call struct {
	Addr     string // host:port
	Host     string // that the certificate must name, by name or address; empty is the address's
	Protocol string
}

// Dial reaches another node under the port's identity.
func (p *Port) Dial(ctx context.Context, to Call) (net.Conn, error) {
	if p.cfg.Identity == nil {
		return Dial(ctx, nil, to)
	}
	return p.dial(ctx, to)
}

// Dial is Port.Dial of one who listens nowhere. A refusal of our own certificate
// comes with the first read only: pass its error through cert.Explain.
func Dial(ctx context.Context, id *cert.Identity, to Call) (net.Conn, error) {
	if id == nil {
		return DialTLS(ctx, nil, to)
	}
	return DialTLS(ctx, id.Client(), to)
}

// DialTLS dials under a configuration of the caller's; nil is plaintext.
func DialTLS(ctx context.Context, conf *tls.Config, to Call) (net.Conn, error) {
	return dialTLS(ctx, conf, to, func(raw net.Conn) net.Conn { return raw })
}

// dialTLS is DialTLS over what over makes of the raw connection.
func dialTLS(ctx context.Context, conf *tls.Config, to Call, over func(net.Conn) net.Conn) (net.Conn, error) {
	host, _, err := net.SplitHostPort(to.Addr)
	if err != nil {
		return nil, fmt.Errorf("address %q: %w; give HOST:PORT", to.Addr, err)
	}
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", to.Addr)
	if err != nil {
		return nil, err
	}
	if conf == nil {
		b := append([]byte(preamble), byte(len(to.Protocol)))
		if _, err := raw.Write(append(b, to.Protocol...)); err != nil {
			raw.Close()
			return nil, err
		}
		return raw, nil
	}
	conf = conf.Clone()
	conf.ServerName, conf.NextProtos = host, []string{to.Protocol}
	if to.Host != "" {
		conf.ServerName = to.Host
	}
	raw = over(raw)
	c := tls.Client(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		raw.Close()
		if strings.Contains(err.Error(), "no application protocol") {
			err = fmt.Errorf("%s: %w", to.Protocol, ErrProtocol)
		}
		return nil, fmt.Errorf("%s: %w", to.Addr, cert.Explain(err))
	}
	if c.ConnectionState().NegotiatedProtocol != to.Protocol {
		c.Close()
		return nil, fmt.Errorf("%s: %s: %w", to.Addr, to.Protocol, ErrProtocol)
	}
	return c, nil
}

// Close stops listening and closes the connections that have said nothing yet;
// those that are served are their servers' to close.
func (p *Port) Close() error {
	p.mu.Lock()
	p.closed = true
	for e := p.silent.Front(); e != nil; e = e.Next() {
		e.Value.(net.Conn).Close()
	}
	p.mu.Unlock()
	err := errors.Join(p.tcp.Close(), p.udp.Close())
	p.wg.Wait()
	return err
}

// backlog is a net.Listener that is fed.
type backlog struct {
	p    *Port
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newBacklog(p *Port) *backlog {
	return &backlog{p: p, ch: make(chan net.Conn), done: make(chan struct{})}
}

func (b *backlog) offer(c net.Conn) {
	select {
	case b.ch <- c:
	case <-b.done:
		c.Close()
	}
}

func (b *backlog) Accept() (net.Conn, error) {
	select {
	case c := <-b.ch:
		return c, nil
	case <-b.done:
		return nil, errClosed
	}
}

// Close makes Accept return; connections that still come are closed.
func (b *backlog) Close() error {
	b.once.Do(func() { close(b.done) })
	return nil
}

func (b *backlog) Addr() net.Addr { return b.p.tcp.Addr() }
