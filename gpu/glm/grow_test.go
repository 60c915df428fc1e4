package glm_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

var parent = glm.Arch{Vocab: 40, Dim: 32, Layers: 2, Heads: 4, KVHeads: 2, FFN: 48, Context: 24, Tied: true}.WithDefaults()

// with is the parent after a change.
func with(change func(a *glm.Arch)) glm.Arch {
	a := parent
	change(&a)
	return a
}

// growths change every dimension alone and several together.
var growths = []struct {
	name string
	to   glm.Arch
}{
	{"nothing", parent},
	{"layers", with(func(a *glm.Arch) { a.Layers = 5 })},
	{"ffn", with(func(a *glm.Arch) { a.FFN = 80 })},
	{"vocabulary", with(func(a *glm.Arch) { a.Vocab = 57 })},
	{"longer context", with(func(a *glm.Arch) { a.Context = 64 })},
	{"shorter context", with(func(a *glm.Arch) { a.Context = 16 })},
	{"head untied", with(func(a *glm.Arch) { a.Tied = false })},
	{"a key head for each query head", with(func(a *glm.Arch) { a.KVHeads = 4 })},
	{"width by more heads", with(func(a *glm.Arch) { a.Dim, a.Heads = 64, 8 })},
	{"width by more heads in other groups", with(func(a *glm.Arch) { a.Dim, a.Heads, a.KVHeads = 48, 6, 3 })},
	{"width by larger groups", with(func(a *glm.Arch) { a.Dim, a.Heads, a.KVHeads = 64, 8, 2 })},
	{"width by larger heads", with(func(a *glm.Arch) { a.Dim = 64 })},
	{"width by heads three times as large", with(func(a *glm.Arch) { a.Dim = 96 })},
	{"all", glm.Arch{Vocab: 64, Dim: 96, Layers: 3, Heads: 6, KVHeads: 3, FFN: 112, Context: 32}.WithDefaults()},
}

// trained is an arena of a in which nothing is special.
func trained(a glm.Arch, seed uint64) []float32 {
	params, size := a.Layout()
	x := make([]float32, size)
	a.Init(x, seed, 0)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, p := range params {
		for i := range p.Elems {
			x[p.Offset+i] += float32(0.1 * r.NormFloat64())
		}
	}
	return x
}

func model(t rapid.TB, a glm.Arch, arena []float32, o native.Options) *native.Model {
	t.Helper()
	o.MaxBatch = 4
	m, err := native.New(a, o)
	if err != nil {
		t.Fatal(err)
	}
	layout, _ := a.Layout()
	if err := m.Load(engine.Parameters(layout, arena)); err != nil {
		t.Fatal(err)
	}
	return m
}

// batch holds every id at least once.
func batch(vocab, tokens int) engine.Batch {
	b := engine.Batch{B: 4, T: tokens, Norm: float64(4 * tokens)}
	for i := range b.B * b.T {
		b.Inputs = append(b.Inputs, int32(i*7%vocab))
		b.Targets = append(b.Targets, int32((i*7*5+3)%vocab))
	}
	return b
}

// alike grows a trained parent and holds the logits of its ids against it.
func alike(t rapid.TB, from, to glm.Arch) {
	t.Helper()
	arena := trained(from, 3)
	grown, err := glm.Grow(to, from, arena, 9)
	if err != nil {
		t.Fatal(err)
	}
	b := batch(from.Vocab, min(from.Context, to.Context))
	var logits [2][]float32
	for i, m := range []*native.Model{model(t, from, arena, native.Options{Inference: true}), model(t, to, grown, native.Options{Inference: true})} {
		if logits[i], err = m.Logits(b); err != nil {
			t.Fatal(err)
		}
		m.Close()
	}
	for i := range b.Inputs {
		for v := range from.Vocab {
			was, is := float64(logits[0][i*from.Vocab+v]), float64(logits[1][i*to.Vocab+v])
			if !(math.Abs(was-is) <= 1e-4) {
				t.Fatalf("%s grown into %s: logit of id %d at %d is %g, was %g", from, to, v, i, is, was)
			}
		}
	}
}

func TestGrowKeepsTheFunction(t *testing.T) {
	for _, tt := range growths {
		t.Run(tt.name, func(t *testing.T) { alike(t, parent, tt.to) })
	}
}

func TestGrowKeepsTheFunctionOfAnyShape(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := func(name string, lo, hi int) int { return rapid.IntRange(lo, hi).Draw(t, name) }
		group, keys, size := n("group", 1, 3), n("keys", 1, 3), 2*n("half head", 1, 4)
		from := glm.Arch{
			Vocab: n("vocab", 5, 30), Heads: group * keys, KVHeads: keys, Dim: group * keys * size, Layers: n("layers", 1, 3), FFN: n("ffn", 1, 40),
			Context: 16, Tied: rapid.Bool().Draw(t, "tied"), NormEps: 1e-5, RopeTheta: 1e4,
		}
		to := from
		to.Vocab += n("ids", 0, 9)
		to.Layers += n("more layers", 0, 3)
		to.FFN += n("units", 0, 20)
		to.KVHeads += n("more keys", 0, 3)
		to.Heads = to.KVHeads * (group + n("larger groups", 0, 2))
		to.Dim = to.Heads * size * n("larger heads", 1, 3)
		to.Tied = from.Tied && rapid.Bool().Draw(t, "still tied")
		alike(t, from, to)
	})
}

// TestGrownPartsLearn holds that no new parameter stays behind: after two updates at
// the most each has a gradient.
func TestGrownPartsLearn(t *testing.T) {
	for _, tt := range growths {
		t.Run(tt.name, func(t *testing.T) {
			g, err := glm.NewGrowth(tt.to, parent)
			if err != nil {
				t.Fatal(err)
			}
			layout, size := tt.to.Layout()
			m := model(t, tt.to, g.Params(trained(parent, 3), 9), native.Options{MaxSeq: 24})
			defer m.Close()
			grad := make([]float32, size)
			if err := m.UseGradients(grad); err != nil {
				t.Fatal(err)
			}
			_, old := parent.Layout()
			ones := make([]float32, old)
			for i := range ones {
				ones[i] = 1
			}
			kept := g.Moments(ones, 1) // zero where a parameter is new
			moved := make([]bool, size)
			b := batch(tt.to.Vocab, min(24, tt.to.Context))
			for range 3 {
				if _, err := m.Backward(b, nil); err != nil {
					t.Fatal(err)
				}
				for i, x := range grad {
					moved[i] = moved[i] || x != 0
				}
				if _, err := m.Update(engine.DefaultHyper()); err != nil {
					t.Fatal(err)
				}
			}
			for _, p := range layout {
				fresh, still := 0, 0
				for i := p.Offset; i < p.Offset+p.Elems; i++ {
					if kept[i] == 0 {
						fresh++
						if !moved[i] {
							still++
						}
					}
				}
				if still > 0 {
					t.Errorf("%s: %d of %d new values have no gradient", p.Name, still, fresh)
				}
			}
		})
	}
}

func TestNotGrowable(t *testing.T) {
	for _, tt := range []struct {
		name, why string
		to        glm.Arch
	}{
		{"narrower", "dim would shrink", with(func(a *glm.Arch) { a.Dim, a.Heads, a.KVHeads = 16, 2, 2 })},
		{"fewer layers", "layers would shrink", with(func(a *glm.Arch) { a.Layers = 1 })},
		{"fewer heads", "heads would shrink", with(func(a *glm.Arch) { a.Dim, a.Heads = 64, 2 })},
		{"fewer key heads", "kv_heads would shrink", with(func(a *glm.Arch) { a.KVHeads = 1 })},
		{"smaller ffn", "ffn would shrink", with(func(a *glm.Arch) { a.FFN = 16 })},
		{"smaller vocabulary", "vocab would shrink", with(func(a *glm.Arch) { a.Vocab = 20 })},
		{"heads half as large again", "no whole multiple", with(func(a *glm.Arch) { a.Dim = 48 })},
		{"other eps", "norm_eps", with(func(a *glm.Arch) { a.NormEps = 1e-6 })},
		{"other theta", "rope_theta", with(func(a *glm.Arch) { a.RopeTheta = 5e5 })},
		{"invalid", "not a multiple of heads", with(func(a *glm.Arch) { a.Dim = 33 })},
	} {
		_, err := glm.NewGrowth(tt.to, parent)
		if err == nil || !strings.Contains(err.Error(), tt.why) || tt.name != "invalid" && !errors.Is(err, glm.ErrNotGrowable) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
	// Three query heads of each key head do not fit into groups of two, three times.
	from := glm.Arch{Vocab: 8, Dim: 48, Layers: 1, Heads: 6, KVHeads: 2, FFN: 8, Context: 8}.WithDefaults()
	to := from
	to.KVHeads = 3
	if _, err := glm.NewGrowth(to, from); !errors.Is(err, glm.ErrNotGrowable) || !strings.Contains(err.Error(), "key heads") {
		t.Error(err)
	}
	untied := with(func(a *glm.Arch) { a.Tied = false })
	if _, err := glm.NewGrowth(parent, untied); !errors.Is(err, glm.ErrNotGrowable) {
		t.Error(err)
	}
	if _, err := glm.Grow(parent, parent, make([]float32, 7), 1); err == nil {
		t.Error("an arena of another size was grown")
	}
}

// TestMomentsAreThoseOfTheGradient takes one step before the growth and after it: the
// averages that were grown are those of the grown model's own gradient.
func TestMomentsAreThoseOfTheGradient(t *testing.T) {
	for _, tt := range growths {
		if strings.Contains(tt.name, "key head") || tt.name == "vocabulary" || tt.name == "all" || tt.name == "head untied" || strings.Contains(tt.name, "groups") {
			continue // the gradient is shared out over copies, or has other losses in it
		}
		t.Run(tt.name, func(t *testing.T) {
			g, err := glm.NewGrowth(tt.to, parent)
			if err != nil {
				t.Fatal(err)
			}
			arena := trained(parent, 3)
			b := batch(parent.Vocab, min(16, tt.to.Context))
			gradient := func(a glm.Arch, arena []float32) []float32 {
				m := model(t, a, arena, native.Options{})
				defer m.Close()
				_, size := a.Layout()
				grad := make([]float32, size)
				if err := m.UseGradients(grad); err != nil {
					t.Fatal(err)
				}
				if _, err := m.Backward(b, nil); err != nil {
					t.Fatal(err)
				}
				return grad
			}
			was := g.Moments(gradient(parent, arena), 1)
			is := gradient(tt.to, g.Params(arena, 9))
			for i, x := range was {
				if x != 0 && math.Abs(float64(x-is[i])) > 1e-4*max(1, math.Abs(float64(x))) {
					t.Fatalf("value %d: gradient %g, grown from %g", i, is[i], x)
				}
			}
		})
	}
}
