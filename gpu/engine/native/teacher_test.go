package native

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

func TestTaughtGradients(t *testing.T) {
	for _, c := range []struct {
		name    string
		arch    glm.Arch
		opt     Options
		teacher engine.Teacher
		hidden  bool
	}{
		{"soft labels", arch(16, 1, 2, 2, 24, 19, true), Options{}, engine.Teacher{Weight: 0.7, Temperature: 2}, false},
		{"soft labels alone", arch(16, 2, 2, 1, 24, 19, false), Options{}, engine.Teacher{Weight: 1, Temperature: 1}, false},
		{"hidden states too", arch(16, 1, 2, 2, 24, 19, true), Options{Threads: 2}, engine.Teacher{Weight: 0.5, Temperature: 3, HiddenLoss: 0.8}, true},
		{"several blocks of rows", arch(8, 1, 1, 1, 8, 7, true), Options{Recompute: true}, engine.Teacher{Weight: 0.5, Temperature: 3, HiddenLoss: 2}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.opt.MaxBatch, c.opt.MaxSeq = 4, 32
			m := build(t, c.arch, c.opt)
			perturb(m, 3)
			deeper := c.arch
			deeper.Layers++
			teacher := build(t, deeper, Options{MaxBatch: 4, MaxSeq: 32, Inference: true})
			perturb(teacher, 8)
			r := rand.New(rand.NewPCG(4, 5))
			b := randomBatch(r, 3, 9, c.arch.Vocab, true)
			logits, hidden, err := teacher.Outputs(b)
			if err != nil {
				t.Fatal(err)
			}
			if c.teacher.Logits = logits; c.hidden {
				c.teacher.Hidden = hidden
			}
			ref := newReference(m)
			loss, err := m.BackwardTaught(b, c.teacher, nil)
			if err != nil {
				t.Fatal(err)
			}
			if want := ref.taught(b, c.teacher); math.Abs(loss-want) > 1e-5*(1+want) {
				t.Errorf("loss %g, reference %g", loss, want)
			}
			for _, p := range m.layout {
				x, g := ref.p[p.Name], m.grads[p.Offset:p.Offset+p.Elems]
				for range 6 {
					i := r.IntN(p.Elems)
					const h = 1e-5
					was := x[i]
					x[i] = was + h
					up := ref.taught(b, c.teacher)
					x[i] = was - h
					down := ref.taught(b, c.teacher)
					x[i] = was
					want := (up - down) / (2 * h)
					if d := math.Abs(float64(g[i]) - want); d > 2e-4*math.Abs(want)+2e-5 {
						t.Errorf("%s[%d]: gradient %g, reference %g", p.Name, i, g[i], want)
					}
				}
			}
			// The next Backward has no teacher.
			m.ZeroGrad()
			plain, err := m.Backward(b, nil)
			if nll, _ := ref.loss(b, true); err != nil || math.Abs(plain-nll) > 1e-5*(1+nll) {
				t.Errorf("after it: loss %g, reference %g, %v", plain, nll, err)
			}
		})
	}
}

func TestTaughtRefuses(t *testing.T) {
	a := arch(16, 1, 2, 2, 24, 19, true)
	m := build(t, a, Options{MaxBatch: 2, MaxSeq: 4})
	b := randomBatch(rand.New(rand.NewPCG(1, 1)), 2, 4, a.Vocab, false)
	logits := make([]float32, 2*4*a.Vocab)
	for want, teacher := range map[string]engine.Teacher{
		"logits":      {Logits: logits[1:], Temperature: 1},
		"hidden":      {Logits: logits, Hidden: logits, Temperature: 1},
		"weight 2":    {Logits: logits, Weight: 2, Temperature: 1},
		"temperature": {Logits: logits},
	} {
		if _, err := m.BackwardTaught(b, teacher, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}
