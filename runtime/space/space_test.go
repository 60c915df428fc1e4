package space

import (
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func testSpace(t testing.TB) *Space {
	t.Helper()
	s, err := Decoder(Limits{MaxVocab: 4096, MaxContext: 512, MaxParams: 5e6, Epochs: 10}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParse(t *testing.T) {
	for _, tc := range []struct{ expr, want, err string }{
		{"log_uniform(1e-5, 1e-2)", "log_uniform(1e-05, 0.01)", ""},
		{"categorical([32, 64, 128])", "categorical([32, 64, 128])", ""},
		{"[adamw, muon]", "categorical([adamw, muon])", ""},
		{"uniform(0.1, 0.5)", "uniform(0.1, 0.5)", ""},
		{"int(64, 500, 64)", "int(64, 448, 64)", ""},
		{"0.003", "0.003", ""},
		{"true", "true", ""},
		{"categorical([7])", "7", ""},
		{"ordinal([16, 32, 64])", "ordinal([16, 32, 64])", ""},
		{"ordinal([7])", "7", ""},
		{"uniform(0, 1, 0.05)", "uniform(0, 1, 0.05)", ""},
		{"uniform(0.1, 1, 0.4)", "uniform(0.1, 0.9, 0.4)", ""},
		{"log_uniform(1e-5, 1e-2) ~ 3e-3", "log_uniform(1e-05, 0.01) ~ 0.003", ""},
		{"ordinal([16, 32]) ~ 32", "ordinal([16, 32]) ~ 32", ""},
		{"0.003 ~ 0.003", "0.003", ""},
		{"uniform(0, 1) ~ 2", "", "outside uniform(0, 1)"},
		{"ordinal([16, 32]) ~ 20", "", "outside ordinal"},
		{"categorical([16, 32]) ~ 32", "", "ordinal instead"},
		{"uniform(0, 1) ~ a", "", "must be a number"},
		{"uniform(0, 1, 1e-9)", "", "too small"},
		{"log_uniform(1, 2, 0.1)", "", "lowest and a highest"},
		{"uniform(-1e308, 1e308)", "", "too wide"},
		{"uniform(2, 1)", "", "above the highest"},
		{"log_uniform(0, 1)", "", "above 0"},
		{"uniform(1", "", "parenthesis"},
		{"gauss(1, 2)", "", "unknown range"},
		{"categorical([1, 1])", "", "twice"},
		{"categorical(1, 2)", "", "takes a list"},
		{"ordinal(1, 2)", "", "ordinal takes a list"},
		{"int(1.5, 3)", "", "whole numbers"},
		{"uniform(a, b)", "", "not a number"},
		{"", "", "empty"},
		{"nan", "", "finite"},
	} {
		d, err := Parse("x", tc.expr)
		switch {
		case tc.err != "":
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("Parse(%q) = %v, %v; want an error with %q", tc.expr, d, err, tc.err)
			}
		case err != nil || d.String() != tc.want:
			t.Errorf("Parse(%q) = %v, %v; want %s", tc.expr, d, err, tc.want)
		}
	}
}

func TestEncodeIsLossless(t *testing.T) {
	s := testSpace(t)
	rapid.Check(t, func(rt *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		c, err := s.Sample(rng)
		if err != nil {
			rt.Fatal(err)
		}
		if rapid.Bool().Draw(rt, "mutate") {
			if c, err = s.Mutate(c, 2, nil, rng); err != nil {
				rt.Fatal(err)
			}
		}
		if err := s.Check(c); err != nil {
			rt.Fatal(err)
		}
		back, err := s.Decode(s.Encode(c))
		if err != nil {
			rt.Fatal(err)
		}
		if back.Key() != c.Key() {
			rt.Fatalf("decoded\n%s\nwant\n%s", back.Key(), c.Key())
		}
		b, err := json.Marshal(c)
		if err != nil {
			rt.Fatal(err)
		}
		var fromJSON Config
		if err := json.Unmarshal(b, &fromJSON); err != nil || fromJSON.Key() != c.Key() {
			rt.Fatalf("through JSON %s: %v, %v", b, fromJSON, err)
		}
	})
}

func TestConditional(t *testing.T) {
	s := testSpace(t)
	rng := rand.New(rand.NewPCG(1, 1))
	with, without := 0, 0
	for range 200 {
		c, err := s.Sample(rng)
		if err != nil {
			t.Fatal(err)
		}
		_, ok := c[MuonLR]
		if ok != (c.Word(Optimizer) == "muon") {
			t.Fatalf("muon_lr present %v under %s", ok, c.Word(Optimizer))
		}
		if ok {
			with++
		} else {
			without++
		}
	}
	if with == 0 || without == 0 {
		t.Fatalf("%d with, %d without", with, without)
	}
}

func TestOverrides(t *testing.T) {
	l := Limits{MaxVocab: 4096, MaxContext: 512}
	s, err := Decoder(l, map[string]string{"lr": "log_uniform(1e-4, 1e-3)", "layers": "3", "dim": "[64, 128]"})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 1))
	for range 50 {
		c, err := s.Sample(rng)
		if err != nil {
			t.Fatal(err)
		}
		if c.Int(Layers) != 3 || c.Float(LR) < 1e-4 || c.Float(LR) > 1e-3 || c.Int(Dim) > 128 {
			t.Fatalf("outside the overrides: %s", c.Key())
		}
	}
	s, err = Decoder(l, map[string]string{"lr": "log_uniform(1e-6, 1e-1) ~ 3e-3", "dim": "ordinal([64, 128, 256])", "dropout": "uniform(0, 0.5, 0.1)", "muon_lr": "0.02"})
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		c, err := s.Sample(rng)
		if err != nil {
			t.Fatal(err)
		}
		_, muon := c[MuonLR]
		if err := s.Check(c); err != nil || muon != (c.Word(Optimizer) == "muon") {
			t.Fatalf("%s: %v", c.Key(), err)
		}
	}
	for name, expr := range map[string]string{"lrr": "1", "kv_heads": "ordinal([2, 0])", "dim": "100", "dropout": "uniform(0, 2)", "optimizer": "sgd", "tied": "uniform(0, 1)", "layers": "0"} {
		if _, err := Decoder(l, map[string]string{name: expr}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %s was accepted (%v)", name, expr, err)
		}
	}
}

func TestInfeasibleSaysWhy(t *testing.T) {
	s, err := Decoder(Limits{MaxVocab: 4096, MaxContext: 512, MaxParams: 10}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sample(rand.New(rand.NewPCG(1, 1))); err == nil || !strings.Contains(err.Error(), "parameters") {
		t.Fatalf("got %v", err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"log_uniform(1e-5, 1e-2) ~ 1e-3", "uniform(0.1, 1, 0.3)", "ordinal([3, a]) ~ 3", "categorical([1,a])", "int(1,9,2)", "[", "x(", "1e400"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, expr string) {
		d, err := Parse("x", expr)
		if err != nil {
			return
		}
		again, err := Parse("x", d.String())
		if err != nil || again.String() != d.String() {
			t.Fatalf("%q prints as %q, which reads as %v, %v", expr, d, again, err)
		}
		v := d.Sample(rand.New(rand.NewPCG(1, 2)))
		if !d.Has(v) {
			t.Fatalf("%q sampled %v, which is outside", expr, v)
		}
	})
}
