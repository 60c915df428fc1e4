package ring

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

// ErrStuck means that a call of a library has not returned within its bound, and
// can't be made to.
var ErrStuck = errors.New("a call of the library does not return: end this process")

// Thread is an OS thread of its own for a Library's calls, where those can't be
// given up: whoever waits for one gives up waiting instead, and the thread, with
// what the call holds, is left to the process's end. One goroutine uses it.
type Thread struct {
	jobs  chan func() error
	done  chan error
	ended chan struct{}
	stuck bool
}

// NewThread starts one.
func NewThread() *Thread {
	t := &Thread{jobs: make(chan func() error), done: make(chan error, 1), ended: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // and never unlocked: the library has made it its own
		defer close(t.ended)
		for f := range t.jobs {
			t.done <- f()
		}
	}()
	return t
}

// Run has the thread do something and waits for it: limit at the most, and no
// longer than until quit is closed. It is an ErrStuck when it gave up, and ever
// after.
func (t *Thread) Run(limit time.Duration, quit <-chan struct{}, f func() error) error {
	if t.stuck {
		return ErrStuck
	}
	t.jobs <- f
	timer := time.NewTimer(max(limit, 0))
	defer timer.Stop()
	select {
	case err := <-t.done:
		return err
	case <-quit:
		t.stuck = true
		return ErrStuck
	case <-timer.C:
		t.stuck = true
		return fmt.Errorf("%w after %s: %w", ErrTimeout, limit, ErrStuck)
	}
}

// Close ends the thread; with ErrStuck it leaves it behind.
func (t *Thread) Close() error {
	if t.stuck {
		return ErrStuck
	}
	close(t.jobs)
	<-t.ended
	return nil
}
