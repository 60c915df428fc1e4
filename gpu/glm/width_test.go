package glm

import (
	"math"
	"testing"
)

// TestWidth: at the base width nothing changes; at four times that each role's spread and
// rate are those of the table for Adam.
func TestWidth(t *testing.T) {
	wide := func(dim int, tied bool) Arch {
		return Arch{Vocab: 97, Dim: dim, Layers: 2, Heads: dim / 32, KVHeads: dim / 32, FFN: 3 * dim, Context: 32, Tied: tied}.WithDefaults()
	}
	for _, tied := range []bool{true, false} {
		a := wide(64, tied)
		params, size := a.Layout()
		x, y := make([]float32, size), make([]float32, size)
		a.Init(x, 3, 0)
		a.Init(y, 3, 64)
		for i := range x {
			if x[i] != y[i] {
				t.Fatalf("tied %v: at the base width element %d begins with %g, want %g", tied, i, y[i], x[i])
			}
		}
		for _, p := range params {
			if r := (Width{a, 64}).Rate(p); r != 1 {
				t.Errorf("tied %v: at the base width %s learns at %g", tied, p.Name, r)
			}
		}
		a = wide(256, tied)
		params, size = a.Layout()
		x = make([]float32, size)
		a.Init(x, 3, 64)
		for _, p := range params {
			var squares float64
			for _, v := range x[p.Offset : p.Offset+p.Elems] {
				squares += float64(v) * float64(v)
			}
			std := math.Sqrt(squares / float64(p.Elems)) // of a norm its gain
			rate, want := 0.25, initGain/math.Sqrt(float64(p.Shape[len(p.Shape)-1]))
			switch p.Role {
			case Embedding:
				rate, want = 1, initGain/8 // as at width 64
			case Residual:
				want /= 2
			case Head:
				want = initGain / 8 / 4
			case Norm:
				if rate, want = 1, 1; p.Name == "model.norm.weight" && tied {
					rate, want = 0.25, 0.25
				}
			}
			if got := (Width{a, 64}).Rate(p); got != rate {
				t.Errorf("tied %v: %s learns at %g, want %g", tied, p.Name, got, rate)
			}
			if math.Abs(std/want-1) > 0.05 {
				t.Errorf("tied %v: %s begins with a spread of %g, want %g", tied, p.Name, std, want)
			}
		}
	}
}
