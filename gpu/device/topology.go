package device

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ProcFS is the source of processors: /sys/devices/system, /proc and the cgroup's
// limits. One that looks again and again tells which of them turned sick.
type ProcFS struct {
	root   fs.FS
	mask   func() []int // the affinity mask; nil means all that are online
	health cpuHealth
}

// NewProcFS reads a root folder, this machine's or a recorded one.
func NewProcFS(root fs.FS) *ProcFS {
	return &ProcFS{root: root, mask: affinity}
}

// Name implements Source.
func (*ProcFS) Name() string { return "procfs" }

// Close implements Source.
func (*ProcFS) Close() error { return nil }

// Scan implements Source.
func (p *ProcFS) Scan() (Machine, error) {
	limits := readLimits(p.root)
	var ids []int
	online := p.list(onlineFile)
	if p.mask != nil {
		ids = p.mask() // the kernel's leaves out what is offline
		if len(online) > 0 {
			ids = slices.DeleteFunc(ids, func(n int) bool { return !slices.Contains(online, n) })
		}
	} else if ids = online; len(limits.CPUs) > 0 {
		ids = slices.DeleteFunc(ids, func(n int) bool { return !slices.Contains(limits.CPUs, n) })
	}
	if len(ids) == 0 {
		return Machine{}, fmt.Errorf("no processor in %s: is /sys mounted?", onlineFile)
	}
	nodes := p.nodes()
	model, machine := p.field("proc/cpuinfo", "model name"), p.machineID()
	if model == "" {
		model = runtime.GOARCH
	}
	var m Machine
	for _, n := range ids {
		d := Device{
			ID: fmt.Sprintf("cpu:%d", n), Kind: CPU, Model: model, NUMA: -1, Core: -1, Load: -1,
			UUID: fmt.Sprintf("CPU-%s-%d", machine, n),
		}
		if node, ok := nodes[n]; ok {
			d.NUMA = node
		}
		dir := fmt.Sprintf("sys/devices/system/cpu/cpu%d", n)
		core, ok := p.int(dir + "/topology/core_id")
		socket, ok2 := p.int(dir + "/topology/physical_package_id")
		if ok && ok2 && core >= 0 && core < 1<<16 {
			d.Core = int(max(socket, 0)<<16 | core)
		}
		d.Siblings = p.list(dir + "/topology/thread_siblings_list")
		d.Caches = p.caches(dir + "/cache")
		m.Devices = append(m.Devices, d)
	}
	// A quota is time, not processors: what is kept are whole cores first.
	if n := limits.quota(); n > 0 && n < len(m.Devices) {
		m.Devices = spread(m.Devices)[:n]
	}
	m.Devices = p.health.look(p.root, m.Devices)
	m.MemoryBytes, m.TotalBytes = p.memory(limits)
	return m, nil
}

// spread orders processors so that a part of them shares as little as possible:
// the first thread of each core before any second one, node by node.
func spread(ds []Device) []Device {
	seen := map[int]int{}
	rank := map[string]int{}
	for _, d := range ds {
		if d.Core >= 0 {
			rank[d.ID] = seen[d.Core]
			seen[d.Core]++
		}
	}
	out := slices.Clone(ds)
	slices.SortStableFunc(out, func(a, b Device) int {
		if c := rank[a.ID] - rank[b.ID]; c != 0 {
			return c
		}
		return a.NUMA - b.NUMA
	})
	return out
}

// byNumber sorts cpu:2 before cpu:10.
func byNumber(a, b Device) int {
	if c := len(a.ID) - len(b.ID); c != 0 {
		return c
	}
	return strings.Compare(a.ID, b.ID)
}

func affinity() []int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) == nil {
		var ids []int
		for i := range len(set) * 64 {
			if set.IsSet(i) {
				ids = append(ids, i)
			}
		}
		if len(ids) > 0 {
			return ids
		}
	}
	ids := make([]int, runtime.NumCPU())
	for i := range ids {
		ids[i] = i
	}
	return ids
}

func (p *ProcFS) nodes() map[int]int {
	out := map[int]int{}
	dirs, _ := fs.Glob(p.root, "sys/devices/system/node/node*") // only a bad pattern fails
	for _, dir := range dirs {
		n, err := strconv.Atoi(strings.TrimPrefix(path.Base(dir), "node"))
		if err != nil {
			continue
		}
		for _, c := range p.list(dir + "/cpulist") {
			out[c] = n
		}
	}
	return out
}

func (p *ProcFS) caches(dir string) []Cache {
	var out []Cache
	dirs, _ := fs.Glob(p.root, dir+"/index*")
	for _, d := range dirs {
		level, ok := p.int(d + "/level")
		size, err := ParseSize(p.text(d + "/size"))
		if !ok || err != nil {
			continue
		}
		out = append(out, Cache{Level: int(level), Type: p.text(d + "/type"), Bytes: size, Shared: p.list(d + "/shared_cpu_list")})
	}
	return out
}

// machineID is the same for all processes of the host and stays over a reboot
// where the host has an id of its own.
func (p *ProcFS) machineID() string {
	for _, f := range []string{"etc/machine-id", "proc/sys/kernel/random/boot_id"} {
		if id := strings.ReplaceAll(p.text(f), "-", ""); len(id) == 32 && strings.Trim(id, "0123456789abcdef") == "" {
			return id
		}
	}
	return "unknown"
}

// memory is what is available now, and what there is, cut to the cgroup's limit. Bytes.
func (p *ProcFS) memory(l Limits) (available, total int64) {
	available = int64(1 << 30)
	if n := p.meminfo("MemAvailable"); n > 0 {
		available = n
	}
	total = max(available, p.meminfo("MemTotal"))
	if l.MemoryBytes > 0 {
		available, total = min(available, l.FreeBytes), min(total, l.MemoryBytes)
	}
	return available, total
}

// meminfo is a field of /proc/meminfo in bytes, 0 when it isn't there.
func (p *ProcFS) meminfo(name string) int64 {
	kb, err := strconv.ParseInt(strings.TrimSuffix(p.field("proc/meminfo", name), " kB"), 10, 64)
	if err != nil || kb <= 0 || kb >= 1<<50 {
		return 0
	}
	return kb << 10
}

// Memory is what of this machine's memory is available to this process now, bytes, cut
// to what its cgroup's limit leaves.
func Memory() int64 {
	root := os.DirFS("/")
	available, _ := NewProcFS(root).memory(readLimits(root))
	return available
}

func (p *ProcFS) text(name string) string { return readText(p.root, name) }

// readText is a file without the space around it; "" when it can't be read.
func readText(root fs.FS, name string) string {
	b, err := fs.ReadFile(root, name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (p *ProcFS) int(name string) (int64, bool) {
	n, err := strconv.ParseInt(p.text(name), 10, 64)
	return n, err == nil
}

func (p *ProcFS) list(name string) []int {
	ids, err := ParseList(p.text(name))
	if err != nil {
		return nil
	}
	return ids
}

func (p *ProcFS) field(name, key string) string { return field(p.text(name), key) }

// field finds "name : value" in a text; "" when it isn't there.
func field(text, name string) string {
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
