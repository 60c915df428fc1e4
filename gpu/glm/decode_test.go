package glm

import "testing"

func TestTokenSeconds(t *testing.T) {
	probes := TokenProbes(6e6)
	if n := len(probes); n != 4 || probes[n-1].MatrixParams() < 6e6 || probes[n-2].MatrixParams() >= 6e6 {
		t.Fatalf("%d probes for models of 6M parameters", n)
	}
	var times []TokenTime
	for i, p := range probes { // the larger, the more a parameter costs
		times = append(times, TokenTime{p.TokenWork(), 1e-10 * float64(i+1) * p.TokenWork()})
	}
	for i, p := range probes {
		if got, want := p.TokenSeconds(times), times[i].Seconds; got < 0.999*want || got > 1.001*want {
			t.Errorf("%s: %g s by interpolation, %g measured", p, got, want)
		}
	}
	small, large := probes[0], probes[3]
	small.Layers, large.Layers = 1, 12
	last := 0.0
	for _, a := range []Arch{small, probes[0], probes[1], probes[2], large} {
		s := a.TokenSeconds(times)
		if s <= last {
			t.Errorf("%s takes %g s, a smaller one %g", a, s, last)
		}
		last = s
	}
	if got, want := large.TokenSeconds(times), 4e-10*large.TokenWork(); got < 0.999*want || got > 1.001*want {
		t.Errorf("beyond the last probe: %g s, want %g", got, want)
	}
}
