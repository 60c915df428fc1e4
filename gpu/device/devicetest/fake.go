// Package devicetest holds what stands in for hardware in tests, and the suite
// that it and the real sources pass.
//
//	f := devicetest.New(8)
//	f.Set(3, func(d *device.Device) { d.Sick = "XID 79" })
//	devicetest.Conform(t, f)
package devicetest

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// Fake is a source of invented GPUs. Its methods may be called at once.
type Fake struct {
	mu struct {
		sync.Mutex
		machine device.Machine
		err     error
	}
}

// New makes n A100s in two halves: pairs by NVLink, one NUMA node a half.
func New(n int) *Fake {
	f := &Fake{}
	for i := range n {
		f.mu.machine.Devices = append(f.mu.machine.Devices, device.Device{
			ID: fmt.Sprintf("gpu:%d", i), Kind: device.GPU, Model: "NVIDIA A100-SXM4-40GB", UUID: fmt.Sprintf("GPU-00000000-0000-0000-0000-%012d", i),
			MemoryBytes: 40 << 30, NUMA: 2 * i / n, Bus: fmt.Sprintf("00000000:%02X:00.0", i+1), Core: -1, Celsius: 30,
		})
		for j := range i {
			level := device.System
			switch {
			case i/2 == j/2:
				level = device.NVLink
			case 2*i/n == 2*j/n:
				level = device.SameNode
			}
			f.mu.machine.Links = append(f.mu.machine.Links, device.Link{A: fmt.Sprintf("gpu:%d", j), B: fmt.Sprintf("gpu:%d", i), Level: level})
		}
	}
	return f
}

// Set changes the i-th device.
func (f *Fake) Set(i int, change func(*device.Device)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.mu.machine.Devices[i])
}

// Remove lets the i-th device vanish.
func (f *Fake) Remove(i int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := f.mu.machine.Devices[i].ID
	f.mu.machine.Devices = slices.Delete(f.mu.machine.Devices, i, i+1)
	f.mu.machine.Links = slices.DeleteFunc(f.mu.machine.Links, func(l device.Link) bool { return l.A == id || l.B == id })
}

// Fail makes each Scan return err, until nil.
func (f *Fake) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.err = err
}

// Name implements device.Source.
func (*Fake) Name() string { return "fake" }

// Close implements device.Source.
func (*Fake) Close() error { return nil }

// Scan implements device.Source.
func (f *Fake) Scan() (device.Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.mu.machine
	m.Devices, m.Links = slices.Clone(m.Devices), slices.Clone(m.Links)
	return m, f.mu.err
}

// Conform holds a source to its contract, and what it sees to the promises of
// matching and leasing.
func Conform(t *testing.T, s device.Source) {
	t.Helper()
	if s.Name() == "" {
		t.Error("a source without a name")
	}
	m, err := s.Scan()
	if err != nil {
		t.Fatal(err)
	}
	ids, uuids := map[string]bool{}, map[string]bool{}
	var well []device.Device
	for _, d := range m.Devices {
		if d.ID == "" || ids[d.ID] || d.UUID == "" || uuids[d.UUID] {
			t.Errorf("%+v: its ID or UUID is empty or another's", d)
		}
		ids[d.ID], uuids[d.UUID] = true, true
		if d.Model == "" || d.Kind != device.CPU && d.Kind != device.GPU {
			t.Errorf("%s: model %q, kind %q", d.ID, d.Model, d.Kind)
		}
		if d.UsedBytes < 0 || d.MemoryBytes > 0 && d.UsedBytes > d.MemoryBytes || d.Load > 1 || d.NUMA < -1 {
			t.Errorf("%s: %d of %d bytes, load %v, node %d", d.ID, d.UsedBytes, d.MemoryBytes, d.Load, d.NUMA)
		}
		if d.Sick == "" && d.MIG != "on" {
			well = append(well, d)
		}
	}
	for _, l := range m.Links {
		if !ids[l.A] || !ids[l.B] || l.A == l.B {
			t.Errorf("link %+v: between no two devices", l)
		}
	}
	again, err := s.Scan()
	if err != nil || len(again.Devices) != len(m.Devices) {
		t.Fatalf("a second look: %d devices, %v; the first had %d", len(again.Devices), err, len(m.Devices))
	}
	for i, d := range again.Devices {
		if d.ID != m.Devices[i].ID || d.UUID != m.Devices[i].UUID {
			t.Errorf("%s %s is %s %s at the second look", m.Devices[i].ID, m.Devices[i].UUID, d.ID, d.UUID)
		}
	}
	leases, err := device.OpenLeases(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	first := map[device.Kind]device.Device{}
	for _, d := range well {
		if _, ok := first[d.Kind]; !ok {
			first[d.Kind] = d
		}
	}
	for kind := range first {
		n := 0
		for _, d := range well {
			if d.Kind == kind {
				n++
			}
		}
		got, held, err := leases.Acquire(m, device.Request{Kind: kind}, "conformance", 0)
		if err != nil || len(got) != n {
			t.Fatalf("%s-any: %d devices, %v; want %d", kind, len(got), err, n)
		}
		if _, _, err := leases.Acquire(m, device.Request{Kind: kind, Count: 1}, "another", 0); err == nil {
			t.Errorf("%s: a device was leased twice", kind)
		}
		held.Release()
		if _, held, err = leases.Acquire(m, device.Request{Kind: kind, Count: 1}, "another", 0); err != nil {
			t.Errorf("%s: after the release: %v", kind, err)
		}
		held.Release()
	}
}
