package port

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	nethttp "net/http"
	"time"

	"github.com/open-autoglm/autoglm/cluster/cert"
)

// link is a TLS connection's lower end, either way, which the port knows while it is open.
type link struct {
	net.Conn
	p *Port
}

// Close implements net.Conn.
func (l *link) Close() error {
	l.p.mu.Lock()
	delete(l.p.links, l)
	l.p.mu.Unlock()
	return l.Conn.Close()
}

// open enters a connection whose handshake is done. The list of revoked certificates may
// have come meanwhile.
func (p *Port) open(l *link, leaf *x509.Certificate) error {
	p.mu.Lock()
	p.links[l] = leaf
	p.mu.Unlock()
	return p.cfg.Identity.Refuses(leaf)
}

// CloseRevoked closes all connections to whom the port's identity refuses by now, and
// counts them.
func (p *Port) CloseRevoked() int {
	if p.cfg.Identity == nil {
		return 0
	}
	var found []*link
	p.mu.Lock()
	for l, leaf := range p.links {
		if p.cfg.Identity.Refuses(leaf) != nil {
			found = append(found, l)
		}
	}
	p.mu.Unlock()
	for _, l := range found {
		_ = l.Close()
	}
	return len(found)
}

// lenient lets who speaks HTTP/1.1 through the handshake although its certificate is
// revoked: turnAway tells it in words, where TLS has but a number.
func lenient(conf *tls.Config) {
	strict := conf.VerifyConnection
	conf.VerifyConnection = func(s tls.ConnectionState) error {
		err := strict(s)
		if errors.Is(err, cert.ErrRevoked) && (s.NegotiatedProtocol == http || s.NegotiatedProtocol == "") {
			return nil
		}
		return err
	}
}

const turnAwayTime = 2 * time.Second

// turnAway answers one request with why its sender may not speak.
func turnAway(c net.Conn, why error) {
	_ = c.SetDeadline(time.Now().Add(turnAwayTime))
	if _, err := nethttp.ReadRequest(bufio.NewReader(io.LimitReader(c, 64<<10))); err != nil {
		return
	}
	body, err := json.Marshal(map[string]string{"error": why.Error()})
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(c, "HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if t, ok := c.(*tls.Conn); ok {
		_ = t.CloseWrite()
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(c, 1<<20)) // the rest of its request, so that the answer is not lost to a reset
}

// dial is Dial under an identity, of a connection that the port knows.
func (p *Port) dial(ctx context.Context, to Call) (net.Conn, error) {
	var l *link
	c, err := dialTLS(ctx, p.cfg.Identity.Client(), to, func(raw net.Conn) net.Conn {
		l = &link{raw, p}
		return l
	})
	if err != nil {
		return nil, err
	}
	if err := p.open(l, c.(*tls.Conn).ConnectionState().PeerCertificates[0]); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("%s: %w", to.Addr, err)
	}
	return c, nil
}
