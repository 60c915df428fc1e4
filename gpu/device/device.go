package device

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"
)

// Kind of device.
type Kind string

// Kinds. Auto stands in requests only.
const (
	CPU  Kind = "cpu"
	GPU  Kind = "gpu"
	Auto Kind = "auto"
)

// Device is one unit that a worker owns: one logical processor, or one GPU (or
// one MIG slice of it). What a source can't know is left at its zero value.
type Device struct {
	ID          string    `json:"id" msgpack:"id"`                               // "cpu:0", "gpu:0", "gpu:0.1" for a slice
	Kind        Kind      `json:"kind" msgpack:"kind"`                           //
	Model       string    `json:"model" msgpack:"model"`                         //
	UUID        string    `json:"uuid,omitempty" msgpack:"uuid"`                 // what a lease is named after
	MemoryBytes int64     `json:"memory_bytes,omitempty" msgpack:"memory_bytes"` // of the device alone: 0 for a CPU
	UsedBytes   int64     `json:"used_bytes,omitempty" msgpack:"used_bytes"`     // of MemoryBytes
	NUMA        int       `json:"numa" msgpack:"numa"`                           // node, -1 unknown
	Bus         string    `json:"bus,omitempty" msgpack:"bus"`                   // PCI bus id
	MIG         string    `json:"mig,omitempty" msgpack:"mig"`                   // "on" for a GPU that is cut up, the profile for a slice
	Sick        string    `json:"sick,omitempty" msgpack:"sick"`                 // why it is taken out; "" is well
	Load        float64   `json:"load" msgpack:"load"`                           // 0 to 1, -1 unknown
	Celsius     int       `json:"celsius,omitempty" msgpack:"celsius"`           //
	Core        int       `json:"core" msgpack:"core"`                           // CPU: the physical core, machine-wide: "socket<<16 | core"; -1 unknown
	Siblings    []int     `json:"siblings,omitempty" msgpack:"siblings"`         // CPU: logical processors of that core, itself among them
	Caches      []Cache   `json:"caches,omitempty" msgpack:"caches"`             // CPU
	Processes   []Process `json:"processes,omitempty" msgpack:"processes"`       // GPU: who holds its memory
	Switched    bool      `json:"switched,omitempty" msgpack:"switched"`         // GPU: all its NVLinks end in a switch
}

// Cache is one cache that a processor uses.
type Cache struct {
	Level  int    `json:"level" msgpack:"level"`
	Type   string `json:"type" msgpack:"type"` // Data, Instruction, Unified
	Bytes  int64  `json:"bytes" msgpack:"bytes"`
	Shared []int  `json:"shared,omitempty" msgpack:"shared"` // logical processors
}

// Process holds memory of a GPU.
type Process struct {
	PID   int   `json:"pid" msgpack:"pid"`
	Bytes int64 `json:"bytes" msgpack:"bytes"`
}

// Level is how far apart two devices are: NVML's levels of a common ancestor on
// PCI, and below them what is faster than PCI.
type Level int

// Levels, nearest first.
const (
	NVSwitch   Level = -20 // through a switch: all pairs alike
	NVLink     Level = -10 // by a cable of their own
	Internal   Level = 0   // on one board
	Single     Level = 10  // one PCI switch
	Multiple   Level = 20  // several PCI switches
	HostBridge Level = 30  // one host bridge
	SameNode   Level = 40  // one NUMA node
	System     Level = 50  // across sockets
)

var levelNames = map[Level]string{
	NVSwitch: "nvswitch", NVLink: "nvlink", Internal: "internal", Single: "single",
	Multiple: "multiple", HostBridge: "hostbridge", SameNode: "node", System: "system",
}

func (l Level) String() string {
	if n, ok := levelNames[l]; ok {
		return n
	}
	return fmt.Sprintf("level %d", int(l))
}

// MarshalText makes JSON read "nvlink".
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (l *Level) UnmarshalText(b []byte) error {
	for level, name := range levelNames {
		if name == string(b) {
			*l = level
			return nil
		}
	}
	n, err := strconv.Atoi(strings.TrimPrefix(string(b), "level "))
	if err != nil {
		return fmt.Errorf("%q is no level of two devices' distance", b)
	}
	*l = Level(n)
	return nil
}

// Link joins two devices; it holds both ways.
type Link struct {
	A     string `json:"a" msgpack:"a"` // device IDs
	B     string `json:"b" msgpack:"b"`
	Level Level  `json:"level" msgpack:"level"`
}

// Machine is what one host offers.
type Machine struct {
	Devices     []Device `json:"devices" msgpack:"devices"`                   // CPUs first
	Links       []Link   `json:"links,omitempty" msgpack:"links"`             // between GPUs
	MemoryBytes int64    `json:"memory_bytes" msgpack:"memory_bytes"`         // that this process may use, now
	TotalBytes  int64    `json:"total_bytes,omitempty" msgpack:"total_bytes"` // of memory, or the cgroup's limit; 0 is not known
	SIMD        string   `json:"simd,omitempty" msgpack:"simd"`
	Notes       []string `json:"notes,omitempty" msgpack:"notes"` // what a source couldn't see, and what would help
}

// ErrUnmet means that the machine lacks what was asked for; the error's text
// names both.
var ErrUnmet = errors.New("hardware constraint not met")

// Inventory reads this machine, as far as it goes without a library.
func Inventory() (Machine, error) {
	sources := Sources()
	defer func() {
		for _, s := range sources {
			s.Close()
		}
	}()
	return Scan(sources...)
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
		parts = append(parts, fmt.Sprintf("%d CPU core%s (%s)", n, plural(n), m.models(CPU)))
	}
	if n := m.Count(GPU); n > 0 {
		parts = append(parts, fmt.Sprintf("%d GPU%s (%s)", n, plural(n), m.models(GPU)))
	} else {
		parts = append(parts, "no GPU")
	}
	return strings.Join(parts, ", ")
}

// models lists the different models of a kind.
func (m Machine) models(k Kind) string {
	seen := map[string]bool{}
	var out []string
	for _, d := range m.Devices {
		if d.Kind == k && !seen[d.Model] {
			seen[d.Model] = true
			out = append(out, d.Model)
		}
	}
	sort.Strings(out)
	return strings.Join(out, ", ")
}

// level is how far apart two devices are; what no source knows counts as far.
func (m Machine) level(a, b string) Level {
	for _, l := range m.Links {
		if l.A == a && l.B == b || l.A == b && l.B == a {
			return l.Level
		}
	}
	return System
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}
