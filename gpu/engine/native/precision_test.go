package native

import (
	"math"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// cycle fills a batch with sequences that a small model learns in a few dozen
// steps: each token follows from the one before.
func cycle(b engine.Batch, step, vocab int) {
	for s := range b.B {
		x := (step*31 + s*17) % vocab
		for i := range b.T {
			next := (x*5 + 7) % vocab
			b.Inputs[s*b.T+i], b.Targets[s*b.T+i] = int32(x), int32(next)
			x = next
		}
	}
}

func mean(x []float64) float64 {
	s := 0.0
	for _, v := range x {
		s += v
	}
	return s / float64(len(x))
}

// TestPrecisions trains the same model in both precisions: the losses of a whole
// training agree within what rounding explains, scores are float32's, and bf16
// gives the same bits from run to run.
func TestPrecisions(t *testing.T) {
	layers, steps := 2, 60
	if testing.Short() {
		layers = 1
	}
	a := arch(64, layers, 4, 2, 192, 61, true)
	const B, T = 4, 32
	if !kernel.FastBF16() {
		steps = 10 // the portable products are slow
	}
	for _, optimizer := range []engine.Optimizer{engine.AdamW, engine.Muon} {
		t.Run(string(optimizer), func(t *testing.T) {
			curve := func(p engine.Precision) ([]float64, *Model) {
				m := build(t, a, Options{Threads: 2, MaxBatch: B, MaxSeq: T, Optimizer: optimizer, Precision: p, Seed: 3})
				b := engine.Batch{B: B, T: T, Inputs: make([]int32, B*T), Targets: make([]int32, B*T), Norm: B * T}
				h := engine.DefaultHyper()
				h.Optimizer, h.LR = optimizer, 3e-3
				var losses []float64
				for i := range steps {
					cycle(b, i, a.Vocab)
					loss, err := m.Backward(b, nil)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := m.Update(h); err != nil {
						t.Fatal(err)
					}
					losses = append(losses, loss)
				}
				return losses, m
			}
			f32, _ := curve(engine.F32)
			bf16, m := curve(engine.BF16)
			again, _ := curve(engine.BF16)
			same := true
			for i := range f32 {
				if bf16[i] != again[i] {
					t.Fatalf("step %d: the loss is %g, and %g when run again", i, bf16[i], again[i])
				}
				same = same && f32[i] == bf16[i]
			}
			for i := 0; i < steps; i += 10 {
				if x, y := mean(f32[i:i+10]), mean(bf16[i:i+10]); math.Abs(x-y) > 0.02+0.08*x {
					t.Errorf("steps %d to %d: mean loss %g in bf16, %g in f32", i, i+10, y, x)
				}
			}
			if same {
				t.Error("bf16 gives f32's bits: nothing was rounded")
			}
			if steps > 10 && f32[steps-1] > 0.5*f32[0] {
				t.Errorf("the loss went from %g to %g only: too little to compare", f32[0], f32[steps-1])
			}

			// The score of the parameters that bf16 reached is that of a float32 model.
			b := engine.Batch{B: B, T: T, Inputs: make([]int32, B*T), Targets: make([]int32, B*T), Norm: B * T}
			cycle(b, 1, a.Vocab)
			got, _, err := m.Eval(b)
			if err != nil {
				t.Fatal(err)
			}
			plain := build(t, a, Options{MaxBatch: B, MaxSeq: T, Inference: true})
			var parameters engine.StateDict
			for _, p := range m.State() {
				if len(p.Name) < 10 || p.Name[:10] != "optimizer." {
					parameters = append(parameters, p)
				}
			}
			if err := plain.Load(parameters); err != nil {
				t.Fatal(err)
			}
			want, _, err := plain.Eval(b)
			if err != nil {
				t.Fatal(err)
			}
			if math.Abs(got-want) > 1e-9*want {
				t.Errorf("score %g after bf16 training, %g of the same parameters in f32", got, want)
			}
		})
	}
}

func TestAutoPrecision(t *testing.T) {
	want := engine.F32
	if kernel.FastBF16() {
		want = engine.BF16
	}
	if m := build(t, arch(32, 1, 2, 2, 64, 40, true), Options{Precision: engine.Auto}); m.opt.Precision != want {
		t.Errorf("auto is %q where FastBF16 is %v", m.opt.Precision, kernel.FastBF16())
	}
}
