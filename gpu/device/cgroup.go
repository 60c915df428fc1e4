package device

import (
	"fmt"
	"io/fs"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Limits are those of the cgroups that this process is in, the tightest of each
// on the way up to the root.
type Limits struct {
	CPUs        []int   // cpuset; nil is no limit
	Cores       float64 // time of so many processors; 0 is no limit
	MemoryBytes int64   // 0 is no limit
	FreeBytes   int64   // what is left under the limits, file cache counted as left; of no meaning without one
}

// quota is Cores as whole processors, at least one; 0 is no limit.
func (l Limits) quota() int {
	if l.Cores <= 0 {
		return 0
	}
	return max(1, int(min(l.Cores, 1<<16)))
}

// readLimits reads cgroup v2, v1, or both mixed, under root.
func readLimits(root fs.FS) Limits {
	var l Limits
	text := func(name string) string { return readText(root, name) }
	// Inside a container the path may be the host's and not be mounted here: then
	// the root of the mount is the container's own.
	own := ParseCgroup(text("proc/self/cgroup"))
	walk := func(mount, controller string, read func(dir string)) {
		p, ok := own[controller]
		if !ok {
			p = "/"
		}
		for {
			read(path.Join(mount, p))
			if p == "/" || p == "." {
				return
			}
			p = path.Dir(p)
		}
	}
	cores := func(n float64) {
		if n > 0 && (l.Cores == 0 || n < l.Cores) {
			l.Cores = n
		}
	}
	memory := func(limit, used, cache string) {
		// v1 says "none" as the largest multiple of a page.
		n, err := strconv.ParseInt(limit, 10, 64)
		if err != nil || n <= 0 || n >= math.MaxInt64>>1 {
			return
		}
		free := n
		if u, err := strconv.ParseInt(used, 10, 64); err == nil && u > 0 {
			c, _ := strconv.ParseInt(cache, 10, 64) // 0 where it is not said
			free = min(n, max(0, n-max(0, u-max(0, c))))
		}
		if l.MemoryBytes == 0 {
			l.MemoryBytes, l.FreeBytes = n, free
		}
		l.MemoryBytes, l.FreeBytes = min(l.MemoryBytes, n), min(l.FreeBytes, free)
	}
	cpus := func(s string) {
		if ids, err := ParseList(s); err == nil && len(ids) > 0 && l.CPUs == nil {
			l.CPUs = ids
		}
	}
	for _, mount := range []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"} {
		walk(mount, "", func(dir string) {
			if n, err := ParseMax(text(dir + "/cpu.max")); err == nil {
				cores(n)
			}
			memory(text(dir+"/memory.max"), text(dir+"/memory.current"), stat(text(dir+"/memory.stat"), "inactive_file"))
			cpus(text(dir + "/cpuset.cpus.effective"))
		})
	}
	walk("sys/fs/cgroup/cpu", "cpu", func(dir string) {
		if n, err := ParseMax(text(dir+"/cpu.cfs_quota_us") + " " + text(dir+"/cpu.cfs_period_us")); err == nil {
			cores(n)
		}
	})
	walk("sys/fs/cgroup/memory", "memory", func(dir string) {
		memory(text(dir+"/memory.limit_in_bytes"), text(dir+"/memory.usage_in_bytes"), stat(text(dir+"/memory.stat"), "total_inactive_file"))
	})
	walk("sys/fs/cgroup/cpuset", "cpuset", func(dir string) { cpus(text(dir + "/cpuset.cpus")) })
	return l
}

// stat finds "name value" in a memory.stat; "" when it isn't there.
func stat(text, name string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// Exclusive tells whether the processors of this process are its cgroup's alone: a
// partition of cgroup v2, or a cpuset of v1 that is marked so. The root's, which is
// everybody's, is not.
func Exclusive(root fs.FS) bool {
	own := ParseCgroup(readText(root, "proc/self/cgroup"))
	// What a container's cgroup is called on its host may not be mounted here: then
	// the root of the mount is the container's own.
	read := func(mount, dir, name string) string {
		if _, err := fs.Stat(root, path.Join(mount, dir)); err != nil {
			dir = "/"
		}
		return readText(root, path.Join(mount, dir, name))
	}
	for _, mount := range []string{"sys/fs/cgroup", "sys/fs/cgroup/unified"} {
		switch read(mount, own[""], "cpuset.cpus.partition") { // "root invalid (…)" is one that the kernel took back
		case "root", "isolated":
			return true
		}
	}
	dir, ok := own["cpuset"]
	return ok && dir != "/" && read("sys/fs/cgroup/cpuset", dir, "cpuset.cpu_exclusive") == "1"
}

// ParseCgroup reads /proc/self/cgroup: the path in each controller's hierarchy,
// v2's under "".
func ParseCgroup(s string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(s) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 || !strings.HasPrefix(f[2], "/") {
			continue
		}
		for c := range strings.SplitSeq(f[1], ",") {
			out[c] = path.Clean(f[2])
		}
	}
	return out
}

// ParseMax reads "QUOTA PERIOD" as a number of processors: 0 for "max" and -1,
// which are no limit.
func ParseMax(s string) (float64, error) {
	f := strings.Fields(s)
	if len(f) != 2 {
		return 0, fmt.Errorf("%q is not QUOTA PERIOD", s)
	}
	period, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil || period <= 0 {
		return 0, fmt.Errorf("%q has no period", s)
	}
	if f[0] == "max" || f[0] == "-1" {
		return 0, nil
	}
	quota, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil || quota <= 0 {
		return 0, fmt.Errorf("%q has no quota", s)
	}
	return float64(quota) / float64(period), nil
}

// maxListed bounds a list of processors: a kernel is built for 8192 at most.
const maxListed = 1 << 16

// ParseList reads a list of processors, "0-3,8", sorted and without doubles.
func ParseList(s string) ([]int, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return nil, nil
	}
	var out []int
	for part := range strings.SplitSeq(s, ",") {
		from, to, ranged := strings.Cut(part, "-")
		a, err := strconv.ParseUint(from, 10, 16)
		b := a
		if err == nil && ranged {
			b, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || b < a || len(out)+int(b-a) >= maxListed {
			return nil, fmt.Errorf("%q is not a list of processors such as 0-3,8", s)
		}
		for n := a; n <= b; n++ {
			out = append(out, int(n))
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// ParseSize reads a cache's size, "48K", in bytes.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRight(s, "KMG")
	shift, ok := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30}[s[len(digits):]]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n < 0 || n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%q is not a size such as 48K", s)
	}
	return n << shift, nil
}
