package ddp

import "math"

// The rule by which Auto changes levels. Ranks agree every second step at first,
// later more seldom.
const (
	early    = 32   // steps
	patience = 2    // agreements in which a higher level must pay, in a row
	margin   = 1.1  // by how much
	keep     = 0.8  // of a running average, a step
	slowly   = 0.97 // … of the norm's long one
	shift    = 0.5  // of the norm's short average against the long one, which is fast
	resting  = 8    // agreements after a fall in which a bucket does not rise
	guess    = 2e-9 // seconds to encode and decode an element, before it was measured
)

// bounds of the relative error of an encoding: beyond it the bucket goes down.
var bounds = [levels]float64{None: math.Inf(1), BF16: 0.01, Int8: 0.1, PowerSGD: 0.97}

// worth is what a level must save at least, as a share of the bucket's share of the
// step's time: what it loses costs steps. PowerSGD of four directions was seen to
// need up to half as many again for the same loss.
var worth = [levels]float64{BF16: 0.01, Int8: 0.02, PowerSGD: 0.5}

// agrees tells whether the ranks agree behind that commit.
func agrees(commit int) bool {
	if commit <= early {
		return commit%2 == 0
	}
	return commit%8 == 0
}

// measures are one rank's running averages of a bucket.
type measures struct {
	steps   int     // since the level changed
	exposed float64 // seconds of the sum that nothing hid
	code    float64 // seconds to encode and decode
	err     float64 // relative, of the encoding
	norm    float64 // of the gradient, at PowerSGD
	long    float64 // … over more steps
	moved   bool    // the norm has shifted fast since the last agreement
}

// words is how many float32 of measures travel.
const words = 3

// take averages one step in. The first step at a level warms up what it needs
// and is left out.
func (a *measures) take(exposed, code, err, norm float64) {
	if a.steps++; a.steps < 2 {
		return
	}
	for _, m := range []struct {
		old     *float64
		v, keep float64
	}{{&a.exposed, exposed, keep}, {&a.code, code, keep}, {&a.err, err, keep}, {&a.norm, norm, keep}, {&a.long, norm, slowly}} {
		if a.steps == 2 {
			*m.old = m.v
		} else {
			*m.old = m.keep**m.old + (1-m.keep)*m.v
		}
	}
	a.moved = a.moved || math.Abs(a.norm-a.long) > shift*a.long
}

// choice is what rank 0 knows of a bucket.
type choice struct {
	pays    int // agreements in a row in which the next level pays
	rests   int // agreements in which it may not rise
	reason  string
	exposed float64
	err     float64
	code    [levels]float64 // seconds; 0: never measured
}

// decide is the level that the bucket takes next. Of a sum's exposed time the
// least of all ranks counts: the others' holds their wait for the last to come,
// which no encoding shortens. Time to encode and error are the largest. share is the
// bucket's share of the step's time, seconds.
func (k *bucket) decide(exposed, code, err, share float64) Level {
	c := &k.choice
	c.exposed, c.err, c.code[k.level] = exposed, err, code
	if c.rests > 0 {
		c.rests--
	}
	switch {
	case k.level > None && err > bounds[k.level]:
		return c.fall(k.level, "the encoding's error")
	case k.level == PowerSGD && k.measured.moved:
		return c.fall(k.level, "the gradient's norm shifts fast")
	case k.level+1 == levels || c.rests > 0:
		return k.level
	}
	next := k.level + 1
	cost := c.code[next]
	if cost == 0 {
		cost = guess * float64(k.n) * float64(next)
	}
	if exposed*(1-k.ratio(next)) <= margin*cost+worth[next]*share {
		c.pays = 0
		return k.level
	}
	if c.pays++; c.pays < patience {
		return k.level
	}
	c.pays, c.reason = 0, "the sum is exposed"
	return next
}

func (c *choice) fall(from Level, reason string) Level {
	c.pays, c.rests, c.reason = 0, resting, reason
	return from - 1
}

// ratio is what the next level would send of what the present one does.
func (k *bucket) ratio(next Level) float64 { return float64(k.bytes(next)) / float64(k.bytes(k.level)) }

func (k *bucket) decision(step uint64, to Level) Decision {
	c := &k.choice
	return Decision{
		Step: step, Bucket: k.number, From: k.level.String(), To: to.String(), Reason: c.reason,
		Exposed: c.exposed, Code: c.code[max(to, k.level)], Ratio: k.ratio(to), Error: c.err,
	}
}
