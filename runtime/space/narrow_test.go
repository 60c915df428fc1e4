package space

import (
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPart(t *testing.T) {
	for _, tc := range []struct{ dim, part, want string }{
		{"log_uniform(1e-5, 1e-2)", "1e-3..1e-2", "log_uniform(0.001, 0.01)"},
		{"log_uniform(1e-5, 1e-2)", "uniform(1e-3, 2e-3)", "uniform(0.001, 0.002)"},
		{"log_uniform(1e-5, 1e-2)", "[1e-3, 2e-3]", "categorical([0.001, 0.002])"},
		{"log_uniform(1e-5, 1e-2)", "3e-3", "0.003"},
		{"log_uniform(1e-5, 1e-2) ~ 3e-3", "2e-3..4e-3", "log_uniform(0.002, 0.004) ~ 0.003"},
		{"int(2, 12)", "3..6", "int(3, 6)"},
		{"int(64, 512, 64)", "100..300", "int(128, 256, 64)"},
		{"int(64, 512, 64)", "128..128", "128"},
		{"uniform(0, 1, 0.05)", "0.1..0.3", "uniform(0.1, 0.3, 0.05)"},
		{"log_int(10, 400)", "20..50", "log_int(20, 50)"},
		{"[64, 128, 256]", "100..300", "categorical([128, 256])"},
		{"[64, 128, 256]", "128", "128"},
		{"[64, 128, 256]", "int(64, 128, 64)", "int(64, 128, 64)"},
		{"[adamw, muon]", "muon", "muon"},
		{"ordinal([none, some, all])", "[some, all]", "categorical([some, all])"},
		{"log_uniform(1e-5, 1e-2)", "1e-3..1", "error: is not within log_uniform"},
		{"log_uniform(1e-5, 1e-2)", "uniform(0, 1)", "error: is not within"},
		{"log_uniform(1e-5, 1e-2)", "2e-3..1e-3", "error: above the highest"},
		{"log_uniform(1e-5, 1e-2)", "gauss(0, 1)", "error: unknown range"},
		{"int(64, 512, 64)", "65..100", "error: no value of"},
		{"int(64, 512, 64)", "int(64, 512)", "error: is not within"},
		{"[64, 128, 256]", "65..100", "error: no value of"},
		{"[64, 128, 256]", "[64, 96]", "error: is not within"},
		{"[adamw, muon]", "adamw..muon", "error: takes numbers"},
		{"[adamw, muon]", "sgd", "error: is not within"},
		{"0.1", "0.2", "error: is not within 0.1"},
		{"int(0, 9)", "..", "error: empty"},
	} {
		p, err := MustParse("x", tc.dim).Part(tc.part)
		got := p.String()
		if err != nil {
			got = "error: " + err.Error()
		}
		if want, isErr := strings.CutPrefix(tc.want, "error: "); got != tc.want && (!isErr || err == nil || !strings.Contains(got, want) || !strings.Contains(got, "x: ")) {
			t.Errorf("%s of %s is %s, want %s", tc.part, tc.dim, got, tc.want)
		}
	}
}

// All that a narrowed space draws, mutates, crosses and repairs lies inside, whatever
// the configurations that it starts from.
func TestNarrowedSpaceHolds(t *testing.T) {
	whole := everyKind(t)
	parts := map[string][]string{
		"layers": {"2..3", "4", "int(1, 4)"}, "lr": {"1e-3..2e-3", "[0.001, 0.002]", "uniform(1e-4, 2e-4)"}, "shift": {"-1..-0.5", "uniform(0, 4, 0.5)"},
		"p": {"0.2..0.3", "0.5"}, "warmup": {"90..110", "log_int(1, 50)"}, "rank": {"[16, 64]", "32..64"}, "optimizer": {"muon", "[muon, adamw]"},
		"heads_1": {"2..4"}, "split_3": {"[some, all]"}, "long": {"10..20"},
	}
	rapid.Check(t, func(rt *rapid.T) {
		s := whole
		for _, d := range whole.Dimensions() {
			if exprs := parts[d.Name]; exprs != nil && rapid.Bool().Draw(rt, "narrow "+d.Name) {
				p, err := d.Part(rapid.SampledFrom(exprs).Draw(rt, d.Name))
				if err != nil {
					rt.Fatal(err)
				}
				s = s.Narrow(p)
			}
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		a, err := whole.Sample(rng)
		if err != nil {
			rt.Fatal(err)
		}
		b, err := s.Sample(rng)
		if err != nil {
			rt.Fatal(err)
		}
		m, err := s.Mutate(a, 2, nil, rng)
		if err != nil {
			rt.Fatal(err)
		}
		x, err := s.Cross(a, m, rng)
		if err != nil {
			rt.Fatal(err)
		}
		for what, c := range map[string]Config{"sample": b, "mutated": m, "crossed": x, "repaired": s.Repair(a, rng), "nearest": s.Nearest(a)} {
			if err := s.Check(c); err != nil {
				rt.Fatalf("%s: %v", what, err)
			}
			if err := whole.Check(c); err != nil {
				rt.Fatalf("%s in the whole space: %v", what, err)
			}
		}
	})
}

func FuzzPart(f *testing.F) {
	for _, s := range []string{"1e-3..1e-2", "..", "3", "[1, 2]", "int(1, 3)", "-1..1", "1e400..2", "uniform(0, 1, 1e-9)"} {
		f.Add(s)
	}
	dims := everyKind(f).Dimensions()
	f.Fuzz(func(t *testing.T, expr string) {
		for _, d := range dims {
			p, err := d.Part(expr)
			if err != nil {
				continue
			}
			rng := rand.New(rand.NewPCG(1, 1))
			for range 4 {
				if v := p.Sample(rng); !d.Has(v) || !p.Has(v) {
					t.Fatalf("%q of %s has %s", expr, d, v)
				}
			}
		}
	})
}
