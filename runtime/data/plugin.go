package data

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// What an executable plugin may be.
const (
	RoleSource = "source"
	RoleClean  = "clean"
)

// protocolVersion is the version of the line protocol in PLUGINS.md.
const protocolVersion = 1

const closeGrace = 500 * time.Millisecond // for a plugin to end by itself

const (
	inFlight  = 64      // records sent ahead of their answers
	stderrEnd = 4 << 10 // bytes of a plugin's stderr that an error quotes
)

// Command is an executable that speaks the line protocol of PLUGINS.md. Connect
// starts it and reads its hello; then a source is fetched, a cleaning step is fed.
// It is for one goroutine; Close ends the process and waits for its readers.
type Command struct {
	Args    []string
	Timeout time.Duration // for each line; 0: one minute
	Log     func(string)  // gets its stderr line by line, may be nil

	name, role string
	config     map[string]string
	cmd        *exec.Cmd
	in         *os.File
	lines      chan []byte
	readErr    error // of the reader, after lines is closed
	stop       chan struct{}
	tail       tailWriter
	waited     chan struct{}
	waitErr    error
	closed     bool
}

// tailWriter keeps the end of what is written, and hands on whole lines.
type tailWriter struct {
	mu struct {
		sync.Mutex
		tail, line []byte
	}
	log func(string)
}

func (t *tailWriter) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.tail = append(t.mu.tail, p...)
	if n := len(t.mu.tail) - stderrEnd; n > 0 {
		t.mu.tail = append(t.mu.tail[:0], t.mu.tail[n:]...)
	}
	if t.log != nil {
		t.mu.line = append(t.mu.line, p...)
		for {
			i := strings.IndexByte(string(t.mu.line), '\n')
			if i < 0 {
				break
			}
			t.log(string(t.mu.line[:i]))
			t.mu.line = t.mu.line[i+1:]
		}
		if len(t.mu.line) > stderrEnd {
			t.mu.line = t.mu.line[:0]
		}
	}
	return len(p), nil
}

func (t *tailWriter) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(strings.ToValidUTF8(string(t.mu.tail), "\uFFFD"))
}

// message is any line of a plugin.
type message struct {
	Plugin  int             `json:"autoglm_plugin"`
	Role    string          `json:"role"`
	Name    string          `json:"name"`
	Version string          `json:"version"`
	Seq     int64           `json:"seq"`
	Record  json.RawMessage `json:"record"`
	Keep    bool            `json:"keep"`
	Drop    *string         `json:"drop"`
	Reason  string          `json:"reason"`
	End     *struct {
		Count int64 `json:"count"`
	} `json:"end"`
	Error *string `json:"error"`
}

// Name names the plugin in errors: "plugin" and its own name.
func (c *Command) Name() string { return "plugin " + c.name }

// Role is RoleSource or RoleClean, known after Connect.
func (c *Command) Role() string { return c.role }

// fail names the plugin and quotes the end of its stderr. The process is ended
// first, so that all of its stderr is there.
func (c *Command) fail(msg string, err error) error {
	_ = c.Close()
	if c.waitErr != nil {
		msg += " (" + c.waitErr.Error() + ")"
	}
	hint := "its stderr was empty"
	if s := c.tail.String(); s != "" {
		hint = "its stderr ends: " + s
	}
	return &InputError{File: c.Name(), Msg: msg, Hint: hint, Err: err}
}

// Connect starts the program, sends the hello line and reads the plugin's.
func (c *Command) Connect(config map[string]string) error {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return &InputError{Field: "plugin", Msg: "no program is named", Hint: "give its path"}
	}
	if c.Timeout == 0 {
		c.Timeout = time.Minute
	}
	c.name, c.config = filepath.Base(c.Args[0]), config
	c.cmd = exec.Command(c.Args[0], c.Args[1:]...)
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.cmd.WaitDelay = time.Second
	c.tail.log = c.Log
	c.cmd.Stderr = &c.tail
	stdin, in, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", c.Name(), err)
	}
	out, stdout, err := os.Pipe()
	if err != nil {
		_, _ = stdin.Close(), in.Close()
		return fmt.Errorf("start %s: %w", c.Name(), err)
	}
	c.cmd.Stdin, c.cmd.Stdout, c.in = stdin, stdout, in
	err = c.cmd.Start()
	_, _ = stdin.Close(), stdout.Close()
	if err != nil {
		_, _ = in.Close(), out.Close()
		c.closed = true
		return &InputError{File: c.Args[0], Field: "plugin", Msg: "cannot be started: " + err.Error(), Hint: "check that it is there and executable", Err: err}
	}
	c.lines, c.stop, c.waited = make(chan []byte, inFlight), make(chan struct{}), make(chan struct{})
	go c.read(out)
	hello, err := json.Marshal(map[string]any{"autoglm": protocolVersion, "config": config})
	if err != nil {
		return c.fail("configuration cannot be sent", err)
	}
	if err := c.send(append(hello, '\n')); err != nil {
		return err
	}
	m, err := c.receive(context.Background())
	if err != nil {
		return err
	}
	switch {
	case m.Plugin == 0:
		return c.fail("does not begin with a hello line", nil)
	case m.Plugin != protocolVersion:
		return c.fail(fmt.Sprintf("speaks version %d of the protocol; this program speaks %d", m.Plugin, protocolVersion), nil)
	case m.Role != RoleSource && m.Role != RoleClean:
		return c.fail(fmt.Sprintf("says it is a %q; it must be a source or a clean", m.Role), nil)
	}
	c.role = m.Role
	if m.Name != "" {
		c.name = cutText([]byte(m.Name), 60)
	}
	return nil
}

// read hands the lines of stdout to receive, then waits for the process.
func (c *Command) read(out *os.File) {
	defer close(c.waited)
	v := newWindow(bufio.NewReader(out))
	for {
		b, long, err := v.line()
		if err == nil && long {
			err = fmt.Errorf("a line is longer than %d bytes", maxLine)
		}
		if err != nil {
			if err != io.EOF {
				c.readErr = err
			}
			break
		}
		select {
		case c.lines <- append([]byte(nil), b...):
			continue
		case <-c.stop:
		}
		break
	}
	_ = out.Close()
	close(c.lines)
	c.waitErr = c.cmd.Wait()
}

func (c *Command) send(b []byte) error {
	if err := c.in.SetWriteDeadline(time.Now().Add(c.Timeout)); err != nil {
		return c.fail("cannot be written to", err)
	}
	if _, err := c.in.Write(b); err != nil {
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return c.fail(fmt.Sprintf("took no input for %s", c.Timeout), err)
		}
		return c.fail("ended before it had taken all its input", err)
	}
	return nil
}

func (c *Command) receive(ctx context.Context) (*message, error) {
	timer := time.NewTimer(c.Timeout)
	defer timer.Stop()
	select {
	case b, ok := <-c.lines:
		if !ok {
			msg := "ended without its end line"
			if c.readErr != nil {
				msg = "cannot be read: " + c.readErr.Error()
			}
			return nil, c.fail(msg, nil)
		}
		return c.parse(b)
	case <-timer.C:
		return nil, c.fail(fmt.Sprintf("gave no line for %s", c.Timeout), nil)
	case <-ctx.Done():
		_ = c.Close()
		return nil, ctx.Err()
	}
}

// parse reads one line of a plugin.
func (c *Command) parse(b []byte) (*message, error) {
	m, err := parseMessage(b)
	if err != nil {
		return nil, c.fail("wrote a line that is not of the protocol: "+cutText(b, 120), err)
	}
	if m.Error != nil {
		return nil, c.fail("reports: "+cutText([]byte(*m.Error), 1000), nil)
	}
	return m, nil
}

func parseMessage(b []byte) (*message, error) {
	var m message
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	if len(m.Record) > 0 {
		var rec Record
		if err := parseObject(m.Record, &rec); err != nil {
			return nil, err
		}
	}
	return &m, nil
}

// Fetch gives a source's records as JSONL.
func (c *Command) Fetch(ctx context.Context) (io.ReadCloser, error) {
	if c.role != RoleSource {
		return nil, c.fail("is a cleaning step and has no records of its own", nil)
	}
	return &commandRecords{c: c, ctx: ctx}, nil
}

// Preprocess gives a source's bytes as they are. A cleaning step reads JSONL and
// gives the JSONL of the rows that it keeps.
func (c *Command) Preprocess(r io.Reader) (io.Reader, error) {
	if c.role == RoleSource {
		return r, nil
	}
	return &cleanedLines{step: &stepReader{inner: newJSONL(r, true), cmd: c, ctx: context.Background()}}, nil
}

// Close ends the program and waits until it is gone.
func (c *Command) Close() error {
	if c.closed || c.cmd == nil {
		return nil
	}
	c.closed = true
	_ = c.in.Close()
	close(c.stop)
	grace := time.NewTimer(closeGrace)
	defer grace.Stop()
	select {
	case <-c.waited:
	case <-grace.C:
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL)
		<-c.waited
	}
	return nil
}

// commandRecords is the stream of a source's records.
type commandRecords struct {
	c    *Command
	ctx  context.Context //nolint:containedctx // an io.Reader has no other way to be cancelled
	buf  []byte
	n    int64
	done bool
}

func (r *commandRecords) Read(p []byte) (int, error) {
	for len(r.buf) == 0 {
		if r.done {
			return 0, io.EOF
		}
		m, err := r.c.receive(r.ctx)
		if err != nil {
			return 0, err
		}
		switch {
		case m.End != nil:
			if m.End.Count != r.n {
				return 0, r.c.fail(fmt.Sprintf("gave %d records and says it gave %d", r.n, m.End.Count), nil)
			}
			r.done = true
		case len(m.Record) > 0:
			r.n++
			r.buf = append(append(r.buf[:0], m.Record...), '\n')
		default:
			return 0, r.c.fail("wrote a line that is neither record, end nor error", nil)
		}
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

func (r *commandRecords) Close() error { return nil }

// stepReader sends the rows of a reader through a cleaning step, some ahead, and
// gives them back in order. A dropped row comes as RulePlugin with its reason.
type stepReader struct {
	inner   recordReader
	cmd     *Command
	ctx     context.Context //nolint:containedctx // Next has no context
	seq     int64           // of the last one sent
	got     int64
	pending []pendingRow
	in      Record
	eof     bool
}

type pendingRow struct {
	rec  Record // its own copy of Raw; parsed when given back
	seq  int64  // 0: was not sent
	json []byte
}

// Next gives the next row with the step's answer.
func (s *stepReader) Next(rec *Record) error {
	for !s.eof && len(s.pending) < inFlight {
		if err := s.inner.Next(&s.in); err == io.EOF {
			s.eof = true
			_ = s.cmd.in.Close()
			break
		} else if err != nil {
			return err
		}
		p := pendingRow{rec: Record{Line: s.in.Line, Bad: s.in.Bad, Note: s.in.Note, Fixed: s.in.Fixed, More: s.in.More}}
		if s.in.Bad != "" {
			p.rec.Raw = append([]byte(nil), s.in.Raw...)
		} else {
			s.seq++
			p.seq = s.seq
			p.json = appendRecord(nil, &s.in)
			line := append([]byte(`{"seq":`+itoa(s.seq)+`,"record":`), p.json...)
			if err := s.cmd.send(append(line, '}', '\n')); err != nil {
				return err
			}
		}
		s.pending = append(s.pending, p)
	}
	if len(s.pending) == 0 {
		return s.end()
	}
	p := s.pending[0]
	s.pending = s.pending[1:]
	scratch, fields := rec.scratch, rec.Fields
	*rec = p.rec
	rec.scratch, rec.Fields = scratch, fields[:0]
	if p.seq == 0 {
		return nil
	}
	m, err := s.cmd.receive(s.ctx)
	if err != nil {
		return err
	}
	if m.Seq != p.seq || m.End != nil {
		return s.cmd.fail(fmt.Sprintf("answered record %d when %d was due", m.Seq, p.seq), nil)
	}
	s.got++
	switch {
	case m.Drop != nil:
		rec.Bad, rec.Note, rec.Raw = RulePlugin, s.cmd.Name()+": "+*m.Drop, p.json
		return nil
	case len(m.Record) > 0:
		rec.Fixed, rec.Note = RulePlugin, m.Reason
		p.json = m.Record
	case !m.Keep:
		return s.cmd.fail(fmt.Sprintf("answer to record %d has neither keep, record nor drop", p.seq), nil)
	}
	rec.Raw = p.json
	return parseObject(p.json, rec)
}

// end reads the end line of the step.
func (s *stepReader) end() error {
	if s.got < 0 {
		return io.EOF
	}
	m, err := s.cmd.receive(s.ctx)
	if err != nil {
		return err
	}
	if m.End == nil || m.End.Count != s.got {
		return s.cmd.fail(fmt.Sprintf("end line is missing or does not say %d records", s.got), nil)
	}
	s.got = -1
	return io.EOF
}

// cleanedLines is the JSONL of the rows that a step keeps.
type cleanedLines struct {
	step *stepReader
	rec  Record
	buf  []byte
}

func (l *cleanedLines) Read(p []byte) (int, error) {
	for len(l.buf) == 0 {
		if err := l.step.Next(&l.rec); err != nil {
			return 0, err
		}
		if l.rec.Bad == "" {
			l.buf = append(appendRecord(l.buf[:0], &l.rec), '\n')
		}
	}
	n := copy(p, l.buf)
	l.buf = l.buf[n:]
	return n, nil
}
