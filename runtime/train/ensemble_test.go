package train

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine/native"
)

// Two models that err in different places vote for the better, with weights that fit; one
// that knows nothing has none.
func TestSelect(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	const n = 4000
	a, b, bad := make([]float32, n), make([]float32, n), make([]float32, n)
	for i := range a {
		a[i], b[i], bad[i] = 2+rng.Float32()*2, 2.1+rng.Float32()*2, 9
	}
	v := Select([][]float32{a, b, bad}, n)
	if !v.Taken || v.Weights[0] < 0.3 || v.Weights[1] < 0.2 || v.Weights[2] != 0 || math.Abs(v.Weights[0]+v.Weights[1]-1) > 1e-12 || v.Bits >= v.Against {
		t.Errorf("%+v", v)
	}
	if v = Select([][]float32{a, bad}, n); v.Taken || v.Weights[0] != 1 {
		t.Errorf("against one that knows nothing: %+v", v)
	}
	if v = Select([][]float32{a, a}, n); v.Taken {
		t.Errorf("against itself: %+v", v)
	}
	inf := float32(math.Inf(1))
	if v = Select([][]float32{{inf, inf}, {inf, 1}}, 2); v.Taken {
		t.Errorf("of impossible tokens: %+v", v)
	}
	for _, empty := range [][][]float32{{{}, {}}, {{}}} {
		if v = Select(empty, 0); v.Taken {
			t.Errorf("of nothing: %+v", v)
		}
	}
	mixed := Mix([][]float32{{1, 2}, {3, 2}}, []float64{0.5, 0.5})
	if want := -math.Log((math.Exp(-1) + math.Exp(-3)) / 2); math.Abs(float64(mixed[0])-want) > 1e-6 || math.Abs(float64(mixed[1])-2) > 1e-6 {
		t.Errorf("mixed %v", mixed)
	}
}

// Tokens' scores add up to Sliding's, and come in the text's order whatever the context.
func TestTokenScores(t *testing.T) {
	dir, tok := corpora(t, 3)
	c, err := OpenCorpus(dir + "/valid")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var all [][]float32
	for _, context := range []int{32, 20} {
		task := tinyTask(dir, tok)
		task.Config.Arch.Context = context
		m, err := native.New(task.Config.Arch, native.Options{Threads: 2, MaxBatch: 3, MaxSeq: context, Inference: true, Seed: 4})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		nll, err := TokenScores(t.Context(), m, c, context, 3)
		if err != nil {
			t.Fatal(err)
		}
		want, err := Sliding(t.Context(), m, c, context, 3, Share{})
		if err != nil {
			t.Fatal(err)
		}
		sum := 0.0
		for _, x := range nll {
			sum += float64(x)
		}
		if int64(len(nll)) != want.Tokens || math.Abs(sum/want.NLL-1) > 1e-6 {
			t.Errorf("%d tokens of %g nats, want %+v", len(nll), sum, want)
		}
		all = append(all, nll)
	}
	// Before a model's context ends it does not matter how long it is.
	if !slices.Equal(all[0][:9], all[1][:9]) {
		t.Errorf("%v\n%v", all[0][:9], all[1][:9])
	}
}
