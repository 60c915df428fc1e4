package search

import (
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
)

// trueLaw is that of the synthetic trials.
var trueLaw = Law{E: 1.1, A: 0.5, B: 1.2, Alpha: 0.4, Beta: 0.3, N0: 3e5, D0: 1e6, Warm: 1.03}

// madeUp are scores of trials of such sizes, each at three rungs and at places before
// them, spoilt by other settings by so much.
func madeUp(r *rand.Rand, sizes []float64, trials int, by float64) []LawPoint {
	var out []LawPoint
	for t := range trials {
		n := sizes[t%len(sizes)]
		spoilt := 1 + 0.002*r.NormFloat64() + by*r.ExpFloat64()
		for rung := range 3 {
			d := 2e5 * math.Pow(3, float64(rung))
			p := LawPoint{Trial: fmt.Sprint("t", t), Params: n, Text: d, Score: spoilt * trueLaw.Score(n, d)}
			out = append(out, p)
			p.Warm, p.Text = true, 0.6*d
			p.Score = trueLaw.Warm * spoilt * trueLaw.Score(n, p.Text)
			out = append(out, p)
		}
	}
	return out
}

func TestFitLaw(t *testing.T) {
	sizes := []float64{1e5, 2e5, 4e5, 8e5}
	for i, by := range []float64{0, 0.03} {
		seed := uint64(i)
		points := madeUp(rand.New(rand.NewPCG(seed, 1)), sizes, 32, by)
		laws, ok := FitLaw(points, 1)
		if !ok {
			t.Fatal("no fit")
		}
		if l := laws.Law; by == 0 && (math.Abs(l.Alpha/trueLaw.Alpha-1) > 0.2 || math.Abs(l.Beta/trueLaw.Beta-1) > 0.1 || math.Abs(l.E/trueLaw.E-1) > 0.1) {
			t.Errorf("seed %d: exponents %.3f and %.3f and a least score of %.3f, the law has %.3f, %.3f and %.3f", seed, l.Alpha, l.Beta, l.E, trueLaw.Alpha, trueLaw.Beta, trueLaw.E)
		}
		// How much better a larger model is after more text, whatever all are spoilt by.
		better := func(l Law, n, d float64) float64 { return l.Score(n, d) / l.Score(2e5, 5e5) }
		for _, at := range [][2]float64{{2e5, 1e6}, {8e5, 2e6}, {2e6, 1e7}, {4e5, 2e7}} {
			got, want := better(laws.Law, at[0], at[1]), better(trueLaw, at[0], at[1])
			if math.Abs(got/want-1) > 0.01+by {
				t.Errorf("seed %d: %.4g parameters after %.4g bytes are foretold to have %.4f of the score, the law has %.4f", seed, at[0], at[1], got, want)
			}
			below := 0
			for _, d := range laws.Draws {
				if better(d, at[0], at[1]) < want {
					below++
				}
			}
			if below < 2 || below > len(laws.Draws)-2 {
				t.Errorf("seed %d: %d of %d draws are below the truth at %v", seed, below, len(laws.Draws), at)
			}
		}
		if math.Abs(laws.Law.Warm-trueLaw.Warm) > 0.02 {
			t.Errorf("seed %d: scores before the rate falls are %.3f of those after, not %.3f", seed, laws.Law.Warm, trueLaw.Warm)
		}
		rand.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		if again, _ := FitLaw(points, 1); !reflect.DeepEqual(again, laws) {
			t.Errorf("seed %d: the same points in another order give %+v, not %+v", seed, again.Law, laws.Law)
		}
	}
}

// A law is a law whatever it is fitted to: finite, falling with size and text.
func TestFitLawDegenerate(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	one := LawPoint{Trial: "a", Params: 1e5, Text: 1e6, Score: 2}
	same := []LawPoint{}
	for i := range 10 {
		p := one
		p.Trial = fmt.Sprint(i)
		same = append(same, p)
	}
	diverged := append(madeUp(r, []float64{1e5, 3e5}, 8, 0.03), LawPoint{Trial: "x", Params: 2e5, Text: 1e6, Score: math.NaN()}, LawPoint{Trial: "y", Params: 2e5, Text: 1e6, Score: math.Inf(1)},
		LawPoint{Trial: "z", Params: 2e5, Text: 0, Score: 2}, LawPoint{Trial: "w", Params: 2e5, Text: 1e6, Score: 1e12})
	var rising []LawPoint // larger and longer is worse
	for i := range 9 {
		rising = append(rising, LawPoint{Trial: fmt.Sprint(i), Params: 1e5 * float64(1+i%3), Text: 1e6 * float64(1+i/3), Score: 1 + float64(i)})
	}
	for _, c := range []struct {
		name   string
		points []LawPoint
		ok     bool
	}{
		{"none", nil, false},
		{"none that is usable", []LawPoint{{Trial: "a", Params: 1e5, Text: 1e6, Score: math.NaN()}, {Trial: "b", Params: -1, Text: 1e6, Score: 2}}, false},
		{"one", []LawPoint{one}, true},
		{"all the same", same, true},
		{"one size", madeUp(r, []float64{2e5}, 8, 0.03), true},
		{"two amounts of text", append(madeUp(r, []float64{2e5, 4e5}, 4, 0.03)[:6], madeUp(r, []float64{1e5}, 2, 0.03)[:2]...), true},
		{"some diverged", diverged, true},
		{"rising", rising, true},
		{"all before the rate fell", []LawPoint{{Trial: "a", Params: 1e5, Text: 1e6, Score: 2, Warm: true}}, true},
		{"far apart", []LawPoint{{Trial: "a", Params: 1, Text: 1, Score: 1e-9}, {Trial: "b", Params: 1e18, Text: 1e18, Score: 1e9}}, true},
	} {
		laws, ok := FitLaw(c.points, 3)
		if ok != c.ok {
			t.Errorf("%s: %v", c.name, ok)
			continue
		}
		for _, l := range append(laws.Draws, laws.Law) {
			if !ok {
				break
			}
			for _, x := range []float64{l.E, l.A, l.B, l.Alpha, l.Beta, l.N0, l.D0, l.Warm} {
				if !(x > 0) || math.IsInf(x, 1) {
					t.Fatalf("%s: %+v", c.name, l)
				}
			}
			falls(t, c.name, l)
		}
	}
	// What the points say nothing of is as uncertain as the prior.
	laws, _ := FitLaw(madeUp(r, []float64{2e5}, 8, 0.03), 3)
	low, high := math.Inf(1), 0.0
	for _, d := range laws.Draws {
		x := d.Score(8e5, 1e6) / d.Score(2e5, 1e6)
		low, high = min(low, x), max(high, x)
	}
	if high-low < 0.05 {
		t.Errorf("of one size alone, four times as many parameters are sure to give between %.3f and %.3f of the score", low, high)
	}
}

// falls holds that a law falls with size and with text, and that TextFor undoes Score.
func falls(t *testing.T, name string, l Law) {
	t.Helper()
	for _, n := range []float64{0.1, 1, 10} {
		for _, d := range []float64{0.1, 1, 10} {
			at := l.Score(n*l.N0, d*l.D0)
			if l.Score(2*n*l.N0, d*l.D0) > at || l.Score(n*l.N0, 2*d*l.D0) > at {
				t.Fatalf("%s: %+v rises at %g, %g", name, l, n, d)
			}
			if back := l.TextFor(n*l.N0, at); math.Abs(back/(d*l.D0)-1) > 1e-3 && l.B*math.Pow(d, -l.Beta) > 1e-6*at {
				t.Fatalf("%s: %+v has a score after %g bytes and again after %g", name, l, d*l.D0, back)
			}
		}
	}
	if !math.IsInf(l.TextFor(l.N0, l.E/2), 1) {
		t.Fatalf("%s: below its least score", name)
	}
}

func TestEffective(t *testing.T) {
	const unique = 100.0
	last := 0.0
	for _, c := range []struct{ read, want, within float64 }{
		{50, 50, 0}, {100, 100, 0}, {200, 197, 1}, {400, 373, 1}, {1e9, 1640, 1},
	} {
		got := Effective(c.read, unique)
		if math.Abs(got-c.want) > c.within || got < last || got > c.read {
			t.Errorf("%g bytes of a text of %g are worth %g, not %g", c.read, unique, got, c.want)
		}
		last = got
	}
}

// A fit takes whatever lies in a journal.
func FuzzFitLaw(f *testing.F) {
	f.Add(1e5, 1e6, 2.0, 3e5, 2e6, 1.9, false)
	f.Add(0.0, math.Inf(1), math.NaN(), -1.0, 1e300, 1e-300, true)
	f.Fuzz(func(t *testing.T, n1, d1, s1, n2, d2, s2 float64, warm bool) {
		laws, ok := FitLaw([]LawPoint{{Trial: "a", Params: n1, Text: d1, Score: s1}, {Trial: "b", Params: n2, Text: d2, Score: s2, Warm: warm}}, 1)
		if l := laws.Law; ok && !(l.Score(l.N0, l.D0) > 0) {
			t.Errorf("%+v", l)
		}
	})
}
