package glm

import (
	"math"
	"testing"
)

// TestFitRates: from the probes' times on a machine of any rates follow those of
// other shapes.
func TestFitRates(t *testing.T) {
	for _, truth := range []Rates{
		{Product: 5e-12, Attention: 8e-12, Score: 4e-9, Element: 6e-10, Call: 4e-8, Logit: 9e-10, Parameter: 1.2e-9},
		{Product: 1.2e-10, Attention: 1.2e-10, Score: 3e-8, Element: 5e-9, Call: 5e-8, Logit: 1e-8, Parameter: 3e-9},
	} {
		for _, threads := range []int{1, 2} {
			probes := Probes(threads, true)
			var seconds []float64
			for _, p := range probes {
				seconds = append(seconds, p.StepSeconds(p.Step, truth))
			}
			got := FitRates(probes, seconds)
			for _, s := range []Step{
				{Training: Training{Sequences: 8, Tokens: 128, Threads: threads}},
				{Training: Training{Sequences: 3, Tokens: 700, Threads: threads, Recompute: true}},
			} {
				for _, a := range []Arch{small, {Vocab: 8192, Dim: 384, Layers: 6, Heads: 6, KVHeads: 6, FFN: 1024, Context: 256, Tied: true}} {
					if e, want := a.StepSeconds(s, got), a.StepSeconds(s, truth); math.Abs(e/want-1) > 0.06 {
						t.Errorf("%s %+v: %g s, want %g", a, s, e, want)
					}
				}
			}
		}
	}
}

func TestStepSeconds(t *testing.T) {
	r := Rates{Product: 5e-12, Attention: 8e-12, Score: 4e-9, Element: 6e-10, Call: 4e-8, Logit: 9e-10, Parameter: 1.2e-9}
	how := Step{Training: Training{Sequences: 8, Tokens: 128, Threads: 1}}
	one := small.StepSeconds(how, r)
	change := func(f func(*Step)) float64 {
		s := how
		f(&s)
		return small.StepSeconds(s, r) / one
	}
	for what, c := range map[string]struct{ got, from, to float64 }{
		"two micro-batches": {change(func(s *Step) { s.Batch = 16 }), 1.9, 2},
		"two threads":       {change(func(s *Step) { s.Threads = 2 }), 0.5, 0.6},
		"more threads":      {change(func(s *Step) { s.Threads = 16 }), 0.1, 0.2},
		"three threads":     {change(func(s *Step) { s.Threads = 3 }), 0.37, 0.45}, // 3, 3 and 2 sequences
		"Muon":              {change(func(s *Step) { s.Muon = true }), 1.01, 2},
		"recomputation":     {change(func(s *Step) { s.Recompute = true }), 1.1, 1.34},
	} {
		if c.got < c.from || c.got > c.to {
			t.Errorf("%s takes %g times as long, want %g to %g", what, c.got, c.from, c.to)
		}
	}
}

// TestOneRate: the probe takes what it took, and others what their products say.
func TestOneRate(t *testing.T) {
	p := Probes(2, false)[0]
	r := OneRate(p, 0.25)
	if got := p.StepSeconds(p.Step, r); math.Abs(got-0.25) > 1e-9 {
		t.Errorf("%g s, want 0.25", got)
	}
	twice := p.Step
	twice.Batch = 2 * twice.Sequences
	if got := p.StepSeconds(twice, r); math.Abs(got-0.5) > 1e-9 {
		t.Errorf("two micro-batches take %g s, want 0.5", got)
	}
}
