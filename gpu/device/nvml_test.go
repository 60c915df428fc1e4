//go:build gpu

package device_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/device/devicetest"
)

func scan(t *testing.T, s device.Source) device.Machine {
	t.Helper()
	m, err := s.Scan()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestNVMLConforms(t *testing.T) {
	lib, _ := devicetest.A100s()
	s := device.NewNVML(lib, devicetest.New(0))
	devicetest.Conform(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Eight A100s: seen whole, leased best connected first, fragmented, made sick.
func TestNVMLA100s(t *testing.T) {
	lib, waiting := devicetest.A100s()
	s := device.NewNVML(lib, devicetest.New(0))
	defer s.Close()
	m := scan(t, s)
	if m.Count(device.GPU) != 8 {
		t.Fatalf("%d GPUs", m.Count(device.GPU))
	}
	d := m.Devices[5]
	if d.Model != "NVIDIA A100-SXM4-40GB" && !strings.Contains(d.Model, "A100") || d.MemoryBytes == 0 || d.NUMA != 1 || d.Load != 0.25 || d.Celsius != 40 || d.Sick != "" || len(d.Processes) != 1 {
		t.Errorf("%+v", d)
	}
	levels := map[device.Level]int{}
	for _, l := range m.Links {
		levels[l.Level]++
	}
	if levels[device.NVLink] != 4 || levels[device.SameNode] != 8 || levels[device.System] != 16 {
		t.Errorf("links by level: %v", levels)
	}
	leases, err := device.OpenLeases(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	req, err := device.ParseRequest("gpu-2x-a100")
	if err != nil {
		t.Fatal(err)
	}
	// Each pair is one with its own NVLink, until all are gone.
	var holds []*device.Held
	for range 4 {
		got, held, err := leases.Acquire(m, req, "pairs", 0)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := got[0].ID, got[1].ID; (a[4]-'0')^1 != b[4]-'0' {
			t.Errorf("leased %s with %s, which share no NVLink", a, b)
		}
		holds = append(holds, held)
	}
	if _, _, err := leases.Acquire(m, req, "fifth", 0); err == nil {
		t.Error("a ninth GPU was leased")
	}
	holds[1].Release()
	holds[2].Release()
	// Sick ones are not given out, and say why.
	lib.Devices[0].(*dgxa100.Device).GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 91, nvml.SUCCESS }
	lib.Devices[1].(*dgxa100.Device).GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 2, nvml.SUCCESS }
	lib.Devices[2].(*dgxa100.Device).GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, nvml.ERROR_GPU_IS_LOST }
	*waiting = []nvml.EventData{
		{Device: lib.Devices[3], EventType: nvml.EventTypeXidCriticalError, EventData: 79},
		{Device: lib.Devices[4], EventType: nvml.EventTypeXidCriticalError, EventData: 31}, // a program's fault
	}
	m = scan(t, s)
	for i, want := range []string{"too hot: 91", "ECC: 2 uncorrected", "vanished", "XID 79", "", "", "", ""} {
		if got := m.Devices[i].Sick; got != want && (want == "" || !strings.Contains(got, want)) {
			t.Errorf("gpu:%d is %q, want %q", i, got, want)
		}
	}
	if m = scan(t, s); m.Devices[3].Sick != "XID 79" {
		t.Error("the XID is forgotten at the next look")
	}
	for _, h := range []*device.Held{holds[0], holds[3]} {
		h.Release()
	}
	if got, held, err := leases.Acquire(m, device.Request{Kind: device.GPU, Count: 4}, "well", 0); err != nil {
		t.Error(err)
	} else {
		for _, d := range got {
			if d.Sick != "" {
				t.Errorf("%s was given out, and is %s", d.ID, d.Sick)
			}
		}
		held.Release()
	}
	if _, _, err := leases.Acquire(m, device.Request{Kind: device.GPU, Count: 5}, "too many", 0); err == nil || !strings.Contains(err.Error(), "XID 79") {
		t.Errorf("five of four well ones: %v", err)
	}
}

// Behind a switch all pairs are alike.
func TestNVMLSwitch(t *testing.T) {
	lib, _ := devicetest.A100s()
	for _, d := range lib.Devices {
		d.(*dgxa100.Device).GetNvLinkRemoteDeviceTypeFunc = func(int) (nvml.IntNvLinkDeviceType, nvml.Return) { return nvml.NVLINK_DEVICE_TYPE_SWITCH, nvml.SUCCESS }
	}
	s := device.NewNVML(lib, devicetest.New(0))
	defer s.Close()
	m := scan(t, s)
	if !m.Devices[7].Switched {
		t.Error("behind a switch, and not said so")
	}
	for _, l := range m.Links {
		if l.Level != device.NVSwitch {
			t.Errorf("%+v", l)
		}
	}
}

// Without the library nothing else of it is called, and the driver's files answer.
func TestNVMLMissing(t *testing.T) {
	lib := &mock.Interface{InitFunc: func() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND }}
	root := fstest.MapFS{"proc/driver/nvidia/gpus/0000:01:00.0/information": {Data: []byte("Model: \t\t Tesla T4\nGPU UUID: \t GPU-1\n")}}
	s := device.NewNVML(lib, device.NewDriver(root, nil))
	m := scan(t, s)
	if m.Count(device.GPU) != 1 || !strings.Contains(strings.Join(m.Notes, " "), "libnvidia-ml.so.1 is not there") {
		t.Errorf("%+v", m)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// The real library: there is none on most machines, and the process must live.
	real := device.NVMLSource()
	if _, err := real.Scan(); err != nil {
		t.Error(err)
	}
	real.Close()
}
