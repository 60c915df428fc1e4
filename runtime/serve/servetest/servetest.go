// Package servetest makes small models for tests of what serves them.
package servetest

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/token/tokentest"
)

// Bundle is a model of random weights that chats, with a context of 256 tokens.
func Bundle(t testing.TB, seed uint64) *bundle.Bundle {
	t.Helper()
	tok := tokentest.Tiny(t, 320)
	a := glm.Arch{Vocab: (tok.VocabSize() + 15) / 16 * 16, Dim: 32, Layers: 2, Heads: 4, KVHeads: 2, FFN: 64, Context: 256, Tied: true, RopeTheta: 10000, NormEps: 1e-5}
	r := rand.New(rand.NewPCG(seed, 1))
	layout, _ := a.Layout()
	var params engine.StateDict
	for _, p := range layout {
		values := make([]float32, p.Elems)
		for i := range values {
			values[i] = float32(r.NormFloat64() * 0.3)
			if p.Role == glm.Norm {
				values[i]++
			}
		}
		params = append(params, engine.Tensor{Name: p.Name, Shape: p.Shape, Data: values})
	}
	return &bundle.Bundle{
		Arch: a, Params: params, Tokenizer: tok, Generation: bundle.DefaultGeneration(), ChatTemplate: data.ChatTemplate(),
		Card: bundle.Card{Name: "Tiny", License: "apache-2.0", Languages: []string{"en"}, Task: "dialogue"},
	}
}

// Gate is a Decoder whose every call waits for a permit.
type Gate struct {
	engine.Decoder
	Enter  chan struct{} // a call has begun
	Permit chan struct{} // lets one call go on
	open   sync.Once
}

// NewGate closes dec's gate.
func NewGate(dec engine.Decoder) *Gate {
	return &Gate{Decoder: dec, Enter: make(chan struct{}, 1<<16), Permit: make(chan struct{})}
}

// Open lets all calls go on, from now on.
func (g *Gate) Open() { g.open.Do(func() { close(g.Permit) }) }

// Prefill implements engine.Decoder.
func (g *Gate) Prefill(seq int, ids []int32) ([]float32, error) {
	g.Enter <- struct{}{}
	<-g.Permit
	return g.Decoder.Prefill(seq, ids)
}

// Decode implements engine.Decoder.
func (g *Gate) Decode(seqs []int, ids []int32) ([]float32, error) {
	g.Enter <- struct{}{}
	<-g.Permit
	return g.Decoder.Decode(seqs, ids)
}
