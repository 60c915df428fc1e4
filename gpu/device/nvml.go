//go:build gpu

package device

import (
	"fmt"
	"os"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// NVML is the source of GPUs that asks NVIDIA's management library: memory, MIG
// slices, links, load, temperature, ECC, XID errors and the processes that hold
// memory. Where the library or its driver is missing, the fallback answers: after
// a failed Init any other call of NVML ends the process.
//
// It has run on go-nvml's mock of 8 A100s, not yet on hardware.
type NVML struct {
	lib      nvml.Interface
	fallback Source
	up       bool
	events   nvml.EventSet
	xid      map[string]uint64 // by UUID: the last error that an application can't have caused
}

// NewNVML makes the source; lib is nvml.New() or a mock.
func NewNVML(lib nvml.Interface, fallback Source) *NVML {
	return &NVML{lib: lib, fallback: fallback, xid: map[string]uint64{}}
}

// HasNVML tells whether this build has NVML (build tag gpu).
const HasNVML = true

// NVMLSource is the source that asks this machine's NVML. A fault of that library
// ends the process: it belongs into a worker's.
func NVMLSource() Source { return NewNVML(nvml.New(), NewDriver(os.DirFS("/"), openDevice)) }

// Name implements Source.
func (*NVML) Name() string { return "nvml" }

// Close implements Source.
func (s *NVML) Close() error {
	if !s.up {
		return s.fallback.Close()
	}
	s.up = false
	if s.events != nil {
		s.events.Free()
	}
	if ret := s.lib.Shutdown(); ret != nvml.SUCCESS {
		return fmt.Errorf("nvml: shutdown: %s", name(ret))
	}
	return s.fallback.Close()
}

// name says what a return means, without a call into the library.
func name(r nvml.Return) string {
	switch r {
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return "libnvidia-ml.so.1 is not there"
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return "the driver is not loaded"
	case nvml.ERROR_NO_PERMISSION:
		return "no permission"
	case nvml.ERROR_GPU_IS_LOST:
		return "the GPU is lost"
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return "the library's version is not the driver's: reboot, or load the driver anew"
	}
	return fmt.Sprintf("error %d", int(r))
}

// Scan implements Source.
func (s *NVML) Scan() (Machine, error) {
	if !s.up {
		if ret := s.lib.Init(); ret != nvml.SUCCESS {
			m, err := s.fallback.Scan()
			if m.Count(GPU) > 0 {
				m.Notes = append(m.Notes, "NVML does not answer: "+name(ret))
			}
			return m, err
		}
		s.up = true
		if set, ret := s.lib.EventSetCreate(); ret == nvml.SUCCESS {
			s.events = set
		}
	}
	n, ret := s.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return Machine{}, fmt.Errorf("nvml: count devices: %s", name(ret))
	}
	var m Machine
	var handles []nvml.Device
	var at []int // of each GPU among the devices
	s.hear()
	for i := range n {
		h, ret := s.lib.DeviceGetHandleByIndex(i)
		id := fmt.Sprintf("gpu:%d", i)
		at = append(at, len(m.Devices))
		if ret != nvml.SUCCESS {
			m.Devices = append(m.Devices, Device{ID: id, Kind: GPU, Model: "NVIDIA GPU", UUID: "GPU-at-" + id, NUMA: -1, Core: -1, Load: -1, Sick: "NVML: " + name(ret)})
			handles = append(handles, nil)
			continue
		}
		d, slices := s.read(h, id)
		m.Devices = append(m.Devices, d)
		m.Devices = append(m.Devices, slices...)
		handles = append(handles, h)
	}
	var switched []bool
	m.Links, switched = links(handles)
	for k, yes := range switched {
		m.Devices[at[k]].Switched = yes
	}
	return m, nil
}

// hear takes the XID errors since the last look.
func (s *NVML) hear() {
	if s.events == nil {
		return
	}
	for range 1000 {
		e, ret := s.events.Wait(0)
		if ret != nvml.SUCCESS {
			return
		}
		if e.EventType == nvml.EventTypeXidCriticalError && !byApplication(e.EventData) && e.Device != nil {
			if uuid, ret := e.Device.GetUUID(); ret == nvml.SUCCESS {
				s.xid[uuid] = e.EventData
			}
		}
	}
}

// byApplication lists the XID errors that a faulty program causes (NVIDIA, "XID
// Errors"): the device is as well as before.
func byApplication(xid uint64) bool {
	switch xid {
	case 13, 31, 43, 45, 68, 109:
		return true
	}
	return false
}

// read asks one GPU for all there is; what it doesn't answer stays unknown.
func (s *NVML) read(h nvml.Device, id string) (Device, []Device) {
	d := Device{ID: id, Kind: GPU, Model: "NVIDIA GPU", NUMA: -1, Core: -1, Load: -1}
	lost := nvml.SUCCESS
	ok := func(r nvml.Return) bool {
		if r == nvml.ERROR_GPU_IS_LOST {
			lost = r
		}
		return r == nvml.SUCCESS
	}
	if v, r := h.GetName(); ok(r) {
		d.Model = v
	}
	if v, r := h.GetUUID(); ok(r) {
		d.UUID = v
		if xid := s.xid[v]; xid != 0 {
			d.Sick = fmt.Sprintf("XID %d", xid)
		} else if s.events != nil {
			// A second registration of the same events changes nothing.
			h.RegisterEvents(nvml.EventTypeXidCriticalError, s.events)
		}
	}
	if d.UUID == "" {
		d.UUID = "GPU-at-" + id
	}
	if v, r := h.GetMemoryInfo(); ok(r) {
		d.MemoryBytes, d.UsedBytes = int64(v.Total), int64(min(v.Used, v.Total))
	}
	if v, r := h.GetPciInfo(); ok(r) {
		d.Bus = text(v.BusId[:])
		if d.Bus == "" {
			d.Bus = fmt.Sprintf("%08X:%02X:%02X.0", v.Domain, v.Bus, v.Device)
		}
	}
	if v, r := h.GetNumaNodeId(); ok(r) {
		d.NUMA = v
	}
	if v, r := h.GetUtilizationRates(); ok(r) {
		d.Load = min(1, float64(v.Gpu)/100)
	}
	if v, r := h.GetComputeRunningProcesses(); ok(r) {
		for _, p := range v {
			used := int64(p.UsedGpuMemory)
			if used < 0 { // the driver does not know
				used = 0
			}
			d.Processes = append(d.Processes, Process{PID: int(p.Pid), Bytes: used})
		}
	}
	if v, r := h.GetTemperature(nvml.TEMPERATURE_GPU); ok(r) {
		d.Celsius = int(v)
		if limit, r := h.GetTemperatureThreshold(nvml.TEMPERATURE_THRESHOLD_SLOWDOWN); ok(r) && limit > 0 && v >= limit && d.Sick == "" {
			d.Sick = fmt.Sprintf("too hot: %d °C, it slows down at %d °C", v, limit)
		}
	}
	if v, r := h.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); ok(r) && v > 0 && d.Sick == "" {
		d.Sick = fmt.Sprintf("ECC: %d uncorrected errors since the driver was loaded", v)
	}
	if _, _, _, failed, r := h.GetRemappedRows(); ok(r) && failed && d.Sick == "" {
		d.Sick = "ECC: a row of its memory could not be remapped"
	}
	if lost != nvml.SUCCESS {
		d.Sick = "vanished: the GPU is lost to its driver"
	}
	var slices []Device
	if current, _, r := h.GetMigMode(); ok(r) && current == nvml.DEVICE_MIG_ENABLE {
		d.MIG = "on"
		slices = s.slices(h, d)
	}
	return d, slices
}

// slices are the MIG devices of a GPU.
func (s *NVML) slices(h nvml.Device, of Device) []Device {
	n, r := h.GetMaxMigDeviceCount()
	if r != nvml.SUCCESS {
		return nil
	}
	var out []Device
	for i := range n {
		g, r := h.GetMigDeviceHandleByIndex(i)
		if r != nvml.SUCCESS {
			continue
		}
		d := Device{ID: fmt.Sprintf("%s.%d", of.ID, i), Kind: GPU, Model: of.Model, NUMA: of.NUMA, Core: -1, Load: -1, Bus: of.Bus, Sick: of.Sick, Celsius: of.Celsius, MIG: "slice"}
		if v, r := g.GetUUID(); r == nvml.SUCCESS {
			d.UUID = v
		} else {
			d.UUID = fmt.Sprintf("%s/%d", of.UUID, i)
		}
		if v, r := g.GetName(); r == nvml.SUCCESS && strings.Contains(v, "MIG ") {
			d.MIG = v[strings.Index(v, "MIG ")+4:]
		}
		if v, r := g.GetMemoryInfo(); r == nvml.SUCCESS {
			d.MemoryBytes, d.UsedBytes = int64(v.Total), int64(min(v.Used, v.Total))
		}
		out = append(out, d)
	}
	return out
}

// links tells how the GPUs are joined: by NVLink, through a switch where all of a
// GPU's links end in one (switched), or else by what they have in common on PCI.
func links(handles []nvml.Device) (out []Link, switched []bool) {
	type reach struct {
		switched bool
		peers    map[string]bool // bus ids
		bus      string
	}
	all := make([]reach, len(handles))
	for i, h := range handles {
		if h == nil {
			continue
		}
		all[i].peers = map[string]bool{}
		if v, r := h.GetPciInfo(); r == nvml.SUCCESS {
			all[i].bus = place(v)
		}
		for l := range nvml.NVLINK_MAX_LINKS {
			state, r := h.GetNvLinkState(l)
			if r == nvml.ERROR_INVALID_ARGUMENT || r == nvml.ERROR_NOT_SUPPORTED {
				break
			}
			if r != nvml.SUCCESS || state != nvml.FEATURE_ENABLED {
				continue
			}
			if kind, r := h.GetNvLinkRemoteDeviceType(l); r == nvml.SUCCESS && kind == nvml.NVLINK_DEVICE_TYPE_SWITCH {
				all[i].switched = true
				continue
			}
			if v, r := h.GetNvLinkRemotePciInfo(l); r == nvml.SUCCESS {
				all[i].peers[place(v)] = true
			}
		}
	}
	for i, a := range handles {
		all[i].switched = all[i].switched && len(all[i].peers) == 0
		switched = append(switched, all[i].switched)
		for j := range i {
			b := handles[j]
			if a == nil || b == nil {
				continue
			}
			level := System
			switch {
			case all[i].switched && all[j].switched:
				level = NVSwitch
			case all[i].peers[all[j].bus] || all[j].peers[all[i].bus]:
				level = NVLink
			default:
				if v, r := a.GetTopologyCommonAncestor(b); r == nvml.SUCCESS {
					level = Level(v)
				}
			}
			out = append(out, Link{A: fmt.Sprintf("gpu:%d", j), B: fmt.Sprintf("gpu:%d", i), Level: level})
		}
	}
	return out, switched
}

// place is where a device sits on PCI, however its bus id is written.
func place(p nvml.PciInfo) string { return fmt.Sprintf("%x:%x:%x", p.Domain, p.Bus, p.Device) }

func text(b []int8) string {
	var s strings.Builder
	for _, c := range b {
		if c == 0 {
			break
		}
		s.WriteByte(byte(c))
	}
	return s.String()
}
