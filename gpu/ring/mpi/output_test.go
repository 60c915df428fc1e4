//go:build gpu

package mpi

import (
	"bytes"
	"fmt"
	"strings"
	"sync"
	"time"
)

// lines collects what ranks say, and tells the process of rank 1.
type lines struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	seen   bool
	formed chan int
	more   chan struct{} // of await
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(p)
	for _, line := range strings.Split(l.buf.String(), "\n") {
		var rank, world, epoch, pid int
		var backend string
		if n, _ := fmt.Sscanf(line, "formed %d %d %d %s %d", &rank, &world, &epoch, &backend, &pid); n == 5 && rank == 1 && !l.seen {
			l.seen = true
			l.formed <- pid
		}
	}
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	return len(p), nil
}

func (l *lines) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// await waits until the ranks have said something, limit at the most.
func (l *lines) await(text string, limit time.Duration) bool {
	timeout := time.After(limit)
	for {
		l.mu.Lock()
		if strings.Contains(l.buf.String(), text) {
			l.mu.Unlock()
			return true
		}
		more := make(chan struct{})
		l.more = more
		l.mu.Unlock()
		select {
		case <-more:
		case <-timeout:
			return false
		}
	}
}
