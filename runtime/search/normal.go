package search

import "math"

var halfLog2Pi = 0.5 * math.Log(2*math.Pi)

// normalCDF is the standard normal's share below x.
func normalCDF(x float64) float64 { return 0.5 * math.Erfc(-x/math.Sqrt2) }

// logNormalCDF is the logarithm of normalCDF, exact where that is too small for a float.
func logNormalCDF(x float64) float64 {
	if x > -30 {
		return math.Log(normalCDF(x))
	}
	y := 1 / (x * x)
	return -0.5*x*x - math.Log(-x) - halfLog2Pi + math.Log1p(-y*(1-3*y*(1-5*y)))
}

// logNormalMass is the logarithm of a standard normal's share between a and b, a < b.
func logNormalMass(a, b float64) float64 {
	if a > 0 {
		a, b = -b, -a
	}
	if b > 0 {
		outside := 0.0 // of either side; below 1e-19 past 9
		if a > -9 {
			outside = normalCDF(a)
		}
		if b < 9 {
			outside += normalCDF(-b)
		}
		return math.Log1p(-outside)
	}
	upper := logNormalCDF(b)
	return upper + math.Log1p(-math.Exp(logNormalCDF(a)-upper))
}
