package search

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

func sphere(x []float64) float64 { return dot(x, x) }

func ellipsoid(x []float64) float64 {
	sum := 0.0
	for i, v := range x {
		sum += math.Pow(10, 6*float64(i)/float64(len(x)-1)) * v * v
	}
	return sum
}

func rosenbrock(x []float64) float64 {
	sum := 0.0
	for i := range len(x) - 1 {
		a, b := x[i+1]-x[i]*x[i], 1-x[i]
		sum += 100*a*a + b*b
	}
	return sum
}

// The evaluations that 1e-6 takes are those of the package cmaes 0.13.1: the median of
// its seeds 0 to 20 in six dimensions over [-5, 5], from 0.8 of the range, σ a sixth of
// it. "mixed" has three real coordinates and three of 21 values.
func TestCMAConverges(t *testing.T) {
	for _, c := range []struct {
		name  string
		f     func([]float64) float64
		mixed bool
		want  float64
	}{
		{"sphere", sphere, false, 711},
		{"ellipsoid", ellipsoid, false, 1728},
		{"rosenbrock", rosenbrock, false, 2394},
		{"mixed sphere", sphere, true, 675},
		{"mixed ellipsoid", ellipsoid, true, 1242},
	} {
		const values = 21
		cells := func(j int, x float64) (low, high float64, discrete bool) {
			if !c.mixed || j < 3 {
				return 0, 0, false
			}
			k := min(max(math.Floor(x*values), 0), values-1)
			low, high = k/values, (k+1)/values
			switch k {
			case 0:
				low = high
			case values - 1:
				high = low
			}
			return low, high, true
		}
		var counts []float64
		for seed := range uint64(21) {
			s := newCMA(slices.Repeat([]float64{0.8}, 6), 0, cells)
			rng := rand.New(rand.NewPCG(seed, 5))
			n, best := 0, math.Inf(1)
			for best > 1e-6 && n < 20000 {
				var generation []drawn
				for range s.size {
					x := s.sample(rng)
					u := s.read(x)
					for j := range u {
						if _, _, discrete := cells(j, u[j]); discrete {
							u[j] = (min(max(math.Floor(u[j]*values), 0), values-1) + 0.5) / values
						}
						u[j] = (u[j] - 0.5) * 10
					}
					v := c.f(u)
					n, best = n+1, min(best, v)
					generation = append(generation, drawn{x: x, value: v})
				}
				slices.SortStableFunc(generation, func(a, b drawn) int {
					if a.value < b.value {
						return -1
					}
					return 1
				})
				s.update(generation)
			}
			if best > 1e-6 {
				n = math.MaxInt32
			}
			counts = append(counts, float64(n))
		}
		slices.Sort(counts)
		t.Logf("%s: median %.0f of %.0f to %.0f", c.name, counts[10], counts[0], counts[20])
		if counts[10] < 0.8*c.want || counts[10] > 1.2*c.want {
			t.Errorf("%s: a median of %.0f evaluations, cmaes takes %.0f", c.name, counts[10], c.want)
		}
	}
}

func TestEigen(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	const n = 9
	m := identity(n)
	for i := range n {
		for j := range i + 1 {
			m[i][j] = rng.NormFloat64()
			m[j][i] = m[i][j]
		}
	}
	values, vectors := eigen(m)
	for i := range n {
		for j := range n {
			sum, unit := 0.0, 0.0
			for k := range n {
				sum += vectors[i][k] * values[k] * vectors[j][k]
				unit += vectors[i][k] * vectors[j][k]
			}
			if math.Abs(sum-m[i][j]) > 1e-12 || math.Abs(unit-identity(n)[i][j]) > 1e-12 {
				t.Fatalf("entry %d, %d is %g, want %g; the vectors' product is %g", i, j, sum, m[i][j], unit)
			}
		}
	}
}

// The strategy finds the bottom through choices, integers and a logarithm, with results
// that arrive late and by eights.
func TestCMAESOverASpace(t *testing.T) {
	sp, err := space.New(
		space.MustParse("a", "uniform(-5, 5)"),
		space.MustParse("b", "log_uniform(1e-4, 1)"),
		space.MustParse("n", "int(0, 20)"),
		space.MustParse("w", "log_int(4, 256)"),
		space.MustParse("k", "categorical([x, y, z])"),
	)
	if err != nil {
		t.Fatal(err)
	}
	score := func(c space.Config) float64 {
		a, b, n, w := c.Float("a")-1, math.Log10(c.Float("b"))+2, (c.Float("n")-13)/4, math.Log2(c.Float("w")/32)
		s := a*a + 4*b*b + n*n + w*w
		if c.Word("k") != "y" {
			s++
		}
		return s
	}
	for _, batch := range []int{1, 8} {
		found := 0
		for seed := range uint64(5) {
			st := made(t, "cma-es", sp, Options{Seed: seed})
			best := math.Inf(1)
			var late []Result
			for i := range 600 / batch {
				cs, err := st.Ask(batch)
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range late {
					st.Tell(r)
				}
				late = late[:0]
				for j, c := range cs {
					best = min(best, score(c))
					late = append(late, Result{Trial: fmt.Sprintf("%04d", i*batch+j), Config: c, Score: score(c)})
				}
			}
			if best < 0.01 {
				found++
			}
		}
		if found < 4 {
			t.Errorf("by %d at a time, %d of 5 seeds come within 0.01 of the bottom", batch, found)
		}
	}
}

// Two basins: a run that has converged in one is followed by others.
func TestCMAESRestarts(t *testing.T) {
	sp, err := space.New(space.MustParse("x", "int(0, 30)"), space.MustParse("y", "int(0, 30)"))
	if err != nil {
		t.Fatal(err)
	}
	h := newHistory(sp, Options{Seed: 1})
	c := newCMAES(h)
	for i := range 500 {
		cs, err := c.Ask(1)
		if err != nil {
			t.Fatal(err)
		}
		x, y := cs[0].Float("x"), cs[0].Float("y")
		c.Tell(Result{Trial: fmt.Sprint(i), Config: cs[0], Score: math.Abs(x-3) + math.Abs(y-3)})
	}
	if c.runs == 0 || c.run.size <= 6 {
		t.Errorf("after 500 of 961 configurations it is in run %d with a population of %d", c.runs, c.run.size)
	}
}
