//go:build gpu

package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/device/devicetest"
)

func init() {
	mockNVML = func() device.Source {
		lib, _ := devicetest.A100s()
		return device.NewNVML(lib, devicetest.New(0))
	}
}

// NVML is asked in a process of its own: go-nvml's 8 A100s are seen through it as
// by its own source, and a build leases four and computes on them.
func TestNVMLInAProcess(t *testing.T) {
	source := func() device.Source {
		return worker.NewSource(worker.NewHost(worker.Config{Command: processOf("nvml")}), devicetest.New(0))
	}
	s := source()
	defer s.Close()
	devicetest.Conform(t, s)
	m, err := s.Scan()
	if err != nil || m.Count(device.GPU) != 8 || len(m.Links) != 28 || len(m.Devices[5].Processes) != 1 || len(m.Notes) != 0 {
		t.Fatalf("%+v, %v", m, err)
	}
	o := Options{
		Dir: filepath.Join(t.TempDir(), "run"), Spec: gpuSpec(t, "gpu-4x-a100"), Lease: leaseIn(t), Worker: processOf("cuda"),
		Sources: func() []device.Source { return []device.Source{device.NewProcFS(os.DirFS("/")), source()} },
	}
	if err := build(t, o); err != nil {
		t.Fatal(err)
	}
	outcome(t, o.Dir)
	if r := readRan(o.Dir); len(r.Devices) != 4 || !strings.Contains(r.Devices[0].Model, "A100") || r.Devices[0].MemoryBytes == 0 {
		t.Errorf("%+v", r)
	}
	if left := children(t); len(left) > 1 { // s has one
		t.Errorf("processes %v are left", left)
	}
}

// This build's own: without a driver the library is not there, which its process
// says and outlives.
func TestOwnNVML(t *testing.T) {
	s := worker.NewSource(worker.NewHost(worker.Config{Command: processOf("cpu")}), devicetest.New(0))
	defer s.Close()
	devicetest.Conform(t, s)
}
