package space

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// everyKind holds every kind of dimension, conditions of every kind, and one three deep.
func everyKind(t testing.TB) *Space {
	t.Helper()
	dims := []Dimension{
		MustParse("layers", "int(1, 4)"),
		MustParse("lr", "log_uniform(1.23456789e-5, 1e-2) ~ 3e-3"),
		MustParse("shift", "uniform(-5, 5)"),
		MustParse("p", "uniform(0.1, 0.9, 0.05)"),
		MustParse("warmup", "log_int(1, 4000)"),
		MustParse("rank", "ordinal([16, 32, 64])"),
		MustParse("optimizer", "categorical([adamw, muon])"),
		MustParse("seed", "7"),
		MustParse("muon_lr", "log_uniform(0.002, 0.1)").When("optimizer", "muon"),
		MustParse("low_rank", "categorical([true, false])").When("rank", "16", "32"),
		MustParse("long", "int(0, 100, 5)").WhenAtLeast("warmup", 100),
	}
	dims = append(dims, PerLayer(MustParse("heads", "[1, 2, 4]"), "layers", 4)...)
	dims = append(dims,
		MustParse("split_3", "ordinal([none, some, all])").When("heads_3", "2", "4"),
		MustParse("where_3", "uniform(0, 1)").When("split_3", "some"),
	)
	s, err := New(dims...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEveryKindIsLossless(t *testing.T) {
	s := everyKind(t)
	rapid.Check(t, func(rt *rapid.T) {
		p := make([]float64, len(s.Dimensions()))
		for i, d := range s.Dimensions() {
			p[i] = rapid.Float64Range(0, 1).Draw(rt, d.Name)
			if !d.Numeric() {
				p[i] = float64(rapid.IntRange(0, len(d.Choices)-1).Draw(rt, d.Name+" choice"))
			}
		}
		c, err := s.Config(p)
		if err != nil {
			rt.Fatal(err)
		}
		if err := s.Check(c); err != nil {
			rt.Fatal(err)
		}
		byVector, err := s.Decode(s.Encode(c))
		if err != nil {
			rt.Fatal(err)
		}
		byPoint, err := s.Config(s.Point(c))
		if err != nil {
			rt.Fatal(err)
		}
		if byVector.Key() != c.Key() || byPoint.Key() != c.Key() {
			rt.Fatalf("by vector\n%s\nby point\n%s\nwant\n%s", byVector.Key(), byPoint.Key(), c.Key())
		}
		for _, u := range s.Encode(c) {
			if !(u >= 0 && u <= 1) {
				rt.Fatalf("coordinate %g", u)
			}
		}
	})
}

func TestConditionsNest(t *testing.T) {
	s := everyKind(t)
	rng := rand.New(rand.NewPCG(5, 1))
	deep := 0
	for range 400 {
		c, err := s.Sample(rng)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			if _, ok := c[fmt.Sprintf("heads_%d", i)]; ok != (c.Int("layers") > i) {
				t.Fatalf("heads_%d is there: %v, of %d layers", i, ok, c.Int("layers"))
			}
		}
		_, long := c["long"]
		_, split := c["split_3"]
		_, where := c["where_3"]
		if long != (c.Int("warmup") >= 100) || split != (c.Int("heads_3") >= 2) || where != (c.Word("split_3") == "some") {
			t.Fatalf("conditions do not hold in %s", c.Key())
		}
		if where {
			deep++
			delete(c, "split_3")
			if s.Check(c) == nil {
				t.Fatal("a child without its parent was accepted")
			}
		}
	}
	if deep == 0 {
		t.Fatal("the deepest dimension was never there")
	}
	if _, err := New(MustParse("x", "uniform(0, 1)"), MustParse("y", "[1, 2]").WhenAtLeast("x", 1)); err == nil {
		t.Error("a condition on a real was accepted")
	}
}

func TestForbid(t *testing.T) {
	s := everyKind(t)
	f, err := s.Forbid("optimizer=muon p>0.2", "layers>=3 rank!=64")
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(9, 1))
	for range 300 {
		c, err := f.Sample(rng)
		if err != nil {
			t.Fatal(err)
		}
		if c.Word("optimizer") == "muon" && c.Float("p") > 0.2 || c.Int("layers") >= 3 && c.Int("rank") != 64 {
			t.Fatalf("forbidden: %s", c.Key())
		}
	}
	for text, want := range map[string]string{
		"": "empty", "optimizer": "no term", "=3": "no term", "p>": "empty", "optimizer>muon": "compares with a word", "pp=1": "no dimension", "p!3": "no operator", "p=a b": "no term",
	} {
		if _, err := s.Forbid(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want an error with %q", text, err, want)
		}
	}
}

func TestSampleFindsWhatIsRare(t *testing.T) {
	for name, tc := range map[string]struct {
		dims []string
		c    []Constraint
	}{
		"one of 8000": {[]string{"int(0, 19)", "int(0, 19)", "int(0, 19)"}, []Constraint{func(c Config) error {
			if c.Int("0") != 7 || c.Int("1") != 13 || c.Int("2") != 19 {
				return errors.New("not it")
			}
			return nil
		}}},
		"a line among a million": {[]string{"int(0, 999)", "int(0, 999)", "uniform(0, 1)"}, []Constraint{
			func(c Config) error {
				if c.Int("0") != 2*c.Int("1") {
					return errors.New("not twice")
				}
				return nil
			},
			func(c Config) error {
				if c.Float("2") > 0.01 {
					return errors.New("not small")
				}
				return nil
			},
		}},
		"three reals": {[]string{"uniform(0, 1)", "uniform(0, 1)", "uniform(0, 1)", "[a, b, c, d, e, f]", "[a, b, c, d, e, f]"}, []Constraint{
			func(c Config) error { return below(c.Float("0"), 0.05) },
			func(c Config) error { return below(c.Float("1"), 0.05) },
			func(c Config) error { return below(c.Float("2"), 0.05) },
			func(c Config) error {
				if c.Word("3") != c.Word("4") {
					return errors.New("differ")
				}
				return nil
			},
		}},
	} {
		var dims []Dimension
		for i, expr := range tc.dims {
			dims = append(dims, MustParse(fmt.Sprint(i), expr))
		}
		s, err := New(dims...)
		if err != nil {
			t.Fatal(err)
		}
		s = s.Constrain(tc.c...)
		for seed := range uint64(3) {
			c, err := s.Sample(rand.New(rand.NewPCG(seed, 1)))
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if err := s.Check(c); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

func below(x, bound float64) error {
	if x >= bound {
		return fmt.Errorf("%g is not below %g", x, bound)
	}
	return nil
}

func TestClashIsNamed(t *testing.T) {
	s, err := New(MustParse("a", "int(0, 9)"), MustParse("b", "uniform(0, 1)"))
	if err != nil {
		t.Fatal(err)
	}
	s = s.Constrain(
		func(c Config) error { return below(c.Float("a"), 3) },
		func(c Config) error { return below(-c.Float("a"), -5) },
		func(c Config) error { return below(c.Float("b"), 0.5) },
	)
	_, err = s.Sample(rand.New(rand.NewPCG(1, 1)))
	if !errors.Is(err, ErrInfeasible) || !strings.Contains(err.Error(), "0 pass both") || !strings.Contains(err.Error(), "is not below 3") ||
		!strings.Contains(err.Error(), "is not below -5") || !strings.Contains(err.Error(), "are refused") {
		t.Fatalf("got %v", err)
	}
}

// Half of the samples are near what is believed, half are even.
func TestPriorDrawsNearIt(t *testing.T) {
	d := MustParse("lr", "log_uniform(1e-5, 1e-2) ~ 3e-3")
	rng := rand.New(rand.NewPCG(1, 1))
	at, near := d.Unit(Number(d.Prior)), 0
	const n = 4000
	for range n {
		if math.Abs(d.Unit(d.Sample(rng))-at) < beliefWidth {
			near++
		}
	}
	// An even draw falls there with 0.2, one around it with 0.74, since the range's end cuts the normal.
	if share := float64(near) / n; share < 0.4 || share > 0.55 {
		t.Errorf("%.2f of the samples are near", share)
	}
}

func FuzzParseForbidden(f *testing.F) {
	for _, s := range []string{"optimizer=muon p>0.2", "layers>=3 rank!=64", "=", "p<", "a!b", "x=1e400", " p = 1"} {
		f.Add(s)
	}
	s := everyKind(f)
	c, err := s.Sample(rand.New(rand.NewPCG(1, 1)))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		x, err := ParseForbidden(text)
		if err != nil {
			return
		}
		again, err := ParseForbidden(x.String())
		if err != nil || again.Matches(c) != x.Matches(c) || len(again.terms) != len(strings.Fields(text)) {
			t.Fatalf("%q reads as %v, then as %v, %v", text, x, again, err)
		}
	})
}
