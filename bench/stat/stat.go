// Package stat is what the benches make of repeated measurements.
package stat

import (
	"math/rand/v2"
	"slices"
)

// Median is the middle of x, of an even number the mean of the two in the middle. x is
// not empty.
func Median(x []float64) float64 {
	s := slices.Sorted(slices.Values(x))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// Resample draws as many of x as there are, each from all of them: the bootstrap's.
func Resample[T any](rng *rand.Rand, x []T) []T {
	out := make([]T, len(x))
	for i := range out {
		out[i] = x[rng.IntN(len(x))]
	}
	return out
}

// Interval is where 95 % of what is drawn lie.
func Interval(draw func() float64) (lo, hi float64) {
	const draws = 1000
	x := make([]float64, draws)
	for i := range x {
		x[i] = draw()
	}
	slices.Sort(x)
	return x[draws/40], x[draws-1-draws/40]
}
