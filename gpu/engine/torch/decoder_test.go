//go:build libtorch

package torch

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// decoders are engine native's and this one's, of one state.
func decoders(t *testing.T, a glm.Arch, o DecoderOptions) (want *native.Decoder, got *Decoder) {
	t.Helper()
	m, err := native.New(a, native.Options{Seed: 3})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	// Initial weights are small: larger ones tell more positions apart.
	state := m.State()
	r := rand.New(rand.NewPCG(9, 9))
	for _, p := range state {
		for i := range p.Data {
			p.Data[i] += float32(r.NormFloat64() * 0.1)
		}
	}
	if want, err = native.NewDecoder(a, state, native.DecoderOptions{MaxSeqs: o.MaxSeqs}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { want.Close() })
	if got, err = NewDecoder(a, state, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { got.Close() })
	return want, got
}

var decoderShapes = []glm.Arch{
	{Vocab: 61, Dim: 48, Layers: 2, Heads: 4, KVHeads: 2, FFN: 72, Context: 200},
	{Vocab: 50, Dim: 32, Layers: 2, Heads: 2, KVHeads: 2, FFN: 40, Context: 200, Tied: true},
	{Vocab: 61, Dim: 48, Layers: 1, Heads: 4, KVHeads: 1, FFN: 72, Context: 70},
}

func argmax(x []float32) int32 {
	return int32(slices.Index(x, slices.Max(x)))
}

// TestDecoder holds logits and greedy texts against engine native's: prompts in pieces,
// sequences together, caches that grow, and dropped ones.
func TestDecoder(t *testing.T) {
	for _, a := range decoderShapes {
		a = a.WithDefaults()
		want, got := decoders(t, a, DecoderOptions{Device: CPU, MaxSeqs: 3})
		V, T := a.Vocab, a.Context
		r := rand.New(rand.NewPCG(1, 1))
		for round := range 2 { // the second begins in dropped caches
			last := make([]int32, 3)
			for s, n := range []int{1, 5, T/2 + round} {
				ids := make([]int32, n)
				for i := range ids {
					ids[i] = r.Int32N(int32(V))
				}
				cut := n / 3
				for _, piece := range [][]int32{ids[:cut], ids[cut:]} {
					if len(piece) == 0 {
						continue
					}
					w, err := want.Prefill(s, piece)
					if err != nil {
						t.Fatal(err)
					}
					g, err := got.Prefill(s, piece)
					if err != nil {
						t.Fatal(err)
					}
					near(t, "logits after a prompt", g, w, 1e-4)
					last[s] = argmax(w)
				}
			}
			for got.Len(2) < T {
				seqs := []int{2, 0, 1}
				ids := []int32{last[2], last[0], last[1]}
				w, err := want.Decode(seqs, ids)
				if err != nil {
					t.Fatal(err)
				}
				g, err := got.Decode(seqs, ids)
				if err != nil {
					t.Fatal(err)
				}
				near(t, "logits after tokens", g, w, 1e-4)
				for i, s := range seqs {
					last[s] = argmax(w[i*V : (i+1)*V])
					if id := argmax(g[i*V : (i+1)*V]); id != last[s] {
						t.Fatalf("sequence %d at %d chooses %d, native %d", s, got.Len(s), id, last[s])
					}
				}
			}
			for s := range 3 {
				if got.Len(s) != want.Len(s) {
					t.Errorf("sequence %d holds %d tokens, native's %d", s, got.Len(s), want.Len(s))
				}
				want.Drop(s)
				got.Drop(s)
				if got.Len(s) != 0 {
					t.Errorf("sequence %d is dropped and holds %d tokens", s, got.Len(s))
				}
			}
		}
	}
}

// In bf16 logits are those of float32 within what bf16's eight bits leave.
func TestDecoderBF16(t *testing.T) {
	a := decoderShapes[0].WithDefaults()
	want, got := decoders(t, a, DecoderOptions{Device: CPU, MaxSeqs: 1, Precision: engine.BF16})
	ids := []int32{3, 1, 4, 1, 5, 9, 2, 6}
	w, err := want.Prefill(0, ids)
	if err != nil {
		t.Fatal(err)
	}
	g, err := got.Prefill(0, ids)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "logits", g, w, 0.1)
	if w, err = want.Decode([]int{0}, ids[:1]); err != nil {
		t.Fatal(err)
	}
	if g, err = got.Decode([]int{0}, ids[:1]); err != nil {
		t.Fatal(err)
	}
	near(t, "logits", g, w, 0.1)
}

func TestDecoderEmbeds(t *testing.T) {
	a := decoderShapes[1].WithDefaults()
	want, got := decoders(t, a, DecoderOptions{Device: CPU, MaxSeqs: 1})
	w, g := make([]float32, want.Width()), make([]float32, got.Width())
	for _, ids := range [][]int32{{3, 1, 4}, {1, 5}} {
		if err := errors.Join(want.Embed(0, ids, w), got.Embed(0, ids, g)); err != nil {
			t.Fatal(err)
		}
	}
	near(t, "hidden states", g, w, 1e-4)
	if got.Embed(0, []int32{1}, g[1:]) == nil {
		t.Error("a sum of another width is taken")
	}
}

func TestDecoderRefuses(t *testing.T) {
	a := decoderShapes[2].WithDefaults()
	_, d := decoders(t, a, DecoderOptions{Device: CPU, MaxSeqs: 2})
	refused := func(want string, err error) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	_, err := d.Prefill(0, nil)
	refused("no tokens", err)
	_, err = d.Prefill(0, []int32{61})
	refused("vocabulary", err)
	_, err = d.Prefill(0, make([]int32, 71))
	refused("context is 70", err)
	_, err = d.Decode([]int{0}, []int32{1})
	refused("Prefill it first", err)
	if _, err := d.Prefill(0, []int32{1}); err != nil {
		t.Fatal(err)
	}
	_, err = d.Decode([]int{0, 0}, []int32{1, 1})
	refused("twice", err)
	d.Drop(0)
	for s := range 2 {
		if _, err := d.Prefill(s, make([]int32, 70)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = d.Prefill(2, []int32{1})
	refused("MaxSeqs", err)
	_, err = d.Decode([]int{0}, []int32{1})
	refused("context is 70", err)
	_, err = d.Decode([]int{0}, nil)
	refused("each sequence one", err)
	_, err = NewDecoder(a, nil, DecoderOptions{Device: CPU})
	refused("missing", err)
	_, err = NewDecoder(a, nil, DecoderOptions{Device: -2})
	refused("device is -2", err)
}
