package step

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// memory is what the step's processes use together: what several share is divided
// among them.
func (p *process) memory() int64 {
	var sum int64
	for _, pid := range members(p.cmd.Process.Pid, p.c.marks()...) {
		sum += proportional(pid)
	}
	return sum
}

// proportional is a process's PSS, bytes; 0 when it is gone.
func proportional(pid int) int64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	_, b, _ = bytes.Cut(b, []byte("\nPss:"))
	line, _, _ := bytes.Cut(b, []byte("kB"))
	n, _ := strconv.ParseInt(strings.TrimSpace(string(line)), 10, 64)
	return n << 10
}

// marks are variables that the step's processes have.
func (c *Config) marks() []string {
	return []string{"AUTOGLM_JOB_DIR=" + c.Job + "\x00", "AUTOGLM_STEP=" + c.Name + "\x00"}
}

// sweep kills the processes whose environment has all marks, until none is left.
func sweep(marks ...string) {
	for late := time.Now().Add(5 * time.Second); time.Now().Before(late); time.Sleep(5 * time.Millisecond) {
		left := members(0, marks...)
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// members are the processes of a group, and those whose environment has all marks: each
// is the beginning of a variable, which \x00 ends. Zombies are none.
func members(group int, marks ...string) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // state, parent, group, …
		if len(f) < 3 || f[0] == "Z" || f[0] == "X" {
			continue
		}
		if g, err := strconv.Atoi(f[2]); err == nil && group > 0 && g == group {
			out = append(out, pid)
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil {
			continue
		}
		env := "\x00" + string(b) + "\x00"
		if !slices.ContainsFunc(marks, func(m string) bool { return !strings.Contains(env, "\x00"+m) }) {
			out = append(out, pid)
		}
	}
	return out
}
