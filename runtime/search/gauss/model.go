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
	axes
	params params
	v      []float64 // the observations' places, [n·d]
	n      int
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
	root  []float64 // √w
	scale float64
	noise float64
	a, b  []float64 // the warp's; nil for none
}

// axes put a point's numbers before its names, so that a loop over pairs of points
// needs to tell them apart once.
type axes struct {
	order   []int // by place: which dimension
	numbers int   // so many are first
}

func axesOf(kinds []Kind) axes {
	var a axes
	for _, k := range []Kind{Number, Name} {
		for c, kind := range kinds {
			if kind == k {
				a.order = append(a.order, c)
			}
		}
		if k == Number {
			a.numbers = len(a.order)
		}
	}
	return a
}

// fit is the state of one optimisation.
type fit struct {
	axes
	data     Data
	n, d     int
	warp     bool
	logs     []float64 // of the numbers, [n·d]
	v, k, kr []float64 // places [n·d]; kernel and its derivative by r² [n·n]
	chol     []float64
	inv      []float64
	alpha    []float64
	gradV    []float64
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
		p.w, p.root = make([]float64, f.d), make([]float64, f.d)
		if f.warp {
			p.a, p.b = make([]float64, f.d), make([]float64, f.d)
		}
	}
	for j := range p.w {
		p.w[j] = math.Exp(clip(theta[j], -16, 12))
		p.root[j] = math.Sqrt(p.w[j])
	}
	p.scale = math.Exp(clip(theta[f.d], -12, 8))
	p.noise = minNoise + math.Exp(clip(theta[f.d+1], -20, 4))
	for j := range p.a {
		p.a[j] = math.Exp(clip(theta[f.d+2+2*j], -3, 3))
		p.b[j] = math.Exp(clip(theta[f.d+3+2*j], -3, 3))
	}
}

func clip(x, lo, hi float64) float64 { return min(max(x, lo), hi) }

// warped is Kumaraswamy's distribution function, 1 − (1 − x^a)^b, of log x.
func warped(logX, a, b float64) float64 {
	return 1 - math.Exp(b*math.Log1p(-math.Exp(a*logX)))
}

// inside keeps x where the warp has derivatives.
func inside(x float64) float64 { return clip(x, 1e-6, 1-1e-6) }

// place puts a point where distances are the kernel's: numbers are warped and divided by
// their lengthscales, names follow as they are. logs are its numbers' logarithms, and are
// taken here where they are nil.
func (p *params) place(dst, x, logs []float64, at axes) {
	for j, c := range at.order[:at.numbers] {
		v := x[c]
		switch {
		case p.a == nil:
		case logs != nil:
			v = warped(logs[j], p.a[c], p.b[c])
		default:
			v = warped(math.Log(inside(v)), p.a[c], p.b[c])
		}
		dst[j] = p.root[c] * v
	}
	for j, c := range at.order[at.numbers:] {
		dst[at.numbers+j] = x[c]
	}
}

// apart is the squared scaled distance of two places.
func (p *params) apart(x, y []float64, at axes) float64 {
	s := 0.0
	y = y[:len(x)]
	for j, v := range x[:at.numbers] {
		d := v - y[j]
		s += d * d
	}
	for j := at.numbers; j < len(x); j++ {
		if x[j] != y[j] {
			s += p.w[at.order[j]]
		}
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
		p.place(f.v[i*d:(i+1)*d], f.data.X[i], f.logs[i*d:(i+1)*d], f.axes)
	}
	for i := range n {
		vi := f.v[i*d : (i+1)*d]
		for j := range i {
			k, dk := matern(p.apart(vi, f.v[j*d:(j+1)*d], f.axes))
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
		if f.inv == nil {
			f.inv, f.gradV = make([]float64, n*n), make([]float64, n*d)
		}
		copy(f.inv, f.chol)
		tri := f.triangle()
		tri.Data = f.inv
		if _, ok := lapack64.Potri(tri); !ok {
			return math.Inf(-1), errNotPositive
		}
		p := &f.params
		byWeight := make([]float64, d)
		clear(f.gradV)
		var gScale, gNoise float64
		for i := range n {
			vi, gi := f.v[i*d:(i+1)*d], f.gradV[i*d:(i+1)*d]
			g := 0.5 * (f.alpha[i]*f.alpha[i] - f.inv[i*n+i])
			gScale += g * f.k[i*n+i]
			gNoise += g
			for j := range i {
				// Both halves of the symmetric matrix.
				g := f.alpha[i]*f.alpha[j] - f.inv[i*n+j]
				gScale += g * f.k[i*n+j]
				h := g * f.kr[i*n+j]
				vj, gj := f.v[j*d:(j+1)*d], f.gradV[j*d:(j+1)*d]
				for c, v := range vi[:f.numbers] {
					diff := v - vj[c]
					t := h * diff
					byWeight[c] += t * diff
					gi[c] += t
					gj[c] -= t
				}
				for c := f.numbers; c < d; c++ {
					if vi[c] != vj[c] {
						byWeight[c] += h
					}
				}
			}
		}
		for j, c := range f.order {
			grad[c] = byWeight[j] // by log w, of which the places of numbers hold the root
			if j >= f.numbers {
				grad[c] *= p.w[c]
			}
		}
		grad[d] = gScale
		grad[d+1] = gNoise * (p.noise - minNoise)
		if f.warp {
			for j, c := range f.order[:f.numbers] {
				a, b, double := p.a[c], p.b[c], 2*p.root[c]
				for i := range n {
					logX := f.logs[i*d+j]
					xa := math.Exp(a * logX)
					log := math.Log1p(-xa)
					rest := math.Exp(b * log)
					g := double * f.gradV[i*d+j]
					// d/da of 1−(1−x^a)^b is b·(1−x^a)^(b−1)·x^a·ln x; d/db is −(1−x^a)^b·ln(1−x^a).
					grad[d+2+2*c] += g * b * rest / (1 - xa) * xa * logX * a
					grad[d+3+2*c] -= g * rest * log * b
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
	f := &fit{
		axes: axesOf(data.Kinds), data: data, n: n, d: d, warp: o.Warp, logs: make([]float64, n*d),
		v: make([]float64, n*d), k: make([]float64, n*n), kr: make([]float64, n*n), chol: make([]float64, n*n),
		alpha: make([]float64, n),
	}
	for i, x := range data.X {
		for j, c := range f.order[:f.numbers] {
			f.logs[i*d+j] = math.Log(inside(x[c]))
		}
	}
	return f
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
		axes: f.axes, params: f.params, v: f.v, n: f.n, chol: f.chol, alpha: f.alpha,
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
	v := make([]float64, len(m.order))
	for i, x := range xs {
		m.params.place(v, x, nil, m.axes)
		s := 0.0
		for j := range m.n {
			k, _ := matern(m.params.apart(v, m.at(j), m.axes))
			s += k * m.alpha[j]
		}
		out[i] = m.params.scale * s
	}
	return out
}

// at is an observation's place.
func (m *Model) at(j int) []float64 { return m.v[j*len(m.order) : (j+1)*len(m.order)] }

func (m *Model) triangle() blas64.Triangular {
	return blas64.Triangular{Uplo: blas.Lower, Diag: blas.NonUnit, N: m.n, Data: m.chol, Stride: m.n}
}

// wide is how many points are predicted at a time: their columns stay in the cache.
const wide = 64

// PredictAll predicts many points at once.
func (m *Model) PredictAll(xs [][]float64) (means, variances []float64) {
	n := m.n
	means, variances = make([]float64, len(xs)), make([]float64, len(xs))
	v := make([]float64, len(m.order))
	all := make([]float64, n*min(wide, len(xs))) // [n][q]
	for first := 0; first < len(xs); first += wide {
		part := xs[first:min(first+wide, len(xs))]
		q := len(part)
		k := all[:n*q]
		for i, x := range part {
			m.params.place(v, x, nil, m.axes)
			mean := 0.0
			for j := range n {
				u, _ := matern(m.params.apart(v, m.at(j), m.axes))
				u *= m.params.scale
				k[j*q+i] = u
				mean += u * m.alpha[j]
			}
			means[first+i], variances[first+i] = mean, m.params.scale
		}
		blas64.Trsm(blas.Left, blas.NoTrans, 1, m.triangle(), blas64.General{Rows: n, Cols: q, Data: k, Stride: q})
		vs := variances[first : first+q]
		for j := range n {
			for i, x := range k[j*q : (j+1)*q] {
				vs[i] -= x * x
			}
		}
	}
	for i := range variances {
		variances[i] = max(variances[i], 1e-12*m.params.scale)
	}
	return means, variances
}

// Slope is Predict with the gradients by x; those by names are 0.
func (m *Model) Slope(x []float64) (mean, variance float64, dMean, dVariance []float64) {
	n, d := m.n, len(m.order)
	v := make([]float64, d)
	m.params.place(v, x, nil, m.axes)
	k := make([]float64, 2*n)
	beta, dk := k[:n:n], k[n:] // first k, then K⁻¹·k
	for j := range n {
		a, b := matern(m.params.apart(v, m.at(j), m.axes))
		beta[j], dk[j] = m.params.scale*a, m.params.scale*b
		mean += beta[j] * m.alpha[j]
	}
	vec := blas64.Vector{N: n, Data: beta, Inc: 1}
	blas64.Trsv(blas.NoTrans, m.triangle(), vec)
	variance = m.params.scale - blas64.Dot(vec, vec)
	blas64.Trsv(blas.Trans, m.triangle(), vec)
	byMean, byVariance := make([]float64, m.numbers), make([]float64, m.numbers)
	for j := range n {
		at, a, b := m.at(j), 2*dk[j]*m.alpha[j], -4*dk[j]*beta[j]
		for c, u := range v[:m.numbers] {
			diff := u - at[c]
			byMean[c] += a * diff
			byVariance[c] += b * diff
		}
	}
	dMean, dVariance = make([]float64, d), make([]float64, d)
	for j, c := range m.order[:m.numbers] {
		slope := m.params.root[c]
		if m.params.a != nil {
			a, b, at := m.params.a[c], m.params.b[c], inside(x[c])
			xa := math.Pow(at, a)
			slope *= a * b * xa / at * math.Pow(1-xa, b-1)
		}
		dMean[c], dVariance[c] = slope*byMean[j], slope*byVariance[j]
	}
	return mean, max(variance, 1e-12*m.params.scale), dMean, dVariance
}
