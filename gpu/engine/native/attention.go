package native

import (
	"math"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

const attentionRows = glm.QueryRows

// attention is the scratch of one head of one sequence. Probabilities exist for
// one block of rows at a time; the backward pass computes them again from the
// stored log-denominators (as FlashAttention does), which is cheaper than moving
// T×T of them through memory.
type attention struct {
	p, dp  []float32 // [rows, T]
	kT, vT []float32 // packed [D, T]
	kN, vN []float32 // packed [T, D]
}

func (s *attention) cut(cut func(*[]float32, int), D, T int) {
	cut(&s.p, attentionRows*T)
	cut(&s.dp, attentionRows*T)
	cut(&s.kT, kernel.PackedLen(T, D))
	cut(&s.vT, kernel.PackedLen(T, D))
	cut(&s.kN, kernel.PackedLen(D, T))
	cut(&s.vN, kernel.PackedLen(D, T))
}

// attend computes the heads of the sequence whose first row is row: c.att and
// c.lse from c.qkv.
func (w *worker) attend(c *layerActs, row, T int) {
	a, s := &w.model.arch, &w.attn
	A, H, K, D := a.QueryDim(), a.Heads, a.KVHeads, a.HeadDim()
	Q := A + 2*K*D
	qkv := c.qkv[row*Q:]
	scale := float32(1 / math.Sqrt(float64(D)))
	blocks := (T + attentionRows - 1) / attentionRows
	for kv := range K {
		w.pack(s.kT, kernel.NT, T, D, qkv[(H+kv)*D:], Q)
		w.pack(s.vN, kernel.NN, D, T, qkv[(H+K+kv)*D:], Q)
		for h := kv * (H / K); h < (kv+1)*(H/K); h++ {
			for b := range blocks {
				i0, i1 := T*b/blocks, T*(b+1)/blocks
				w.times(i1-i0, i1, D, qkv[i0*Q+h*D:], Q, s.kT, D, s.p, i1)
				out := c.att[(row+i0)*A+h*D:]
				var sums [attentionRows]float32
				for i := i0; i < i1; i++ {
					p := s.p[(i-i0)*i1 : (i-i0+1)*i1]
					top := kernel.Max(p[:i+1]) * scale
					sum := kernel.ExpSum(p[:i+1], p[:i+1], scale, top)
					clear(p[i+1:])
					sums[i-i0] = sum
					c.lse[(row+i)*H+h] = top + float32(math.Log(float64(sum)))
				}
				w.times(i1-i0, D, i1, s.p, i1, s.vN, T, out, A)
				for i := range i1 - i0 {
					kernel.Scale(out[i*A:i*A+D], 1/sums[i])
				}
			}
		}
	}
}

// attendGrad computes the sequence's w.dqkv (of rotated queries and keys) from
// w.dn, the gradient of c.att.
func (w *worker) attendGrad(c *layerActs, row, T int) {
	a, s := &w.model.arch, &w.attn
	A, H, K, D := a.QueryDim(), a.Heads, a.KVHeads, a.HeadDim()
	Q := A + 2*K*D
	qkv, dqkv := c.qkv[row*Q:], w.dqkv[row*Q:]
	scale := float32(1 / math.Sqrt(float64(D)))
	blocks := (T + attentionRows - 1) / attentionRows
	for kv := range K {
		k, v := (H+kv)*D, (H+K+kv)*D
		w.pack(s.kT, kernel.NT, T, D, qkv[k:], Q)
		w.pack(s.vT, kernel.NT, T, D, qkv[v:], Q)
		w.pack(s.kN, kernel.NN, D, T, qkv[k:], Q)
		for h := kv * (H / K); h < (kv+1)*(H/K); h++ {
			// The last block meets all keys: it writes dk and dv, the others add.
			for b := blocks - 1; b >= 0; b-- {
				i0, i1 := T*b/blocks, T*(b+1)/blocks
				acc := b < blocks-1 || h > kv*(H/K)
				q := qkv[i0*Q+h*D:]
				out, dout := c.att[(row+i0)*A+h*D:], w.dn[(row+i0)*A+h*D:]
				w.times(i1-i0, i1, D, q, Q, s.kT, D, s.p, i1)
				w.times(i1-i0, i1, D, dout, A, s.vT, D, s.dp, i1)
				for i := i0; i < i1; i++ {
					r := i - i0
					p, dp := s.p[r*i1:(r+1)*i1], s.dp[r*i1:(r+1)*i1]
					kernel.ExpSum(p[:i+1], p[:i+1], scale, c.lse[(row+i)*H+h])
					clear(p[i+1:])
					d := kernel.Dot(dout[r*A:r*A+D], out[r*A:r*A+D])
					kernel.SoftmaxGrad(dp[:i+1], p[:i+1], d, scale)
					clear(dp[i+1:])
				}
				w.times(i1-i0, D, i1, s.dp, i1, s.kN, T, dqkv[i0*Q+h*D:], Q)
				w.transposed(i1, D, i1-i0, s.dp, i1, q, Q, dqkv[k:], Q, acc)
				w.transposed(i1, D, i1-i0, s.p, i1, dout, A, dqkv[v:], Q, acc)
			}
		}
	}
}
