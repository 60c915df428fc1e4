package gauss

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"testing"
)

// sample is a smooth function of two numbers and a name, seen with a little noise.
func sample(n int, seed uint64) Data {
	rng := rand.New(rand.NewPCG(seed, 7))
	d := Data{Kinds: []Kind{Number, Number, Name}}
	for range n {
		x := []float64{rng.Float64(), rng.Float64(), float64(rng.IntN(3))}
		d.X = append(d.X, x)
		d.Y = append(d.Y, truth(x)+0.01*rng.NormFloat64())
	}
	return d
}

func truth(x []float64) float64 {
	return math.Sin(6*x[0]) + (x[1]-0.3)*(x[1]-0.3) + 0.5*x[2] - 0.7
}

func TestGradientOfThePosterior(t *testing.T) {
	for _, warp := range []bool{false, true} {
		data := sample(23, 1)
		f := newFit(data, Options{Warp: warp})
		rng := rand.New(rand.NewPCG(3, 3))
		theta := f.middle()
		for i := range theta {
			theta[i] += 0.5 * rng.NormFloat64()
		}
		grad := make([]float64, len(theta))
		if _, err := f.posterior(theta, grad); err != nil {
			t.Fatal(err)
		}
		for i := range theta {
			const h = 1e-5
			at := append([]float64(nil), theta...)
			at[i] += h
			up, _ := f.posterior(at, nil)
			at[i] -= 2 * h
			down, _ := f.posterior(at, nil)
			want := (up - down) / (2 * h)
			if math.Abs(grad[i]-want) > 1e-4*(1+math.Abs(want)) {
				t.Errorf("warp %v: gradient %d is %g, want %g", warp, i, grad[i], want)
			}
		}
	}
}

func TestSlopes(t *testing.T) {
	m, err := Fit(sample(40, 2), Options{Warp: true})
	if err != nil {
		t.Fatal(err)
	}
	x := []float64{0.41, 0.77, 1}
	mean, v, dm, dv := m.Slope(x)
	if pm, pv := m.Predict(x); math.Abs(pm-mean) > 1e-9 || math.Abs(pv-v) > 1e-9 {
		t.Fatalf("Slope gives %g, %g; Predict %g, %g", mean, v, pm, pv)
	}
	for c := range 2 {
		const h = 1e-5
		at := append([]float64(nil), x...)
		at[c] += h
		um, uv := m.Predict(at)
		at[c] -= 2 * h
		lm, lv := m.Predict(at)
		if want := (um - lm) / (2 * h); math.Abs(want-dm[c]) > 1e-4*(1+math.Abs(want)) {
			t.Errorf("mean's slope %d is %g, want %g", c, dm[c], want)
		}
		if want := (uv - lv) / (2 * h); math.Abs(want-dv[c]) > 1e-4*(1+math.Abs(want)) {
			t.Errorf("variance's slope %d is %g, want %g", c, dv[c], want)
		}
	}
}

func TestFitLearns(t *testing.T) {
	m, err := Fit(sample(80, 4), Options{})
	if err != nil {
		t.Fatal(err)
	}
	probe := sample(200, 5)
	means, variances := m.PredictAll(probe.X)
	sum, calm := 0.0, 0
	for i, x := range probe.X {
		e := means[i] - truth(x)
		sum += e * e
		if math.Abs(e) < 3*math.Sqrt(variances[i]+m.Noise()) {
			calm++
		}
	}
	if rmse := math.Sqrt(sum / 200); rmse > 0.05 || calm < 180 {
		t.Errorf("root mean square error %g, %d of 200 within three deviations", rmse, calm)
	}
	quick := m.Means(probe.X)
	for i := range means {
		if math.Abs(means[i]-quick[i]) > 1e-9 {
			t.Fatalf("Means gives %g, PredictAll %g", quick[i], means[i])
		}
	}
}

func TestLogEI(t *testing.T) {
	for _, z := range []float64{-40, -30, -9, -8.0001, -7.9999, -3, 0, 2, 9} {
		h := logH(z)
		if math.IsInf(h, 0) || math.IsNaN(h) {
			t.Errorf("log h(%g) is %g", z, h)
		}
		const d = 1e-5
		_, byMean, bySigma := LogEISlope(-z, 1, 0)
		if want := (LogEI(-z+d, 1, 0) - LogEI(-z-d, 1, 0)) / (2 * d); math.Abs(want-byMean) > 1e-3*(1+math.Abs(want)) {
			t.Errorf("at %g: slope by the mean %g, want %g", z, byMean, want)
		}
		if want := (LogEI(-z, 1+d, 0) - LogEI(-z, 1-d, 0)) / (2 * d); math.Abs(want-bySigma) > 1e-3*(1+math.Abs(want)) {
			t.Errorf("at %g: slope by the deviation %g, want %g", z, bySigma, want)
		}
	}
	for _, z := range []float64{-12, -3, 0, 2} {
		const d = 1e-5
		_, byMean, bySigma := LogProbabilitySlope(-z, 1, 0)
		if want := (LogProbability(-z+d, 1, 0) - LogProbability(-z-d, 1, 0)) / (2 * d); math.Abs(want-byMean) > 1e-3*(1+math.Abs(want)) {
			t.Errorf("at %g: log Φ's slope by the mean %g, want %g", z, byMean, want)
		}
		if want := (LogProbability(-z, 1+d, 0) - LogProbability(-z, 1-d, 0)) / (2 * d); math.Abs(want-bySigma) > 1e-3*(1+math.Abs(want)) {
			t.Errorf("at %g: log Φ's slope by the deviation %g, want %g", z, bySigma, want)
		}
	}
	if got := math.Exp(LogEI(0, 1, 0)); math.Abs(got-1/math.Sqrt(2*math.Pi)) > 1e-12 {
		t.Errorf("EI at the incumbent is %g", got)
	}
	for _, z := range []float64{-10.001, -9.999} {
		if a, b := logCDF(z), math.Log(0.5*math.Erfc(-z/math.Sqrt2)); math.Abs(a-b) > 1e-6 {
			t.Errorf("log Φ(%g) is %g, want %g", z, a, b)
		}
	}
}

func BenchmarkFit(b *testing.B) {
	for _, n := range []int{50, 100, 200, 500, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			d := sample(n, 9)
			for range b.N {
				if _, err := Fit(d, Options{Steps: 20}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// The likelihood, its gradient and the predictions are those of scikit-learn's
// GaussianProcessRegressor at the same hyper-parameters (testdata/sklearn.json says which
// version).
func TestParityWithScikitLearn(t *testing.T) {
	b, err := os.ReadFile("testdata/sklearn.json")
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		Cases []struct {
			X, At         [][]float64
			Y, W, Mean    []float64
			Deviation     []float64
			Scale, Noise  float64
			LogLikelihood float64   `json:"log_likelihood"`
			ByLogWeight   []float64 `json:"by_log_weight"`
		}
	}
	if err := json.Unmarshal(b, &golden); err != nil || len(golden.Cases) == 0 {
		t.Fatal(len(golden.Cases), err)
	}
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-5*(1+math.Abs(want)) {
			t.Errorf("%s is %g, scikit-learn's %g", what, got, want)
		}
	}
	for _, c := range golden.Cases {
		d := len(c.W)
		f := newFit(Data{Kinds: make([]Kind, d), X: c.X, Y: c.Y}, Options{})
		theta := make([]float64, f.size())
		for j, w := range c.W {
			theta[j] = math.Log(w)
		}
		theta[d], theta[d+1] = math.Log(c.Scale), math.Log(c.Noise-minNoise)
		grad, priorGrad := make([]float64, len(theta)), make([]float64, len(theta))
		value, err := f.posterior(theta, grad)
		if err != nil {
			t.Fatal(err)
		}
		near("the likelihood", value-f.prior(theta, priorGrad), c.LogLikelihood)
		for j := range d {
			near("its gradient", grad[j]-priorGrad[j], c.ByLogWeight[j])
		}
		m, err := f.model(theta)
		if err != nil {
			t.Fatal(err)
		}
		means, variances := m.PredictAll(c.At)
		for i := range means {
			near("a mean", means[i], c.Mean[i])
			near("a deviation", math.Sqrt(variances[i]), c.Deviation[i])
		}
	}
}
