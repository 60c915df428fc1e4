package step

import (
	"os"
	"strings"
	"unicode/utf8"
)

// lastBytes and lastLines bound what an error repeats of a log.
const (
	lastBytes = 2000
	lastLines = 10
)

// log is a file that begins anew when it is full; the one before it stays beside it
// as .1. It belongs to one goroutine at a time.
type log struct {
	path string
	max  int64
	f    *os.File // nil when it is closed
	size int64
	tail []byte // of what was written
	err  error  // the first
}

func openLog(path string, limit int64) (*log, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &log{path: path, max: limit, f: f, size: info.Size()}, nil
}

// Write implements io.Writer. It takes all, so that the program never waits: an error
// is kept for close.
func (l *log) Write(b []byte) (int, error) {
	n := len(b)
	l.tail = append(l.tail, b[max(0, n-lastBytes):]...)
	l.tail = l.tail[max(0, len(l.tail)-lastBytes):]
	for len(b) > 0 && l.err == nil {
		if l.size >= l.max {
			l.turn()
			continue
		}
		k, err := l.f.Write(b[:min(int64(len(b)), l.max-l.size)])
		l.size, b, l.err = l.size+int64(k), b[k:], err
	}
	return n, nil
}

// turn begins a new file.
func (l *log) turn() {
	if l.err = l.f.Close(); l.err != nil {
		return
	}
	if l.err = os.Rename(l.path, l.path+".1"); l.err != nil {
		return
	}
	l.f, l.err = os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o644)
	l.size = 0
}

// close returns the first error of all.
func (l *log) close() error {
	if l.f != nil {
		if err := l.f.Close(); l.err == nil {
			l.err = err
		}
		l.f = nil
	}
	return l.err
}

// last is the last lines, as far as they are text.
func (l *log) last() string {
	text := strings.TrimRight(string(l.tail), "\n")
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-lastLines):]
	out := strings.ToValidUTF8(strings.Join(lines, "\n"), string(utf8.RuneError))
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return utf8.RuneError // a terminal would obey it
		}
		return r
	}, out)
}
