package ring

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stream is one connection that neither reads nor writes waiting.
type stream interface {
	read(b []byte) (int, error)  // 0 bytes: nothing there now
	write(b []byte) (int, error) // 0 bytes: no room now
	fd() int                     // to poll for
	events(want int16) int16     // … these events
	close() error
}

// newStream takes a connection over. A socket is read and written by itself, also
// one below TLS; what is none through goroutines. reads says which way it is used.
func newStream(c net.Conn, reads bool) (stream, error) {
	switch c := c.(type) {
	case *tls.Conn:
		if s, err := newSealed(c); s != nil || err != nil {
			return s, err
		}
	case filer:
		return newSocket(c)
	}
	return newPump(c, reads)
}

// filer is a connection with a file descriptor.
type filer interface {
	net.Conn
	File() (*os.File, error)
}

// newSocket takes a connection's descriptor.
func newSocket(c filer) (*socket, error) {
	if t, ok := c.(*net.TCPConn); ok {
		if err := t.SetNoDelay(true); err != nil {
			return nil, err
		}
	}
	file, err := c.File() // a copy, closed at exec
	if err != nil {
		return nil, err
	}
	if err := c.Close(); err != nil {
		file.Close()
		return nil, err
	}
	s := &socket{f: file, n: int(file.Fd())}
	if err := unix.SetNonblock(s.n, true); err != nil {
		file.Close()
		return nil, err
	}
	return s, nil
}

// socket is a file descriptor that never blocks.
type socket struct {
	f *os.File
	n int
}

func (s *socket) fd() int                 { return s.n }
func (s *socket) events(want int16) int16 { return want }
func (s *socket) close() error            { return s.f.Close() }

// The calls below return at once, so the run-time need not be told of them.

func (s *socket) read(b []byte) (int, error) {
	n, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(s.n), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if n == 0 && e == 0 && len(b) > 0 {
		return 0, io.EOF
	}
	return later(int(n), e)
}

func (s *socket) write(b []byte) (int, error) {
	n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(s.n), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	return later(int(n), e)
}

func later(n int, e unix.Errno) (int, error) {
	switch e {
	case 0:
		return n, nil
	case unix.EAGAIN, unix.EINTR:
		return 0, nil
	}
	return 0, e
}

// pump carries a connection that is no plain socket: a goroutine reads ahead or
// writes behind, through one buffer, and an eventfd tells when there is something.
type pump struct {
	conn  net.Conn
	event int
	reads bool

	mu   sync.Mutex
	cond *sync.Cond
	buf  []byte // data, from r to w
	r, w int
	err  error
	done chan struct{}
}

const pumpBuffer = 1 << 20

func newPump(c net.Conn, reads bool) (*pump, error) {
	e, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	p := &pump{conn: c, event: e, reads: reads, buf: make([]byte, pumpBuffer), done: make(chan struct{})}
	p.cond = sync.NewCond(&p.mu)
	if reads {
		go p.fill()
	} else {
		go p.drain()
	}
	return p, nil
}

func (p *pump) fd() int            { return p.event }
func (p *pump) events(int16) int16 { return unix.POLLIN }

func (p *pump) signal() {
	one := [8]byte{1}
	_, _ = unix.Write(p.event, one[:]) // full: it is signalled already
}

func (p *pump) clearSignal() {
	var b [8]byte
	_, _ = unix.Read(p.event, b[:])
}

// fill reads ahead.
func (p *pump) fill() {
	defer close(p.done)
	tmp := make([]byte, 64<<10)
	for {
		n, err := p.conn.Read(tmp)
		p.mu.Lock()
		for at := 0; at < n && p.err == nil; {
			if p.w == len(p.buf) {
				if p.r == 0 {
					p.cond.Wait()
					continue
				}
				p.w = copy(p.buf, p.buf[p.r:p.w])
				p.r = 0
			}
			k := copy(p.buf[p.w:], tmp[at:n])
			p.w += k
			at += k
			p.signal()
		}
		if err != nil && p.err == nil {
			p.err = err
			p.signal()
		}
		stop := p.err != nil
		p.mu.Unlock()
		if stop {
			return
		}
	}
}

// drain writes behind.
func (p *pump) drain() {
	defer close(p.done)
	tmp := make([]byte, 256<<10)
	for {
		p.mu.Lock()
		for p.r == p.w && p.err == nil {
			p.cond.Wait()
		}
		if p.r == p.w {
			p.mu.Unlock()
			return
		}
		n := copy(tmp, p.buf[p.r:p.w])
		if p.r += n; p.r == p.w {
			p.r, p.w = 0, 0
		}
		p.signal()
		p.mu.Unlock()
		_, err := p.conn.Write(tmp[:n])
		if err != nil {
			p.mu.Lock()
			if p.err == nil {
				p.err = err
			}
			p.r, p.w = 0, 0
			p.mu.Unlock()
			p.signal()
			return
		}
	}
}

func (p *pump) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := copy(b, p.buf[p.r:p.w])
	if p.r += n; p.r == p.w {
		p.r, p.w = 0, 0
		p.clearSignal()
	}
	if n == 0 && p.err != nil {
		return 0, p.err
	}
	p.cond.Signal()
	return n, nil
}

func (p *pump) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return 0, p.err
	}
	if p.w == len(p.buf) && p.r > 0 {
		p.w = copy(p.buf, p.buf[p.r:p.w])
		p.r = 0
	}
	n := copy(p.buf[p.w:], b)
	p.w += n
	if n == 0 {
		p.clearSignal()
	} else {
		p.cond.Signal()
	}
	return n, nil
}

// close ends the goroutine; what was written goes out first.
func (p *pump) close() error {
	p.mu.Lock()
	if p.err == nil {
		p.err = net.ErrClosed
	}
	p.cond.Broadcast()
	p.mu.Unlock()
	if p.reads {
		p.conn.Close()
	}
	<-p.done
	_ = p.conn.Close() // the other side may be first: its goodbye has been heard
	return unix.Close(p.event)
}
