// Package actorstest is what tests share that build whole models or start nodes.
package actorstest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Corpus writes a small text with something to learn into a folder and names it.
func Corpus(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	for i := range 1200 {
		fmt.Fprintf(&b, "On day %d the captain wrote: wind %d knots, course %d, and %d whales seen.\n", i, i*7%40, i*13%360, i*i%9)
	}
	path := filepath.Join(dir, "log.txt")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Output keeps what a process says. It may be read while the process runs.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
