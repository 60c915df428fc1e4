//go:build !gpu

package device

// HasNVML tells whether this build has NVML (build tag gpu).
const HasNVML = false

// NVMLSource is the source that asks NVML, nil where the build has none.
func NVMLSource() Source { return nil }
