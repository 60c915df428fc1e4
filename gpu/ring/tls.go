package ring

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"sync"
)

// TLS over long messages: crypto/tls writes each record of 16 KiB by itself, and
// over loopback it is system calls that cost. batched gathers records and reads
// many at once.
type batched struct {
	net.Conn
	r *bufio.Reader

	mu    sync.Mutex
	batch bool // gather writes until flush
	w     []byte
}

const batchBytes = 256 << 10

func newBatched(c net.Conn) *batched { return &batched{Conn: c, r: bufio.NewReaderSize(c, 64<<10)} }

func (b *batched) Read(p []byte) (int, error) { return b.r.Read(p) }

func (b *batched) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.batch {
		return b.Conn.Write(p)
	}
	b.w = append(b.w, p...)
	if len(b.w) >= batchBytes {
		return len(p), b.send()
	}
	return len(p), nil
}

func (b *batched) send() error {
	_, err := b.Conn.Write(b.w)
	b.w = b.w[:0]
	return err
}

func (b *batched) gather() {
	b.mu.Lock()
	b.batch = true
	b.mu.Unlock()
}

func (b *batched) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.w) == 0 {
		return nil
	}
	return b.send()
}

// tlsListener takes TLS connections. The handshake is done by whoever reads first.
type tlsListener struct {
	net.Listener
	cfg *tls.Config
}

func (l *tlsListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return tls.Server(newBatched(c), l.cfg), nil
}

// overTLS makes an endpoint's listener and dialling speak TLS.
func (c *EndpointConfig) overTLS(l net.Listener) net.Listener {
	cfg := c.TLS.Clone()
	cfg.DynamicRecordSizingDisabled = true
	dial := c.Dial
	if dial == nil {
		var d net.Dialer
		dial = func(ctx context.Context, addr string) (net.Conn, error) { return d.DialContext(ctx, "tcp", addr) }
	}
	c.Dial = func(ctx context.Context, addr string) (net.Conn, error) {
		raw, err := dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		own := cfg
		if own.ServerName == "" && !own.InsecureSkipVerify {
			host, _, err := net.SplitHostPort(addr)
			if err != nil {
				raw.Close()
				return nil, err
			}
			own = cfg.Clone()
			own.ServerName = host
		}
		t := tls.Client(newBatched(raw), own)
		if err := t.HandshakeContext(ctx); err != nil {
			raw.Close()
			return nil, err
		}
		return t, nil
	}
	return &tlsListener{l, cfg}
}
