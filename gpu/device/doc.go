// Package device says what this machine has to compute with, and resolves a
// request such as gpu-4x-a100 or cpu-2 to devices.
//
//	inv, err := device.Inventory()
//	devices, err := inv.Match(device.Request{Kind: device.CPU, Count: 2})
//
// A CPU device is one core that the process may use (affinity mask and cgroup
// quota respected). GPUs are seen through /proc/driver/nvidia; this build has no
// engine for them, and Match says so.
//
// Vocabulary: inventory (all devices of one machine), request (what a job asks
// for), device (one unit that a worker owns).
package device
