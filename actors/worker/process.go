package worker

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of a child. A slow machine is given time; a stopped one is found by
// the ring's own heartbeat long before.
const (
	pingEvery  = time.Second
	pingMissed = 5                // so many in a row without an answer, and the child is killed
	helloTime  = 60 * time.Second // to load the libraries and say hello
	writeTime  = 10 * time.Second // for a message to be taken
)

// process is one child and its host's end of the socket.
type process struct {
	cmd    *exec.Cmd
	conn   net.Conn
	words  lastWords
	in     chan message  // what it says, but for pongs
	exited chan struct{} // closed when it is gone and its state is known
	hung   chan struct{} // closed when nobody listens any more
	wg     sync.WaitGroup

	out sync.Mutex // one frame at a time
	mu  struct {
		sync.Mutex
		why    error // the first reason to end it
		missed int   // pings without an answer
	}
}

// start starts a child and waits for its hello.
func start(cfg Config) (*process, error) {
	p := &process{in: make(chan message), exited: make(chan struct{}), hung: make(chan struct{})}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start a worker: socket pair: %w", err)
	}
	mine, theirs := os.NewFile(uintptr(pair[0]), "worker"), os.NewFile(uintptr(pair[1]), "host")
	p.conn, err = net.FileConn(mine)
	mine.Close()
	if err != nil {
		theirs.Close()
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	p.cmd = cfg.Command()
	if p.cmd.Env == nil {
		p.cmd.Env = os.Environ()
	}
	p.cmd.Env = append(p.cmd.Env, cfg.Env...)
	p.cmd.ExtraFiles = []*os.File{theirs}
	p.cmd.Stdout, p.cmd.Stderr = &p.words, &p.words
	p.cmd.WaitDelay = time.Second
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begun := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends, so
		// that thread waits for it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.cmd.Start()
		begun <- err
		if err == nil {
			_ = p.cmd.Wait() // its state says it all
		}
		close(p.exited)
	}()
	err = <-begun
	theirs.Close() // or its end would not be the socket's
	if err != nil {
		p.conn.Close()
		return nil, fmt.Errorf("start a worker: %w", err)
	}
	p.wg.Go(p.listen)
	hello := time.NewTimer(helloTime)
	defer hello.Stop()
	select {
	case m, ok := <-p.in:
		if _, is := m.(*helloMsg); ok && is {
			p.wg.Go(func() { p.watch(cfg.Ping) })
			return p, nil
		}
		if ok {
			p.kill(fmt.Errorf("it began with a %T", m))
		}
	case <-hello.C:
		p.kill(fmt.Errorf("it said no hello within %s", helloTime))
	}
	p.close()
	err = fmt.Errorf("start a worker: %w", p.reason())
	if w, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && w.Signaled() && p.killedBy() == nil {
		err = &strayError{err}
	}
	return nil, err
}

// strayError is the error of a child that a signal ended before it had begun: no
// fault of the program, which another try may mend.
type strayError struct{ error }

// killedBy is the host's own reason to end the child, nil where it had none.
func (p *process) killedBy() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.why
}

// listen passes on what the child says until it hangs up.
func (p *process) listen() {
	defer close(p.in)
	for {
		m, err := readFrame(p.conn)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
				p.kill(fmt.Errorf("what it says makes no sense: %w", err))
			}
			// It hung up: it is ending, or it is of no use any more.
			select {
			case <-p.exited:
			case <-time.After(5 * time.Second):
				p.kill(errors.New("it hung up and did not end"))
				<-p.exited
			}
			return
		}
		if _, ok := m.(*pongMsg); ok {
			p.mu.Lock()
			p.mu.missed = 0
			p.mu.Unlock()
			continue
		}
		select {
		case p.in <- m:
		case <-p.hung:
			return
		}
	}
}

// watch asks whether the child lives. It counts its own questions rather than
// the clock: a host that was stopped itself must not blame the child.
func (p *process) watch(every time.Duration) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-p.exited:
			return
		case <-p.hung:
			return
		case <-t.C:
		}
		p.mu.Lock()
		p.mu.missed++
		missed := p.mu.missed
		p.mu.Unlock()
		if missed > pingMissed {
			p.kill(fmt.Errorf("it has not answered for %s", pingMissed*every))
			return
		}
		_ = p.send(&pingMsg{}) // its end is told by listen
	}
}

func (p *process) send(m message) error {
	b, err := encode(m)
	if err != nil {
		return err
	}
	p.out.Lock()
	defer p.out.Unlock()
	if err := p.conn.SetWriteDeadline(time.Now().Add(writeTime)); err != nil {
		return err
	}
	if _, err = p.conn.Write(b); errors.Is(err, os.ErrDeadlineExceeded) {
		p.kill(fmt.Errorf("it has taken no message for %s", writeTime))
	}
	return err
}

// tell is send to a child that is of no use where it can't be told. One that is
// gone already is noticed by listen, with its true reason.
func (p *process) tell(m message) {
	if err := p.send(m); err != nil && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
		p.kill(err)
	}
}

// kill ends the child now; the first reason stays.
func (p *process) kill(why error) {
	p.mu.Lock()
	if p.mu.why == nil {
		p.mu.why = why
	}
	p.mu.Unlock()
	_ = p.cmd.Process.Kill() // it may be gone
}

// reason is why a child has ended, with its last words. Only after exited.
func (p *process) reason() error {
	why := p.killedBy()
	state := "is gone"
	if s := p.cmd.ProcessState; s != nil {
		if w, ok := s.Sys().(syscall.WaitStatus); ok && w.Signaled() {
			state = fmt.Sprintf("was killed by signal %d (%s)", int(w.Signal()), w.Signal())
			if why == nil && w.Signal() == syscall.SIGKILL {
				state += "; where nobody killed it, the machine was out of memory (see dmesg)"
			}
		} else {
			state = "ended with " + s.String()
		}
	}
	text := fmt.Sprintf("worker process %d %s", p.cmd.Process.Pid, state)
	if why != nil {
		text = fmt.Sprintf("worker process %d was ended: %v", p.cmd.Process.Pid, why)
	}
	if last := p.words.String(); last != "" {
		text += "; its last words:\n" + last
	}
	return errors.New(text)
}

// close ends the child, if it has not ended, and waits until nothing of it is
// left.
func (p *process) close() {
	select {
	case <-p.hung:
	default:
		close(p.hung)
	}
	p.conn.Close() // the end of the socket ends it
	select {
	case <-p.exited:
	case <-time.After(2 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	p.wg.Wait()
}

// alive tells whether the child may be used again.
func (p *process) alive() bool {
	select {
	case <-p.exited:
		return false
	default:
		return p.killedBy() == nil
	}
}

// Of what a child prints the beginning and the end are kept: a crash says what
// it is in its first lines, a library in its last.
const (
	headBytes = 1500
	tailBytes = 1500
)

// lastWords keeps the beginning and the end of what was written.
type lastWords struct {
	mu         sync.Mutex
	head, tail []byte
	cut        bool
}

// Write implements io.Writer.
func (l *lastWords) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(b)
	if room := headBytes - len(l.head); room > 0 {
		k := min(room, len(b))
		l.head, b = append(l.head, b[:k]...), b[k:]
	}
	l.tail = append(l.tail, b...)
	if over := len(l.tail) - tailBytes; over > 0 {
		l.tail, l.cut = append(l.tail[:0], l.tail[over:]...), true
	}
	return n, nil
}

func (l *lastWords) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b bytes.Buffer
	b.Write(l.head)
	if l.cut {
		b.WriteString("\n…\n")
	}
	b.Write(l.tail)
	return strings.TrimSpace(strings.ToValidUTF8(b.String(), "?"))
}
