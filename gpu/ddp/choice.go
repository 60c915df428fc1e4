package ddp

import (
	"math"
)

// The rule by which Auto changes levels.
const (
	patience = 5    // steps in which a higher level must pay, in a row
	margin   = 1.1  // by how much
	keep     = 0.8  // of a running average, a step
	shift    = 0.5  // of the norm against its average, which is fast
	rest     = 32   // steps after a fall in which a bucket does not rise
	settling = 8    // steps before a bucket rises for the first time
	guess    = 2e-9 // seconds to encode and decode an element, before it was measured
)

// bounds of the relative error of an encoding: beyond it the bucket goes down.
var bounds = [levels]float64{None: math.Inf(1), BF16: 0.01, Int8: 0.1, PowerSGD: 0.995}

// choice is what rank 0 knows of a bucket.
type choice struct {
	want    Level
	steps   int
	pays    int // steps in a row in which the next level pays
	resting int
	reason  string

	exposed, err, norm float64
	code               [levels]float64 // seconds, 0: never measured
}

// observe takes in the last sum and decides.
func (k *bucket) observe(uint64) {
	c := &k.choice
	if c.want != k.level {
		return // on its way to all ranks
	}
	average := func(old *float64, v float64) {
		if c.steps == 0 || *old == 0 {
			*old = v
			return
		}
		*old = keep**old + (1-keep)*v
	}
	exposed := max(0, (k.comm - k.hidden).Seconds())
	moved := false
	if k.norm > 0 && c.norm > 0 {
		moved = math.Abs(k.norm-c.norm) > shift*c.norm
	}
	average(&c.exposed, exposed)
	average(&c.err, k.err)
	average(&c.norm, k.norm)
	average(&c.code[k.level], k.code.Seconds())
	c.steps++
	if c.resting > 0 {
		c.resting--
	}
	switch {
	case k.level > None && c.err > bounds[k.level]:
		c.fall("the encoding's error")
		return
	case k.level > BF16 && moved && c.steps > settling:
		c.fall("the gradient's norm shifts fast")
		return
	case k.level+1 == levels || c.resting > 0 || c.steps < settling:
		return
	}
	next := k.level + 1
	cost := c.code[next]
	if cost == 0 {
		cost = guess * float64(k.n) * float64(next)
	}
	if c.exposed*(1-k.ratio(next)) > margin*cost {
		c.pays++
	} else {
		c.pays = 0
	}
	if c.pays >= patience {
		c.change(next, "the sum is exposed")
	}
}

func (k *bucket) ratio(next Level) float64 { return float64(k.bytes(next)) / float64(k.bytes(k.level)) }

func (c *choice) fall(reason string) {
	c.change(c.want-1, reason)
	c.resting = rest
}

func (c *choice) change(to Level, reason string) {
	c.want, c.reason, c.pays, c.steps = to, reason, 0, 1
}

func (c *choice) decision(k *bucket, step uint64, to Level) Decision {
	return Decision{
		Step: step, Bucket: k.number, From: k.level.String(), To: to.String(), Reason: c.reason,
		Exposed: c.exposed, Code: c.code[max(to, k.level)], Ratio: k.ratio(to), Error: c.err,
	}
}
