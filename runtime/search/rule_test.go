package search

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// testdata/wilcoxon.txt holds what SciPy gives; its head says how it was asked.
func TestSignedRankIsSciPys(t *testing.T) {
	raw, err := os.ReadFile("testdata/wilcoxon.txt")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(raw)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Fields(line)
		var x []float64
		for _, s := range f[1:] {
			v, err := strconv.ParseFloat(s, 64)
			if err != nil {
				t.Fatal(err)
			}
			x = append(x, v)
		}
		if got := SignedRank(x[1:]); math.Abs(got-x[0]) > 1e-9 {
			t.Errorf("%s %v: %g, SciPy has %g", f[0], x[1:], got, x[0])
		}
		n++
	}
	if n < 40 {
		t.Fatalf("only %d lines", n)
	}
	if p := SignedRank(nil); p != 1 {
		t.Errorf("no pairs: %g", p)
	}
	if p := SignedRank([]float64{0, 0}); p != 0.5 {
		t.Errorf("only zeros: %g", p)
	}
}

func TestStudentCDF(t *testing.T) {
	for _, tc := range []struct {
		t    float64
		n    int
		want float64
	}{
		{-3, 1, 0.10241638234956672},
		{-3, 2, 0.04773298313335456},
		{-0.5, 3, 0.3257239824240755},
		{-0.5, 4, 0.32166498159093165},
		{0.7, 7, 0.7467412239022},
		{2.5, 10, 0.9842765778816955},
		{2.5, 30, 0.9909421754659666},
	} {
		if got := studentCDF(tc.t, tc.n); math.Abs(got-tc.want) > 1e-12 {
			t.Errorf("t %g with %d degrees: %.15f, want %.15f", tc.t, tc.n, got, tc.want)
		}
	}
}

// law is a power law's curve at n places, with noise.
func law(e, a, alpha, from, to float64, n int, noise float64, rng *rand.Rand) []Point {
	var out []Point
	for i := range n {
		x := from + (to-from)*float64(i+1)/float64(n)
		out = append(out, Point{x, e + a*math.Pow(x, -alpha) + noise*rng.NormFloat64()})
	}
	return out
}

// The probability means what it says: of the trials to which it gives so much, about
// so many do end below.
func TestCurveIsCalibrated(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 1))
	var given, ended [4]float64 // by probability: up to 0.05, 0.5, 0.95, 1
	var count [4]float64
	wrong := 0
	for range 4000 {
		e, a, alpha := 1+rng.Float64(), 0.5+2*rng.Float64(), 0.2+0.6*rng.Float64()
		curve := law(e, a, alpha, 0, 100, 8, 0.01, rng)
		end := e + a*math.Pow(100, -alpha)
		bound := end * (1 + 0.06*rng.NormFloat64())
		p, ok := endsBelow(curve[:4], 100, bound, 0)
		if !ok {
			t.Fatal("no verdict on four points")
		}
		bin := 3
		for i, top := range []float64{0.05, 0.5, 0.95} {
			if p <= top {
				bin = i
				break
			}
		}
		given[bin] += p
		count[bin]++
		if end < bound {
			ended[bin]++
			if p < curveP {
				wrong++
			}
		}
	}
	for i := range count {
		t.Logf("given %.3f, ended below %.3f, of %.0f", given[i]/count[i], ended[i]/count[i], count[i])
	}
	if share := ended[0] / count[0]; share > 0.06 || count[0] < 400 {
		t.Errorf("of %.0f trials with p ≤ 0.05 a share of %.3f did end below", count[0], share)
	}
	if share := ended[3] / count[3]; share < 0.94 {
		t.Errorf("of those with p > 0.95 only %.3f did", share)
	}
}

func TestRulesJudge(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	good, bad := law(1, 2, 0.5, 0, 75, 6, 0, rng), law(1.6, 2.2, 0.5, 0, 75, 6, 0, rng)
	median := &Rule{Kind: MedianRule, Horizon: 75, Others: law(1.3, 2, 0.5, 0, 75, 6, 0, rng)}
	wilcoxon := &Rule{Kind: WilcoxonRule, Horizon: 75, Others: law(1.3, 2, 0.5, 0, 75, 6, 0, rng)}
	curve := &Rule{Kind: CurveRule, Horizon: 75, Best: 1.2, Gained: 0.05, Spread: 0.01}
	for _, tc := range []struct {
		name  string
		rule  *Rule
		curve []Point
		want  string // in the reason; "" goes on
	}{
		{"no rule", nil, bad, ""},
		{"nothing to compare with", &Rule{Kind: CurveRule, Horizon: 75}, bad, ""},
		{"nothing to compare with", &Rule{Kind: MedianRule, Horizon: 75}, bad, ""},
		{"nothing to compare with", &Rule{Kind: WilcoxonRule, Horizon: 75}, bad, ""},
		{"no curve", curve, nil, ""},
		{"median, better", median, good, ""},
		{"median, worse", median, bad, "worse than the median"},
		{"median, too early", median, bad[:1], ""},
		{"median, between the others' points", &Rule{Kind: MedianRule, Horizon: 75, Others: []Point{{10, 1}, {30, 1}}}, []Point{{20, 2}}, "worse than the median 1.0000"},
		{"median, behind the others", &Rule{Kind: MedianRule, Horizon: 75, Others: []Point{{10, 1}}}, []Point{{50, 2}}, ""},
		{"wilcoxon, better", wilcoxon, good, ""},
		{"wilcoxon, worse", wilcoxon, bad, "by chance with 1.6 %"},
		{"wilcoxon, three pairs say too little", wilcoxon, bad[:3], ""},
		{"curve, better", curve, good, ""},
		{"curve, worse", curve, bad, "its curve ends below 1.2000 with a probability of"},
		{"curve, three points say too little", curve, bad[:3], ""},
	} {
		got := tc.rule.Judge(tc.curve)
		if (got == "") != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
		// The verdict is the same behind a journal.
		b, err := json.Marshal(tc.rule)
		if err != nil {
			t.Fatal(err)
		}
		var again *Rule
		if err := json.Unmarshal(b, &again); err != nil || again.Judge(tc.curve) != got {
			t.Errorf("%s: %q after %s", tc.name, again.Judge(tc.curve), b)
		}
	}
}

// ruled runs a search with a rule as its trials would: the curve is measured, and a
// trial ends where its rule says.
func ruled(t *testing.T, kind RuleKind, brackets []Bracket, seed uint64) (decisions []Decision, outcomes []Outcome, ranking []Ranked) {
	t.Helper()
	st, err := NewStrategy("random", bowl(t), Options{Seed: seed})
	if err != nil {
		t.Fatal(err)
	}
	const flat = 0.75
	var sched Scheduler = NewHyperband(brackets)
	if kind != "" {
		sched = Stopping(sched, kind, brackets, flat)
	}
	s := New(st, sched, 2)
	curves := map[string][]Point{}
	for !s.Done() {
		ds, err := s.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range ds {
			decisions = append(decisions, d)
			o := Outcome{}
			noise := rand.New(rand.NewPCG(uint64(trialNumber(d.Trial)), uint64(d.Rung)))
			at := func(x float64) float64 { return 1 + 0.3*bowlScore(d.Config) + 2/math.Sqrt(x) }
			if d.Stop != nil {
				for i := 1; i <= 6 && !o.Stopped; i++ {
					x := d.Stop.From + (d.Stop.Horizon-d.Stop.From)*float64(i)/6
					curves[d.Trial] = append(curves[d.Trial], Point{x, at(x) + 0.1 + 0.01*noise.NormFloat64()})
					o.Why = d.Stop.Judge(curves[d.Trial])
					o.Stopped = o.Why != ""
				}
				o.Curve = curves[d.Trial]
			}
			if o.Score = at(d.Resource); o.Stopped {
				o.Score = o.Curve[len(o.Curve)-1].Score
			}
			outcomes = append(outcomes, o)
			if err := s.Report(d.Seq, o); err != nil {
				t.Fatal(err)
			}
		}
	}
	return decisions, outcomes, s.Ranking()
}

// The curve rule stops trials and leaves what a search without it finds.
func TestCurveRuleDoesNoHarm(t *testing.T) {
	brackets := []Bracket{ladder(18, 10, 3)}
	stopped, saved, full, worse := 0, 0.0, 0.0, 0
	for seed := range uint64(20) {
		_, _, without := ruled(t, "", brackets, seed)
		ds, outcomes, with := ruled(t, CurveRule, brackets, seed)
		if with[0].Score > without[0].Score+1e-9 {
			worse++
		}
		for i, o := range outcomes {
			full += ds[i].Resource - ds[i].From
			if o.Stopped {
				stopped++
				saved += ds[i].Resource - o.reached(ds[i])
			}
		}
	}
	t.Logf("%d trials stopped, %.0f %% of the resource saved, %d of 20 searches worse", stopped, 100*saved/full, worse)
	if stopped < 20 || worse > 0 {
		t.Errorf("%d trials stopped, %d of 20 searches worse", stopped, worse)
	}
}

func TestStoppedTrialsAreNotPromoted(t *testing.T) {
	for _, kind := range []RuleKind{MedianRule, WilcoxonRule, CurveRule} {
		ds, outcomes, ranking := ruled(t, kind, []Bracket{ladder(18, 10, 3)}, 1)
		over, n := map[string]bool{}, 0
		for i, d := range ds {
			if over[d.Trial] {
				t.Errorf("%s: %s was stopped and goes on", kind, d.Trial)
			}
			if o := outcomes[i]; o.Stopped {
				over[d.Trial] = true
				n++
				if o.Why == "" || o.reached(d) >= d.Resource {
					t.Errorf("%s: stopped at %g of %g: %q", kind, o.reached(d), d.Resource, o.Why)
				}
			}
		}
		if n == 0 {
			t.Errorf("%s stopped nothing", kind)
		}
		if ranking[0].Resource != 90 {
			t.Errorf("%s: the best reached %g", kind, ranking[0].Resource)
		}
		again, _, _ := ruled(t, kind, []Bracket{ladder(18, 10, 3)}, 1)
		if !reflect.DeepEqual(ds, again) {
			t.Errorf("%s: another run decides otherwise", kind)
		}
	}
}

func FuzzJudge(f *testing.F) {
	f.Add("curve", 75.0, 1.2, 0.05, 0.01, []byte{10, 20, 30, 40, 50})
	f.Add("median", 0.0, 0.0, 0.0, 0.0, []byte{})
	f.Add("wilcoxon", 1.0, 0.0, 0.0, 0.0, []byte{0, 0, 255})
	f.Fuzz(func(t *testing.T, kind string, horizon, best, gained, spread float64, raw []byte) {
		var curve, others []Point
		for i, b := range raw {
			p := Point{float64(i + 1), float64(b)/16 - 2}
			curve = append(curve, p)
			others = append(others, Point{p.Resource, float64(b%7) - 3})
		}
		r := &Rule{Kind: RuleKind(kind), Horizon: horizon, Best: best, Gained: gained, Spread: spread, Others: others}
		if a, b := r.Judge(curve), r.Judge(curve); a != b || strings.Contains(a, fmt.Sprint(math.NaN())) {
			t.Fatalf("%q and %q", a, b)
		}
	})
}
