package compress

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

func TestMain(m *testing.M) {
	timeBound = 20 * time.Millisecond
	os.Exit(m.Run())
}

const text = "The quick brown fox jumps over the lazy dog, and the dog sleeps on the brown rock near the fox. Then the others wake. "

var tiny = glm.Arch{Vocab: 320, Dim: 32, Layers: 3, Heads: 2, KVHeads: 1, FFN: 96, Context: 32, Tied: true}.WithDefaults()

// onCPU is the native engine.
type onCPU struct{}

func (onCPU) Decoder(a glm.Arch, params engine.StateDict, threads, sequences int) (Decoder, error) {
	return native.NewDecoder(a, params, native.DecoderOptions{Threads: threads, MaxSeqs: sequences})
}

func (onCPU) Model(a glm.Arch, threads, sequences int, learns bool) (Model, error) {
	return native.New(a, native.Options{Threads: threads, MaxBatch: sequences, Inference: !learns})
}

// learnt is a bundle of a model that has learnt the text by heart, nearly, and the text.
func learnt(t testing.TB, a glm.Arch) (*bundle.Bundle, Data) {
	t.Helper()
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: a.Vocab, MinFrequency: 1, Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	tr.Add([]byte(text))
	tok, err := tr.Train(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	open := func(name string, times int) *train.Corpus {
		path := filepath.Join(t.TempDir(), name)
		w, err := train.CreateCorpus(path)
		if err != nil {
			t.Fatal(err)
		}
		for range times {
			w.Begin()
			if err := w.Add(tok.Encode(nil, text), true, len(text)); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		c, err := train.OpenCorpus(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	d := Data{Held: open("test.bin", 2), Train: open("train.bin", 30)}
	m, err := native.New(a, native.Options{MaxBatch: 8, Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	read := newReader(d.Train, a.Context, 1)
	for range 40 {
		if _, err := m.Backward(read.batch(8), nil); err != nil {
			t.Fatal(err)
		}
		h := engine.DefaultHyper()
		h.LR = 1e-2
		if _, err := m.Update(h); err != nil {
			t.Fatal(err)
		}
	}
	layout, size := a.Layout()
	params := engine.Parameters(layout, make([]float32, size))
	if _, err := m.State().CopyTo(params, len(layout)); err != nil {
		t.Fatal(err)
	}
	return &bundle.Bundle{Arch: a, Params: params, Tokenizer: tok, Generation: bundle.DefaultGeneration(), Readme: "# Tiny\n"}, d
}

func TestRun(t *testing.T) {
	b, d := learnt(t, tiny)
	for _, c := range []struct {
		name    string
		o       Options
		largest float64 // of the size before
		params  bool    // fewer parameters
	}{
		{"int8", Options{Weights: glm.Int8, MaxLoss: 0.02}, 0.40, false},
		{"int4", Options{Weights: glm.Int4, MaxLoss: 0.2}, 0.35, false},
		{"pruned int8", Options{Weights: glm.Int8, MaxLoss: 1e3, Change: Change{Prune: 0.3, RecoverSteps: 12}}, 0.35, true},
		{"heads of one block", Options{Weights: glm.Int8, MaxLoss: 1e3, Change: Change{Heads: 0.5, RecoverSteps: 12}}, 0.40, false},
		{"sparse", Options{MaxLoss: 1e3, Change: Change{Sparsity: 0.4, RecoverSteps: 12}}, 1, false},
		{"student", Options{MaxLoss: 1e3, Change: Change{Student: Auto, RecoverSteps: 12}, Threads: 2}, 0.8, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "small")
			rep, err := Run(t.Context(), onCPU{}, b, out, c.o, d, func(small *bundle.Bundle, rep Report) error {
				small.AppendCompression(strings.Join(c.o.Words(), "; "))
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			got, err := bundle.Open(out)
			if err != nil {
				t.Fatal(err)
			}
			info, err := os.Stat(filepath.Join(out, bundle.WeightsFile))
			if err != nil || info.Size() != rep.After.Bytes || float64(rep.After.Bytes) > c.largest*float64(rep.Before.Bytes)+8000 {
				t.Errorf("%d bytes of %d, %v", rep.After.Bytes, rep.Before.Bytes, err)
			}
			if c.params != (rep.After.Params < rep.Before.Params) || got.Arch.Params() != rep.After.Params || rep.After.Latency <= 0 {
				t.Errorf("after: %+v, before: %+v", rep.After, rep.Before)
			}
			if rep.Steps != c.o.RecoverSteps {
				t.Errorf("%d steps of recovery, want %d", rep.Steps, c.o.RecoverSteps)
			}
			if want := c.o.Weights; want != "" && rep.After.Weights != want {
				t.Errorf("weights are %s", rep.After.Weights)
			}
			if !strings.HasPrefix(got.Readme, "# Tiny\n") || len(got.Readme) < 20 {
				t.Errorf("the card is %q", got.Readme)
			}
			if c.o.Sparsity > 0 {
				for _, p := range got.Params {
					zeros := 0
					for _, v := range p.Floats() {
						if v == 0 {
							zeros++
						}
					}
					if strings.Contains(p.Name, "_proj") && float64(zeros) < 0.39*float64(p.Elems()) {
						t.Errorf("%s has %d zeros of %d", p.Name, zeros, p.Elems())
					}
				}
			}
			left, err := os.ReadDir(filepath.Dir(out))
			if err != nil || len(left) != 1 {
				t.Errorf("something else is left: %v %v", left, err)
			}
		})
	}
}

// A vote's logits give the mean of the probabilities, and a student learns from them.
func TestTeachers(t *testing.T) {
	b, d := learnt(t, tiny)
	short := tiny
	short.Context, short.Layers = 16, 1
	other, _ := learnt(t, short)
	d.Teachers = []Teacher{{b.Arch, b.Params, 3}, {short, other.Params, 1}}
	const n = 2
	v, err := assemble(onCPU{}, d.Teachers, tiny, 1, n)
	if err != nil {
		t.Fatal(err)
	}
	defer v.close()
	batch := newReader(d.Train, tiny.Context, 3).batch(n)
	got, err := v.outputs(batch)
	if err != nil {
		t.Fatal(err)
	}
	alone := func(tc Teacher, in []int32, of int) []float32 { // of the last token
		m, err := onCPU{}.Model(tc.Arch, 1, 1, false)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Load(tc.Params); err != nil {
			t.Fatal(err)
		}
		logits, _, err := m.Outputs(engine.Batch{B: 1, T: len(in), Inputs: in, Targets: in, Norm: 1})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]float32, of)
		mix(p, logits[len(logits)-of:], 1)
		return p
	}
	last := batch.Inputs[tiny.Context : 2*tiny.Context]
	whole, part := alone(d.Teachers[0], last, tiny.Vocab), alone(d.Teachers[1], last[16:], tiny.Vocab)
	for i, l := range got[len(got)-tiny.Vocab:] {
		if want := 0.75*float64(whole[i]) + 0.25*float64(part[i]); math.Abs(math.Exp(float64(l))-want) > 1e-6 {
			t.Fatalf("token %d has %g, want %g", i, math.Exp(float64(l)), want)
		}
	}
	o := Options{MaxLoss: 1e3, Change: Change{Student: Auto, RecoverSteps: 12}}
	taught := func(d Data) float64 {
		rep, err := Run(t.Context(), onCPU{}, b, filepath.Join(t.TempDir(), "small"), o, d, nil)
		if err != nil {
			t.Fatal(err)
		}
		return rep.After.Score.BitsPerByte()
	}
	vote := taught(d)
	d.Teachers = nil
	if self := taught(d); vote == self {
		t.Errorf("%v bits with a vote and without", vote)
	}
	for want, tc := range map[string]Teacher{
		"knows 300 tokens": {glm.Arch{Vocab: 300, Dim: 32, Layers: 1, Heads: 2, KVHeads: 1, FFN: 96, Context: 32}, nil, 1},
		"no multiple":      {glm.Arch{Vocab: 320, Dim: 32, Layers: 1, Heads: 2, KVHeads: 1, FFN: 96, Context: 20}, nil, 1},
		"weight 0":         {tiny, b.Params, 0},
	} {
		d.Teachers = []Teacher{tc}
		if _, err := Run(t.Context(), onCPU{}, b, filepath.Join(t.TempDir(), "small"), o, d, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestRunRefuses(t *testing.T) {
	b, d := learnt(t, tiny)
	out := filepath.Join(t.TempDir(), "small")
	_, err := Run(t.Context(), onCPU{}, b, out, Options{Change: Change{Prune: 0.9, RecoverSteps: 1}}, d, nil)
	var worse *WorseError
	if !errors.As(err, &worse) || !strings.Contains(err.Error(), "--max-loss") {
		t.Errorf("a model that lost most of itself: %v", err)
	}
	if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) != 0 {
		t.Errorf("something is left: %v %v", left, err)
	}
	for want, o := range map[string]Options{
		"nothing to do": {},
		"weights":       {Weights: glm.Int8Weights},
		"max loss":      {Weights: glm.Int8, MaxLoss: -1},
		"prune":         {Change: Change{Prune: 1, RecoverSteps: 1}},
		"sparsity":      {Change: Change{Sparsity: math.NaN(), RecoverSteps: 1}},
		"student":       {Change: Change{Student: "small", RecoverSteps: 1}},
		"for how long":  {Change: Change{Prune: 0.1}},
		"recover from":  {Weights: glm.Int8, Change: Change{RecoverSteps: 1}},
		"threads":       {Weights: glm.Int8, Threads: -1},
	} {
		if _, err := Run(t.Context(), onCPU{}, b, out, o, d, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Run(t.Context(), onCPU{}, b, out, Options{Change: Change{Prune: 0.1, RecoverSteps: 1}}, Data{Held: d.Held}, nil); err == nil || !strings.Contains(err.Error(), "text") {
		t.Errorf("without text: %v", err)
	}
	odd := tiny
	odd.FFN = 100
	layout, size := odd.Layout()
	if _, err := engine.Round(odd, engine.Parameters(layout, make([]float32, size)), glm.Int4); err == nil || !strings.Contains(err.Error(), "down_proj") {
		t.Errorf("rows of 100 values: %v", err)
	}
}

// A compressed bundle is not rounded once more.
func TestRoundTwice(t *testing.T) {
	b, _ := learnt(t, tiny)
	once, err := engine.Round(b.Arch, b.Params, glm.Int4)
	if err != nil {
		t.Fatal(err)
	}
	twice, err := engine.Round(b.Arch, once, glm.Int4)
	if err != nil {
		t.Fatal(err)
	}
	for i := range once {
		if once[i].Blocks != twice[i].Blocks || !slices.Equal(once[i].Data, twice[i].Data) {
			t.Errorf("%s is another one", once[i].Name)
		}
	}
}

// The channels and heads that are kept are those that matter: without those that do
// nothing the model computes the same.
func TestShrink(t *testing.T) {
	t.Run("groups of heads", func(t *testing.T) { testShrink(t, 4, 2, []int{2, 3}) })
	t.Run("heads that share keys", func(t *testing.T) { testShrink(t, 4, 1, []int{0, 2}) })
}

func testShrink(t *testing.T, heads, keys int, idleHeads []int) {
	a := tiny
	a.Dim, a.Heads, a.KVHeads = 64, heads, keys
	b, d := learnt(t, a)
	idle := func(c int) bool { return c%3 == 1 }
	for l := range a.Layers {
		down, _ := b.Params.Get(ofLayer(l, "mlp.down_proj"))
		for i := range down.Data {
			if idle(i % a.FFN) {
				down.Data[i] = 0
			}
		}
		o, _ := b.Params.Get(ofLayer(l, "self_attn.o_proj"))
		for i := range o.Data {
			if slices.Contains(idleHeads, i%a.QueryDim()/a.HeadDim()) {
				o.Data[i] = 0
			}
		}
		for _, name := range []string{"mlp.gate_proj", "mlp.up_proj"} {
			p, _ := b.Params.Get(ofLayer(l, name))
			for i := range p.Data {
				if idle(i / a.Dim) {
					p.Data[i] *= 2
				}
			}
		}
	}
	worth, err := importance(t.Context(), onCPU{}, a, b.Params, newReader(d.Train, a.Context, 1), 1)
	if err != nil {
		t.Fatal(err)
	}
	small := fewerHeads(a, 0.5)
	small.FFN = a.FFN * 2 / 3
	if small.Heads != heads/2 || small.KVHeads != max(1, keys/2) || small.HeadDim() != a.HeadDim() || small.Validate() != nil {
		t.Fatalf("half of %s is %s", a, small)
	}
	params := shrink(a, small, b.Params, worth)
	logits := func(a glm.Arch, s engine.StateDict) []float32 {
		m, err := native.New(a, native.Options{MaxBatch: 2, Inference: true})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if err := m.Load(s); err != nil {
			t.Fatal(err)
		}
		out, err := m.Logits(newReader(d.Train, a.Context, 2).batch(2))
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	want, got := logits(a, b.Params), logits(small, params)
	for i := range want {
		if math.Abs(float64(want[i]-got[i])) > 1e-4 {
			t.Fatalf("logit %d is %g without idle parts, %g with them", i, got[i], want[i])
		}
	}
	// Of five layers three are the first, the middle and the last.
	deep := a
	deep.Layers = 5
	layout, size := deep.Layout()
	numbered := engine.Parameters(layout, make([]float32, size))
	for l := range deep.Layers {
		p, _ := numbered.Get(ofLayer(l, "input_layernorm"))
		p.Data[0] = float32(l)
	}
	three := deep
	three.Layers = 3
	some := shrink(deep, three, numbered, newWorth(deep))
	for l, want := range []float32{0, 2, 4} {
		if p, _ := some.Get(ofLayer(l, "input_layernorm")); p.Data[0] != want {
			t.Errorf("layer %d was %g, want %g", l, p.Data[0], want)
		}
	}
}

func TestStudent(t *testing.T) {
	a := glm.Arch{Vocab: 4096, Dim: 384, Layers: 6, Heads: 6, KVHeads: 6, FFN: 1024, Context: 256, Tied: true}.WithDefaults()
	s := Student(a)
	if s.Dim != a.Dim || s.Layers >= a.Layers || s.TokenWork() > a.TokenWork()/2 || s.TokenWork() < 0.35*a.TokenWork() || s.Validate() != nil {
		t.Errorf("the student of %s is %s", a, s)
	}
	wide := glm.Arch{Vocab: 60000, Dim: 64, Layers: 2, Heads: 2, KVHeads: 2, FFN: 192, Context: 32, Tied: true}.WithDefaults()
	if s := Student(wide); s.Layers != 1 || s.FFN != 96 { // the vocabulary alone is more than half
		t.Errorf("the student of %s is %s", wide, s)
	}
	one := tiny
	one.Layers = 1
	if Student(one) != one {
		t.Error("a model of one layer has a student")
	}
}
