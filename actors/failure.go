package actors

import (
	"errors"
	"syscall"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Failure is an error on its way to another process: its text, and what a caller may
// branch on.
type Failure struct {
	Text  string   `msgpack:"text"`
	Is    []string `msgpack:"is"`    // names of sentinels
	Lost  *int     `msgpack:"lost"`  // the rank of a ring.LostError
	Errno int      `msgpack:"errno"` // the system's error behind it; 0 is none
}

// sentinels are the errors that a caller on the other side tells apart.
var sentinels = []struct {
	name string
	err  error
}{
	{"diverged", train.ErrDiverged},
	{"memory", train.ErrMemory},
	{"checkpoint", train.ErrCheckpoint},
	{"not finite", engine.ErrNotFinite},
	{"device", engine.ErrDevice},
	{"lost", ring.ErrLost},
	{"out of step", ring.ErrOutOfStep},
	{"timed out", ring.ErrTimeout},
	{"closed", ring.ErrClosed},
	{"released", errReleased},
	{"restarted", errRestarted},
}

// maxText bounds the text of an error that travels.
const maxText = 16 << 10

// FailureOf packs an error; nil stays nil.
func FailureOf(err error) *Failure {
	if err == nil {
		return nil
	}
	f := &Failure{Text: err.Error()}
	if len(f.Text) > maxText {
		f.Text = f.Text[:maxText] + "…"
	}
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			f.Is = append(f.Is, s.name)
		}
	}
	var lost *ring.LostError
	if errors.As(err, &lost) {
		f.Lost = &lost.Rank
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		f.Errno = int(errno)
	}
	return f
}

// Err unpacks it; nil stays nil.
func (f *Failure) Err() error {
	if f == nil {
		return nil
	}
	e := &remoteError{text: f.Text}
	for _, name := range f.Is {
		for _, s := range sentinels {
			if s.name == name {
				e.causes = append(e.causes, s.err)
			}
		}
	}
	if f.Lost != nil {
		e.causes = append(e.causes, &ring.LostError{Rank: *f.Lost, Why: f.Text})
	}
	if f.Errno != 0 {
		e.causes = append(e.causes, syscall.Errno(f.Errno))
	}
	return e
}

// remoteError is an error of the other process.
type remoteError struct {
	text   string
	causes []error
}

func (e *remoteError) Error() string   { return e.text }
func (e *remoteError) Unwrap() []error { return e.causes }
