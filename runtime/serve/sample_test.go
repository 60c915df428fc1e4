package serve

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"testing"
)

// python is the interpreter with Hugging Face's packages.
func python(t *testing.T) string {
	path := os.Getenv("AUTOGLM_PYTHON")
	if path == "" {
		const why = "AUTOGLM_PYTHON is unset: no Python with transformers to compare with"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	return path
}

// runPython pipes job through a script and decodes what it prints.
func runPython(t *testing.T, job, result any, script ...string) {
	t.Helper()
	in, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python(t), script...)
	cmd.Stdin = bytes.NewReader(in)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script[0], err, stderr.String())
	}
	if err := json.Unmarshal(out, result); err != nil {
		t.Fatal(err)
	}
}

// distribution is the probability of every id after the filters.
func distribution(t *testing.T, cfg Sampling, logits []float32, seen ...int32) []float64 {
	t.Helper()
	s, err := NewSampler(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Saw(seen...)
	cands, err := s.filter(logits)
	if err != nil {
		t.Fatal(err)
	}
	p, sum := make([]float64, len(logits)), 0.0
	for _, c := range cands {
		sum += c.v
	}
	for _, c := range cands {
		p[c.id] = c.v / sum
	}
	return p
}

func TestDistributions(t *testing.T) {
	// Probabilities 1/2, 1/4, 1/8, 1/8.
	logits := []float32{float32(math.Log(4)), float32(math.Log(2)), 0, 0}
	for name, c := range map[string]struct {
		cfg  Sampling
		seen []int32
		want []float64
	}{
		"plain":       {Sampling{Temperature: 1}, nil, []float64{0.5, 0.25, 0.125, 0.125}},
		"cold":        {Sampling{Temperature: 0.5}, nil, []float64{16. / 22, 4. / 22, 1. / 22, 1. / 22}},
		"top-k 2":     {Sampling{Temperature: 1, TopK: 2}, nil, []float64{2. / 3, 1. / 3, 0, 0}},
		"top-k tie":   {Sampling{Temperature: 1, TopK: 3}, nil, []float64{0.5, 0.25, 0.125, 0.125}},
		"top-k big":   {Sampling{Temperature: 1, TopK: 9}, nil, []float64{0.5, 0.25, 0.125, 0.125}},
		"top-p 0.7":   {Sampling{Temperature: 1, TopP: 0.7}, nil, []float64{2. / 3, 1. / 3, 0, 0}},
		"top-p 0.8":   {Sampling{Temperature: 1, TopP: 0.8}, nil, []float64{4. / 7, 2. / 7, 1. / 7, 0}},
		"top-p small": {Sampling{Temperature: 1, TopP: 0.01}, nil, []float64{1, 0, 0, 0}},
		"min-p 0.3":   {Sampling{Temperature: 1, MinP: 0.3}, nil, []float64{2. / 3, 1. / 3, 0, 0}},
		"min-p 0.2":   {Sampling{Temperature: 1, MinP: 0.2}, nil, []float64{0.5, 0.25, 0.125, 0.125}},
		"penalty 2":   {Sampling{Temperature: 1, RepetitionPenalty: 2}, []int32{0}, []float64{2. / 6, 2. / 6, 1. / 6, 1. / 6}},
		"all":         {Sampling{Temperature: 0.5, TopK: 2, TopP: 0.99, MinP: 0.1, RepetitionPenalty: 2}, []int32{0}, []float64{0.5, 0.5, 0, 0}},
		"greedy":      {Sampling{TopK: 2}, nil, []float64{1, 0, 0, 0}},
	} {
		got := distribution(t, c.cfg, logits, c.seen...)
		for i := range got {
			if math.Abs(got[i]-c.want[i]) > 1e-6 {
				t.Errorf("%s: %v, want %v", name, got, c.want)
				break
			}
		}
	}
	if p := distribution(t, Sampling{Temperature: 1, RepetitionPenalty: 2}, []float32{-1, -1}, 0); math.Abs(p[0]-1/(1+math.E)) > 1e-9 {
		t.Errorf("a penalty on a negative logit gives %v", p)
	}
}

func TestFiltersLikeHuggingFace(t *testing.T) {
	type testCase struct {
		Logits      []float32 `json:"logits"`
		Seen        []int32   `json:"seen"`
		Penalty     float64   `json:"penalty"`
		Temperature float64   `json:"temperature"`
		TopK        int       `json:"top_k"`
		TopP        float64   `json:"top_p"`
		MinP        float64   `json:"min_p"`
	}
	r := rand.New(rand.NewPCG(1, 2))
	var cases []testCase
	for range 300 {
		c := testCase{Logits: make([]float32, 2+r.IntN(100)), Temperature: 0.3 + 1.5*r.Float64(), Seen: []int32{0}}
		for i := range c.Logits {
			c.Logits[i] = float32(r.NormFloat64() * 3)
			if r.IntN(20) == 0 {
				c.Logits[i] = 1 // ties
			}
		}
		for range r.IntN(5) {
			c.Seen = append(c.Seen, int32(r.IntN(len(c.Logits))))
		}
		if r.IntN(2) == 0 {
			c.Penalty = 0.5 + r.Float64()
		}
		if r.IntN(2) == 0 {
			c.TopK = 1 + r.IntN(len(c.Logits))
		}
		if r.IntN(2) == 0 {
			c.TopP = 0.05 + 0.9*r.Float64()
		}
		if r.IntN(3) == 0 {
			c.MinP = r.Float64() / 3
		}
		cases = append(cases, c)
	}
	var want [][]float64
	runPython(t, cases, &want, "testdata/warpers.py")
	for i, c := range cases {
		got := distribution(t, Sampling{Temperature: c.Temperature, TopK: c.TopK, TopP: c.TopP, MinP: c.MinP, RepetitionPenalty: c.Penalty}, c.Logits, c.Seen...)
		var g, w []float64 // ties may be cut elsewhere: compare the sorted probabilities
		g, w = append(g, got...), append(w, want[i]...)
		slices.Sort(g)
		slices.Sort(w)
		for j := range g {
			if math.Abs(g[j]-w[j]) > 1e-5 {
				t.Fatalf("case %d %+v:\n got %v\nwant %v", i, c, got, want[i])
			}
		}
	}
}

func TestDrawsFollowTheDistribution(t *testing.T) {
	logits := []float32{float32(math.Log(4)), float32(math.Log(2)), 0, 0}
	counts := [4]float64{}
	s, err := NewSampler(Sampling{Temperature: 1, Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	const n = 20000
	for range n {
		id, err := s.Next(logits)
		if err != nil {
			t.Fatal(err)
		}
		counts[id]++
	}
	for i, want := range []float64{0.5, 0.25, 0.125, 0.125} {
		if sd := math.Sqrt(want * (1 - want) / n); math.Abs(counts[i]/n-want) > 5*sd {
			t.Errorf("token %d came with frequency %g, want %g", i, counts[i]/n, want)
		}
	}
}

func TestSamplerRefuses(t *testing.T) {
	for _, c := range []Sampling{{Temperature: -1}, {Temperature: math.NaN()}, {TopK: -1}, {TopP: 1.5}, {MinP: -0.1}, {RepetitionPenalty: math.Inf(1)}} {
		if _, err := NewSampler(c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
	s, err := NewSampler(Sampling{Temperature: 1})
	if err != nil {
		t.Fatal(err)
	}
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, logits := range [][]float32{{1, nan}, {1, inf}, {-inf, -inf}, {}} {
		if _, err := s.Next(logits); err == nil {
			t.Errorf("%v is sampled", logits)
		}
	}
}

func TestKthLargest(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		v := make([]float64, 1+r.IntN(40))
		for i := range v {
			v[i] = float64(r.IntN(10))
		}
		sorted := slices.Clone(v)
		slices.SortFunc(sorted, func(a, b float64) int { return int(b - a) })
		k := 1 + r.IntN(len(v))
		if got := kthLargest(slices.Clone(v), k); got != sorted[k-1] {
			t.Fatalf("%d-th largest of %v is %g", k, v, got)
		}
	}
}
