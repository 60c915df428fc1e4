package native

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

var testShape = arch(64, 2, 2, 1, 96, 300, true)

// Replicas that each update a part, and complete their parameters from each other,
// go the way of a model that updates all; each holds its part of the moments alone.
func TestShardsUpdateAsOne(t *testing.T) {
	for _, p := range []engine.Precision{engine.F32, engine.BF16} {
		t.Run(string(p), func(t *testing.T) { shardsUpdateAsOne(t, Options{MaxBatch: 2, Seed: 4, Threads: 2, Precision: p}) })
	}
}

func shardsUpdateAsOne(t *testing.T, opt Options) {
	const world = 3
	whole := build(t, testShape, opt)
	var part [world]*Model
	for r := range part {
		part[r] = build(t, testShape, opt)
		if err := part[r].Shard(engine.Own(whole.size, r, world)); err != nil {
			t.Fatal(err)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	h := engine.DefaultHyper()
	h.Clip = 0.1
	held := 0
	for step := range 5 {
		b := randomBatch(rng, 2, 16, testShape.Vocab, false)
		if _, err := whole.Backward(b, nil); err != nil {
			t.Fatal(err)
		}
		want, err := whole.Update(h)
		if err != nil {
			t.Fatal(err)
		}
		squares := 0.0
		for _, m := range part {
			if _, err := m.Backward(b, nil); err != nil {
				t.Fatal(err)
			}
			s, err := m.Squares()
			if err != nil {
				t.Fatal(err)
			}
			squares += s
		}
		if norm := math.Sqrt(squares); math.Abs(norm-want) > 1e-5*want {
			t.Fatalf("norm %g, whole %g", norm, want)
		}
		for _, m := range part {
			if err := m.UpdateShard(h, want); err != nil {
				t.Fatal(err)
			}
		}
		held = 0
		for r := range part {
			for _, own := range engine.Own(whole.size, r, world) {
				held += own.To - own.From
				for _, other := range part {
					copy(other.params[own.From:own.To], part[r].params[own.From:own.To])
				}
			}
		}
		for i := range whole.params {
			if whole.params[i] != part[0].params[i] || part[0].grads[i] != 0 {
				t.Fatalf("step %d: parameter %d is %g, whole %g; gradient left %g", step, i, part[0].params[i], whole.params[i], part[0].grads[i])
			}
		}
	}
	if m, v := part[1].Moments(); held != whole.size || len(m) > whole.size/2 || len(v) != len(m) {
		t.Errorf("%d of %d elements are held, %d by rank 1", held, whole.size, len(m))
	}
	if _, err := part[0].Update(h); err == nil {
		t.Error("a divided model is updated whole")
	}
	// Each keeps its own of a whole state.
	if err := part[2].Load(whole.State()); err != nil {
		t.Fatal(err)
	}
	m, _ := part[2].Moments()
	at := 0
	for _, own := range engine.Own(whole.size, 2, world) {
		for i := own.From; i < own.To; i++ {
			if m[at] != whole.m[i] {
				t.Fatalf("moment of element %d is %g, want %g", i, m[at], whole.m[i])
			}
			at++
		}
	}
}

func TestShardRefuses(t *testing.T) {
	m := build(t, testShape, Options{Optimizer: engine.Muon})
	if err := m.Shard(nil); err == nil || !strings.Contains(err.Error(), "muon") {
		t.Errorf("Muon's state: %v", err)
	}
	a := build(t, testShape, Options{})
	if err := a.Shard([]engine.Range{{From: 32, To: 64}, {From: 0, To: 32}}); err == nil {
		t.Error("a shard out of order is taken")
	}
}
