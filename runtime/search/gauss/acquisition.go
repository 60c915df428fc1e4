package gauss

import "math"

// LogEI is the logarithm of the expected improvement below best of a normal variable,
// finite where the improvement itself vanishes (Ament et al., NeurIPS 2023).
func LogEI(mean, deviation, best float64) float64 {
	return logH((best-mean)/deviation) + math.Log(deviation)
}

// LogEISlope is LogEI with its derivatives by the mean and by the deviation.
func LogEISlope(mean, deviation, best float64) (value, byMean, byDeviation float64) {
	z := (best - mean) / deviation
	h := logH(z)
	// With h(z) = φ(z) + z·Φ(z): h′ = Φ(z), so that d log EI/dμ = −Φ/(h·σ) and
	// d log EI/dσ = φ/(h·σ).
	p := math.Exp(logCDF(z)-h) / deviation
	q := math.Exp(logPDF(z)-h) / deviation
	return h + math.Log(deviation), -p, q
}

// LogProbability is the logarithm of the probability that a normal variable is at
// most limit.
func LogProbability(mean, deviation, limit float64) float64 {
	return logCDF((limit - mean) / deviation)
}

// LogProbabilitySlope is LogProbability with its derivatives by the mean and by the
// deviation.
func LogProbabilitySlope(mean, deviation, limit float64) (value, byMean, byDeviation float64) {
	z := (limit - mean) / deviation
	value = logCDF(z)
	h := math.Exp(logPDF(z)-value) / deviation
	return value, -h, -h * z
}

const halfLog2Pi = 0.91893853320467274178

func logPDF(z float64) float64 { return -0.5*z*z - halfLog2Pi }

// logCDF is log Φ(z), by its asymptotic series far below 0.
func logCDF(z float64) float64 {
	if z > -10 {
		return math.Log(0.5 * math.Erfc(-z/math.Sqrt2))
	}
	i := 1 / (z * z)
	return logPDF(z) - math.Log(-z) + math.Log1p(-i*(1-3*i*(1-5*i*(1-7*i))))
}

// logH is log(φ(z) + z·Φ(z)).
func logH(z float64) float64 {
	if z > -8 {
		return math.Log(math.Exp(logPDF(z)) + z*0.5*math.Erfc(-z/math.Sqrt2))
	}
	// φ(z)·(1/z² − 3/z⁴ + 15/z⁶ − 105/z⁸ …)
	i := 1 / (z * z)
	return logPDF(z) + math.Log(i) + math.Log1p(-3*i*(1-5*i*(1-7*i*(1-9*i))))
}
