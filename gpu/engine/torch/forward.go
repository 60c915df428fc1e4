//go:build libtorch

package torch

import (
	"fmt"
	"math"
	"runtime"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// logZ is Σ log²Z over the scored rows of logits.
func (m *Model) logZ(s *scope, logits tensor, targets []int32) tensor {
	z := s.op(func(o *tensor) { lib.AtgLogsumexp(o, logits, []int64{1}, 1, 0) })
	scored := make([]float32, len(targets))
	for i, t := range targets {
		if t != engine.Ignore {
			scored[i] = 1
		}
	}
	mask := s.zeros(cpu, int64(len(targets)))
	if s.err == nil {
		copy(unsafe.Slice((*float32)(lib.AtDataPtr(mask)), len(targets)), scored)
	}
	return s.sum(s.mul(s.square(z), s.to(mask, m.opt.Device)), kindFloat32)
}

// ids copies token ids to the device.
func (s *scope) ids(ids []int32, device int, shape ...int64) tensor {
	t := s.op(func(o *tensor) { lib.AtgZeros(o, shape, len(shape), kindInt64, cpu) })
	if s.err == nil {
		for i, p := 0, unsafe.Slice((*int64)(lib.AtDataPtr(t)), len(ids)); i < len(p); i++ {
			p[i] = int64(ids[i])
		}
	}
	return s.to(t, device)
}

// Logits is the forward pass alone, without dropout: [B, T, V] in new memory.
func (m *Model) Logits(b engine.Batch) ([]float32, error) {
	if err := b.Check(m.opt.MaxBatch, m.opt.MaxSeq, m.arch.Vocab, false); err != nil {
		return nil, fmt.Errorf("torch: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	lib.AtGradSetEnabled(0)
	var s scope
	defer s.free()
	out := make([]float32, b.B*b.T*m.arch.Vocab)
	s.read(out, m.forward(&s, b, 0, b.B, false, nil))
	if s.err != nil {
		return nil, fmt.Errorf("torch: logits: %w", s.err)
	}
	return out, nil
}

// forward is the model: logits [B·T, V] of sequences from … from+B. Sizes:
//
//	B sequences   T tokens   C width   H query heads   K key/value heads   D head size   V vocabulary
//
// Where c is not nil, autograd's graph is cut between the model's parts.
func (m *Model) forward(s *scope, batch engine.Batch, from, n int, train bool, c *cuts) tensor {
	a := &m.arch
	B, T, C, V := int64(n), int64(batch.T), int64(a.Dim), int64(a.Vocab)
	bf16 := train && m.opt.Precision == engine.BF16
	drop := func(x tensor) tensor {
		if !train || m.opt.Dropout == 0 {
			return x
		}
		return s.op(func(o *tensor) { lib.AtgDropout(o, x, m.opt.Dropout, 1) })
	}
	linear := func(x tensor, name string) tensor { return s.linear(x, m.leaves[name], bf16) }

	ids := s.ids(batch.Inputs[from*batch.T:(from+n)*batch.T], m.opt.Device, B, T)
	embed := m.leaves["model.embed_tokens.weight"]
	x := s.op(func(o *tensor) { lib.AtgEmbedding(o, embed, ids, -1, 0, 0) }) // [B, T, C]
	x = c.cut(s, drop(x))
	for l := range a.Layers {
		p := fmt.Sprintf("model.layers.%d.", l)
		y := s.rmsNorm(x, m.leaves[p+"input_layernorm.weight"], a.NormEps)
		q := linear(y, p+"self_attn.q_proj.weight")
		k := linear(y, p+"self_attn.k_proj.weight")
		v := linear(y, p+"self_attn.v_proj.weight")
		y = m.attend(s, q, k, v, B, T, bf16) // [B, T, C]
		x = s.add(x, drop(linear(y, p+"self_attn.o_proj.weight")))
		y = s.rmsNorm(x, m.leaves[p+"post_attention_layernorm.weight"], a.NormEps)
		gate := linear(y, p+"mlp.gate_proj.weight") // [B, T, F]
		gate = s.op(func(o *tensor) { lib.AtgSilu(o, gate) })
		y = s.mul(gate, linear(y, p+"mlp.up_proj.weight"))
		x = c.cut(s, s.add(x, drop(linear(y, p+"mlp.down_proj.weight"))))
	}
	x = s.rmsNorm(x, m.leaves["model.norm.weight"], a.NormEps)
	head := embed
	if !a.Tied {
		head = m.leaves["lm_head.weight"]
	}
	return s.view(s.linear(s.view(x, B*T, C), head, bf16), B*T, V)
}

// linear is x·Wᵀ; in bf16 both are rounded, and the result is float32 again.
func (s *scope) linear(x, w tensor, bf16 bool) tensor {
	if bf16 {
		x, w = s.cast(x, kindBF16), s.cast(w, kindBF16)
	}
	y := s.op(func(o *tensor) { lib.AtgLinear(o, x, w, nil) })
	if bf16 {
		y = s.cast(y, kindFloat32)
	}
	return y
}

// rmsNorm is x/√(mean(x²)+eps)·g over the last dimension.
func (s *scope) rmsNorm(x, g tensor, eps float64) tensor {
	square := s.square(x)
	mean := s.op(func(o *tensor) { lib.AtgMeanDim(o, square, []int64{-1}, 1, 1, kindFloat32) })
	mean = s.addScalar(mean, eps)
	rstd := s.op(func(o *tensor) { lib.AtgRsqrt(o, mean) })
	return s.mul(s.mul(x, rstd), g)
}

// attend is causal grouped-query attention of q [B, T, H·D], k and v [B, T, K·D].
func (m *Model) attend(s *scope, q, k, v tensor, B, T int64, bf16 bool) tensor {
	a := &m.arch
	H, K, D := int64(a.Heads), int64(a.KVHeads), int64(a.HeadDim())
	cos, sin := s.narrow(m.cos, 0, 0, int(T)), s.narrow(m.sin, 0, 0, int(T))
	heads := func(x tensor, n int64) tensor { return s.transpose(s.view(x, B, T, n, D), 1, 2) } // [B, n, T, D]
	q = s.rotate(heads(q, H), cos, sin, int(D))
	k = s.rotate(heads(k, K), cos, sin, int(D))
	v = heads(v, K)
	if K < H {
		// Each key and value head serves H/K query heads that stand together.
		share := func(x tensor) tensor {
			x = s.view(x, B, K, 1, T, D)
			shape := []int64{B, K, H / K, T, D}
			x = s.op(func(o *tensor) { lib.AtgExpand(o, x, shape, len(shape), 0) })
			return s.view(x, B, H, T, D)
		}
		k, v = share(k), share(v)
	}
	if bf16 {
		q, k, v = s.cast(q, kindBF16), s.cast(k, kindBF16), s.cast(v, kindBF16)
	}
	var y tensor
	if m.fused {
		y = s.op(func(o *tensor) { lib.AtgScaledDotProductAttention(o, q, k, v, nil, 0, 1, 0, 1) })
	} else {
		y = s.composed(q, k, v, m.opt.Device, T, D)
	}
	if bf16 {
		y = s.cast(y, kindFloat32)
	}
	return s.view(s.transpose(y, 1, 2), B, T, H*D)
}

// rotate is the half-split rotary embedding of x [B, n, T, D].
func (s *scope) rotate(x, cos, sin tensor, D int) tensor {
	low, high := s.narrow(x, 3, 0, D/2), s.narrow(x, 3, D/2, D/2)
	halves := []tensor{s.op(func(o *tensor) { lib.AtgNeg(o, high) }), low}
	turned := s.op(func(o *tensor) { lib.AtgCat(o, halves, 2, 3) })
	return s.add(s.mul(x, cos), s.mul(turned, sin))
}

// composed is causal attention out of products and a softmax, for a libtorch
// without the fused one.
func (s *scope) composed(q, k, v tensor, device int, T, D int64) tensor {
	scores := s.scale(s.matmul(q, s.transpose(k, 2, 3)), 1/math.Sqrt(float64(D)))
	scores = s.hide(scores, device, int(T), int(T))
	p := s.op(func(o *tensor) { lib.AtgSoftmax(o, scores, -1, kindFloat32) })
	return s.matmul(s.op(func(o *tensor) { lib.AtgToDtype(o, p, lib.AtScalarType(v), 0, 0) }), v)
}

// hide takes the future from scores [·, n, N], of the last n of N tokens for all of them.
func (s *scope) hide(scores tensor, device, n, N int) tensor {
	future := s.addScalar(s.zeros(device, int64(n), int64(N)), 1)
	future = s.op(func(o *tensor) { lib.AtgTriu(o, future, int64(N-n+1)) })
	const kindBool = 11
	future = s.cast(future, kindBool)
	return s.scalar(math.Inf(-1), func(o *tensor, v lib.Cscalar) { lib.AtgMaskedFill(o, scores, future, v) })
}

// probeAttention asks for the fused attention once.
func (m *Model) probeAttention() {
	if m.own.err != nil {
		return
	}
	var s scope
	defer s.free()
	x := s.zeros(m.opt.Device, 1, 1, 2, 8)
	s.op(func(o *tensor) { lib.AtgScaledDotProductAttention(o, x, x, x, nil, 0, 1, 0, 1) })
	m.fused = s.err == nil
}
