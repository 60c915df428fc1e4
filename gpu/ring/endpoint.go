package ring

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"
)

// EndpointConfig says where a process listens for other ranks, and how it reaches
// them.
type EndpointConfig struct {
	// Listener takes TCP connections, or what stands for them (a TLS listener);
	// nil listens on Address, which is "127.0.0.1:0" when empty.
	Listener net.Listener
	Address  string
	// Advertise is the address that others are told; "" is the listener's.
	Advertise string
	// Dial reaches another rank's TCP address; nil is a plain connection.
	Dial func(ctx context.Context, addr string) (net.Conn, error)
	// TLS secures TCP on both sides; nil is plain, or what Listener and Dial do. With
	// a ServerName that one is checked, otherwise the host of the dialled address.
	// Shared memory and unix sockets need none: nobody else can reach them.
	TLS *tls.Config
	// Secured says that Listener and Dial encrypt and authenticate.
	Secured bool
	// NoLocal leaves unix sockets, and with them shared memory, out.
	NoLocal bool
	// NoTCP leaves TCP out.
	NoTCP bool
}

// Endpoint is where a process takes other ranks' connections. It outlives rings:
// a rank of an old epoch that comes back is told so, and one that is ahead waits
// until this one has come as far. It serves one ring at a time.
type Endpoint struct {
	host  string
	cfg   EndpointConfig
	local net.Listener // abstract unix socket
	tcp   net.Listener
	wg    sync.WaitGroup

	mu struct {
		sync.Mutex
		closed bool
		begun  bool                  // an epoch was expected
		epoch  uint64                // the highest that was
		guests map[uint64]chan guest // by epoch
		conns  map[net.Conn]bool     // that have not said who they are
	}
}

// guest is a connection that has said hello.
type guest struct {
	conn  net.Conn
	hello hello
}

const (
	helloTime  = 5 * time.Second // for a new connection to say who it is
	guestLimit = 4096            // guests that wait for an epoch
)

// NewEndpoint opens the listeners.
func NewEndpoint(cfg EndpointConfig) (*Endpoint, error) {
	e := &Endpoint{cfg: cfg, host: hostID(), tcp: cfg.Listener}
	e.mu.guests, e.mu.conns = map[uint64]chan guest{}, map[net.Conn]bool{}
	if e.tcp == nil && !cfg.NoTCP {
		addr := cfg.Address
		if addr == "" {
			addr = "127.0.0.1:0"
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("listen for ranks: %w", err)
		}
		e.tcp = l
	}
	if cfg.TLS != nil && e.tcp != nil {
		e.tcp = e.cfg.overTLS(e.tcp)
	}
	if !cfg.NoLocal {
		var name [12]byte
		rand.Read(name[:])
		l, err := net.Listen("unix", "@autoglm-ring-"+hex.EncodeToString(name[:]))
		if err != nil {
			if e.tcp != nil {
				e.tcp.Close()
			}
			return nil, fmt.Errorf("listen for ranks: %w", err)
		}
		e.local = l
		e.wg.Go(func() { e.serve(l) })
	}
	if e.tcp != nil {
		e.wg.Go(func() { e.serve(e.tcp) })
	}
	return e, nil
}

// serve takes connections until the listener closes.
func (e *Endpoint) serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			e.mu.Lock()
			closed := e.mu.closed
			e.mu.Unlock()
			if closed {
				return
			}
			time.Sleep(5 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		e.mu.Lock()
		closed := e.mu.closed
		e.mu.conns[c] = true
		e.mu.Unlock()
		if closed {
			c.Close()
			return
		}
		e.wg.Go(func() { e.hear(c) })
	}
}

// hear learns who a connection is from and passes it on to its epoch.
func (e *Endpoint) hear(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(helloTime))
	h, err := readHello(c)
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.mu.conns, c)
	why := ""
	switch {
	case e.mu.closed:
		why = "this rank is shutting down"
	case err != nil:
		why = err.Error()
	case h.epoch < e.mu.epoch, h.epoch == e.mu.epoch && e.mu.begun && e.mu.guests[h.epoch] == nil:
		why = fmt.Sprintf("epoch %d is over or has begun without this rank (epoch %d); form a new ring to come back", h.epoch, e.mu.epoch)
	default:
		select {
		case e.waiting(h.epoch) <- guest{c, h}:
			return
		default:
			why = "too many connections wait for this epoch"
		}
	}
	_ = writeAnswer(c, why) // whoever it was may be gone
	c.Close()
}

func (e *Endpoint) waiting(epoch uint64) chan guest {
	if e.mu.guests[epoch] == nil {
		e.mu.guests[epoch] = make(chan guest, guestLimit)
	}
	return e.mu.guests[epoch]
}

// expect gives the guests of an epoch as they come, and sends those of earlier
// ones away.
func (e *Endpoint) expect(epoch uint64) <-chan guest {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.begun, e.mu.epoch = true, max(e.mu.epoch, epoch)
	for old, guests := range e.mu.guests {
		if old < epoch {
			dismiss(guests, fmt.Sprintf("epoch %d is over, this rank is at epoch %d", old, epoch))
			delete(e.mu.guests, old)
		}
	}
	return e.waiting(epoch)
}

// unexpect ends an expectation: who comes now comes too late.
func (e *Endpoint) unexpect(epoch uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if guests := e.mu.guests[epoch]; guests != nil {
		dismiss(guests, fmt.Sprintf("the ring of epoch %d is formed; there is no place left in it", epoch))
		delete(e.mu.guests, epoch)
	}
}

func dismiss(guests chan guest, why string) {
	for {
		select {
		case g := <-guests:
			_ = writeAnswer(g.conn, why) // whoever it was may be gone
			g.conn.Close()
		default:
			return
		}
	}
}

// Close stops listening.
func (e *Endpoint) Close() error {
	e.mu.Lock()
	e.mu.closed = true
	for c := range e.mu.conns {
		c.Close()
	}
	for _, guests := range e.mu.guests {
		dismiss(guests, "this rank is shutting down")
	}
	clear(e.mu.guests)
	e.mu.Unlock()
	var err error
	if e.tcp != nil {
		err = e.tcp.Close()
	}
	if e.local != nil {
		err = errors.Join(err, e.local.Close())
	}
	e.wg.Wait()
	return err
}

func (e *Endpoint) unixAddr() string {
	if e.local == nil {
		return ""
	}
	return e.local.Addr().String()
}

func (e *Endpoint) tcpAddr() string {
	switch {
	case e.tcp == nil:
		return ""
	case e.cfg.Advertise != "":
		return e.cfg.Advertise
	}
	return e.tcp.Addr().String()
}

// hostID is the same in processes that can share memory: one kernel, one network
// namespace (abstract unix sockets belong to it).
func hostID() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	ns, _ := os.Readlink("/proc/self/ns/net")
	return strings.TrimSpace(string(boot)) + " " + ns
}
