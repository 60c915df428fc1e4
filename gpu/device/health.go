package device

import (
	"context"
	"fmt"
	"time"
)

// Events tells what happens to devices. Nil fields are skipped. Calls come from
// the goroutine that watches, one at a time.
type Events struct {
	Sick func(Device)      // it was well; Device.Sick says why it no longer is
	Well func(Device)      // it is back, or new
	Err  func(error)       // nothing could be read; watching goes on
	Scan func(now Machine) // after each look, once the changes were told
}

// Health compares what is seen with what was seen before. A device that XID or
// ECC took out stays out until its driver says otherwise; one that vanished is
// kept in the list as sick. It is a plain value for one goroutine.
type Health struct{ known []Device }

// Step takes the next look, and returns the devices with the vanished ones, and
// those that turned sick and well.
func (h *Health) Step(now []Device) (all, sick, well []Device) {
	before := map[string]Device{}
	for _, d := range h.known {
		before[key(d)] = d
	}
	seen := map[string]bool{}
	for _, d := range now {
		seen[key(d)] = true
		all = append(all, d)
		old, ok := before[key(d)]
		switch {
		case d.Sick != "" && (!ok || old.Sick == ""):
			sick = append(sick, d)
		case d.Sick == "" && ok && old.Sick != "":
			well = append(well, d)
		case d.Sick == "" && !ok && h.known != nil:
			well = append(well, d)
		}
	}
	for _, d := range h.known {
		if seen[key(d)] {
			continue
		}
		if d.Sick == "" {
			d.Sick = "vanished"
			sick = append(sick, d)
		}
		all = append(all, d)
	}
	h.known = all
	if h.known == nil {
		h.known = []Device{}
	}
	return all, sick, well
}

func key(d Device) string {
	if d.UUID != "" {
		return d.UUID
	}
	return d.ID
}

// Watch looks at once and then every interval, until ctx ends. It returns ctx's
// error, and never while a source blocks.
func Watch(ctx context.Context, every time.Duration, e Events, sources ...Source) error {
	if every <= 0 {
		return fmt.Errorf("an interval of %v: give more than 0", every)
	}
	var h Health
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		m, err := Scan(sources...)
		if err != nil {
			if e.Err != nil {
				e.Err(err)
			}
		} else {
			all, sick, well := h.Step(m.Devices)
			m.Devices = all
			for _, d := range sick {
				if e.Sick != nil {
					e.Sick(d)
				}
			}
			for _, d := range well {
				if e.Well != nil {
					e.Well(d)
				}
			}
			if e.Scan != nil {
				e.Scan(m)
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
