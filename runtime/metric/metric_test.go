package metric

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write testdata/golden.json anew, by the peers")

const golden = "testdata/golden.json"

// goldenCase is answers with what sacrebleu, rouge-score and scikit-learn make of them.
type goldenCase struct {
	Name    string             `json:"name"`
	Answers []Answer           `json:"answers"`
	Scores  map[string]float64 `json:"scores"`
}

func goldenCases(t testing.TB) []goldenCase {
	t.Helper()
	raw, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	var cases []goldenCase
	if err := json.Unmarshal(raw, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

func TestGolden(t *testing.T) {
	for _, c := range goldenCases(t) {
		for name, want := range c.Scores {
			m, ok := Lookup(name)
			if !ok {
				t.Fatalf("there is no %s", name)
			}
			if v, err := m.Of(Sample{Answers: c.Answers}); err != nil || math.Abs(v-want) > 1e-9 {
				t.Errorf("%s: %s is %.12f, the peer's %.12f: %v", c.Name, name, v, want, err)
			}
		}
	}
}

// peers runs testdata/peers.py.
func peers(t *testing.T, in, out any, args ...string) {
	t.Helper()
	python := os.Getenv("AUTOGLM_PYTHON")
	if python == "" {
		const why = "AUTOGLM_PYTHON is unset: no Python with sacrebleu, rouge-score and scikit-learn (.ci/peers installs one)"
		if os.Getenv("AUTOGLM_REQUIRE") != "" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	raw, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, append([]string{"testdata/peers.py"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(raw), &stderr
	answer, err := cmd.Output()
	if err != nil {
		t.Fatalf("peers.py: %v\n%s", err, stderr.String())
	}
	if err := json.Unmarshal(answer, out); err != nil {
		t.Fatal(err)
	}
}

// The peers agree with the golden file, and on random answers with us.
func TestPeers(t *testing.T) {
	cases := goldenCases(t)
	known := len(cases)
	r := rand.New(rand.NewPCG(7, 7))
	vocabulary := strings.Fields("a b the cat's dog, U.S. 3.14 1-2 x-y (z) <skipped> &amp; \"q\" é naïve 北京 ok. -")
	for i := range 20 {
		c := goldenCase{Name: fmt.Sprintf("random %d", i)}
		text := func() string {
			words := make([]string, r.IntN(12))
			for j := range words {
				words[j] = vocabulary[r.IntN(len(vocabulary))]
			}
			return strings.Join(words, " ")
		}
		for range 1 + r.IntN(6) {
			a := Answer{text(), text()}
			if r.IntN(3) == 0 {
				a.Got = a.Want
			}
			c.Answers = append(c.Answers, a)
		}
		cases = append(cases, c)
	}
	type job struct {
		Answers []map[string]string `json:"answers"`
		Classes [][2]string         `json:"classes"`
		Words   [][2][]string       `json:"words"`
	}
	var jobs []job
	for _, c := range cases {
		var j job
		for _, a := range c.Answers {
			j.Answers = append(j.Answers, map[string]string{"got": a.Got, "want": a.Want})
			j.Classes = append(j.Classes, [2]string{Class(a.Got), Class(a.Want)})
			j.Words = append(j.Words, [2][]string{append([]string{}, Words(a.Got)...), append([]string{}, Words(a.Want)...)})
		}
		jobs = append(jobs, j)
	}
	var scores []map[string]float64
	peers(t, jobs, &scores)
	if *update {
		for i := range known {
			cases[i].Scores = scores[i]
		}
		raw, err := json.MarshalIndent(cases[:known], "", " ")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, append(raw, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range cases {
		for name, want := range scores[i] {
			m, _ := Lookup(name)
			if v, err := m.Of(Sample{Answers: c.Answers}); err != nil || math.Abs(v-want) > 1e-9 {
				t.Errorf("%s: %s is %.12f, the peer's %.12f: %v\n%+v", c.Name, name, v, want, err, c.Answers)
			}
			if i < known && math.Abs(c.Scores[name]-want) > 1e-9 {
				t.Errorf("%s: %s is %.12f in %s, the peer's %.12f", c.Name, name, c.Scores[name], golden, want)
			}
		}
	}
}

func TestWordsAndClasses(t *testing.T) {
	for _, tc := range []struct {
		got, want      string
		class, f1, lcs float64
	}{
		{"The Beatles.", "the beatles", 1, 1, 1},
		{"a b c d", "a c d e", 0, 0.75, 0.75},
		{"d c b a", "a b c d", 0, 1, 0.25},
		{"", "x", 0, 0, 0},
		{"", "", 1, 1, 0},
		{"北京市", "北京", 0, 0.8, 0.8},
		{"x", "y", 0, 0, 0},
		{"C++", "C", 0, 1, 1},
		{"+", "-", 0, 1, 0},
		{"हिन्दी", "हिन्दी", 1, 1, 1},
	} {
		s := Sample{Answers: []Answer{{tc.got, tc.want}}}
		for name, want := range map[string]float64{Accuracy: tc.class, TokenF1: tc.f1, RougeL: tc.lcs} {
			m, _ := Lookup(name)
			if v, err := m.Of(s); err != nil || math.Abs(v-want) > 1e-9 {
				t.Errorf("%s of %q, %q is %g, want %g: %v", name, tc.got, tc.want, v, want, err)
			}
		}
	}
	if w := Words("हिन्दी भाषा"); !slices.Equal(w, []string{"हिन्दी", "भाषा"}) {
		t.Errorf("words %q", w)
	}
}

func TestRegistry(t *testing.T) {
	ms, err := Parse("Rouge-L, bleu,exact-match,f1,f1_macro")
	if err != nil || len(ms) != 4 || ms[0].Name != RougeL || ms[3].Name != F1Macro {
		t.Errorf("%v, %v", ms, err)
	}
	if _, err := Parse("rouge-9"); err == nil || !strings.Contains(err.Error(), `no metric "rouge-9"; there are accuracy, bits_per_byte, bleu,`) {
		t.Error(err)
	}
	Register(Metric{Name: "length_of", Of: func(s Sample) (float64, error) { return float64(len(s.Answers[0].Got)), nil }})
	if m, ok := Lookup("length-of"); !ok {
		t.Error("a registered metric is not found")
	} else if v, _ := m.Of(Sample{Answers: []Answer{{Got: "four"}}}); v != 4 {
		t.Error(v)
	}
	for _, name := range []string{"bleu", "", "Big", "a-b", "f1"} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%q was registered", name)
				}
			}()
			Register(Metric{Name: name, Of: bitsPerByte})
		}()
	}
	m, _ := Lookup(BitsPerByte)
	if v, err := m.Of(Sample{NLL: 16 * math.Ln2, Bytes: 8}); v != 2 || err != nil || m.Error(v) != 2 {
		t.Error(v, err)
	}
	if _, err := m.Of(Sample{}); !errors.Is(err, ErrNoText) {
		t.Error(err)
	}
	m, _ = Lookup(BLEU)
	if _, err := m.Of(Sample{}); !errors.Is(err, ErrNoAnswers) || m.Error(0.25) != 0.75 {
		t.Error(err)
	}
}

// overconfident makes logits whose right temperature is about 2: targets are drawn from
// softmax(z), and the model says 2·z.
func overconfident(seed uint64, n, vocab int) (logits []float32, targets []int32) {
	r := rand.New(rand.NewPCG(seed, 1))
	for range n {
		z := make([]float64, vocab)
		sum := 0.0
		for j := range z {
			z[j] = 2 * r.NormFloat64()
			sum += math.Exp(z[j])
			logits = append(logits, float32(2*z[j]))
		}
		u, t := r.Float64()*sum, 0
		for t = 0; t < vocab-1; t++ {
			if u -= math.Exp(z[t]); u < 0 {
				break
			}
		}
		targets = append(targets, int32(t))
	}
	return logits, targets
}

func TestTemperature(t *testing.T) {
	const vocab = 12
	logits, targets := overconfident(1, 4000, vocab)
	got, err := Temperature(logits, vocab, targets)
	if err != nil || math.Abs(got-2) > 0.1 {
		t.Fatalf("temperature %g, want about 2: %v", got, err)
	}
	before, err := Believe(logits, vocab, targets, 1)
	if err != nil {
		t.Fatal(err)
	}
	after, err := Believe(logits, vocab, targets, got)
	if err != nil {
		t.Fatal(err)
	}
	if after.NLL >= before.NLL || after.ECE > 0.03 || before.ECE < 0.1 {
		t.Errorf("before %+v, after %+v", before, after)
	}
	for _, near := range []float64{got * 1.01, got / 1.01} { // it is the least
		if b, _ := Believe(logits, vocab, targets, near); b.NLL < after.NLL {
			t.Errorf("the loss at %g is %g, at %g %g", near, b.NLL, got, after.NLL)
		}
	}
	// Targets that are never the likeliest want no belief at all, those that always are want all of it.
	never := []float32{9, 0, 0}
	if v, err := Temperature(never, 3, []int32{1}); err != nil || v < 19.9 {
		t.Errorf("%g, %v", v, err)
	}
	if v, err := Temperature(never, 3, []int32{0}); err != nil || v > 0.1 {
		t.Errorf("%g, %v", v, err)
	}
	for name, bad := range map[string]struct {
		logits  []float32
		targets []int32
	}{
		"nothing": {nil, nil}, "few logits": {[]float32{1}, []int32{0}}, "no token": {[]float32{1, 2, 3}, []int32{3}}, "NaN": {[]float32{1, 2, float32(math.NaN())}, []int32{0}},
	} {
		if _, err := Temperature(bad.logits, 3, bad.targets); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestTemperatureLikeSciPy(t *testing.T) {
	const vocab = 12
	logits, targets := overconfident(2, 500, vocab)
	rows := make([][]float32, len(targets))
	for i := range rows {
		rows[i] = logits[i*vocab : (i+1)*vocab]
	}
	var want struct{ Temperature, NLL, ECE float64 }
	peers(t, map[string]any{"logits": rows, "targets": targets}, &want, "temperature")
	got, err := Temperature(logits, vocab, targets)
	if err != nil || math.Abs(got-want.Temperature) > 1e-5*got {
		t.Errorf("%g, SciPy's %g: %v", got, want.Temperature, err)
	}
	b, err := Believe(logits, vocab, targets, want.Temperature)
	if err != nil || math.Abs(b.NLL-want.NLL) > 1e-7 || math.Abs(b.ECE-want.ECE) > 1e-7 {
		t.Errorf("%+v, SciPy's %+v: %v", b, want, err)
	}
}

func TestCalibrationError(t *testing.T) {
	for _, tc := range []struct {
		confidences []float64
		right       []bool
		want        float64
	}{
		{nil, nil, 0},
		{[]float64{1, 1}, []bool{true, true}, 0},
		{[]float64{1, 1}, []bool{true, false}, 0.5},
		{[]float64{0.5, 0.5}, []bool{true, false}, 0},
		{[]float64{0.9, 0.1}, []bool{true, false}, 0.1},
		{[]float64{0, 1}, []bool{true, false}, 1},
	} {
		if v := CalibrationError(tc.confidences, tc.right); math.Abs(v-tc.want) > 1e-12 {
			t.Errorf("%v, %v: %g, want %g", tc.confidences, tc.right, v, tc.want)
		}
	}
}
