package main

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// task is something to search over: a space, and what a configuration of it costs.
type task struct {
	name  string
	suite string
	dims  []space.Dimension
	// eval gives what is to be made small, several of them where there are several
	// objectives, and by how much a measured constraint is missed (at most 0: it holds).
	eval func(c space.Config) (scores []float64, violation float64)
	// regret of the best score that held the constraint: 0 is the best there is. Left
	// nil the score is shown as it is.
	regret func(best float64) float64
	// reference point of the hypervolume, for two objectives.
	reference   []float64
	constrained bool
}

func (t task) space() (*space.Space, error) { return space.New(t.dims...) }

// functions are the synthetic tasks: f(x) − f*.
func functions() []task {
	box := func(n int, lo, hi float64) []space.Dimension {
		dims := make([]space.Dimension, n)
		for i := range dims {
			dims[i] = space.MustParse(fmt.Sprintf("x%d", i), fmt.Sprintf("uniform(%g, %g)", lo, hi))
		}
		return dims
	}
	of := func(name string, dims []space.Dimension, best float64, f func(x []float64) float64) task {
		return task{
			name: "syn/" + name, suite: "syn", dims: dims,
			eval: func(c space.Config) ([]float64, float64) {
				x := make([]float64, len(dims))
				for i, d := range dims {
					x[i] = c.Float(d.Name)
				}
				return []float64{f(x) - best}, 0
			},
			regret: func(v float64) float64 { return v },
		}
	}
	branin := []space.Dimension{space.MustParse("x0", "uniform(-5, 10)"), space.MustParse("x1", "uniform(0, 15)")}
	return []task{
		of("branin", branin, 0.39788735772973816, func(x []float64) float64 {
			a := x[1] - 5.1/(4*math.Pi*math.Pi)*x[0]*x[0] + 5/math.Pi*x[0] - 6
			return a*a + 10*(1-1/(8*math.Pi))*math.Cos(x[0]) + 10
		}),
		of("hartmann6", box(6, 0, 1), -3.322368011415515, hartmann6),
		of("ackley5", box(5, -32.768, 32.768), 0, func(x []float64) float64 {
			var sq, cs float64
			for _, v := range x {
				v -= 3.3 // so that the middle is not the answer
				sq += v * v
				cs += math.Cos(2 * math.Pi * v)
			}
			n := float64(len(x))
			return -20*math.Exp(-0.2*math.Sqrt(sq/n)) - math.Exp(cs/n) + 20 + math.E
		}),
		of("rosenbrock5", box(5, -5, 10), 0, func(x []float64) float64 {
			s := 0.0
			for i := range len(x) - 1 {
				a, b := x[i+1]-x[i]*x[i], 1-x[i]
				s += 100*a*a + b*b
			}
			return s
		}),
		of("levy10", box(10, -10, 10), 0, func(x []float64) float64 {
			w := func(i int) float64 { return 1 + (x[i]-1)/4 }
			sq := func(v float64) float64 { return v * v }
			n := len(x) - 1
			s := sq(math.Sin(math.Pi*w(0))) + sq(w(n)-1)*(1+sq(math.Sin(2*math.Pi*w(n))))
			for i := range n {
				s += sq(w(i)-1) * (1 + 10*sq(math.Sin(math.Pi*w(i)+1)))
			}
			return s
		}),
	}
}

func hartmann6(x []float64) float64 {
	alpha := []float64{1, 1.2, 3, 3.2}
	a := [][]float64{{10, 3, 17, 3.5, 1.7, 8}, {0.05, 10, 17, 0.1, 8, 14}, {3, 3.5, 1.7, 10, 17, 8}, {17, 8, 0.05, 10, 0.1, 14}}
	p := [][]float64{{1312, 1696, 5569, 124, 8283, 5886}, {2329, 4135, 8307, 3736, 1004, 9991}, {2348, 1451, 3522, 2883, 3047, 6650}, {4047, 8828, 8732, 5743, 1091, 381}}
	s := 0.0
	for i := range alpha {
		e := 0.0
		for j := range x {
			d := x[j] - 1e-4*p[i][j]
			e += a[i][j] * d * d
		}
		s -= alpha[i] * math.Exp(-e)
	}
	return s
}

// tasks finds the tasks of a list: files of tables, "syn", "syn/NAME", "hwgpt" (the
// four latency limits), "hwgpt/LIMIT", "hwgptmo", or "tables" (those in dir).
func tasks(names []string, dir string) ([]task, error) {
	var out []task
	for _, n := range names {
		switch {
		case n == "syn" || strings.HasPrefix(n, "syn/"):
			fs := slices.DeleteFunc(functions(), func(t task) bool { return n != "syn" && t.name != n })
			if len(fs) == 0 {
				return nil, fmt.Errorf("there is no function %s", n)
			}
			out = append(out, fs...)
		case n == "hwgpt" || strings.HasPrefix(n, "hwgpt/") || n == "hwgptmo":
			ts, err := hwgpt(dir, n)
			if err != nil {
				return nil, err
			}
			out = append(out, ts...)
		case n == "tables":
			files, err := filepath.Glob(filepath.Join(dir, "*_*.csv.gz"))
			if err != nil {
				return nil, err
			}
			found := false
			for _, f := range files {
				if strings.HasPrefix(filepath.Base(f), "hwgpt") {
					continue
				}
				t, err := table(f)
				if err != nil {
					return nil, err
				}
				found = true
				out = append(out, t)
			}
			if !found {
				return nil, fmt.Errorf("%s holds no tables; -data says where they lie", dir)
			}
		default:
			t, err := table(n)
			if err != nil {
				return nil, err
			}
			out = append(out, t)
		}
	}
	return out, nil
}
