package kernel

import (
	"math"
	"sync/atomic"
)

// peakRounds is how many rounds one assembly call does: some 100 µs.
const peakRounds = 1 << 14

// Peak does a few hundred microseconds of nothing but multiply-adds on registers,
// of float32 or of bfloat16, and returns how many operations those were (multiply
// and add counted apart). Over the time that it took this is the rate that no
// product exceeds at the running level.
func Peak(bf16 bool) (flops float64) {
	if level == generic {
		return peakGeneric()
	}
	if bf16 && level == amx {
		peakTiles(peakRounds / 8)
		return 2 * 4 * 16 * 16 * 32 * peakRounds / 8
	}
	rows, width := shape()
	flops = 2 * float64(rows*width*peakRounds)
	if bf16 && FastBF16() {
		peakPairs(peakRounds)
		return 2 * flops
	}
	peak(peakRounds)
	return flops
}

// peakSink keeps the compiler from leaving the sums out.
var peakSink atomic.Uint32

func peakGeneric() float64 {
	var a, b, c, d, e, f, g, h float32
	x := math.Float32frombits(peakSink.Load())
	for range peakRounds {
		a += x * a
		b += x * b
		c += x * c
		d += x * d
		e += x * e
		f += x * f
		g += x * g
		h += x * h
	}
	peakSink.Store(math.Float32bits(a + b + c + d + e + f + g + h))
	return 16 * peakRounds
}
