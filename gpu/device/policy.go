package device

import "fmt"

// LoadPolicy says where work goes that may run on either kind: to the GPU while
// its load is under the threshold, otherwise to the CPU.
type LoadPolicy struct {
	Threshold  float64 `json:"threshold"`  // load of the GPU, 0 to 1
	Hysteresis float64 `json:"hysteresis"` // so far below the threshold the load must fall before work comes back
}

// DefaultLoadPolicy is 0.7, and back at 0.6.
func DefaultLoadPolicy() LoadPolicy { return LoadPolicy{Threshold: 0.7, Hysteresis: 0.1} }

// Validate names the field that is wrong.
func (p LoadPolicy) Validate() error {
	if !(p.Threshold > 0 && p.Threshold <= 1) {
		return fmt.Errorf("threshold %v is not above 0 and at most 1", p.Threshold)
	}
	if !(p.Hysteresis >= 0 && p.Hysteresis < p.Threshold) {
		return fmt.Errorf("hysteresis %v is not between 0 and the threshold %v", p.Hysteresis, p.Threshold)
	}
	return nil
}

// Next is where work goes now. Last is where it went before, Auto at the start.
// A load that isn't known (negative, NaN) keeps it off the GPU.
func (p LoadPolicy) Next(last Kind, load float64) Kind {
	if load >= 0 && load < p.Limit(last) {
		return GPU
	}
	return CPU
}

// Limit is the load under which work goes to the GPU that went to last before.
func (p LoadPolicy) Limit(last Kind) float64 {
	if last == CPU {
		return p.Threshold - p.Hysteresis
	}
	return p.Threshold
}

// Place settles where a job of the machine goes that may run on either kind: it
// keeps the GPUs that are quiet enough and drops the others; the kind is GPU where
// any are left. Last is where the job went before, Auto at the start.
func (p LoadPolicy) Place(m Machine, last Kind) (Machine, Kind) {
	out, kind := m, CPU
	out.Devices = nil
	for _, d := range m.Devices {
		if d.Kind == GPU {
			if d.Sick != "" || d.MIG == "on" || p.Next(last, d.Load) != GPU {
				continue
			}
			kind = GPU
		}
		out.Devices = append(out.Devices, d)
	}
	return out, kind
}
