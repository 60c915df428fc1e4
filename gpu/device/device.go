package device

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind of device.
type Kind string

// Kinds. Auto stands in requests only.
const (
	CPU  Kind = "cpu"
	GPU  Kind = "gpu"
	Auto Kind = "auto"
)

// Device is one unit that a worker owns: one CPU core, or one GPU.
type Device struct {
	ID    string `json:"id" msgpack:"id"` // "cpu:0", "gpu:0"
	Kind  Kind   `json:"kind" msgpack:"kind"`
	Model string `json:"model" msgpack:"model"`
}

// Machine is what one host offers.
type Machine struct {
	Devices     []Device `json:"devices"`      // CPUs first
	MemoryBytes int64    `json:"memory_bytes"` // that this process may use
	SIMD        string   `json:"simd,omitempty"`
}

// Request is a parsed hardware constraint.
type Request struct {
	Kind  Kind   `json:"kind"`
	Count int    `json:"count"` // 0 is as many as there are
	Model string `json:"model"` // lower case, part of the model's name; "" is any
}

func (r Request) String() string {
	switch {
	case r.Kind == Auto:
		return "auto"
	case r.Count == 0:
		return string(r.Kind) + "-any"
	case r.Model != "":
		return fmt.Sprintf("%s-%dx-%s", r.Kind, r.Count, r.Model)
	}
	return fmt.Sprintf("%s-%d", r.Kind, r.Count)
}

// ErrUnmet means that the machine lacks what was asked for; the error's text
// names both.
var ErrUnmet = errors.New("hardware constraint not met")

// Inventory reads the machine.
func Inventory() (Machine, error) {
	var m Machine
	n := cores()
	model := cpuModel()
	for i := range n {
		m.Devices = append(m.Devices, Device{ID: fmt.Sprintf("cpu:%d", i), Kind: CPU, Model: model})
	}
	m.MemoryBytes = memory()
	dirs, err := filepath.Glob("/proc/driver/nvidia/gpus/*/information")
	if err != nil {
		return m, err
	}
	for i, p := range dirs {
		m.Devices = append(m.Devices, Device{ID: fmt.Sprintf("gpu:%d", i), Kind: GPU, Model: field(p, "Model")})
	}
	return m, nil
}

// Count is the number of devices of a kind.
func (m Machine) Count(k Kind) int {
	n := 0
	for _, d := range m.Devices {
		if d.Kind == k {
			n++
		}
	}
	return n
}

func (m Machine) String() string {
	var parts []string
	if n := m.Count(CPU); n > 0 {
		parts = append(parts, fmt.Sprintf("%d CPU core%s (%s)", n, plural(n), m.first(CPU).Model))
	}
	if n := m.Count(GPU); n > 0 {
		parts = append(parts, fmt.Sprintf("%d GPU%s (%s)", n, plural(n), m.first(GPU).Model))
	} else {
		parts = append(parts, "no GPU")
	}
	return strings.Join(parts, ", ")
}

func (m Machine) first(k Kind) Device {
	for _, d := range m.Devices {
		if d.Kind == k {
			return d
		}
	}
	return Device{}
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// Match picks the devices that meet the request, or says what is missing
// (ErrUnmet). Auto takes all CPU cores: this build computes on CPUs alone.
func (m Machine) Match(r Request) ([]Device, error) {
	kind := r.Kind
	if kind == Auto {
		kind = CPU
	}
	if kind == GPU {
		n := m.Count(GPU)
		if n == 0 {
			return nil, fmt.Errorf("%w: %s asks for GPUs, this machine has %s", ErrUnmet, r, m)
		}
		return nil, fmt.Errorf("%w: %s asks for GPUs and this machine has %s, but this build of autoglm computes on CPUs only", ErrUnmet, r, m)
	}
	var out []Device
	for _, d := range m.Devices {
		if d.Kind == kind && strings.Contains(strings.ToLower(d.Model), r.Model) && (r.Count == 0 || len(out) < r.Count) {
			out = append(out, d)
		}
	}
	if len(out) == 0 || len(out) < r.Count {
		return nil, fmt.Errorf("%w: %s asks for %d, this machine has %s", ErrUnmet, r, r.Count, m)
	}
	return out, nil
}

// cores is the number of CPUs in the affinity mask, cut to the cgroup's quota.
func cores() int {
	n := runtime.NumCPU()
	if q := quota(); q > 0 {
		n = min(n, max(1, int(q)))
	}
	return n
}

func quota() float64 {
	if b, err := os.ReadFile("/sys/fs/cgroup/cpu.max"); err == nil {
		f := strings.Fields(string(b))
		if len(f) == 2 && f[0] != "max" {
			q, err1 := strconv.ParseFloat(f[0], 64)
			p, err2 := strconv.ParseFloat(f[1], 64)
			if err1 == nil && err2 == nil && p > 0 {
				return q / p
			}
		}
		return 0
	}
	q, err1 := readInt("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")
	p, err2 := readInt("/sys/fs/cgroup/cpu/cpu.cfs_period_us")
	if err1 != nil || err2 != nil || q <= 0 || p <= 0 {
		return 0
	}
	return float64(q) / float64(p)
}

func readInt(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// memory is what is available now, cut to the cgroup's limit.
func memory() int64 {
	var info unix.Sysinfo_t
	total := int64(1 << 30)
	if unix.Sysinfo(&info) == nil {
		total = int64(info.Totalram) * int64(info.Unit)
	}
	if v := field("/proc/meminfo", "MemAvailable"); v != "" {
		if kb, err := strconv.ParseInt(strings.TrimSuffix(v, " kB"), 10, 64); err == nil {
			total = kb << 10
		}
	}
	for _, p := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if v, err := readInt(p); err == nil && v > 0 {
			total = min(total, v)
		}
	}
	return total
}

func cpuModel() string {
	if m := field("/proc/cpuinfo", "model name"); m != "" {
		return m
	}
	return runtime.GOARCH
}

// field finds "name : value" in a file; "" when it isn't there.
func field(path, name string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		k, v, ok := strings.Cut(sc.Text(), ":")
		if ok && strings.TrimSpace(k) == name {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
