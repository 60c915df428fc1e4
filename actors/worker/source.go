package worker

import (
	"fmt"

	"github.com/open-autoglm/autoglm/gpu/device"
)

// Source is the device.Source that asks NVML in a child, since a fault of that
// library ends its process. Where the child fails, the fallback answers, and a
// note says why.
type Source struct {
	host     *Host
	fallback device.Source
}

// NewSource makes the source; it closes the host with itself.
func NewSource(host *Host, fallback device.Source) *Source {
	return &Source{host: host, fallback: fallback}
}

// Name implements device.Source.
func (s *Source) Name() string { return "nvml in a process" }

// Scan implements device.Source.
func (s *Source) Scan() (device.Machine, error) {
	m, err := s.host.Look()
	if err == nil {
		return m, nil
	}
	seen, ferr := s.fallback.Scan()
	seen.Notes = append(seen.Notes, fmt.Sprintf("NVML does not answer: %v", err))
	return seen, ferr
}

// Close implements device.Source.
func (s *Source) Close() error {
	s.host.Close()
	return s.fallback.Close()
}
