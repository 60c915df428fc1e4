package search

import "math"

// endsBelow is the probability that a learning curve lies below a bound at the horizon,
// where spread is the bound's own uncertainty; false with too few points.
//
// The curve is a power law E + A·t^−α with A ≥ 0 (Hestness et al. 2017). α is integrated
// over a grid, E and A in closed form under a flat prior, the noise under an inverse
// gamma one with two degrees of freedom at sampleSpread of the score: for each α the
// prediction is Student's t, and each counts by its marginal likelihood. Curves are no
// power laws while the rate rises: the fall that is foretold may be off by lawShare.
func endsBelow(points []Point, horizon, bound, spread float64) (float64, bool) {
	if len(points) < leastCurve {
		return 0, false
	}
	const priorFreedom, lawShare = 2, 0.5
	n := float64(len(points))
	last := points[len(points)-1]
	noise := sampleSpread * math.Abs(last.Score)
	type fit struct{ logW, p float64 }
	var fits []fit
	for alpha := 0.05; alpha <= 2.001; alpha *= 1.25 {
		// x falls from 1 to less; the determinant is of the centred problem.
		var sx, sy float64
		x := make([]float64, len(points))
		for i, p := range points {
			x[i] = math.Pow(p.Resource/points[0].Resource, -alpha)
			sx += x[i]
			sy += p.Score
		}
		mx, my := sx/n, sy/n
		var sxx, sxy, syy float64
		for i, p := range points {
			sxx += (x[i] - mx) * (x[i] - mx)
			sxy += (x[i] - mx) * (p.Score - my)
			syy += (p.Score - my) * (p.Score - my)
		}
		if sxx == 0 {
			return 0, false
		}
		a := max(sxy/sxx, 0)
		rss := max(syy-2*a*sxy+a*a*sxx, 0)
		freedom := n - 2 + priorFreedom
		variance := (rss + priorFreedom*noise*noise) / freedom
		xh := math.Pow(horizon/points[0].Resource, -alpha)
		mean := my + a*(xh-mx)
		off := lawShare * (last.Score - mean)
		scale := math.Sqrt(variance*(1+1/n+(xh-mx)*(xh-mx)/sxx) + spread*spread + off*off)
		fits = append(fits, fit{
			// A flat prior on the fall over the points seen makes the α comparable.
			logW: -freedom/2*math.Log(rss+priorFreedom*noise*noise) - math.Log(sxx)/2 + math.Log(1-x[len(x)-1]),
			p:    studentCDF((bound-mean)/scale, int(freedom)),
		})
	}
	top := math.Inf(-1)
	for _, f := range fits {
		top = max(top, f.logW)
	}
	var sum, p float64
	for _, f := range fits {
		w := math.Exp(f.logW - top)
		sum += w
		p += w * f.p
	}
	return p / sum, !math.IsNaN(p / sum)
}

// studentCDF is the distribution function of Student's t with a whole number of
// degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).
func studentCDF(t float64, freedom int) float64 {
	theta := math.Atan(t / math.Sqrt(float64(freedom)))
	s, c := math.Sincos(theta)
	var area float64 // between −t and t
	if freedom%2 == 1 {
		term, sum := c, 0.0
		for k := 1; k < freedom; k += 2 {
			sum += term
			term *= c * c * float64(k+1) / float64(k+2)
		}
		area = 2 / math.Pi * (theta + s*sum)
	} else {
		term, sum := 1.0, 0.0
		for k := 0; k < freedom; k += 2 {
			sum += term
			term *= c * c * float64(k+1) / float64(k+2)
		}
		area = s * sum
	}
	return (1 + area) / 2
}
