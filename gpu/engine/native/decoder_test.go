package native

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

func close32(a, b []float32, tol float64) bool {
	for i := range a {
		if !(math.Abs(float64(a[i]-b[i])) <= tol*(1+math.Abs(float64(b[i])))) {
			return false
		}
	}
	return len(a) == len(b)
}

// TestDecoder holds every position's logits, however the tokens were split
// between Prefill and Decode, against the training model's.
func TestDecoder(t *testing.T) {
	for _, c := range []struct {
		name    string
		arch    glm.Arch
		context int
		threads int
	}{
		{"tied", arch(32, 2, 4, 2, 40, 23, true), 32, 1},
		{"untied, two threads", arch(24, 2, 3, 1, 20, 50, false), 40, 2},
		{"heads taken away", arch(32, 2, 2, 1, 40, 23, true).WithHead(8), 40, 1},
		{"wide heads", arch(16, 1, 3, 3, 40, 23, true).WithHead(8), 40, 1},
		{"long", arch(96, 1, 2, 2, 16, 11, true), 200, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := c.arch
			a.Context = c.context
			m := build(t, a, Options{MaxBatch: 3})
			perturb(m, 1)
			V, T := a.Vocab, a.Context
			b := randomBatch(rand.New(rand.NewPCG(1, 1)), 3, T, V, false)
			want, err := m.Logits(b)
			if err != nil {
				t.Fatal(err)
			}
			d, err := NewDecoder(a, m.State(), DecoderOptions{Threads: c.threads, MaxSeqs: 3})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			at := func(s, pos int) []float32 { return want[(s*T+pos)*V : (s*T+pos+1)*V] }
			for round := range 2 { // the second reuses dropped caches
				lens := []int{1, 5, T/2 + round}
				for s, n := range lens {
					got, err := d.Prefill(s, b.Inputs[s*T:s*T+n])
					if err != nil {
						t.Fatal(err)
					}
					if !close32(got, at(s, n-1), 1e-4) {
						t.Errorf("prefill of sequence %d with %d tokens differs from training", s, n)
					}
				}
				for range T/2 - 2 {
					seqs, ids := []int{2, 0, 1}, make([]int32, 3)
					for i, s := range seqs {
						ids[i] = b.Inputs[s*T+d.Len(s)]
					}
					got, err := d.Decode(seqs, ids)
					if err != nil {
						t.Fatal(err)
					}
					for i, s := range seqs {
						if !close32(got[i*V:(i+1)*V], at(s, d.Len(s)-1), 1e-4) {
							t.Fatalf("decode of sequence %d at %d differs from training", s, d.Len(s)-1)
						}
					}
				}
				// A second prefill goes on where the sequence is.
				n := d.Len(1)
				got, err := d.Prefill(1, b.Inputs[T+n:2*T])
				if err != nil || !close32(got, at(1, T-1), 1e-4) {
					t.Errorf("prefill after decoding: %v", err)
				}
				for s := range 3 {
					d.Drop(s)
				}
			}
		})
	}
}

// The product of a hidden state and the head is the logits.
func TestEmbed(t *testing.T) {
	a := arch(32, 2, 4, 2, 40, 23, false)
	m := build(t, a, Options{})
	perturb(m, 1)
	d, err := NewDecoder(a, m.State(), DecoderOptions{MaxSeqs: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ids := []int32{3, 1, 4, 1, 5, 9, 2, 6}
	head, _ := m.State().Get("lm_head.weight")
	want, sum, got := make([]float32, d.Width()), make([]float32, d.Width()), make([]float32, a.Vocab)
	for i := range ids {
		logits, err := d.Prefill(0, ids[i:i+1])
		if err != nil {
			t.Fatal(err)
		}
		one := make([]float32, d.Width())
		if err := d.Embed(1, ids[i:i+1], one); err != nil {
			t.Fatal(err)
		}
		for v := range got {
			got[v] = 0
			for j, x := range one {
				got[v] += x * head.Data[v*len(one)+j]
			}
		}
		if !close32(got, logits, 1e-4) {
			t.Fatalf("hidden state %d gives other logits", i)
		}
		for j, x := range one {
			want[j] += x
		}
	}
	d.Drop(1)
	if err := d.Embed(1, ids, sum); err != nil || !close32(sum, want, 1e-4) {
		t.Errorf("all at once: %v", err)
	}
	if d.Embed(1, ids, sum[1:]) == nil || d.Embed(1, nil, sum) == nil || d.Embed(1, []int32{99}, sum) == nil {
		t.Error("what does not fit is embedded")
	}
}

func TestDecoderRefuses(t *testing.T) {
	a := arch(16, 1, 2, 2, 24, 19, true)
	m := build(t, a, Options{})
	d, err := NewDecoder(a, m.State(), DecoderOptions{MaxSeqs: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	refused := func(want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	_, err = d.Prefill(0, nil)
	refused("no tokens", err)
	_, err = d.Prefill(0, []int32{19})
	refused("vocabulary", err)
	_, err = d.Prefill(0, make([]int32, 33))
	refused("context is 32", err)
	_, err = d.Decode([]int{0}, []int32{1})
	refused("Prefill it first", err)
	for s := range 2 {
		if _, err := d.Prefill(s, make([]int32, 32)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = d.Prefill(2, []int32{1})
	refused("MaxSeqs", err)
	_, err = d.Decode([]int{0, 0}, []int32{1, 1})
	refused("twice", err)
	_, err = d.Decode([]int{0}, []int32{1})
	refused("context is 32", err)
	_, err = d.Decode([]int{0}, nil)
	refused("each sequence one", err)
	_, err = NewDecoder(a, m.State()[1:], DecoderOptions{})
	refused("model.embed_tokens.weight is missing", err)
	_, err = NewDecoder(a, append(m.State(), engine.Tensor{Name: "extra"}), DecoderOptions{})
	refused("extra is unknown", err)
}

func BenchmarkDecode(b *testing.B) {
	a := arch(256, 4, 4, 4, 704, 4096, true)
	a.Context = 256
	m := build(b, a, Options{Inference: true})
	d, err := NewDecoder(a, m.State(), DecoderOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	one := []int32{1}
	for b.Loop() {
		if d.Len(0) == 0 || d.Len(0) == a.Context {
			d.Drop(0)
			if _, err := d.Prefill(0, one); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := d.Decode([]int{0}, one); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "tokens/s")
}
