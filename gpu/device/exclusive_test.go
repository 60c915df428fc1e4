package device

import (
	"testing"
	"testing/fstest"
)

func TestExclusive(t *testing.T) {
	const job = "sys/fs/cgroup/job.slice"
	for name, tc := range map[string]struct {
		files map[string]string
		want  bool
	}{
		"v2, a partition": {map[string]string{"proc/self/cgroup": "0::/job.slice\n", job + "/cpuset.cpus.partition": "root\n"}, true},
		"v2, isolated":    {map[string]string{"proc/self/cgroup": "0::/job.slice\n", job + "/cpuset.cpus.partition": "isolated\n"}, true},
		"v2, a member":    {map[string]string{"proc/self/cgroup": "0::/job.slice\n", job + "/cpuset.cpus.partition": "member\n"}, false},
		"v2, taken back": {map[string]string{
			"proc/self/cgroup": "0::/job.slice\n", job + "/cpuset.cpus.partition": "root invalid (Cpu list in cpuset.cpus not exclusive)\n",
		}, false},
		"v2, the group above is one": {map[string]string{
			"proc/self/cgroup": "0::/job.slice/a\n", job + "/cpuset.cpus.partition": "root\n", job + "/a/cpuset.cpus.partition": "member\n",
		}, false},
		"v2, no cpuset controller":         {map[string]string{"proc/self/cgroup": "0::/job.slice\n", job + "/cpu.max": "max 100000\n"}, false},
		"v2, a container of its own name":  {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpuset.cpus.partition": "isolated\n"}, true},
		"v2, a container of a host's name": {map[string]string{"proc/self/cgroup": "0::/docker/ab12\n", "sys/fs/cgroup/cpuset.cpus.partition": "isolated\n"}, true},
		"v2 beside v1":                     {map[string]string{"proc/self/cgroup": "4:memory:/\n0::/j\n", "sys/fs/cgroup/unified/j/cpuset.cpus.partition": "root\n"}, true},
		"v1":                               {map[string]string{"proc/self/cgroup": "3:cpuset:/hpc\n", "sys/fs/cgroup/cpuset/hpc/cpuset.cpu_exclusive": "1\n"}, true},
		"v1, shared":                       {map[string]string{"proc/self/cgroup": "3:cpuset:/hpc\n", "sys/fs/cgroup/cpuset/hpc/cpuset.cpu_exclusive": "0\n"}, false},
		"v1, the root":                     {map[string]string{"proc/self/cgroup": "3:cpuset:/\n", "sys/fs/cgroup/cpuset/cpuset.cpu_exclusive": "1\n"}, false},
		"v1, a container of a host's name": {map[string]string{
			"proc/self/cgroup": "3:cpuset:/docker/ab12\n", "sys/fs/cgroup/cpuset/cpuset.cpu_exclusive": "1\n",
		}, true},
		"none": {map[string]string{}, false},
	} {
		root := fstest.MapFS{}
		for f, text := range tc.files {
			root[f] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := Exclusive(root); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
