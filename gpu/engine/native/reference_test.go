package native

import (
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// reference is the model in float64, as plainly as it can be written: what the
// engine's loss, gradients and logits are held against.
type reference struct {
	hidden  []float64 // of the sequence whose logits came last
	arch    glm.Arch
	p       map[string][]float64
	dropout float64
	zloss   float64
}

func newReference(m *Model) *reference {
	r := &reference{arch: m.arch, p: map[string][]float64{}, dropout: m.opt.Dropout, zloss: m.opt.ZLoss}
	for _, t := range m.parameters() {
		x := make([]float64, len(t.Data))
		for i, v := range t.Data {
			x[i] = float64(v)
		}
		r.p[t.Name] = x
	}
	return r
}

// matmul is x[n,in] · w[out,in]ᵀ.
func matmul(x, w []float64, n, in int) []float64 {
	out := len(w) / in
	y := make([]float64, n*out)
	for i := range n {
		for o := range out {
			var s float64
			for k := range in {
				s += x[i*in+k] * w[o*in+k]
			}
			y[i*out+o] = s
		}
	}
	return y
}

func (r *reference) norm(x, g []float64) []float64 {
	c := len(g)
	y := make([]float64, len(x))
	for i := 0; i < len(x); i += c {
		var ss float64
		for _, v := range x[i : i+c] {
			ss += v * v
		}
		s := 1 / math.Sqrt(ss/float64(c)+r.arch.NormEps)
		for j := range c {
			y[i+j] = x[i+j] * s * g[j]
		}
	}
	return y
}

func (r *reference) drop(x []float64, b engine.Batch, site uint64, row0 int, train bool) {
	if !train || r.dropout == 0 {
		return
	}
	c := r.arch.Dim
	mask := make([]float32, c)
	for i := range len(x) / c {
		for j := range mask {
			mask[j] = 1
		}
		kernel.Dropout(mask, dropoutKey(b.Seed, site, row0+i), r.dropout)
		for j, v := range mask {
			if v == 0 {
				x[i*c+j] = 0
			} else {
				x[i*c+j] /= 1 - r.dropout
			}
		}
	}
}

func (r *reference) rotate(x []float64, t int) {
	d := len(x)
	for i := range d / 2 {
		angle := float64(t) / math.Pow(r.arch.RopeTheta, float64(2*i)/float64(d))
		c, s := math.Cos(angle), math.Sin(angle)
		a, b := x[i], x[i+d/2]
		x[i], x[i+d/2] = a*c-b*s, b*c+a*s
	}
}

// logits of sequence s, [T, V].
func (r *reference) logits(b engine.Batch, s int, train bool) []float64 {
	a := r.arch
	T, C, A, H, K, D := b.T, a.Dim, a.QueryDim(), a.Heads, a.KVHeads, a.HeadDim()
	embed := r.p["model.embed_tokens.weight"]
	x := make([]float64, T*C)
	for t := range T {
		copy(x[t*C:], embed[int(b.Inputs[s*T+t])*C:int(b.Inputs[s*T+t])*C+C])
	}
	r.drop(x, b, siteEmbedding, s*T, train)
	for l := range a.Layers {
		name := "model.layers." + string(rune('0'+l)) + "."
		n := r.norm(x, r.p[name+"input_layernorm.weight"])
		q := matmul(n, r.p[name+"self_attn.q_proj.weight"], T, C)
		k := matmul(n, r.p[name+"self_attn.k_proj.weight"], T, C)
		v := matmul(n, r.p[name+"self_attn.v_proj.weight"], T, C)
		for t := range T {
			for h := range H {
				r.rotate(q[t*A+h*D:t*A+h*D+D], t)
			}
			for h := range K {
				r.rotate(k[(t*K+h)*D:(t*K+h)*D+D], t)
			}
		}
		att := make([]float64, T*A)
		for h := range H {
			kv := h / (H / K)
			for t := range T {
				p := make([]float64, t+1)
				var sum float64
				for u := range p {
					var d float64
					for i := range D {
						d += q[t*A+h*D+i] * k[(u*K+kv)*D+i]
					}
					p[u] = math.Exp(d / math.Sqrt(float64(D)))
					sum += p[u]
				}
				for u := range p {
					for i := range D {
						att[t*A+h*D+i] += p[u] / sum * v[(u*K+kv)*D+i]
					}
				}
			}
		}
		y := matmul(att, r.p[name+"self_attn.o_proj.weight"], T, A)
		r.drop(y, b, siteBranch(l, 0), s*T, train)
		for i := range x {
			x[i] += y[i]
		}
		n = r.norm(x, r.p[name+"post_attention_layernorm.weight"])
		gate := matmul(n, r.p[name+"mlp.gate_proj.weight"], T, C)
		up := matmul(n, r.p[name+"mlp.up_proj.weight"], T, C)
		for i, g := range gate {
			gate[i] = g / (1 + math.Exp(-g)) * up[i]
		}
		y = matmul(gate, r.p[name+"mlp.down_proj.weight"], T, a.FFN)
		r.drop(y, b, siteBranch(l, 1), s*T, train)
		for i := range x {
			x[i] += y[i]
		}
	}
	head := embed
	if !a.Tied {
		head = r.p["lm_head.weight"]
	}
	r.hidden = r.norm(x, r.p["model.norm.weight"])
	return matmul(r.hidden, head, T, C)
}

// taught is the objective with a teacher.
func (r *reference) taught(b engine.Batch, t engine.Teacher) float64 {
	V, C := r.arch.Vocab, r.arch.Dim
	softmax := func(at func(i int) float64, tau float64) []float64 {
		p := make([]float64, V)
		var sum float64
		for i := range p {
			p[i] = math.Exp(at(i) / tau)
			sum += p[i]
		}
		for i := range p {
			p[i] /= sum
		}
		return p
	}
	var loss float64
	for s := range b.B {
		logits := r.logits(b, s, true)
		for i := range b.T {
			at := s*b.T + i
			if b.Targets[at] == engine.Ignore {
				continue
			}
			own := func(j int) float64 { return logits[i*V+j] }
			p, q := softmax(own, t.Temperature), softmax(func(j int) float64 { return float64(t.Logits[at*V+j]) }, t.Temperature)
			l := -(1 - t.Weight) * math.Log(softmax(own, 1)[b.Targets[at]])
			for j := range p {
				l += t.Weight * t.Temperature * t.Temperature * q[j] * math.Log(q[j]/p[j])
			}
			if t.Hidden != nil {
				for j := range C {
					d := r.hidden[i*C+j] - float64(t.Hidden[at*C+j])
					l += t.HiddenLoss * d * d / float64(C)
				}
			}
			loss += l / b.Norm
		}
	}
	return loss
}

// loss is Σ nll/Norm, and the objective: with the z-loss.
func (r *reference) loss(b engine.Batch, train bool) (nll, objective float64) {
	V := r.arch.Vocab
	for s := range b.B {
		logits := r.logits(b, s, train)
		for t := range b.T {
			target := b.Targets[s*b.T+t]
			if target == engine.Ignore {
				continue
			}
			var sum float64
			for _, v := range logits[t*V : (t+1)*V] {
				sum += math.Exp(v)
			}
			z := math.Log(sum)
			nll += (z - logits[t*V+int(target)]) / b.Norm
			objective += r.zloss * z * z / b.Norm
		}
	}
	return nll, nll + objective
}
