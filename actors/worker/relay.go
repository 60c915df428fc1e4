package worker

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/gpu/ring"
)

// A child has no certificate and no port: it reaches ranks of other nodes through its
// node, over an abstract unix socket that takes processes of the node's user alone.
//
//	child → node  u8 what | u16 length | text
//	  dial        the other rank's address
//	  listen      the child's own unix socket, to which others' connections are handed on
//	node → child  u8 0 | u16 length | the address to give to others, of listen
//	              u8 1 | u16 length | why not
//
// After dial the connection is the other rank's; after listen it says nothing, and its
// end ends the listening.

const (
	relayDial   = 'D'
	relayListen = 'L'
	relayTime   = 10 * time.Second
)

// Rings is how a node's ranks reach those of others.
type Rings interface {
	Listen() (net.Listener, string) // and the address that others dial
	Dial(ctx context.Context, addr string) (net.Conn, error)
	Secured() bool // connections are encrypted and authenticated
}

// Relay serves a node's children. Close ends it.
type Relay struct {
	rings  Rings
	l      *net.UnixListener
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// NewRelay listens for children.
func NewRelay(r Rings) (*Relay, error) {
	l, err := net.Listen("unix", abstract("relay"))
	if err != nil {
		return nil, fmt.Errorf("listen for workers: %w", err)
	}
	y := &Relay{rings: r, l: l.(*net.UnixListener)}
	y.ctx, y.cancel = context.WithCancel(context.Background())
	y.wg.Go(y.serve)
	return y, nil
}

// At says where children find it.
func (y *Relay) At() RelayAt { return RelayAt{y.l.Addr().String(), y.rings.Secured()} }

// RelayAt is a Relay as children know it; the zero value is none.
type RelayAt struct {
	Socket  string `msgpack:"socket"`
	Secured bool   `msgpack:"secured"`
}

// Close cuts all connections.
func (y *Relay) Close() error {
	y.cancel()
	err := y.l.Close()
	y.wg.Wait()
	return err
}

func (y *Relay) serve() {
	for {
		c, err := y.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(5 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		y.wg.Go(func() {
			defer c.Close()
			defer context.AfterFunc(y.ctx, func() { c.Close() })()
			y.hear(c)
		})
	}
}

// hear does what one child asks for.
func (y *Relay) hear(c *net.UnixConn) {
	if uid, err := peerUser(c); err != nil || uid != os.Getuid() {
		return
	}
	_ = c.SetDeadline(time.Now().Add(relayTime))
	what, text, err := readWord(c)
	if err != nil {
		return
	}
	switch what {
	case relayDial:
		ctx, cancel := context.WithTimeout(y.ctx, relayTime)
		far, err := y.rings.Dial(ctx, text)
		cancel()
		if err != nil {
			_ = writeWord(c, 1, err.Error())
			return
		}
		defer far.Close()
		if writeWord(c, 0, "") == nil {
			y.join(c, far)
		}
	case relayListen:
		l, addr := y.rings.Listen()
		defer l.Close()
		if writeWord(c, 0, addr) != nil {
			return
		}
		y.wg.Go(func() { y.hand(l, text) })
		_ = c.SetDeadline(time.Time{})
		_, _ = c.Read(make([]byte, 1))
	default:
		_ = writeWord(c, 1, fmt.Sprintf("nothing is called %q", what))
	}
}

// hand hands connections of other nodes to a child.
func (y *Relay) hand(l net.Listener, socket string) {
	for {
		far, err := l.Accept()
		if err != nil {
			return
		}
		y.wg.Go(func() {
			defer far.Close()
			near, err := net.Dial("unix", socket)
			if err != nil {
				return // the child is gone
			}
			defer near.Close()
			y.join(near, far)
		})
	}
}

// join carries both ways until one side ends.
func (y *Relay) join(a, b net.Conn) {
	_ = a.SetDeadline(time.Time{})
	defer context.AfterFunc(y.ctx, func() {
		a.Close()
		b.Close()
	})()
	done := make(chan struct{}, 2)
	carry := func(to, from net.Conn) {
		_, _ = io.Copy(to, from) // the end of one side is the other's to see
		// A rank that dies is known by the end of its connection.
		to.Close()
		from.Close()
		done <- struct{}{}
	}
	go carry(a, b)
	go carry(b, a)
	<-done
	<-done
}

// endpoint is a child's, through its node.
func (at RelayAt) endpoint() (*ring.Endpoint, error) {
	l, err := net.Listen("unix", abstract("rank"))
	if err != nil {
		return nil, fmt.Errorf("listen for ranks: %w", err)
	}
	c, addr, err := at.ask(relayListen, l.Addr().String())
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return ring.NewEndpoint(ring.EndpointConfig{
		Listener: &held{l, c}, Advertise: addr, Secured: at.Secured,
		Dial: func(ctx context.Context, addr string) (net.Conn, error) {
			c, _, err := at.ask(relayDial, addr)
			return c, err
		},
	})
}

// form is ring.Form at an endpoint of its own, through the node if it has a relay.
func (at RelayAt) form(ctx context.Context, cfg ring.Config) (*ring.Comm, error) {
	if at.Socket == "" {
		return ring.Form(ctx, cfg)
	}
	e, err := at.endpoint()
	if err != nil {
		return nil, err
	}
	cfg.Endpoint, cfg.OwnEndpoint = e, true
	return ring.Form(ctx, cfg)
}

// held is a listener that keeps its registration.
type held struct {
	net.Listener
	registered net.Conn
}

// Close implements net.Listener.
func (h *held) Close() error { return errors.Join(h.Listener.Close(), h.registered.Close()) }

func (at RelayAt) ask(what byte, text string) (net.Conn, string, error) {
	c, err := net.DialTimeout("unix", at.Socket, relayTime)
	if err != nil {
		return nil, "", fmt.Errorf("the node's relay: %w", err)
	}
	_ = c.SetDeadline(time.Now().Add(2 * relayTime))
	if err := writeWord(c, what, text); err != nil {
		return nil, "", errors.Join(err, c.Close())
	}
	failed, answer, err := readWord(c)
	if err == nil && failed != 0 {
		err = errors.New(answer)
	}
	if err != nil {
		return nil, "", errors.Join(err, c.Close())
	}
	return c, answer, c.SetDeadline(time.Time{})
}

func writeWord(w io.Writer, what byte, text string) error {
	text = text[:min(len(text), 1<<16-1)]
	b := append([]byte{what}, binary.LittleEndian.AppendUint16(nil, uint16(len(text)))...)
	_, err := w.Write(append(b, text...))
	return err
}

func readWord(r io.Reader) (what byte, text string, err error) {
	var head [3]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, "", err
	}
	b := make([]byte, binary.LittleEndian.Uint16(head[1:]))
	_, err = io.ReadFull(r, b)
	return head[0], string(b), err
}

// peerUser is who is at the other end of a unix socket.
func peerUser(c *net.UnixConn) (uid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); e != nil {
		return 0, e
	}
	if err != nil {
		return 0, err
	}
	return int(cred.Uid), nil
}

// abstract is the name of a new abstract unix socket.
func abstract(what string) string { return "@autoglm-" + what + "-" + rand.Text() }
