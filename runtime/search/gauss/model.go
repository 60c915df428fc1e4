package gauss

import (
	"errors"
	"math"

	"gonum.org/v1/gonum/blas"
	"gonum.org/v1/gonum/blas/blas64"
	"gonum.org/v1/gonum/lapack/lapack64"
	"gonum.org/v1/gonum/optimize"
)

// Kind is how two values of a dimension differ.
type Kind uint8

// Kinds of dimensions.
const (
	Number Kind = iota // by their distance on [0, 1]
	Name               // not at all or wholly: values are indices of choices
)

// Data are n observations of d dimensions.
type Data struct {
	Kinds []Kind
	X     [][]float64 // [n][d]
	Y     []float64   // [n]; the model's mean is 0, so standardise them
}

// Options of a fit.
type Options struct {
	// Start are hyper-parameters to begin with, of an earlier fit of as many
	// dimensions; nil begins in the prior's middle.
	Start []float64
	Steps int  // of L-BFGS; 0 means 50
	Warp  bool // fit a warp of each number's range
}

// minNoise keeps the kernel matrix positive definite.
const minNoise = 1e-6

// Model is a fitted process. It is read-only and may be shared.
type Model struct {
	kinds  []Kind
	params params
	u      []float64 // warped numbers, [n·d]
	n, d   int
	chol   []float64 // lower triangle of the Cholesky factor, [n·n] by rows
	alpha  []float64 // K⁻¹·y
	theta  []float64
	warp   bool
}

// Params are the hyper-parameters that Options.Start takes.
func (m *Model) Params() []float64 { return m.theta }

// Noise is the variance of an observation.
func (m *Model) Noise() float64 { return m.params.noise }

type params struct {
	w     []float64
	scale float64
	noise float64
	a, b  []float64 // the warp's; nil for none
}

// fit is the state of one optimisation.
type fit struct {
	data     Data
	n, d     int
	warp     bool
	u, k, kr []float64 // warped inputs [n·d]; kernel and its derivative by r² [n·n]
	chol     []float64
	inv      []float64
	alpha    []float64
	gradU    []float64
	params   params
}

var errNotPositive = errors.New("gauss: the kernel matrix is not positive definite")

// size of theta: d weights, scale, noise, and 2·d of the warp.
func (f *fit) size() int {
	if f.warp {
		return 3*f.d + 2
	}
	return f.d + 2
}

func (f *fit) read(theta []float64) {
	p := &f.params
	if p.w == nil {
		p.w = make([]float64, f.d)
		if f.warp {
			p.a, p.b = make([]float64, f.d), make([]float64, f.d)
		}
	}
	for j := range p.w {
		p.w[j] = math.Exp(clip(theta[j], -16, 12))
	}
	p.scale = math.Exp(clip(theta[f.d], -12, 8))
	p.noise = minNoise + math.Exp(clip(theta[f.d+1], -20, 4))
	for j := range p.a {
		p.a[j] = math.Exp(clip(theta[f.d+2+2*j], -3, 3))
		p.b[j] = math.Exp(clip(theta[f.d+3+2*j], -3, 3))
	}
}

func clip(x, lo, hi float64) float64 { return min(max(x, lo), hi) }

// warped is Kumaraswamy's distribution function, 1 − (1 − x^a)^b.
func warped(x, a, b float64) float64 { return 1 - math.Pow(1-math.Pow(x, a), b) }

// inside keeps x where the warp has derivatives.
func inside(x float64) float64 { return clip(x, 1e-6, 1-1e-6) }

func (p *params) warpTo(dst, x []float64, kinds []Kind) {
	for j, v := range x {
		if p.a != nil && kinds[j] == Number {
			v = warped(inside(v), p.a[j], p.b[j])
		}
		dst[j] = v
	}
}

// r2 is the squared scaled distance.
func r2(x, y, w []float64, kinds []Kind) float64 {
	s := 0.0
	for j, k := range kinds {
		d := x[j] - y[j]
		if k == Name {
			if d == 0 {
				continue
			}
			d = 1
		}
		s += w[j] * d * d
	}
	return s
}

// matern gives the kernel at unit scale and its derivative by r².
func matern(r2 float64) (k, dk float64) {
	r := math.Sqrt(5 * r2)
	e := math.Exp(-r)
	return (1 + r + r*r/3) * e, -5.0 / 6 * (1 + r) * e
}

// decompose fills the kernel matrix, its factor and alpha.
func (f *fit) decompose() error {
	n, d := f.n, f.d
	p := &f.params
	for i := range n {
		p.warpTo(f.u[i*d:(i+1)*d], f.data.X[i], f.data.Kinds)
	}
	for i := range n {
		ui := f.u[i*d : (i+1)*d]
		for j := range i {
			k, dk := matern(r2(ui, f.u[j*d:(j+1)*d], p.w, f.data.Kinds))
			f.k[i*n+j], f.kr[i*n+j] = p.scale*k, p.scale*dk
		}
		f.k[i*n+i] = p.scale
		f.kr[i*n+i] = 0
	}
	copy(f.chol, f.k)
	for i := range n {
		f.chol[i*n+i] += p.noise
	}
	if _, ok := lapack64.Potrf(blas64.Symmetric{Uplo: blas.Lower, N: n, Data: f.chol, Stride: n}); !ok {
		return errNotPositive
	}
	copy(f.alpha, f.data.Y)
	tri := f.triangle()
	v := blas64.Vector{N: n, Data: f.alpha, Inc: 1}
	blas64.Trsv(blas.NoTrans, tri, v)
	blas64.Trsv(blas.Trans, tri, v)
	return nil
}

func (f *fit) triangle() blas64.Triangular {
	return blas64.Triangular{Uplo: blas.Lower, Diag: blas.NonUnit, N: f.n, Data: f.chol, Stride: f.n}
}

// posterior is the log posterior at theta and, where grad is not nil, its gradient.
func (f *fit) posterior(theta, grad []float64) (float64, error) {
	f.read(theta)
	if err := f.decompose(); err != nil {
		return math.Inf(-1), err
	}
	n, d := f.n, f.d
	value := 0.0
	for i, y := range f.data.Y {
		value -= 0.5*y*f.alpha[i] + math.Log(f.chol[i*n+i])
	}
	value -= 0.5 * float64(n) * math.Log(2*math.Pi)
	if grad != nil {
		for j := range grad {
			grad[j] = 0
		}
		copy(f.inv, f.chol)
		tri := f.triangle()
		tri.Data = f.inv
		if _, ok := lapack64.Potri(tri); !ok {
			return math.Inf(-1), errNotPositive
		}
		p := &f.params
		for i := range f.gradU {
			f.gradU[i] = 0
		}
		var gScale, gNoise float64
		for i := range n {
			ui := f.u[i*d : (i+1)*d]
			g := 0.5 * (f.alpha[i]*f.alpha[i] - f.inv[i*n+i])
			gScale += g * f.k[i*n+i]
			gNoise += g
			for j := range i {
				// Both halves of the symmetric matrix.
				g := f.alpha[i]*f.alpha[j] - f.inv[i*n+j]
				gScale += g * f.k[i*n+j]
				h := g * f.kr[i*n+j]
				uj := f.u[j*d : (j+1)*d]
				for c, kind := range f.data.Kinds {
					diff := ui[c] - uj[c]
					if kind == Name {
						if diff != 0 {
							grad[c] += h
						}
						continue
					}
					grad[c] += h * diff * diff
					if f.warp {
						t := 2 * h * p.w[c] * diff
						f.gradU[i*d+c] += t
						f.gradU[j*d+c] -= t
					}
				}
			}
		}
		for c := range d {
			grad[c] *= p.w[c]
		}
		grad[d] = gScale
		grad[d+1] = gNoise * (p.noise - minNoise)
		if f.warp {
			for c, kind := range f.data.Kinds {
				if kind == Name {
					continue
				}
				a, b := p.a[c], p.b[c]
				for i := range n {
					x := inside(f.data.X[i][c])
					xa := math.Pow(x, a)
					rest := math.Pow(1-xa, b)
					gu := f.gradU[i*d+c]
					// d/da of 1−(1−x^a)^b is b·(1−x^a)^(b−1)·x^a·ln x; d/db is −(1−x^a)^b·ln(1−x^a).
					grad[d+2+2*c] += gu * b * rest / (1 - xa) * xa * math.Log(x) * a
					grad[d+3+2*c] -= gu * rest * math.Log(1-xa) * b
				}
			}
		}
	}
	return value + f.prior(theta, grad), nil
}

// The priors, all normal in the logarithm. Lengthscales grow with the root of the
// number of dimensions (Hvarfner et al., ICML 2024).
func (f *fit) prior(theta, grad []float64) float64 {
	value := 0.0
	normal := func(i int, mu, sigma float64) {
		z := (theta[i] - mu) / sigma
		value -= 0.5 * z * z
		if grad != nil {
			grad[i] -= z / sigma
		}
	}
	mu, sigma := f.weightPrior()
	for j := range f.d {
		normal(j, mu, sigma)
	}
	normal(f.d, 0, 1)
	normal(f.d+1, noisePrior, 1.5)
	if f.warp {
		for j := range f.d {
			normal(f.d+2+2*j, 0, 0.5)
			normal(f.d+3+2*j, 0, 0.5)
		}
	}
	return value
}

const noisePrior = -5

func (f *fit) weightPrior() (mu, sigma float64) {
	return 1 - 0.5*math.Log(float64(f.d)), 1.5
}

// middle of the prior.
func (f *fit) middle() []float64 {
	theta := make([]float64, f.size())
	mu, _ := f.weightPrior()
	for j := range f.d {
		theta[j] = mu
	}
	theta[f.d+1] = noisePrior
	return theta
}

func newFit(data Data, o Options) *fit {
	n, d := len(data.X), len(data.Kinds)
	return &fit{
		data: data, n: n, d: d, warp: o.Warp,
		u: make([]float64, n*d), k: make([]float64, n*n), kr: make([]float64, n*n), chol: make([]float64, n*n),
		inv: make([]float64, n*n), alpha: make([]float64, n), gradU: make([]float64, n*d),
	}
}

// Fit finds the hyper-parameters of the largest posterior density and conditions the process on the data. Cost: O(n³) a step.
func Fit(data Data, o Options) (*Model, error) {
	f := newFit(data, o)
	start := o.Start
	if len(start) != f.size() {
		start = f.middle()
	}
	return f.model(f.climb(start, o.Steps))
}

// Condition is the process with the hyper-parameters of m on other data.
func (m *Model) Condition(data Data) (*Model, error) {
	return newFit(data, Options{Warp: m.warp}).model(m.theta)
}

// climb runs L-BFGS from start.
func (f *fit) climb(start []float64, steps int) []float64 {
	if steps == 0 {
		steps = 50
	}
	grad := make([]float64, f.size())
	var last []float64
	lastValue := math.Inf(1)
	eval := func(theta []float64) {
		if last != nil && equal(last, theta) {
			return
		}
		v, err := f.posterior(theta, grad)
		if err != nil || math.IsNaN(v) {
			v = math.Inf(-1)
			clear(grad)
		}
		last, lastValue = append(last[:0], theta...), -v
	}
	problem := optimize.Problem{
		Func: func(theta []float64) float64 {
			eval(theta)
			return lastValue
		},
		Grad: func(dst, theta []float64) {
			eval(theta)
			for i, g := range grad {
				dst[i] = -g
			}
		},
	}
	r, err := optimize.Minimize(problem, start, &optimize.Settings{
		MajorIterations: steps, FuncEvaluations: 2 * steps, GradientThreshold: 1e-2,
		Converger: &optimize.FunctionConverge{Absolute: 1e-3, Iterations: 3},
	}, &optimize.LBFGS{})
	if r == nil || err != nil && math.IsInf(r.F, 0) {
		return start
	}
	return r.X
}

func equal(a, b []float64) bool {
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

func (f *fit) model(theta []float64) (*Model, error) {
	f.read(theta)
	if err := f.decompose(); err != nil {
		return nil, err
	}
	return &Model{
		kinds: f.data.Kinds, params: f.params, u: f.u, n: f.n, d: f.d, chol: f.chol, alpha: f.alpha,
		theta: append([]float64(nil), theta...), warp: f.warp,
	}, nil
}

// Predict gives the mean and the variance, without noise, of the function at x.
func (m *Model) Predict(x []float64) (mean, variance float64) {
	means, variances := m.PredictAll([][]float64{x})
	return means[0], variances[0]
}

// Means is PredictAll without the variances, at O(n) a point in place of O(n²).
func (m *Model) Means(xs [][]float64) []float64 {
	out := make([]float64, len(xs))
	u := make([]float64, m.d)
	for i, x := range xs {
		m.params.warpTo(u, x, m.kinds)
		s := 0.0
		for j := range m.n {
			k, _ := matern(r2(u, m.u[j*m.d:(j+1)*m.d], m.params.w, m.kinds))
			s += k * m.alpha[j]
		}
		out[i] = m.params.scale * s
	}
	return out
}

// PredictAll predicts many points at once.
func (m *Model) PredictAll(xs [][]float64) (means, variances []float64) {
	n, d, q := m.n, m.d, len(xs)
	means, variances = make([]float64, q), make([]float64, q)
	if q == 0 {
		return means, variances
	}
	u := make([]float64, d)
	v := make([]float64, n*q) // [n][q]
	for i, x := range xs {
		m.params.warpTo(u, x, m.kinds)
		for j := range n {
			k, _ := matern(r2(u, m.u[j*d:(j+1)*d], m.params.w, m.kinds))
			k *= m.params.scale
			v[j*q+i] = k
			means[i] += k * m.alpha[j]
		}
	}
	tri := blas64.Triangular{Uplo: blas.Lower, Diag: blas.NonUnit, N: n, Data: m.chol, Stride: n}
	blas64.Trsm(blas.Left, blas.NoTrans, 1, tri, blas64.General{Rows: n, Cols: q, Data: v, Stride: q})
	for i := range variances {
		variances[i] = m.params.scale
	}
	for j := range n {
		for i, x := range v[j*q : (j+1)*q] {
			variances[i] -= x * x
		}
	}
	for i := range variances {
		variances[i] = max(variances[i], 1e-12*m.params.scale)
	}
	return means, variances
}

// Slope is Predict with the gradients by x; those by names are 0.
func (m *Model) Slope(x []float64) (mean, variance float64, dMean, dVariance []float64) {
	n, d := m.n, m.d
	u := make([]float64, d)
	m.params.warpTo(u, x, m.kinds)
	k := make([]float64, n)
	dk := make([]float64, n)
	for j := range n {
		a, b := matern(r2(u, m.u[j*d:(j+1)*d], m.params.w, m.kinds))
		k[j], dk[j] = m.params.scale*a, m.params.scale*b
		mean += k[j] * m.alpha[j]
	}
	beta := append([]float64(nil), k...) // K⁻¹·k
	tri := blas64.Triangular{Uplo: blas.Lower, Diag: blas.NonUnit, N: n, Data: m.chol, Stride: n}
	vec := blas64.Vector{N: n, Data: beta, Inc: 1}
	blas64.Trsv(blas.NoTrans, tri, vec)
	variance = m.params.scale - blas64.Dot(vec, vec)
	blas64.Trsv(blas.Trans, tri, vec)
	dMean, dVariance = make([]float64, d), make([]float64, d)
	for c, kind := range m.kinds {
		if kind == Name {
			continue
		}
		for j := range n {
			t := 2 * dk[j] * m.params.w[c] * (u[c] - m.u[j*d+c])
			dMean[c] += t * m.alpha[j]
			dVariance[c] -= 2 * t * beta[j]
		}
		if m.params.a != nil {
			a, b, at := m.params.a[c], m.params.b[c], inside(x[c])
			xa := math.Pow(at, a)
			slope := a * b * xa / at * math.Pow(1-xa, b-1)
			dMean[c] *= slope
			dVariance[c] *= slope
		}
	}
	return mean, max(variance, 1e-12*m.params.scale), dMean, dVariance
}
