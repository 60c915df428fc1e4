package chaos

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The watcher is content with a device that one holds after the other, and finds one
// that two hold at once.
func TestDoubleLease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cpu0.lock")
	take := func() *os.File {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Fatal(err)
		}
		return f
	}
	l := newLeases()
	l.of(os.Getpid())
	first := take()
	l.look()
	first.Close()
	first = take()
	defer first.Close()
	l.look()
	if len(l.found) > 0 || !l.held[path] {
		t.Fatalf("one owner after the other: found %v, held %v", l.found, l.held)
	}
	if err := os.Remove(path); err != nil { // which Leases never does
		t.Fatal(err)
	}
	second := take()
	defer second.Close()
	l.look()
	if got := l.end(); len(got) != 1 || !strings.Contains(got[0], path) || !strings.Contains(got[0], "2 owners") {
		t.Fatalf("two owners at once: found %v", got)
	}
}
