package search

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

func cloud(n, m int, seed uint64) [][]float64 {
	rng := rand.New(rand.NewPCG(seed, 2))
	out := make([][]float64, n)
	for i := range out {
		for range m {
			out[i] = append(out[i], math.Round(10*rng.Float64())/10)
		}
	}
	return out
}

// The slow, plain way: the union of boxes by inclusion and exclusion.
func TestHypervolumeEqualsInclusionExclusion(t *testing.T) {
	for m := 1; m <= 5; m++ {
		for seed := range uint64(30) {
			points := cloud(9, m, seed)
			reference := slices.Repeat([]float64{0.95}, m)
			want := 0.0
			for set := 1; set < 1<<len(points); set++ {
				corner, sign := make([]float64, m), -1.0
				for i, p := range points {
					if set>>i&1 == 1 {
						sign = -sign
						for k := range corner {
							corner[k] = max(corner[k], p[k])
						}
					}
				}
				for k := range corner {
					sign *= max(0, reference[k]-corner[k])
				}
				want += sign
			}
			if got := Hypervolume(points, reference); math.Abs(got-want) > 1e-9 {
				t.Fatalf("%d objectives, seed %d: %.12g, want %.12g", m, seed, got, want)
			}
		}
	}
}

func TestFronts(t *testing.T) {
	for m := 1; m <= 4; m++ {
		points := cloud(60, m, uint64(m))
		left := map[int]bool{}
		for i := range points {
			left[i] = true
		}
		for n, front := range fronts(points) {
			var want []int
			for i := range points {
				if left[i] {
					free := true
					for j := range left {
						free = free && !dominates(points[j], points[i])
					}
					if free {
						want = append(want, i)
					}
				}
			}
			if !slices.Equal(front, want) {
				t.Fatalf("%d objectives: front %d is %v, want %v", m, n, front, want)
			}
			for _, i := range want {
				delete(left, i)
			}
			if n == 0 && !slices.Equal(Front(points), want) {
				t.Fatalf("%d objectives: Front is %v, want %v", m, Front(points), want)
			}
		}
		if len(left) > 0 {
			t.Fatalf("%d points are in no front", len(left))
		}
	}
}

func TestCrowdingAndKnee(t *testing.T) {
	front := [][]float64{{0, 10}, {1, 4}, {2, 2}, {9, 1}, {10, 0}}
	want := []float64{math.Inf(1), 1.0, 1.1, 1.0, math.Inf(1)}
	for i, far := range crowding(front) {
		if math.Abs(far-want[i]) > 1e-12 && far != want[i] {
			t.Errorf("point %d: %g, want %g", i, far, want[i])
		}
	}
	if k := Knee(front); k != 2 {
		t.Errorf("the knee is point %d, want 2", k)
	}
	if k := Knee(nil); k != -1 {
		t.Errorf("the knee of nothing is %d", k)
	}
}

// Lazy or not, the greedy choice is the same.
func TestSpreadOutIsGreedy(t *testing.T) {
	for m := 2; m <= 3; m++ {
		for seed := range uint64(10) {
			all := cloud(40, m, seed)
			var front [][]float64
			for _, i := range Front(all) {
				if !slices.ContainsFunc(front, func(p []float64) bool { return slices.Equal(p, all[i]) }) {
					front = append(front, all[i])
				}
			}
			if len(front) < 3 {
				continue
			}
			k := len(front) / 2
			reference := make([]float64, m)
			for _, p := range front {
				for i := range p {
					reference[i] = max(reference[i], 1.1*p[i])
				}
			}
			var chosen [][]float64
			for _, got := range spreadOut(front, k) {
				most := 0.0
				for _, p := range front {
					most = max(most, Hypervolume(append(slices.Clip(chosen), p), reference))
				}
				chosen = append(chosen, front[got])
				if v := Hypervolume(chosen, reference); v < most-1e-12 {
					t.Fatalf("%d objectives, seed %d: %d points have %g, could have %g", m, seed, len(chosen), v, most)
				}
			}
		}
	}
}

// Constraints first, then resource, then fronts.
func TestChoose(t *testing.T) {
	results := []Result{
		{Resource: 9, Scores: []float64{1, 9}},
		{Resource: 9, Scores: []float64{9, 1}},
		{Resource: 9, Scores: []float64{5, 5}},
		{Resource: 9, Scores: []float64{9, 9}},
		{Resource: 3, Scores: []float64{0, 0}},
		{Resource: 9, Scores: []float64{0, 0}, Violations: []float64{0.1}},
		{Resource: 9, Scores: []float64{0, 0}, Violations: []float64{0.05}},
		{Resource: 9, Score: math.Inf(1)},
	}
	var got []int
	for _, r := range choose(results, 8, leastCrowded) {
		got = append(got, r.at)
	}
	if want := []int{0, 1, 2, 3, 4, 6, 5, 7}; !slices.Equal(got, want) {
		t.Fatalf("%v, want %v", got, want)
	}
}

// zdt1 is a front of 0 ≤ x ≤ 1, y = 1 − √x, at x1 = x2 = … = 0.
func zdt1(c space.Config) []float64 {
	x, g := c.Float("x0"), 1.0
	for i := 1; i < 6; i++ {
		g += 9 * c.Float(fmt.Sprint("x", i)) / 5
	}
	return []float64{x, g * (1 - math.Sqrt(x/g))}
}

func TestMultiObjectiveStrategiesBeatRandom(t *testing.T) {
	var dims []space.Dimension
	for i := range 6 {
		dims = append(dims, space.MustParse(fmt.Sprint("x", i), "uniform(0, 1)"))
	}
	sp, err := space.New(dims...)
	if err != nil {
		t.Fatal(err)
	}
	volume := map[string]float64{}
	const seeds = 3
	for _, name := range []string{"random", "nsga2", "tpe"} {
		for seed := range uint64(seeds) {
			st := made(t, name, sp, Options{Seed: seed})
			var points [][]float64
			for i := range 250 {
				c, err := st.Ask(1)
				if err != nil {
					t.Fatal(err)
				}
				points = append(points, zdt1(c[0]))
				st.Tell(Result{Trial: fmt.Sprintf("%03d", i), Config: c[0], Scores: zdt1(c[0])})
			}
			volume[name] += Hypervolume(points, []float64{1.1, 6}) / seeds
		}
	}
	t.Log(volume) // at most 6.6 - 1/3
	for _, name := range []string{"nsga2", "tpe"} {
		if volume[name] < volume["random"]+0.5*(6.26-volume["random"]) {
			t.Errorf("%s reached %.2f, random %.2f", name, volume[name], volume["random"])
		}
	}
}
