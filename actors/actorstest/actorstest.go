// Package actorstest is what tests share that build whole models or start nodes.
package actorstest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/job"
)

// Text has something to learn, in so many lines.
func Text(lines int) string {
	var b strings.Builder
	for i := range lines {
		fmt.Fprintf(&b, "On day %d the captain wrote: wind %d knots, course %d, and %d whales seen.\n", i, i*7%40, i*13%360, i*i%9)
	}
	return b.String()
}

// Corpus writes a small text into a folder and names it.
func Corpus(t testing.TB, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "log.txt")
	if err := os.WriteFile(path, []byte(Text(1200)), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TinySpec is a job of small models that learn from a file, on two processors.
func TinySpec(file string, tokens int64) job.Spec {
	s := job.Default()
	s.Data.Files = []string{file}
	s.Budget = job.Budget{Tokens: tokens}
	s.HardwareConstraint = "cpu-2"
	s.Space = map[string]job.Expr{
		"dim": "64", "layers": "int(1, 2)", "context": "32", "vocab": "categorical([320, 384])", "batch_tokens": "256", "warmup_steps": "2",
	}
	s.Resolve()
	return s
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

// Children lists the live processes that a process has started.
func Children(t testing.TB, parent int) []int {
	t.Helper()
	var out []int
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		if state, of := stateOf(pid); of == parent && state != "Z" {
			out = append(out, pid)
		}
	}
	return out
}

// Lives tells whether a process has not ended.
func Lives(pid int) bool {
	state, _ := stateOf(pid)
	return state != "" && state != "Z"
}

// stateOf is a process's state and parent, "" once it is gone.
func stateOf(pid int) (state string, parent int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	_, _ = fmt.Sscan(rest, &state, &parent)
	return state, parent
}
