package telemetry

import (
	"fmt"

	"github.com/open-autoglm/autoglm/runtime/train"
)

// cost is what a trial's steps took: sums over its records of steps but the
// first, which warms up.
type cost struct {
	records     int
	compute     float64 // share of the time
	wait        float64 // … of only waiting for the ring
	efficiency  float64
	perSecond   float64 // tokens
	bytes, wire int64   // of gradient summed, and sent for it, in a step
	peak        int64   // bytes of memory
	compression string  // of the last record
}

func (c *cost) add(m *train.StepMetrics) {
	c.peak = max(c.peak, m.PeakBytes)
	if m.Step == 1 {
		return
	}
	c.records++
	c.compute += m.Compute
	c.wait += m.SyncShare
	c.efficiency += m.SyncEff
	c.perSecond += m.PerSecond
	c.bytes += m.SyncBytes
	c.wire += m.WireBytes
	c.compression = m.Compression
}

// costHead names the columns of row.
func costHead() []string {
	return []string{"trial", "tokens a second", "computing", "waiting for the ring", "sync efficiency", "gradient a step", "sent a step", "compression", "peak memory"}
}

func (c *cost) row(id string) []string {
	row := []string{id, none, none, none, none, none, none, none, none}
	if c.records > 0 {
		n := float64(c.records)
		row[1], row[2] = size(int64(c.perSecond/n)), percent(c.compute/n)
		if c.bytes > 0 {
			row[3], row[4] = percent(c.wait/n), percent(c.efficiency/n)
			row[5], row[6] = megabytes(c.bytes/int64(c.records)), megabytes(c.bytes/int64(c.records))
			if c.wire > 0 {
				row[6] = megabytes(c.wire / int64(c.records))
			}
			if c.compression != "" {
				row[7] = c.compression
			}
		}
	}
	if c.peak > 0 {
		row[8] = megabytes(c.peak)
	}
	return row
}

func percent(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }
