package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/cluster/port"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Ranks of several nodes reach each other at their nodes' one port: a connection names
// the rank's endpoint first.
//
//	address    host:port/token, the token in hex
//	connection the token, 16 bytes | gpu/ring's own

const (
	ringProtocol = "autoglm-ring/1"
	ringToken    = 16
	ringBacklog  = 64
	// ringSuspect is how long a rank of another machine may be silent: longer than
	// within one, since a network may stutter.
	ringSuspect = 2 * time.Second
)

// rings are the endpoints of this node's ranks.
type rings struct {
	port *port.Port
	addr string // of the node

	mu   sync.Mutex
	ends map[[ringToken]byte]*ringEnd
}

// ringEnd is the net.Listener of one rank's endpoint.
type ringEnd struct {
	of    *rings
	token [ringToken]byte
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newRings(p *port.Port, addr string) *rings {
	return &rings{port: p, addr: addr, ends: map[[ringToken]byte]*ringEnd{}}
}

// across is an actors.Across.
func (r *rings) across(t *train.Task, world int, epoch uint64, meet ring.Rendezvous) *ring.Group {
	return ring.NewGroupAcross(ring.GroupConfig{
		Backend: t.Backend, World: world, Epoch: epoch, Rendezvous: meet, Endpoint: r.endpoint, Suspect: ringSuspect, Plaintext: t.Plaintext,
	})
}

// endpoint is one for a rank of this process.
func (r *rings) endpoint() (*ring.Endpoint, error) {
	l, addr := r.Listen()
	return ring.NewEndpoint(ring.EndpointConfig{Listener: l, Advertise: addr, Dial: r.Dial, Secured: r.Secured()})
}

// Listen implements worker.Rings.
func (r *rings) Listen() (net.Listener, string) {
	e := &ringEnd{of: r, conns: make(chan net.Conn, ringBacklog), done: make(chan struct{})}
	rand.Read(e.token[:])
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ends[e.token] = e
	return e, r.addr + "/" + hex.EncodeToString(e.token[:])
}

// Secured implements worker.Rings.
func (r *rings) Secured() bool { return r.port.Secure() }

// serve hands a connection to the endpoint that it names.
func (r *rings) serve(c net.Conn) {
	var token [ringToken]byte
	_ = c.SetReadDeadline(time.Now().Add(askTime))
	_, err := io.ReadFull(c, token[:])
	_ = c.SetReadDeadline(time.Time{})
	r.mu.Lock()
	e := r.ends[token]
	r.mu.Unlock()
	if err != nil || e == nil {
		c.Close() // a ring that is over
		return
	}
	select {
	case e.conns <- c:
	case <-e.done:
		c.Close()
	}
}

// Dial implements worker.Rings.
func (r *rings) Dial(ctx context.Context, addr string) (net.Conn, error) {
	at, name, _ := strings.Cut(addr, "/")
	token, err := hex.DecodeString(name)
	if err != nil || len(token) != ringToken {
		return nil, fmt.Errorf("%q is no address of a rank", addr)
	}
	c, err := r.port.Dial(ctx, port.Call{Addr: at, Protocol: ringProtocol})
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(token); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Accept implements net.Listener.
func (e *ringEnd) Accept() (net.Conn, error) {
	select {
	case c := <-e.conns:
		return c, nil
	case <-e.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (e *ringEnd) Close() error {
	e.once.Do(func() {
		close(e.done)
		e.of.mu.Lock()
		delete(e.of.ends, e.token)
		e.of.mu.Unlock()
		for {
			select {
			case c := <-e.conns:
				c.Close()
			default:
				return
			}
		}
	})
	return nil
}

// Addr implements net.Listener.
func (e *ringEnd) Addr() net.Addr { return e.of.port.Addr() }
