package device

import "os"

// Source knows of some of a machine's devices. Calls may block for as long as a
// driver does (NVML: up to seconds), never overlap, and return fresh values that
// belong to the caller. A device that can't be read is returned as sick; an
// error means that nothing could be read.
type Source interface {
	Name() string
	Scan() (Machine, error) // MemoryBytes and TotalBytes are 0 unless the source knows the host's
	Close() error
}

// Sources are those of this machine that need no library: processors, then GPUs.
func Sources() []Source {
	d := NewDriver(os.DirFS("/"), openDevice)
	if !HasNVML {
		d.hint = "this build sees GPUs but not their memory, links, load or temperature: build with -tags gpu (needs a C compiler) for all of it"
	}
	return []Source{NewProcFS(os.DirFS("/")), d}
}

// Scan puts together what sources see.
func Scan(sources ...Source) (Machine, error) {
	var m Machine
	for _, s := range sources {
		part, err := s.Scan()
		if err != nil {
			return m, err
		}
		m.Devices = append(m.Devices, part.Devices...)
		m.Links = append(m.Links, part.Links...)
		m.Notes = append(m.Notes, part.Notes...)
		m.MemoryBytes, m.TotalBytes = max(m.MemoryBytes, part.MemoryBytes), max(m.TotalBytes, part.TotalBytes)
	}
	return m, nil
}
