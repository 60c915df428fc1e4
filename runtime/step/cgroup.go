package step

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// group is the cgroup of a step; the zero value is none.
type group struct {
	path         string
	dir          *os.File // nil where there is none
	memory, cpus bool     // are bounds of it
}

// ownCgroup is where groups are made: this process's own cgroup of version 2, or the one
// above, where the process was put into a part of what was delegated to it; "" when
// there is none.
func ownCgroup() string {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return ""
	}
	return divided(cgroupAt(string(self), string(mounts)), delegated)
}

// divided is the cgroup to make others in. One that holds processes can't hand the
// bounds on, so systemd puts a unit's processes into one below (DelegateSubgroup=).
func divided(own string, delegated func(path string) bool) string {
	if above := filepath.Dir(own); own != "" && delegated(above) {
		return above
	}
	return own
}

// delegated tells whether systemd has handed a cgroup over.
func delegated(path string) bool {
	var b [8]byte
	for _, name := range []string{"user.delegate", "trusted.delegate"} {
		if n, err := unix.Getxattr(path, name, b[:]); err == nil && string(b[:n]) == "1" {
			return true
		}
	}
	return false
}

func cgroupAt(self, mounts string) string {
	own := ""
	for l := range strings.Lines(self) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(l), "0::"); ok {
			own = path
		}
	}
	for l := range strings.Lines(mounts) {
		left, right, _ := strings.Cut(l, " - ")
		f := strings.Fields(left) // id, parent, device, root, mount point, …
		if !strings.HasPrefix(right, "cgroup2 ") || len(f) < 5 || own == "" {
			continue
		}
		if rel, err := filepath.Rel(f[3], own); err == nil && filepath.IsLocal(rel) {
			return filepath.Join(f[4], rel)
		}
	}
	return ""
}

// clearGroup ends what is in a cgroup, and it with that.
func clearGroup(path string) {
	dir, err := os.Open(path)
	if err != nil {
		return // there is none
	}
	g := &group{path: path, dir: dir}
	g.kill()
	g.remove()
}

// newGroup makes a cgroup below a parent and sets the bounds that the kernel has for
// it there. What a node that was killed left in one of that name is killed. Where none
// can be made, as for a user to whom nothing was delegated, it is the zero value.
func newGroup(parent, name string, memory int64, cpus float64) *group {
	path := filepath.Join(parent, name)
	if parent == "" {
		return &group{}
	}
	clearGroup(path)
	if os.Mkdir(path, 0o755) != nil {
		return &group{}
	}
	dir, err := os.Open(path)
	if err != nil {
		os.Remove(path)
		return &group{}
	}
	// A parent that holds processes itself can't hand all controllers on; what is there
	// afterwards counts.
	if memory > 0 {
		_ = put(parent, "cgroup.subtree_control", "+memory")
	}
	if cpus > 0 {
		_ = put(parent, "cgroup.subtree_control", "+cpu")
	}
	g := &group{path: path, dir: dir}
	g.bound(memory, cpus)
	return g
}

func (g *group) bound(memory int64, cpus float64) {
	if memory > 0 && put(g.path, "memory.max", strconv.FormatInt(memory, 10)) == nil {
		g.memory = true
		_ = put(g.path, "memory.swap.max", "0")
		_ = put(g.path, "memory.oom.group", "1")
	}
	if cpus > 0 && put(g.path, "cpu.max", fmt.Sprintf("%d 100000", max(1000, int64(cpus*100000)))) == nil {
		g.cpus = true
	}
}

// put writes to a file that the kernel has made.
func put(dir, file, text string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// oom tells whether the kernel ended processes of the group for their memory.
func (g *group) oom() bool {
	if g.dir == nil {
		return false
	}
	b, _ := os.ReadFile(filepath.Join(g.path, "memory.events"))
	for l := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(l), "oom_kill "); ok && n != "0" {
			return true
		}
	}
	return false
}

// signal reaches the group's processes that are in no process group of that number.
func (g *group) signal(sig syscall.Signal, but int) {
	if g.dir == nil {
		return
	}
	b, _ := os.ReadFile(filepath.Join(g.path, "cgroup.procs"))
	for _, f := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(f)
		if pg, e := syscall.Getpgid(pid); err == nil && e == nil && pg != but {
			_ = syscall.Kill(pid, sig)
		}
	}
}

// kill ends all of the group's processes and waits until they are gone.
func (g *group) kill() {
	if g.dir == nil {
		return
	}
	for late := time.Now().Add(5 * time.Second); time.Now().Before(late); time.Sleep(2 * time.Millisecond) {
		if put(g.path, "cgroup.kill", "1") != nil { // before Linux 5.14
			g.signal(syscall.SIGKILL, 0)
		}
		if b, err := os.ReadFile(filepath.Join(g.path, "cgroup.procs")); err != nil || len(b) == 0 {
			return
		}
	}
}

func (g *group) remove() {
	if g.dir != nil {
		g.dir.Close()
		os.Remove(g.path)
	}
}
