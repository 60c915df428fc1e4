package native

import (
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// fillGrads puts random gradients in and returns their norm.
func fillGrads(m *Model, seed uint64) float64 {
	r := rand.New(rand.NewPCG(seed, 1))
	var ss float64
	for _, p := range m.layout {
		for i := range p.Elems {
			g := float32(r.NormFloat64())
			m.grads[p.Offset+i] = g
			ss += float64(g) * float64(g)
		}
	}
	return math.Sqrt(ss)
}

// TestAdamW holds three clipped updates against the plain formula.
func TestAdamW(t *testing.T) {
	m := build(t, arch(16, 1, 2, 2, 24, 19, false), Options{Threads: 3})
	h := engine.Hyper{Optimizer: engine.AdamW, LR: 1e-2, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, Clip: 2}
	p, mm, vv := make([]float64, m.size), make([]float64, m.size), make([]float64, m.size)
	for i, x := range m.params {
		p[i] = float64(x)
	}
	for step := 1; step <= 3; step++ {
		norm := fillGrads(m, uint64(step))
		clip := h.Clip / (norm + 1e-6)
		for _, par := range m.layout {
			decay := h.WeightDecay
			if par.Role == glm.Norm {
				decay = 0
			}
			for i := par.Offset; i < par.Offset+par.Elems; i++ {
				g := float64(m.grads[i]) * clip
				mm[i] = h.Beta1*mm[i] + (1-h.Beta1)*g
				vv[i] = h.Beta2*vv[i] + (1-h.Beta2)*g*g
				mh, vh := mm[i]/(1-math.Pow(h.Beta1, float64(step))), vv[i]/(1-math.Pow(h.Beta2, float64(step)))
				p[i] -= h.LR * (mh/(math.Sqrt(vh)+h.Eps) + decay*p[i])
			}
		}
		got, err := m.Update(h)
		if err != nil || math.Abs(got-norm) > 1e-4*norm {
			t.Fatalf("norm %g, want %g; %v", got, norm, err)
		}
		for i, want := range p {
			if math.Abs(float64(m.params[i])-want) > 1e-6 {
				t.Fatalf("step %d, element %d: %g, want %g", step, i, m.params[i], want)
			}
			if m.grads[i] != 0 {
				t.Fatalf("step %d left gradient %d", step, i)
			}
		}
	}
}

// TestOrthogonalize: singular values come out between 0.6 and 1.25, seen as the
// eigenvalue bounds of the Gram matrix on random directions.
func TestOrthogonalize(t *testing.T) {
	for _, d := range [][2]int{{24, 24}, {40, 16}, {16, 40}} {
		rows, cols := d[0], d[1]
		n, k := rows*cols, min(rows, cols)
		s := newton{x: make([]float32, n), y: make([]float32, n), a: make([]float32, k*k), b: make([]float32, k*k)}
		r := rand.New(rand.NewPCG(1, 2))
		for i := range s.x {
			s.x[i] = float32(r.NormFloat64())
		}
		before := append([]float32(nil), s.x...)
		s.orthogonalize(rows, cols, kernel.Gemm, make([]float32, kernel.WorkLen))
		var inner float64
		for i := range before {
			inner += float64(before[i] * s.x[i])
		}
		if inner <= 0 {
			t.Errorf("%v: result points away from the matrix", d)
		}
		var sum float64
		for range 50 {
			u := make([]float64, k)
			var uu float64
			for i := range u {
				u[i] = r.NormFloat64()
				uu += u[i] * u[i]
			}
			long := max(rows, cols)
			var yy float64
			for j := range long {
				var y float64
				for i := range k {
					if rows <= cols {
						y += u[i] * float64(s.x[i*cols+j])
					} else {
						y += u[i] * float64(s.x[j*cols+i])
					}
				}
				yy += y * y
			}
			if q := math.Sqrt(yy / uu); q < 0.3 || q > 1.3 {
				t.Errorf("%v: stretches a direction by %g", d, q)
			} else {
				sum += q
			}
		}
		if mean := sum / 50; mean < 0.75 || mean > 1.15 {
			t.Errorf("%v: stretches by %g on average", d, mean)
		}
	}
}

// TestMuon: matrices move by about the rate times an orthogonal matrix, and the
// others as under AdamW.
func TestMuon(t *testing.T) {
	a := arch(32, 2, 4, 2, 40, 50, false)
	muon, adam := build(t, a, Options{Optimizer: engine.Muon, Threads: 2}), build(t, a, Options{})
	h := engine.DefaultHyper()
	h.WeightDecay, h.Clip = 0, 0
	before := append([]float32(nil), muon.params...)
	fillGrads(muon, 1)
	fillGrads(adam, 1)
	h.Optimizer = engine.Muon
	if _, err := muon.Update(h); err != nil {
		t.Fatal(err)
	}
	h.Optimizer = engine.AdamW
	if _, err := adam.Update(h); err != nil {
		t.Fatal(err)
	}
	if _, err := muon.Update(h); err == nil {
		t.Error("a model made for Muon took an AdamW step")
	}
	for _, p := range muon.layout {
		x := muon.params[p.Offset : p.Offset+p.Elems]
		if p.Role != glm.Matrix && p.Role != glm.Residual {
			if !close32(x, adam.params[p.Offset:p.Offset+p.Elems], 1e-6) {
				t.Errorf("%s did not move as under AdamW", p.Name)
			}
			continue
		}
		var ss float64
		for i, v := range x {
			d := float64(v - before[p.Offset+i])
			ss += d * d
		}
		rows, cols := float64(p.Shape[0]), float64(p.Shape[1])
		want := h.MuonLR * math.Sqrt(max(1, rows/cols)) * math.Sqrt(min(rows, cols))
		if got := math.Sqrt(ss); got < 0.7*want || got > 1.3*want {
			t.Errorf("%s moved by %g, want about %g", p.Name, got, want)
		}
	}
}

func TestNotFinite(t *testing.T) {
	for _, bad := range []float32{float32(math.NaN()), float32(math.Inf(1))} {
		m := build(t, arch(16, 1, 2, 2, 24, 19, true), Options{Threads: 2})
		fillGrads(m, 1)
		m.grads[100] = bad
		before := append([]float32(nil), m.params...)
		if _, err := m.Update(engine.DefaultHyper()); !errors.Is(err, engine.ErrNotFinite) {
			t.Fatalf("gradient %g: %v", bad, err)
		}
		for i := range before {
			if m.params[i] != before[i] || m.grads[i] != 0 || m.m[i] != 0 {
				t.Fatalf("gradient %g: element %d was touched", bad, i)
			}
		}
		if m.step[0] != 0 {
			t.Error("the step was counted")
		}
	}
}

func cloneState(s engine.StateDict) engine.StateDict {
	var c engine.StateDict
	for _, t := range s {
		t.Data = append([]float32(nil), t.Data...)
		c = append(c, t)
	}
	return c
}

// TestResume: a model loaded from another's state goes on with the same bits.
func TestResume(t *testing.T) {
	for _, opt := range []engine.Optimizer{engine.AdamW, engine.Muon} {
		a := arch(16, 1, 2, 2, 24, 19, false)
		h := engine.DefaultHyper()
		h.Optimizer = opt
		x, y := build(t, a, Options{Optimizer: opt, Seed: 1}), build(t, a, Options{Optimizer: opt, Seed: 2})
		step := func(m *Model, seed uint64) {
			fillGrads(m, seed)
			if _, err := m.Update(h); err != nil {
				t.Fatal(err)
			}
		}
		step(x, 1)
		step(y, 9)
		if err := y.Load(cloneState(x.State())); err != nil {
			t.Fatal(err)
		}
		step(x, 2)
		step(y, 2)
		for i := range x.params {
			if x.params[i] != y.params[i] {
				t.Fatalf("%s: element %d differs after resuming", opt, i)
			}
		}
		if s, ok := x.State().Get("optimizer.step"); !ok || s.Data[0] != 2 {
			t.Errorf("optimizer.step is %v", s.Data)
		}
		// Parameters alone start a fresh optimiser.
		if err := y.Load(cloneState(x.State()[:len(x.layout)])); err != nil || y.step[0] != 0 || y.m[0] != 0 {
			t.Errorf("loading parameters alone: %v, step %g", err, y.step[0])
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	a := arch(16, 1, 2, 2, 24, 19, true)
	m := build(t, a, Options{})
	for want, spoil := range map[string]func(engine.StateDict) engine.StateDict{
		"model.norm.weight is missing":       func(s engine.StateDict) engine.StateDict { return append(s[:10:10], s[11:]...) },
		"optimizer.step is missing":          func(s engine.StateDict) engine.StateDict { return s[:len(s)-1] },
		"shape [19 15]":                      func(s engine.StateDict) engine.StateDict { s[0].Shape = []int{19, 15}; return s },
		"303 values":                         func(s engine.StateDict) engine.StateDict { s[0].Data = s[0].Data[1:]; return s },
		"q_proj.weight holds NaN":            func(s engine.StateDict) engine.StateDict { s[2].Data[5] = float32(math.NaN()); return s },
		"lm_head.weight is unknown":          func(s engine.StateDict) engine.StateDict { return append(s, engine.Tensor{Name: "lm_head.weight"}) },
		"embed_tokens.weight is there twice": func(s engine.StateDict) engine.StateDict { return append(s, s[0]) },
	} {
		before := append([]float32(nil), m.params...)
		err := m.Load(spoil(cloneState(m.State())))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
		if !close32(m.params, before, 0) {
			t.Errorf("%s: a refused state changed parameters", want)
		}
	}
	inference := build(t, a, Options{Inference: true, Seed: 5})
	if err := inference.Load(m.State()); err != nil || !close32(inference.params, m.params, 0) {
		t.Errorf("inference model loading a training state: %v", err)
	}
}
