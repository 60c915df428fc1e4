package telemetry

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// trialsOf draws n configurations and scores them.
func trialsOf(n int, seed uint64, score func(c space.Config, noise float64) float64) []Scored {
	rng := rand.New(rand.NewPCG(seed, 1))
	var out []Scored
	for range n {
		c := space.Config{
			"lr": space.Number(math.Exp(rng.Float64()*6 - 9)), "layers": space.Number(float64(2 + rng.IntN(8))), "dropout": space.Number(rng.Float64() * 0.3),
			"tied": space.Word([]string{"true", "false"}[rng.IntN(2)]), "optimizer": space.Word("adamw"), "fixed": space.Number(1),
		}
		if rng.IntN(2) == 0 {
			c["optimizer"], c["muon_lr"] = space.Word("muon"), space.Number(rng.Float64())
		}
		out = append(out, Scored{c, score(c, rng.NormFloat64())})
	}
	return out
}

func TestImportance(t *testing.T) {
	byRate := func(c space.Config, noise float64) float64 { return math.Abs(math.Log(c.Float("lr"))+6) + 0.1*noise }
	byWord := func(c space.Config, noise float64) float64 {
		if c.Word("optimizer") == "muon" {
			return 2 + 0.05*noise
		}
		return 3 + 0.05*noise
	}
	noise := func(_ space.Config, noise float64) float64 { return 3 + noise }
	tests := []struct {
		name  string
		n     int
		score func(space.Config, float64) float64
		top   string // "" is none above chance for certain
		words string
	}{
		{"rate", 60, byRate, "lr", "explains"},
		{"optimizer", 40, byWord, "optimizer", "explains"},
		{"few", 5, byRate, "", "5 trials have a score; at least 6"},
		{"none", 0, byRate, "", "0 trials have a score"},
		{"equal scores", 12, func(space.Config, float64) float64 { return 2 }, "", "nothing to compare"},
		{"noise", 12, noise, "", "do not suffice"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			trials := trialsOf(tt.n, 7, tt.score)
			im := MeasureImportance(trials, 1)
			if !strings.Contains(im.Words, tt.words) {
				t.Errorf("words %q lack %q (R² %.2f)", im.Words, tt.words, im.R2)
			}
			for _, e := range im.Effects {
				if e.Name == "fixed" || math.IsNaN(e.Share) || e.Share < 0 || math.IsNaN(e.Chance) {
					t.Errorf("effect %+v", e)
				}
			}
			if tt.top != "" && (im.Effects[0].Name != tt.top && im.Effects[0].Name != "muon_lr" || !im.Effects[0].Above || im.R2 < 0.5) {
				t.Errorf("R² %.2f, effects %+v, want %s first", im.R2, im.Effects, tt.top)
			}
			if again := MeasureImportance(trials, 1); !reflect.DeepEqual(im, again) {
				t.Error("a second measurement differs")
			}
		})
	}
}

func TestChanceIsOneInTwenty(t *testing.T) {
	above, all := 0, 0
	for seed := range uint64(12) {
		for _, e := range MeasureImportance(trialsOf(20, 100+seed, func(_ space.Config, n float64) float64 { return n }), seed).Effects {
			all++
			if e.Above {
				above++
			}
		}
	}
	if share := float64(above) / float64(all); share > 0.15 {
		t.Errorf("%d of %d parameters of meaningless scores stand above chance", above, all)
	}
}

func TestFront(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []costed
		for i := range rapid.IntRange(0, 20).Draw(t, "n") {
			all = append(all, costed{fmt.Sprint(i), float64(rapid.IntRange(0, 6).Draw(t, "cost")), float64(rapid.IntRange(0, 6).Draw(t, "score"))})
		}
		on := map[costed]bool{}
		for _, c := range front(all) {
			on[c] = true
		}
		for _, c := range all {
			beaten, twin := false, false
			for _, d := range all {
				if d.Cost <= c.Cost && d.Score <= c.Score && (d.Cost < c.Cost || d.Score < c.Score) {
					beaten = true
				}
				twin = twin || d.Cost == c.Cost && d.Score == c.Score && on[d]
			}
			if on[c] && beaten || !beaten && !twin {
				t.Fatalf("%v: on the front %v, beaten %v", c, on[c], beaten)
			}
		}
	})
}

func TestThin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, limit := rapid.IntRange(0, 3000).Draw(t, "n"), rapid.IntRange(3, 300).Draw(t, "limit")
		in := make([]point, n)
		for i := range in {
			in[i] = point{Step: float64(i), Y: rapid.Float64Range(0, 9).Draw(t, "y")}
			if i > 50 {
				in[i].Y = float64(i % 7)
			}
		}
		for name, out := range map[string][]point{"thin": thin(in, limit), "best": thinBest(in, limit)} {
			if len(out) > limit || len(out) > n || n > 0 && len(out) == 0 {
				t.Fatalf("%s: %d points of %d, limit %d", name, len(out), n, limit)
			}
			for i := 1; i < len(out); i++ {
				if out[i].Step <= out[i-1].Step {
					t.Fatalf("%s: steps go back", name)
				}
			}
			if name == "thin" && n > 0 && (out[0] != in[0] || out[len(out)-1] != in[n-1]) {
				t.Fatal("an end is lost")
			}
		}
	})
}

func FuzzParseCurve(f *testing.F) {
	f.Add("{\"step\":1,\"loss\":2.5,\"tokens\":9}\n{\"step\":2,\"bits_per_byte\":3}\n")
	f.Add("{\"step\":1e999}\n\n[]\n{\"loss\":-1e308}")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseCurve(strings.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Count(s, "\n") + 1; len(c.Loss) > lines || len(c.Valid) > lines || c.Bad > lines {
			t.Fatalf("more records than lines: %+v", c)
		}
		for _, p := range append(c.Loss, c.Valid...) {
			if b, err := json.Marshal(number(p.Y)); err != nil || !json.Valid(b) {
				t.Fatalf("%v is written as %s: %v", p.Y, b, err)
			}
		}
	})
}

func TestNumber(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 1.234567: "1.2346", 1234567: "1234567", 1e-7: "1e-07", math.Inf(1): "null", -2.5e20: "-2.5e+20"} {
		if b, err := json.Marshal(number(x)); err != nil || string(b) != want {
			t.Errorf("%v is %s, want %s (%v)", x, b, want, err)
		}
	}
	if b, _ := json.Marshal(number(math.NaN())); string(b) != "null" {
		t.Errorf("NaN is %s", b)
	}
}

func TestEChartsIsTheNamedOne(t *testing.T) {
	s, err := echarts()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(s))
	if got := hex.EncodeToString(sum[:]); got != echartsSHA256 {
		t.Errorf("echarts.min.js has the hash %s, assets.go says %s", got, echartsSHA256)
	}
	if strings.Contains(s, "</script") || strings.Contains(s, "<!--") {
		t.Error("the library cannot stand inside a script element")
	}
	if !strings.Contains(s, `"`+EChartsVersion+`"`) {
		t.Errorf("the library does not say that it is %s", EChartsVersion)
	}
}
