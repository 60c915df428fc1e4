package search

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// lawOf is a law that all draws agree on, but for so many of a hundred in which size is
// worth nothing.
func lawOf(doubt int) Laws {
	l := Laws{Law: trueLaw, Noise: 0.01}
	for i := range 100 {
		d := trueLaw
		if i < doubt {
			d.A = 1e-6
		}
		l.Draws = append(l.Draws, d)
	}
	for i, n := range []float64{2e5, 2e5, 3e5, 4e5} {
		l.Points = append(l.Points, LawPoint{Trial: string(rune('a' + i)), Params: n, Text: 1e6, Score: 2.5}, LawPoint{Trial: string(rune('a' + i)), Params: n, Text: 5e5, Score: 2.6, Warm: true})
	}
	return l
}

func TestChooseHeir(t *testing.T) {
	w := Standing{Score: 2.5, Scored: 1e6, Read: 1e6, Unique: 1e9}
	asItIs := Heir{Params: 3e5, Text: 5e7}
	grown := func(params int64, text float64) Heir { return Heir{Params: params, Text: text} }
	oneSize := lawOf(0)
	for i := range oneSize.Points {
		oneSize.Points[i].Params = 3e5
	}
	few := lawOf(0)
	few.Points = few.Points[:6]
	for _, c := range []struct {
		name  string
		laws  Laws
		w     Standing
		heirs []Heir
		want  int64 // parameters of what is trained
		why   string
	}{
		{"no larger model is allowed", lawOf(0), w, []Heir{asItIs}, 3e5, "allow no larger model"},
		{"larger and read as much", lawOf(0), w, []Heir{asItIs, grown(6e5, 5e7)}, 6e5, "grown from 0.30 M to 0.60 M"},
		{"larger and as slow as it is large", lawOf(0), Standing{Score: 2.5, Scored: 1e6, Read: 1e6, Unique: 1e9}, []Heir{{Params: 3e5, Text: 1e6}, grown(12e5, 2.5e5)}, 3e5, "trained as it is"},
		{"the best of several", lawOf(0), w, []Heir{asItIs, grown(12e5, 1e6), grown(9e5, 2e7), grown(6e5, 3e7)}, 9e5, "grown"},
		{"a gain within the noise", lawOf(0), w, []Heir{asItIs, grown(301e3, 5e7)}, 3e5, "asked for"},
		{"four of five draws", lawOf(20), w, []Heir{asItIs, grown(6e5, 5e7)}, 6e5, "in 80 %"},
		{"one draw less", lawOf(21), w, []Heir{asItIs, grown(6e5, 5e7)}, 3e5, "in 79 %"},
		{"trials of one size", oneSize, w, []Heir{asItIs, grown(6e5, 5e7)}, 3e5, "one size"},
		{"few trials", few, w, []Heir{asItIs, grown(6e5, 5e7)}, 3e5, "too few"},
	} {
		z := c.laws.Choose(c.w, c.heirs)
		if got := z.Heirs[z.Taken]; got.Params != c.want || !strings.Contains(z.Why, c.why) {
			t.Errorf("%s: %d parameters, %s", c.name, got.Params, z.Why)
		}
		if (z.Grown() == nil) != (c.want == 3e5) {
			t.Errorf("%s: grown is %+v", c.name, z.Grown())
		}
		for i, h := range z.Heirs {
			if !(h.Score > 0) || i == 0 && h.Better != 0 {
				t.Errorf("%s: %+v", c.name, h)
			}
		}
		for _, p := range z.Points {
			if p.Warm {
				t.Errorf("%s: a score before the rate fell is kept", c.name)
			}
		}
	}
	if (*Sizing)(nil).Grown() != nil {
		t.Error("no sizing grows")
	}
}

// A text that was read a hundred times has little left to tell a larger model.
func TestChooseHeirOfRepeatedText(t *testing.T) {
	heirs := []Heir{{Params: 3e5, Text: 3e8}, {Params: 9e5, Text: 3e7}}
	w := Standing{Score: 2.5, Scored: 1e6, Read: 1e6, Unique: 1e9}
	fresh := lawOf(0).Choose(w, heirs)
	w.Unique = 1e6
	again := lawOf(0).Choose(w, heirs)
	if a, b := fresh.Heirs[0].Score, again.Heirs[0].Score; !(a < b) {
		t.Errorf("after new text %.4f, after as much of an old one %.4f", a, b)
	}
	if fresh.Taken != 0 || again.Taken != 1 {
		t.Errorf("of new text heir %d, of an old one %d", fresh.Taken, again.Taken)
	}
}

// What is foretold of a model that reads more, or of a larger one that reads as much, is
// never worse.
func TestChooseHeirMonotone(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	laws, _ := FitLaw(madeUp(r, []float64{1e5, 3e5}, 12, 0.03), 1)
	for range 200 {
		n, d := int64(1e5*math.Exp(2*r.Float64())), 1e6*math.Exp(3*r.Float64())
		w := Standing{Score: 2, Scored: 1e6, Read: 1e6 * r.Float64(), Unique: 1e6 * math.Exp(4*r.Float64())}
		z := laws.Choose(w, []Heir{{Params: 1e5, Text: d}, {Params: n + 1e4, Text: d}, {Params: 2*n + 1e4, Text: d}, {Params: 2*n + 1e4, Text: 2 * d}})
		for _, a := range z.Heirs[1:] {
			for _, b := range z.Heirs[1:] {
				if a.Params >= b.Params && a.Text >= b.Text && a.Score > b.Score+1e-9 {
					t.Fatalf("%+v is foretold worse than %+v", a, b)
				}
			}
		}
	}
}
