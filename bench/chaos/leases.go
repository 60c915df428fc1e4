package chaos

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// leases watches who holds the devices of all nodes: the locks themselves, as the kernel
// tells of them, not what anybody says.
type leases struct {
	wg   sync.WaitGroup
	stop chan struct{}

	mu   sync.Mutex
	pids map[int]bool // processes of nodes

	// The watcher's own until end:
	looks int
	held  map[string]bool // devices that somebody held at some time
	found map[string]bool
}

const lookEvery = 20 * time.Millisecond

func newLeases() *leases {
	return &leases{stop: make(chan struct{}), pids: map[int]bool{}, held: map[string]bool{}, found: map[string]bool{}}
}

// watch begins to look.
func (l *leases) watch() {
	l.wg.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			case <-time.After(lookEvery):
				l.look()
			}
		}
	})
}

func (l *leases) of(pid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pids[pid] = true
}

func (l *leases) notOf(pid int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pids, pid)
}

// end is what was found.
func (l *leases) end() []string {
	close(l.stop)
	l.wg.Wait()
	var out []string
	for f := range l.found {
		out = append(out, f)
	}
	slices.Sort(out)
	return out
}

// look notes each lease that is held by two at this moment. A file that was removed
// while it was locked, and made anew, has two locks under one name: by names they are
// counted.
func (l *leases) look() {
	l.looks++
	type lock struct{ file, owner string }
	seen := map[lock]bool{}
	owners := map[string][]string{}
	l.mu.Lock()
	pids := slices.Collect(maps.Keys(l.pids))
	l.mu.Unlock()
	var fds []string
	for _, pid := range pids {
		more, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // none where it has ended
		fds = append(fds, more...)
	}
	for _, fd := range fds {
		path, err := os.Readlink(fd)
		if err != nil || !strings.HasSuffix(strings.TrimSuffix(path, " (deleted)"), ".lock") {
			continue
		}
		path = strings.TrimSuffix(path, " (deleted)")
		for _, owner := range locksOf(fd) {
			k := lock{path, owner}
			if !seen[k] { // descriptors that were inherited, or duplicated, are one lock
				seen[k] = true
				owners[path] = append(owners[path], owner)
			}
		}
	}
	for path, who := range owners {
		l.held[path] = true
		if len(who) > 1 {
			l.found[fmt.Sprintf("device %s has %d owners at once: locks of processes and files %v", path, len(who), who)] = true
		}
	}
}

// locksOf are the exclusive locks on a descriptor's file that were taken through it, as
// "process file".
func locksOf(fd string) []string {
	pid, n := filepath.Base(filepath.Dir(filepath.Dir(fd))), filepath.Base(fd)
	b, err := os.ReadFile(filepath.Join("/proc", pid, "fdinfo", n))
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		// lock:	1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF
		f := strings.Fields(line)
		if len(f) < 7 || f[0] != "lock:" || f[2] != "FLOCK" || f[4] != "WRITE" {
			continue
		}
		if _, err := strconv.Atoi(f[5]); err == nil {
			out = append(out, f[5]+" "+f[6])
		}
	}
	return out
}
