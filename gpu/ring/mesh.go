package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// mesh holds a control connection to every other rank: who died, stopped, gave up
// or left is known to all without a word from anybody in between.
//
//	frame: 1 type | 3 zero | 4 length | 8 value | text
type mesh struct {
	rank   int
	peers  []*control // nil at rank
	stop   *stopper
	events Events
	beat   time.Duration
	limit  time.Duration // without a sign of life

	closing atomic.Bool
	quit    chan struct{}
	wg      sync.WaitGroup
}

// Frame types.
const (
	frameBeat  = 'h'
	frameBye   = 'b'
	frameAbort = 'a' // text: why
	frameLost  = 'l' // value: the rank that was lost; text: why
	frameFile  = 'f' // value: what it is; a file descriptor comes along
	frameOp    = 'o' // value: an operation's number; text: what it is
	frameNote  = 'n' // text: what a library of rank 0 tells the others
)

const frameHead = 16

// control is the connection to one rank.
type control struct {
	rank int
	conn net.Conn
	left atomic.Bool
	file chan file
	next time.Time // when data counts as a sign of life again; of heard
	ops  chan opHead
	note chan []byte

	mu sync.Mutex // of writes
}

// file is a descriptor that another rank sent.
type file struct {
	what uint64
	f    *os.File
}

func newMesh(rank int, conns []net.Conn, stop *stopper, cfg *Config) *mesh {
	m := &mesh{rank: rank, stop: stop, events: cfg.Events, beat: cfg.Heartbeat, limit: cfg.Suspect, quit: make(chan struct{})}
	m.peers = make([]*control, len(conns))
	for r, c := range conns {
		if c != nil {
			m.peers[r] = &control{rank: r, conn: c, file: make(chan file, 4), ops: make(chan opHead, 4), note: make(chan []byte, 4)}
		}
	}
	for _, p := range m.peers {
		if p != nil {
			m.wg.Add(1)
			go m.listen(p)
		}
	}
	m.wg.Add(1)
	go m.pulse()
	return m
}

func (m *mesh) left(r int) bool { return m.peers[r] != nil && m.peers[r].left.Load() }

// heard takes data from a rank as a sign of life: on a link that is full with it
// heartbeats come late. Called by the transport's goroutine alone.
func (m *mesh) heard(r int) {
	p, now := m.peers[r], time.Now()
	if p == nil || now.Before(p.next) || m.closing.Load() {
		return
	}
	p.next = now.Add(m.limit / 8)
	_ = p.conn.SetReadDeadline(now.Add(m.limit)) // a broken one is found by listen
}

// lose ends the ring because of one rank.
func (m *mesh) lose(rank int, why string) {
	if m.closing.Load() {
		return
	}
	if !m.stop.stop(&LostError{Rank: rank, Why: why}) {
		return
	}
	// The others hear it before they hear this rank's goodbye.
	m.tellAll(frameLost, uint64(rank), why)
	if m.events.Lost != nil {
		m.events.Lost(rank, why)
	}
}

// abort tells the others that this rank gives up.
func (m *mesh) abort(reason error) {
	if m.stop.stop(reason) {
		var lost *LostError
		if errors.As(reason, &lost) {
			m.tellAll(frameLost, uint64(lost.Rank), lost.Why)
			return
		}
		m.tellAll(frameAbort, 0, reason.Error())
	}
}

func (m *mesh) tellAll(kind byte, value uint64, text string) {
	for _, p := range m.peers {
		if p != nil && !p.left.Load() {
			_ = p.send(kind, value, text, -1) // whoever can't hear it is lost anyway
		}
	}
}

// pulse tells the others that this process runs.
func (m *mesh) pulse() {
	defer m.wg.Done()
	t := time.NewTicker(m.beat)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			m.tellAll(frameBeat, 0, "")
		case <-m.quit:
			return
		}
	}
}

// send writes a frame; fd ≥ 0 goes along on a unix socket.
func (p *control) send(kind byte, value uint64, text string, fd int) error {
	text = text[:min(len(text), maxText)]
	b := make([]byte, frameHead, frameHead+len(text))
	b[0] = kind
	binary.LittleEndian.PutUint32(b[4:], uint32(len(text)))
	binary.LittleEndian.PutUint64(b[8:], value)
	b = append(b, text...)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.conn.SetWriteDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	if fd >= 0 {
		u, ok := p.conn.(*net.UnixConn)
		if !ok {
			return errors.New("files travel over unix sockets only")
		}
		_, _, err := u.WriteMsgUnix(b, unix.UnixRights(fd), nil)
		return err
	}
	_, err := p.conn.Write(b)
	return err
}

// listen takes one rank's frames until it leaves or is lost.
func (m *mesh) listen(p *control) {
	defer m.wg.Done()
	defer close(p.file)
	defer close(p.ops)
	defer close(p.note)
	defer p.conn.Close()
	var head [frameHead]byte
	for {
		if !m.closing.Load() {
			if err := p.conn.SetReadDeadline(time.Now().Add(m.limit)); err != nil {
				m.lose(p.rank, "its connection broke: "+err.Error())
				return
			}
		}
		f, err := p.read(head[:])
		var text string
		if err == nil {
			text, err = readText(p.conn, int(min(binary.LittleEndian.Uint32(head[4:]), maxText+1)))
		}
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			m.lose(p.rank, fmt.Sprintf("no sign of life for %s", m.limit))
			return
		case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET):
			m.lose(p.rank, "its process ended or its connection broke")
			return
		default:
			m.lose(p.rank, "its connection broke: "+err.Error())
			return
		}
		switch head[0] {
		case frameBye:
			p.left.Store(true)
			return
		case frameAbort:
			m.stop.stop(fmt.Errorf("rank %d gave up: %s", p.rank, text))
		case frameLost:
			if r := int(binary.LittleEndian.Uint64(head[8:])); r == m.rank {
				m.lose(r, fmt.Sprintf("rank %d has given it up: %s", p.rank, text))
			} else {
				m.lose(r, text)
			}
		case frameOp:
			h, err := parseOpHead(binary.LittleEndian.Uint64(head[8:]), text)
			if err == nil {
				select {
				case p.ops <- h:
				default: // nobody is so far ahead
					err = fmt.Errorf("%w: rank %d announces operation %d too early", ErrOutOfStep, p.rank, h.seq)
				}
			}
			if err != nil {
				m.abort(err)
			}
		case frameNote:
			select {
			case p.note <- []byte(text):
			default:
				m.abort(fmt.Errorf("%w: rank %d tells more than is asked for", ErrOutOfStep, p.rank))
			}
		case frameFile:
			if f != nil {
				p.file <- file{binary.LittleEndian.Uint64(head[8:]), f}
				f = nil
			}
		}
		if f != nil {
			f.Close()
		}
	}
}

// read fills b; a descriptor that comes with it is returned.
func (p *control) read(b []byte) (f *os.File, err error) {
	u, ok := p.conn.(*net.UnixConn)
	if !ok {
		_, err := io.ReadFull(p.conn, b)
		return nil, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	for at := 0; at < len(b); {
		n, on, _, _, err := u.ReadMsgUnix(b[at:], oob)
		if err == nil && n == 0 {
			err = io.EOF
		}
		if on > 0 && f == nil {
			f = received(oob[:on])
		}
		if err != nil {
			if f != nil {
				f.Close()
			}
			return nil, err
		}
		at += n
	}
	return f, nil
}

// received unpacks a descriptor, closed at exec; nil when there is none.
func received(oob []byte) *os.File {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil || len(fds) == 0 {
			continue
		}
		for _, extra := range fds[1:] {
			unix.Close(extra)
		}
		unix.CloseOnExec(fds[0])
		return os.NewFile(uintptr(fds[0]), "ring memory")
	}
	return nil
}

// close says goodbye and frees the connections, within Config.Suspect.
func (m *mesh) close() error {
	if m.closing.Swap(true) {
		return nil
	}
	m.stop.stop(ErrClosed)
	close(m.quit)
	m.tellAll(frameBye, 0, "")
	// Whoever hears it hangs up. To hang up first would, over TCP, take back what
	// it has not read yet.
	var lost *LostError
	errors.As(m.stop.reason(), &lost)
	for _, p := range m.peers {
		if p == nil {
			continue
		}
		patience := m.limit
		if lost != nil && lost.Rank == p.rank {
			patience = 0 // it hears nothing
		}
		_ = p.conn.SetReadDeadline(time.Now().Add(patience))
	}
	m.wg.Wait()
	for _, p := range m.peers {
		if p != nil {
			for f := range p.file {
				f.f.Close()
			}
		}
	}
	return nil
}
