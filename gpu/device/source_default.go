//go:build !gpu

package device

// gpuSource is the driver's own files: this build has no NVML.
func gpuSource(d *Driver) Source {
	d.hint = "this build sees GPUs but not their memory, links, load or temperature: build with -tags gpu (needs a C compiler) for all of it"
	return d
}
