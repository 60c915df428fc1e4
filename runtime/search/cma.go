package search

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// cma is the state of one run of CMA-ES (Hansen 2016) over the unit cube, with active
// covariance adaptation and, for coordinates that stand for a few values, the margin of
// Hamano et al. (2022): however narrow the distribution grows, other values stay likely
// enough to be drawn now and then.
type cma struct {
	size, mu             int
	weights              []float64
	muEff, c1, cmu       float64
	cSigma, dSigma, cc   float64
	chi                  float64 // length of a standard normal on average
	mean, pSigma, pc     []float64
	sigma                float64
	c, b                 [][]float64 // covariance and its eigenvectors, one a column
	d                    []float64   // square roots of its eigenvalues
	scale                []float64   // by which discrete coordinates are spread before they are read
	cells                cells
	generation           int
	recent               []float64 // best score of the latest generations
	recentSize           int
	stagnant, degenerate bool
}

// cells tells of a coordinate between which limits it stands for the same value as at x:
// the same limit twice where only one side has others; false for a real one.
type cells func(j int, x float64) (low, high float64, discrete bool)

const firstSigma = 1.0 / 6

// newCMA begins a run; a population of 0 is the usual size.
func newCMA(mean []float64, population int, cells cells) *cma {
	n := float64(len(mean))
	if population == 0 {
		population = 4 + int(3*math.Log(n))
	}
	s := &cma{size: population, mu: population / 2, mean: slices.Clone(mean), sigma: firstSigma, cells: cells}
	square := func(x float64) float64 { return x * x }
	var plus, plusSquares, minus, minusSquares float64
	for i := range population {
		w := math.Log(float64(population+1)/2) - math.Log(float64(i+1))
		s.weights = append(s.weights, w)
		if i < s.mu {
			plus, plusSquares = plus+w, plusSquares+w*w
		} else {
			minus, minusSquares = minus+w, minusSquares+w*w
		}
	}
	s.muEff = plus * plus / plusSquares
	muEffMinus := minus * minus / minusSquares
	s.c1 = 2 / (square(n+1.3) + s.muEff)
	s.cmu = min(1-s.c1-1e-8, 2*(s.muEff-2+1/s.muEff)/(square(n+2)+s.muEff))
	alpha := min(1+s.c1/s.cmu, 1+2*muEffMinus/(s.muEff+2), (1-s.c1-s.cmu)/(n*s.cmu))
	var positive, negative float64
	for _, w := range s.weights {
		positive, negative = positive+max(w, 0), negative-min(w, 0)
	}
	for i, w := range s.weights {
		if w >= 0 {
			s.weights[i] = w / positive
		} else {
			s.weights[i] = alpha * w / negative
		}
	}
	s.cSigma = (s.muEff + 2) / (n + s.muEff + 5)
	s.dSigma = 1 + 2*max(0, math.Sqrt((s.muEff-1)/(n+1))-1) + s.cSigma
	s.cc = (4 + s.muEff/n) / (n + 4 + 2*s.muEff/n)
	s.chi = math.Sqrt(n) * (1 - 1/(4*n) + 1/(21*n*n))
	s.pSigma, s.pc = make([]float64, len(mean)), make([]float64, len(mean))
	s.c, s.b = identity(len(mean)), identity(len(mean))
	s.d, s.scale = make([]float64, len(mean)), make([]float64, len(mean))
	for j := range s.d {
		s.d[j], s.scale[j] = 1, 1
	}
	s.recentSize = 10 + int(math.Ceil(30*n/float64(population)))
	return s
}

func identity(n int) [][]float64 {
	out := make([][]float64, n)
	for i := range out {
		out[i] = make([]float64, n)
		out[i][i] = 1
	}
	return out
}

// sample draws a point. Real coordinates lie in [0, 1].
func (s *cma) sample(rng *rand.Rand) []float64 {
	n := len(s.mean)
	x, z := make([]float64, n), make([]float64, n)
	inside := false
	for try := 0; try < 100 && !inside; try++ {
		for j := range z {
			z[j] = s.d[j] * rng.NormFloat64()
		}
		inside = true
		for i := range x {
			sum := 0.0
			for j, v := range z {
				sum += s.b[i][j] * v
			}
			x[i] = s.mean[i] + s.sigma*sum
			if x[i] < 0 || x[i] > 1 {
				if _, _, discrete := s.cells(i, x[i]); !discrete {
					inside = false
				}
			}
		}
	}
	for i, v := range x {
		if _, _, discrete := s.cells(i, v); !discrete {
			x[i] = min(max(v, 0), 1)
		}
	}
	return x
}

// read spreads a drawn point's discrete coordinates by the margin's scale: what it
// stands for.
func (s *cma) read(x []float64) []float64 {
	out := slices.Clone(x)
	for i, v := range x {
		out[i] = (v-s.mean[i])*s.scale[i] + s.mean[i]
	}
	return out
}

// drawn is a point and how it did.
type drawn struct {
	x     []float64
	value float64
	// It is not of this generation's distribution: a step that would be too long for that
	// is shortened (Hansen 2011).
	alien bool
}

// update learns from a generation, best first.
func (s *cma) update(generation []drawn) {
	n := len(s.mean)
	s.generation++
	s.remember(generation)
	y := make([][]float64, len(generation))
	white := make([]float64, len(generation)) // squared length where the distribution is round
	for k, g := range generation {
		y[k] = make([]float64, n)
		for i := range y[k] {
			y[k][i] = (g.x[i] - s.mean[i]) / s.sigma
		}
		white[k] = dot(s.whiten(y[k]), s.whiten(y[k]))
		most := math.Sqrt(float64(n)) + 2*float64(n)/float64(n+2)
		if g.alien && white[k] > most*most {
			shorter := most / math.Sqrt(white[k])
			for i := range y[k] {
				y[k][i] *= shorter
			}
			white[k] = most * most
		}
	}
	step := make([]float64, n)
	for k := range s.mu {
		for i, v := range y[k] {
			step[i] += s.weights[k] * v
		}
	}
	for i, v := range s.whiten(step) {
		s.pSigma[i] = (1-s.cSigma)*s.pSigma[i] + math.Sqrt(s.cSigma*(2-s.cSigma)*s.muEff)*v
	}
	for i, v := range step {
		s.mean[i] += s.sigma * v
	}
	length := math.Sqrt(dot(s.pSigma, s.pSigma))
	s.sigma = min(s.sigma*math.Exp(s.cSigma/s.dSigma*(length/s.chi-1)), 1e4)
	slow := 0.0 // the step size is not about to explode
	if length/math.Sqrt(1-math.Pow(1-s.cSigma, float64(2*(s.generation+1)))) < (1.4+2/float64(n+1))*s.chi {
		slow = 1
	}
	for i, v := range step {
		s.pc[i] = (1-s.cc)*s.pc[i] + slow*math.Sqrt(s.cc*(2-s.cc)*s.muEff)*v
	}
	kept := 1 + s.c1*(1-slow)*s.cc*(2-s.cc) - s.c1
	for _, w := range s.weights {
		kept -= s.cmu * w
	}
	for i := range n {
		for j := range i + 1 {
			v := kept*s.c[i][j] + s.c1*s.pc[i]*s.pc[j]
			for k, w := range s.weights {
				if w < 0 {
					w *= float64(n) / (white[k] + 1e-8)
				}
				v += s.cmu * w * y[k][i] * y[k][j]
			}
			s.c[i][j], s.c[j][i] = v, v
		}
	}
	s.decompose()
	s.margin()
}

// whiten is C^(-1/2)·y.
func (s *cma) whiten(y []float64) []float64 {
	out := make([]float64, len(y))
	for k, d := range s.d {
		along := 0.0
		for i, v := range y {
			along += s.b[i][k] * v
		}
		for i := range out {
			out[i] += s.b[i][k] * along / d
		}
	}
	return out
}

func dot(a, b []float64) float64 {
	sum := 0.0
	for i, v := range a {
		sum += v * b[i]
	}
	return sum
}

// decompose finds the covariance's axes by Jacobi's rotations.
func (s *cma) decompose() {
	values, vectors := eigen(s.c)
	least, most := math.Inf(1), 0.0
	for j, v := range values {
		if v < 0 {
			v = 1e-8
		}
		s.d[j] = math.Sqrt(max(v, 1e-300))
		least, most = min(least, s.d[j]), max(most, s.d[j])
	}
	s.b = vectors
	s.degenerate = !(most/least < 1e7) || !(s.sigma*most > 1e-12*firstSigma)
}

// eigen gives a symmetric matrix's eigenvalues and its eigenvectors, one a column.
func eigen(m [][]float64) ([]float64, [][]float64) {
	n := len(m)
	a, v := make([][]float64, n), identity(n)
	for i := range a {
		a[i] = slices.Clone(m[i])
	}
	for range 60 {
		off, all := 0.0, 0.0
		for i := range a {
			for j := range a {
				all += a[i][j] * a[i][j]
				if i != j {
					off += a[i][j] * a[i][j]
				}
			}
		}
		if !(off > 1e-30*all) {
			break
		}
		for p := range n {
			for q := p + 1; q < n; q++ {
				if a[p][q] == 0 {
					continue
				}
				theta := (a[q][q] - a[p][p]) / (2 * a[p][q])
				t := 1 / (math.Abs(theta) + math.Sqrt(theta*theta+1))
				if theta < 0 {
					t = -t
				}
				c := 1 / math.Sqrt(t*t+1)
				sin := t * c
				for k := range n {
					a[k][p], a[k][q] = c*a[k][p]-sin*a[k][q], sin*a[k][p]+c*a[k][q]
				}
				for k := range n {
					a[p][k], a[q][k] = c*a[p][k]-sin*a[q][k], sin*a[p][k]+c*a[q][k]
					v[k][p], v[k][q] = c*v[k][p]-sin*v[k][q], sin*v[k][p]+c*v[k][q]
				}
			}
		}
	}
	values := make([]float64, n)
	for i := range values {
		values[i] = a[i][i]
	}
	return values, v
}

// margin moves the mean and spreads the scale of discrete coordinates so that values on
// either side keep a chance of at least half of 1/(n·size) each.
func (s *cma) margin() {
	alpha := 1 / float64(len(s.mean)*s.size)
	quantile := func(p float64) float64 { return math.Sqrt2 * math.Erfcinv(2*p) } // that a normal passes with chance p
	for j, m := range s.mean {
		low, high, discrete := s.cells(j, m)
		if !discrete {
			continue
		}
		spread := s.sigma * math.Sqrt(s.c[j][j])
		below, above := normalCDF((low-m)/(spread*s.scale[j])), normalCDF((m-high)/(spread*s.scale[j]))
		if max(below, above) > 0.5 { // a value at an end
			if min(below, above) < alpha {
				far := spread * s.scale[j] * quantile(alpha)
				if m < high {
					far = -far
				}
				s.mean[j] = high + far
			}
			continue
		}
		within := 1 - below - above
		lower, upper := max(below, alpha/2), max(above, alpha/2)
		excess := (1 - lower - upper - within) / (lower + within + upper - 1.5*alpha)
		lower, upper = lower+excess*(lower-alpha/2), upper+excess*(upper-alpha/2)
		a, b := quantile(min(max(lower, 1e-10), 0.5-1e-10)), quantile(min(max(upper, 1e-10), 0.5-1e-10))
		s.scale[j] = (high - low) / ((a + b) * spread)
		s.mean[j] = (low*b + high*a) / (a + b)
	}
}

// remember notes the best value; a run in which these have long been the same is over.
func (s *cma) remember(generation []drawn) {
	best := slices.MinFunc(generation, func(a, b drawn) int { return cmp.Compare(a.value, b.value) }).value
	s.recent = append(s.recent, best)
	if len(s.recent) > s.recentSize {
		s.recent = s.recent[1:]
		s.stagnant = slices.Max(s.recent)-slices.Min(s.recent) < 1e-12*max(1, math.Abs(best))
	}
}

func (s *cma) over() bool { return s.stagnant || s.degenerate }
