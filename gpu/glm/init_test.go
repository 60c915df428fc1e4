package glm

import (
	"math"
	"testing"
)

var small = Arch{Vocab: 97, Dim: 48, Layers: 3, Heads: 4, KVHeads: 2, FFN: 100, Context: 32}.WithDefaults()

func TestInit(t *testing.T) {
	params, size := small.Layout()
	x, y := make([]float32, size), make([]float32, size)
	for i := range x {
		x[i] = 7 // everything must be overwritten, padding too
	}
	small.Init(x, 5, 0)
	small.Init(y, 5, 0)
	var used int
	for _, p := range params {
		used += p.Elems
		var sum, squares float64
		for i, v := range x[p.Offset : p.Offset+p.Elems] {
			if v != y[p.Offset+i] {
				t.Fatalf("%s[%d]: same seed, different value", p.Name, i)
			}
			sum += float64(v)
			squares += float64(v) * float64(v)
		}
		n := float64(p.Elems)
		if p.Role == Norm {
			if sum != n {
				t.Errorf("%s is not all ones", p.Name)
			}
			continue
		}
		want := initGain / math.Sqrt(float64(p.Shape[1]))
		if p.Role == Residual {
			want /= math.Sqrt(6)
		}
		if std := math.Sqrt(squares / n); math.Abs(std/want-1) > 0.1 || math.Abs(sum/n) > 4*want/math.Sqrt(n) {
			t.Errorf("%s: mean %g, deviation %g; want 0, %g", p.Name, sum/n, std, want)
		}
	}
	if int64(used) != small.Params() {
		t.Errorf("layout holds %d parameters, Params says %d", used, small.Params())
	}
	small.Init(y, 6, 0)
	if x[0] == y[0] {
		t.Error("another seed gave the same value")
	}
}

func TestEstimates(t *testing.T) {
	how := Training{Sequences: 8, Tokens: 32, Threads: 1}
	one := small.TrainingBytes(how)
	if floor := 16 * small.Params(); one < floor {
		t.Errorf("training takes %d bytes, less than parameters, gradients and moments, %d", one, floor)
	}
	more := func(what string, change func(*Training)) {
		other := how
		change(&other)
		if b := small.TrainingBytes(other); b <= one {
			t.Errorf("%s: %d bytes, without %d", what, b, one)
		}
	}
	more("two threads", func(t *Training) { t.Threads = 2 })
	more("long sequences", func(t *Training) { t.Tokens = 2048 })
	more("bfloat16", func(t *Training) { t.BF16 = true })
	more("Muon", func(t *Training) { t.Muon = true })
	how.Recompute = true
	if b := small.TrainingBytes(how); b >= one {
		t.Errorf("recomputation: %d bytes, without %d", b, one)
	}
	if got, want := small.StepFLOPs(10, 32), 10*small.FLOPsPerToken(32); got != want {
		t.Errorf("step %g, want %g", got, want)
	}
}
