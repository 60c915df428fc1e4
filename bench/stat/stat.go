// Package stat is what the benches make of repeated timings.
package stat

import "slices"

// Median is the middle of x, of an even number the mean of the two in the middle. x is
// not empty.
func Median(x []float64) float64 {
	s := slices.Sorted(slices.Values(x))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}
