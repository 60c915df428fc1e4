package rest

import (
	"encoding/json"
	"net/http"
	"sync"
	"time"
)

// slow is how long a client may take to read an event.
const slow = 30 * time.Second

// stream writes server-sent events. Nothing is sent before the first one, so that an
// error before it has a status of its own. Any goroutine may use it.
type stream struct {
	w    http.ResponseWriter
	ctl  *http.ResponseController
	stop chan struct{}
	done sync.WaitGroup

	mu    sync.Mutex
	begun bool
	last  time.Time
	err   error // the first that a write met
}

// newStream is a stream that sends a comment whenever it was silent for ping.
func newStream(w http.ResponseWriter, ping time.Duration) *stream {
	s := &stream{w: w, ctl: http.NewResponseController(w), stop: make(chan struct{}), last: time.Now()}
	s.done.Go(func() {
		t := time.NewTicker(ping)
		defer t.Stop()
		for {
			select {
			case <-s.stop:
				return
			case now := <-t.C:
				s.mu.Lock()
				if now.Sub(s.last) >= ping {
					_ = s.write(": ping\n\n")
				}
				s.mu.Unlock()
			}
		}
	})
	return s
}

// close ends the comments. No other call may follow.
func (s *stream) close() {
	close(s.stop)
	s.done.Wait()
	_ = s.ctl.SetWriteDeadline(time.Time{}) // the connection's next answer has none
}

// write is called with mu held.
func (s *stream) write(text string) error {
	if s.err != nil {
		return s.err
	}
	if !s.begun {
		s.begun = true
		h := s.w.Header()
		h.Set("Content-Type", "text/event-stream")
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Accel-Buffering", "no")
		s.w.WriteHeader(http.StatusOK)
	}
	s.last = time.Now()
	_ = s.ctl.SetWriteDeadline(s.last.Add(slow)) // tests' recorders have none
	if _, s.err = s.w.Write([]byte(text)); s.err == nil {
		s.err = s.ctl.Flush()
	}
	return s.err
}

// send writes an event.
func (s *stream) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write("data: " + string(b) + "\n\n")
}

// finish ends a stream: with [DONE], or with err, which is returned where nothing was
// sent yet.
func (s *stream) finish(err error) error {
	s.mu.Lock()
	begun := s.begun
	s.mu.Unlock()
	if err != nil {
		if !begun {
			return err
		}
		_ = s.send(map[string]*apiError{"error": apiErrorOf(err)}) // the client may be gone
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.write("data: [DONE]\n\n")
}
