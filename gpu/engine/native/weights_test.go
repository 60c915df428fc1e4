package native

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// rounded is a state whose matrices have the values that weights of a kind have.
func rounded(t testing.TB, a glm.Arch, state engine.StateDict, kind glm.Weights) (floats, few engine.StateDict) {
	t.Helper()
	layout, _ := a.Layout()
	for _, p := range layout {
		d, _ := state.Get(p.Name)
		d.Data = slices.Clone(d.Data)
		f := d
		switch bits := kind.BitsOf(p.Role); bits {
		case 16:
			for i, v := range d.Data {
				d.Data[i] = kernel.RoundBF16(v)
			}
		case 8, 4:
			b, err := kernel.RoundBlocks(bits, kernel.BlockLen, p.Shape[0], p.Shape[1], d.Data)
			if err != nil {
				t.Fatal(err)
			}
			f.Data, f.Blocks = nil, b
			d.Data = f.Floats()
		}
		floats, few = append(floats, d), append(few, f)
	}
	return floats, few
}

// A decoder with weights of few bits computes what the training engine computes with
// the same values, but for the rounding of activations where it rounds those; it gives
// the same bits whatever is computed beside a sequence; and it scores as it generates.
func TestDecoderWeights(t *testing.T) {
	for _, a := range []glm.Arch{arch(64, 3, 4, 2, 96, 83, true), arch(40, 2, 2, 1, 50, 61, false), arch(64, 2, 2, 1, 96, 83, true).WithHead(16)} {
		a.Context = 96
		m := build(t, a, Options{MaxBatch: 3})
		perturb(m, 1)
		V, T := a.Vocab, a.Context
		b := randomBatch(rand.New(rand.NewPCG(1, 1)), 3, T, V, false)
		for i := 0; i < len(b.Targets); i += 5 {
			b.Targets[i] = engine.Ignore
		}
		for _, kind := range glm.AllWeights {
			t.Run(string(kind), func(t *testing.T) {
				floats, few := rounded(t, a, m.State(), kind)
				reference := build(t, a, Options{MaxBatch: 3})
				if err := reference.Load(few); err != nil { // widened
					t.Fatal(err)
				}
				want, err := reference.Logits(b)
				if err != nil {
					t.Fatal(err)
				}
				if kind.Bits() == 4 {
					floats = few // the values at 4 bits round once more to others
				}
				d, err := NewDecoder(a, floats, DecoderOptions{Threads: 2, MaxSeqs: 4, Weights: kind})
				if err != nil {
					t.Fatal(err)
				}
				defer d.Close()
				given := kind
				if !kind.RoundsActivations() {
					given = "" // int8 and int4 are taken as they are
				}
				other, err := NewDecoder(a, few, DecoderOptions{Threads: 1, MaxSeqs: 3, Weights: given})
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close()
				tolerance := 1e-4
				if kind.RoundsActivations() {
					tolerance = 0.1
				}
				var whole [][]float32 // the logits of each sequence, prefilled by itself
				for s := range 3 {
					got, err := d.Prefill(s, b.Inputs[s*T:s*T+70])
					if err != nil {
						t.Fatal(err)
					}
					if !close32(got, want[(s*T+69)*V:(s*T+70)*V], tolerance) {
						t.Errorf("sequence %d is another than the training engine's", s)
					}
					whole = append(whole, slices.Clone(got))
				}
				if kind.RoundsActivations() == other.opt.Weights.RoundsActivations() {
					for s := range 3 { // token by token, three at once
						if _, err := other.Prefill(s, b.Inputs[s*T:s*T+3]); err != nil {
							t.Fatal(err)
						}
					}
					var got []float32
					for p := 3; p < 70; p++ {
						if got, err = other.Decode([]int{0, 1, 2}, []int32{b.Inputs[p], b.Inputs[T+p], b.Inputs[2*T+p]}); err != nil {
							t.Fatal(err)
						}
					}
					for s := range 3 {
						if kind != glm.F32Weights && !slices.Equal(got[s*V:(s+1)*V], whole[s]) {
							t.Errorf("sequence %d depends on what is computed beside it", s)
						}
					}
				}
				for s := range 3 {
					d.Drop(s)
				}
				nll, tokens, err := d.Eval(b)
				if err != nil {
					t.Fatal(err)
				}
				wantNLL, wantTokens, err := reference.Eval(b)
				if err != nil {
					t.Fatal(err)
				}
				if tokens != wantTokens || math.Abs(nll-wantNLL) > tolerance*wantNLL {
					t.Errorf("scores %g on %d tokens, the training engine %g on %d", nll, tokens, wantNLL, wantTokens)
				}
				if d.Len(-1) != 0 {
					t.Error("scoring leaves sequences behind")
				}
			})
		}
	}
}

func TestDecoderWeightsRefuses(t *testing.T) {
	a := arch(16, 1, 2, 2, 24, 19, true)
	m := build(t, a, Options{})
	if _, err := NewDecoder(a, m.State(), DecoderOptions{Weights: "int3"}); err == nil || !strings.Contains(err.Error(), "int4-weights") {
		t.Errorf("unknown weights: %v", err)
	}
	_, few := rounded(t, a, m.State(), glm.Int8)
	few[0].Blocks.Scale[3] = 0x7c00
	for _, kind := range []glm.Weights{glm.Int8, glm.F32Weights} {
		if _, err := NewDecoder(a, few, DecoderOptions{Weights: kind}); err == nil || !strings.Contains(err.Error(), "embed_tokens") {
			t.Errorf("an infinite scale as %s: %v", kind, err)
		}
	}
}

// BenchmarkWeights is generation with each kind of weights, of a model of 12.19 M
// parameters: at the end of a full context alone and eight at once, and a prompt's first
// token. Rates are of the processor's time, which neighbours do not take.
func BenchmarkWeights(b *testing.B) {
	a := arch(384, 6, 6, 6, 1024, 4096, true)
	a.Context = 512
	m := build(b, a, Options{Inference: true})
	prompt := make([]int32, 256)
	for i := range prompt {
		prompt[i] = int32(i * 7 % a.Vocab)
	}
	for _, kind := range glm.AllWeights {
		d, err := NewDecoder(a, m.State(), DecoderOptions{MaxSeqs: 8, Weights: kind})
		if err != nil {
			b.Fatal(err)
		}
		fill := func(b *testing.B, n int) (seqs []int, ids []int32) {
			for s := range n {
				d.Drop(s)
				if _, err := d.Prefill(s, prompt); err != nil {
					b.Fatal(err)
				}
				seqs, ids = append(seqs, s), append(ids, int32(s))
			}
			return seqs, ids
		}
		for _, n := range []int{1, 8} {
			b.Run(string(kind)+map[int]string{1: "/one", 8: "/eight"}[n], func(b *testing.B) {
				var used float64
				tokens := 0
				for b.Loop() {
					if d.Len(0) == 0 || d.Len(0) >= a.Context {
						b.StopTimer()
						fill(b, n)
						b.StartTimer()
					}
					seqs := []int{0, 1, 2, 3, 4, 5, 6, 7}[:n]
					begin := cpuSeconds(b)
					for range 16 {
						if _, err := d.Decode(seqs, make([]int32, n)); err != nil {
							b.Fatal(err)
						}
					}
					used += cpuSeconds(b) - begin
					tokens += 16 * n
				}
				b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
				b.ReportMetric(float64(tokens)/used, "tokens/cpu-s")
				for s := range 8 {
					d.Drop(s)
				}
			})
		}
		b.Run(string(kind)+"/prompt", func(b *testing.B) {
			begin := cpuSeconds(b)
			for b.Loop() {
				fill(b, 1)
			}
			b.ReportMetric((cpuSeconds(b)-begin)/float64(b.N)*1e3, "cpu-ms")
			d.Drop(0)
		})
		d.Close()
	}
}
