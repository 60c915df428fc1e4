// Package device says what this machine has to compute with, resolves a request
// such as gpu-4x-a100 or cpu-2 to devices, and leases them.
//
//	m, err := device.Inventory()
//	leases, err := device.OpenLeases(device.LockDir())
//	devices, held, err := leases.Acquire(m, device.Request{Kind: device.CPU, Count: 2}, "build run1", 0)
//	defer held.Release()
//
// A CPU device is one logical processor that the process may use (affinity mask,
// cpuset and cgroup quota respected). It turns sick when it goes offline, or when a
// memory controller counts errors that it can't correct. Exclusive tells whether
// the processors are this process's cgroup's alone, so that threads may be pinned
// to them. GPUs are seen through /proc/driver/nvidia:
// their models and bus ids, and whether they can be opened. Their memory, links,
// load, temperature and errors are known to NVML alone, which needs cgo and so the
// build tag gpu. A fault of NVML ends its process: Sources leave it out, and
// NVMLSource is for a worker's.
//
// The caller's duties: release what was acquired, and compute on a device only
// while Held.Check returns nil.
//
// Invariants: two owners never hold one device of a host, across processes and
// users that share the lock folder; a lease ends with its process, however that
// ends. A device that is sick is never matched.
//
// Vocabulary: inventory (all devices of one machine), source (who knows of
// them), request (what a job asks for), device (one unit that a worker owns),
// lease (the right to compute on one), epoch (counts a device's leases), sick
// (taken out, and why).
package device
