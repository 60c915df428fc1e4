package telemetry

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// anovaOf measures made-up scores of three numbers and a word.
func anovaOf(score func(x, y float64, word string) float64) Importance {
	rng := rand.New(rand.NewPCG(4, 2))
	var trials []Scored
	for range 160 {
		x, y, word := rng.Float64(), rng.Float64(), string("abc"[rng.IntN(3)])
		trials = append(trials, Scored{space.Config{
			"x": space.Number(x), "y": space.Number(y), "word": space.Word(word), "idle": space.Number(rng.Float64()),
		}, score(x, y, word)})
	}
	return MeasureImportance(trials, 1)
}

func (im Importance) aloneOf(name string) float64 {
	for _, e := range im.Effects {
		if e.Name == name {
			return e.Alone
		}
	}
	return math.NaN()
}

func TestAnova(t *testing.T) {
	for _, tt := range []struct {
		name  string
		score func(x, y float64, word string) float64
		a, b  string  // the pair of the largest interaction
		least float64 // its share
		most  float64
		alone string // parameter with the largest effect alone
	}{
		{"a sum", func(x, y float64, _ string) float64 { return 3*x + y }, "", "", 0, 0.1, "x"},
		{"two that decide together", func(x, y float64, _ string) float64 {
			if (x > 0.5) == (y > 0.5) {
				return 1
			}
			return 0
		}, "x", "y", 0.3, 1, ""},
		{"a word that turns a number round", func(x, _ float64, word string) float64 {
			if word == "a" {
				return x
			}
			return 1 - x
		}, "word", "x", 0.3, 1, ""},
		{"a word alone", func(_, _ float64, word string) float64 { return map[string]float64{"a": 0, "b": 1, "c": 5}[word] }, "", "", 0, 0.1, "word"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			im := anovaOf(tt.score)
			top := im.Together[0]
			if tt.a != "" && (top.A != tt.a || top.B != tt.b) || !(top.Share >= tt.least && top.Share <= tt.most) {
				t.Errorf("the largest interaction is %+v", top)
			}
			for _, e := range im.Effects {
				if tt.alone != "" && e.Name != tt.alone && e.Alone >= im.aloneOf(tt.alone) {
					t.Errorf("%s alone %.3f, %s %.3f", e.Name, e.Alone, tt.alone, im.aloneOf(tt.alone))
				}
			}
			sum := 0.0
			for _, e := range im.Effects {
				sum += e.Alone
			}
			for _, p := range im.Together {
				sum += p.Share
			}
			if !(sum > 0.5 && sum <= 1+1e-9) {
				t.Errorf("all shares are %.3f together", sum)
			}
		})
	}
}

// A tree's decomposition is that of the function that it is, by hand.
func TestAnovaOfATree(t *testing.T) {
	f := features{x: [][]float64{{0, 0}, {0, 1}, {1, 0}, {1, 1}}, categorical: []bool{false, true}}
	// x ≤ 0.5: 0; else 1 where y is category 1, and 3 elsewhere.
	w := forest{trees: []tree{{
		{feature: 0, threshold: 0.5, left: 1, right: 2},
		{feature: -1, value: 0},
		{feature: 1, threshold: 1, left: 3, right: 4},
		{feature: -1, value: 1},
		{feature: -1, value: 3},
	}}}
	alone, pairs := w.anova(f)
	// Means: 1 over all; of x 0 and 2; of y 1.5 (category 0) and 0.5. Variance (1+1+4+0)/4.
	for i, want := range []float64{1 / 1.5, 0.25 / 1.5} {
		if math.Abs(alone[i]-want) > 1e-12 {
			t.Errorf("feature %d alone is %.4f, want %.4f", i, alone[i], want)
		}
	}
	if want := 0.25 / 1.5; math.Abs(pairs[0][1]-want) > 1e-12 {
		t.Errorf("together %.4f, want %.4f", pairs[0][1], want)
	}
}
