package device

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"testing/fstest"
)

// recorded is a machine of two sockets, two cores each, two threads a core.
func recorded() fstest.MapFS {
	m := fstest.MapFS{}
	put := func(name, text string) { m[name] = &fstest.MapFile{Data: []byte(text + "\n")} }
	put("sys/devices/system/cpu/online", "0-7")
	put("sys/devices/system/node/node0/cpulist", "0-1,4-5")
	put("sys/devices/system/node/node1/cpulist", "2-3,6-7")
	put("proc/cpuinfo", "processor : 0\nmodel name : Test CPU")
	put("proc/meminfo", "MemTotal: 100 kB\nMemAvailable:  4194304 kB")
	put("etc/machine-id", "0123456789abcdef0123456789abcdef")
	for n := range 8 {
		dir := fmt.Sprintf("sys/devices/system/cpu/cpu%d/", n)
		put(dir+"topology/core_id", fmt.Sprint(n%2))
		put(dir+"topology/physical_package_id", fmt.Sprint(n%4/2))
		put(dir+"topology/thread_siblings_list", fmt.Sprintf("%d,%d", n%4, n%4+4))
		put(dir+"cache/index0/level", "1")
		put(dir+"cache/index0/type", "Data")
		put(dir+"cache/index0/size", "48K")
		put(dir+"cache/index0/shared_cpu_list", fmt.Sprintf("%d,%d", n%4, n%4+4))
	}
	return m
}

func scan(t *testing.T, root fs.FS) Machine {
	t.Helper()
	m, err := (&ProcFS{root: root}).Scan()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func names(ds []Device) string {
	var out []string
	for _, d := range ds {
		out = append(out, strings.TrimPrefix(d.ID, "cpu:"))
	}
	return strings.Join(out, " ")
}

func TestRecordedTopology(t *testing.T) {
	m := scan(t, recorded())
	if names(m.Devices) != "0 1 2 3 4 5 6 7" || m.MemoryBytes != 4<<30 {
		t.Fatalf("%s, %d bytes", names(m.Devices), m.MemoryBytes)
	}
	d := m.Devices[7]
	want := Device{
		ID: "cpu:7", Kind: CPU, Model: "Test CPU", UUID: "CPU-0123456789abcdef0123456789abcdef-7", NUMA: 1, Load: -1, Core: 1<<16 | 1,
		Siblings: []int{3, 7}, Caches: []Cache{{Level: 1, Type: "Data", Bytes: 48 << 10, Shared: []int{3, 7}}},
	}
	if !reflect.DeepEqual(d, want) {
		t.Errorf("%+v\nwant %+v", d, want)
	}
	// Half of the processors are all of the cores.
	four, err := m.Match(Request{Kind: CPU, Count: 4})
	if err != nil || names(four) != "0 1 2 3" {
		t.Errorf("%s, %v", names(four), err)
	}
	two, err := m.Match(Request{Kind: CPU, Count: 2})
	if err != nil || names(two) != "0 1" {
		t.Errorf("%s, %v; want both of one node", names(two), err)
	}
}

// A processor that goes offline between two looks is taken out, and comes back; what
// the memory lost before the first look takes nothing out, what it loses later all.
func TestProcessorsTurnSick(t *testing.T) {
	root := recorded()
	put := func(name, text string) { root[name] = &fstest.MapFile{Data: []byte(text + "\n")} }
	put("sys/devices/system/edac/mc/mc0/ue_count", "0")
	put("sys/devices/system/edac/mc/mc1/ue_count", "2")
	p := &ProcFS{root: root}
	var h Health
	for _, look := range []struct {
		online, errors string // of mc1
		sick, well     string // that turned so
		why            string
		all            string
	}{
		{"0-7", "2", "", "", "", "0 1 2 3 4 5 6 7"},
		{"0-2,4-7", "2", "3", "", "it went offline; echo 1 > /sys/devices/system/cpu/cpu3/online brings it back", "0 1 2 3 4 5 6 7"},
		{"0-2,4-7", "2", "", "", "", "0 1 2 3 4 5 6 7"},
		{"0-7", "2", "", "3", "", "0 1 2 3 4 5 6 7"},
		{"0-7", "5", "0 1 2 3 4 5 6 7", "", "ECC: memory controller mc1 has counted 3 uncorrected errors", "0 1 2 3 4 5 6 7"},
		{"0-7", "5", "", "", "", "0 1 2 3 4 5 6 7"},
	} {
		put("sys/devices/system/cpu/online", look.online)
		put("sys/devices/system/edac/mc/mc1/ue_count", look.errors)
		m, err := p.Scan()
		if err != nil {
			t.Fatal(err)
		}
		all, sick, well := h.Step(m.Devices)
		if names(all) != look.all || names(sick) != look.sick || names(well) != look.well {
			t.Errorf("online %s: of %q %q turned sick and %q well, want %q and %q", look.online, names(all), names(sick), names(well), look.sick, look.well)
		}
		for _, d := range sick {
			if !strings.HasPrefix(d.Sick, look.why) {
				t.Errorf("%s: %s", d.ID, d.Sick)
			}
		}
		if _, err := (Machine{Devices: all}).Match(Request{Kind: CPU, Count: 8}); (err == nil) != (look.online == "0-7" && look.errors == "2") {
			t.Errorf("online %s: eight processors: %v", look.online, err)
		}
	}
	// Who looks for the first time now sees what there is.
	put("sys/devices/system/cpu/online", "0,2")
	if m := scan(t, root); names(m.Devices) != "0 2" || m.Devices[0].Sick != "" {
		t.Errorf("%+v", m.Devices)
	}
}

func TestCgroupLimits(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		cpus  string
		bytes int64 // available
	}{
		"none": {nil, "0 1 2 3 4 5 6 7", 4 << 30},
		"v2 in use": {map[string]string{
			"proc/self/cgroup": "0::/a", "sys/fs/cgroup/a/memory.max": "1073741824", "sys/fs/cgroup/a/memory.current": "536870912",
			"sys/fs/cgroup/a/memory.stat": "anon 268435456\nfile 268435456\ninactive_file 134217728",
		}, "0 1 2 3 4 5 6 7", 640 << 20},
		"v1 in use": {map[string]string{
			"proc/self/cgroup": "3:memory:/y", "sys/fs/cgroup/memory/y/memory.limit_in_bytes": "1073741824", "sys/fs/cgroup/memory/y/memory.usage_in_bytes": "2147483648",
			"sys/fs/cgroup/memory/y/memory.stat": "inactive_file 1\ntotal_inactive_file 1342177280",
		}, "0 1 2 3 4 5 6 7", 256 << 20},
		"v2": {map[string]string{
			"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/b/cpu.max": "max 100000", "sys/fs/cgroup/a/cpu.max": "250000 100000",
			"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": "1073741824",
		}, "0 1", 1 << 30},
		"v2 cpuset": {map[string]string{"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpuset.cpus.effective": "2-3"}, "2 3", 4 << 30},
		"v1": {map[string]string{
			"proc/self/cgroup": "2:cpu,cpuacct:/x\n3:memory:/y\n4:cpuset:/", "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000", "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
			"sys/fs/cgroup/memory/y/memory.limit_in_bytes": "536870912", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712", "sys/fs/cgroup/cpuset/cpuset.cpus": "1,5",
		}, "1", 512 << 20},
		"v1 unlimited": {map[string]string{"proc/self/cgroup": "2:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, "0 1 2 3 4 5 6 7", 4 << 30},
		"nonsense":     {map[string]string{"proc/self/cgroup": "::::", "sys/fs/cgroup/cpu.max": "1 0", "sys/fs/cgroup/memory.max": "-5", "sys/fs/cgroup/cpuset.cpus.effective": "9-1"}, "0 1 2 3 4 5 6 7", 4 << 30},
	} {
		root := recorded()
		for n, s := range tc.files {
			root[n] = &fstest.MapFile{Data: []byte(s + "\n")}
		}
		if m := scan(t, root); names(m.Devices) != tc.cpus || m.MemoryBytes != tc.bytes {
			t.Errorf("%s: processors %s and %d bytes, want %s and %d", name, names(m.Devices), m.MemoryBytes, tc.cpus, tc.bytes)
		}
	}
}

func TestDriver(t *testing.T) {
	info := "Model: \t\t NVIDIA H100\nGPU UUID: \t GPU-11111111-2222-3333-4444-555555555555\nDevice Minor: \t 3\n"
	root := fstest.MapFS{
		"proc/driver/nvidia/gpus/0000:1b:00.0/information": {Data: []byte(info)},
		"sys/bus/pci/devices/0000:1b:00.0/numa_node":       {Data: []byte("1\n")},
	}
	for _, tc := range []struct {
		err  error
		sick string
	}{{nil, ""}, {fs.ErrPermission, "no permission to open /dev/nvidia3"}, {fs.ErrNotExist, "/dev/nvidia3 is missing"}, {errors.New("input/output error"), "input/output"}} {
		m, err := NewDriver(root, func(string) error { return tc.err }).Scan()
		if err != nil || len(m.Devices) != 1 {
			t.Fatalf("%+v, %v", m, err)
		}
		d := m.Devices[0]
		if d.Model != "NVIDIA H100" || d.NUMA != 1 || d.UUID != "GPU-11111111-2222-3333-4444-555555555555" || (d.Sick == "") != (tc.sick == "") || !strings.Contains(d.Sick, tc.sick) {
			t.Errorf("%v: %+v", tc.err, d)
		}
	}
	m, err := NewDriver(fstest.MapFS{"dev/nvidia0": {}}, nil).Scan()
	if err != nil || len(m.Devices) != 0 || len(m.Notes) != 1 || !strings.Contains(m.Notes[0], "no driver") {
		t.Errorf("device files without a driver: %+v, %v", m, err)
	}
	if m, err := NewDriver(fstest.MapFS{}, nil).Scan(); err != nil || len(m.Devices)+len(m.Notes) != 0 {
		t.Errorf("a machine without GPUs: %+v, %v", m, err)
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("0-3,8")
	f.Add("9-1")
	f.Fuzz(func(t *testing.T, s string) {
		ids, err := ParseList(s)
		for i := 1; err == nil && i < len(ids); i++ {
			if ids[i] <= ids[i-1] {
				t.Fatalf("%q: %v is not sorted", s, ids)
			}
		}
	})
}

func FuzzCgroup(f *testing.F) {
	f.Add("0::/a/b\n2:cpu,cpuacct:/x", "100000 50000", "48K")
	f.Fuzz(func(t *testing.T, self, quota, size string) {
		for _, p := range ParseCgroup(self) {
			if !strings.HasPrefix(p, "/") || strings.Contains(p, "/../") {
				t.Fatalf("%q: path %q", self, p)
			}
		}
		if n, err := ParseMax(quota); err == nil && n < 0 {
			t.Fatalf("%q is %v", quota, n)
		}
		if n, err := ParseSize(size); err == nil && n < 0 {
			t.Fatalf("%q is %d", size, n)
		}
	})
}
