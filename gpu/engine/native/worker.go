package native

import (
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// worker is one thread's share of a model: the activations of the sequences it
// computes at once (a chunk) and its own gradient. Sizes, once for this file and
// its neighbours:
//
//	N tokens of a chunk   T tokens of a sequence   C width    V vocabulary
//	H query heads         K key/value heads        D head size
//	Q = (H+2K)·D          F inner width of SwiGLU
type worker struct {
	model *Model
	id    int
	w, g  *tensors  // parameters (shared), gradients (own)
	arena []float32 // of g; worker 0's is the model's

	floats []float32 // all that follows

	// Activations of the forward pass. Without gradients all layers use one
	// layer's; under Options.Recompute each has its own x only.
	acts  []layerActs
	x     []float32 // [N, C] the residual stream after the last layer
	rstd  []float32 // [N] of the final norm
	norm  []float32 // [N, C] the final norm's result
	nmax  int       // N's largest
	rows  int       // of logits held at once
	logit []float32 // [rows, V]

	// Gradients of activations, and scratch.
	dx, dy, dn []float32 // [N, C]
	dqkv       []float32 // [N, Q]
	dact       []float32 // [N, F]
	attn       attention
	work       []float32 // of kernel.Gemm
	round      operands  // of products of bfloat16
	newton     newton    // of Muon
	soft       []float32 // [2, V] under a teacher

	half      bool // the products of the pass that runs are of bfloat16
	fresh     bool // the layers' matrices of g hold nothing yet …
	freshHead bool // … nor does the output projection

	// Results of the task.
	nll     float64
	tokens  int
	squares float64
}

// gemm is kernel.Gemm or kernel.GemmBF16.
type gemm func(op kernel.Op, m, n, k int, a []float32, lda int, b []float32, ldb int, c []float32, ldc int, acc bool, work []float32)

// product is the one that training uses.
func (o Options) product() gemm {
	if o.Precision == engine.BF16 {
		return kernel.GemmBF16
	}
	return kernel.Gemm
}

// layerActs are one layer's activations that the backward pass reads.
type layerActs struct {
	x     []float32 // [N, C] the residual stream before the layer
	rstd1 []float32 // [N]
	n1    []float32 // [N, C] normed
	qkv   []float32 // [N, Q] queries and keys rotated
	lse   []float32 // [N, H] log of the softmax's denominator
	att   []float32 // [N, C] heads' results
	x2    []float32 // [N, C] the residual stream between the branches
	rstd2 []float32 // [N]
	n2    []float32 // [N, C]
	glu   []float32 // [N, 2F] gate and up; the backward pass overwrites them by their gradients
	act   []float32 // [N, F] silu(gate)·up
}

// newWorker cuts one arena into all that the worker holds.
func newWorker(m *Model, id int) *worker {
	a, o := m.arch, m.opt
	C, A, V, F, H, T := a.Dim, a.QueryDim(), a.Vocab, a.FFN, a.Heads, o.MaxSeq
	Q := A + 2*a.KVDim()
	N := glm.Training{Sequences: o.MaxBatch, Tokens: T, Threads: o.Threads}.ThreadTokens()
	w := &worker{model: m, id: id, w: m.w, nmax: N, rows: min(N, glm.LogitRows(V))}
	if !o.Inference {
		w.arena = m.grads
		if id > 0 {
			w.arena = newArena(m.size)
		}
		w.g = view(a, m.layout, w.arena)
	}
	w.acts = make([]layerActs, a.Layers)

	// The first walk counts, the second cuts.
	var arena []float32
	used := 0
	cut := func(p *[]float32, n int) {
		n = (n + 15) &^ 15
		if arena != nil {
			*p = arena[used : used+n : used+n]
		}
		used += n
	}
	walk := func() {
		used = 0
		for i := range w.acts {
			l := &w.acts[i]
			if i > 0 && o.Inference {
				break
			}
			cut(&l.x, N*C)
			if i > 0 && o.Recompute {
				continue
			}
			cut(&l.rstd1, N)
			cut(&l.n1, N*C)
			cut(&l.qkv, N*Q)
			cut(&l.lse, N*H)
			cut(&l.att, N*A)
			cut(&l.x2, N*C)
			cut(&l.rstd2, N)
			cut(&l.n2, N*C)
			cut(&l.glu, N*2*F)
			cut(&l.act, N*F)
		}
		cut(&w.x, N*C)
		cut(&w.rstd, N)
		cut(&w.norm, N*C)
		cut(&w.logit, w.rows*V)
		cut(&w.dx, N*C)
		cut(&w.dy, N*C)
		cut(&w.dn, N*max(C, A))
		cut(&w.dqkv, N*Q)
		cut(&w.dact, N*F)
		w.attn.cut(cut, a.HeadDim(), T)
		cut(&w.work, kernel.WorkLen)
		if !o.Inference && o.Precision == engine.BF16 {
			w.round.cut(cut, a, N, w.rows, T)
		}
		if !o.Inference && o.Optimizer == engine.Muon {
			w.newton.cut(cut, m.layout)
		}
	}
	walk()
	arena = newArena(used)
	w.floats = arena
	walk()
	if o.Inference || o.Recompute { // all layers use the first one's
		for i := range w.acts[1:] {
			x := w.acts[1+i].x
			w.acts[1+i] = w.acts[0]
			if o.Recompute {
				w.acts[1+i].x = x
			}
		}
	}
	return w
}

// pass runs the worker's sequences, a chunk at a time.
func (w *worker) pass() {
	m, b := w.model, &w.model.job.batch
	from, to := b.B*w.id/m.job.active, b.B*(w.id+1)/m.job.active
	w.nll, w.tokens = 0, 0
	w.half = m.job.mode == training && m.opt.Precision == engine.BF16 // scores are float32's
	w.fresh, w.freshHead = false, false
	if m.job.mode == training && w.id > 0 {
		w.renew()
	}
	chunk := max(1, w.nmax/b.T)
	// Equal chunks: 10 sequences in chunks of at most 4 are 4, 3, 3.
	pieces := (to - from + chunk - 1) / chunk
	for i := range pieces {
		s0, s1 := from+(to-from)*i/pieces, from+(to-from)*(i+1)/pieces
		w.forward(b, s0, s1)
		w.head(b, s0, s1)
		if m.job.mode == training {
			w.backward(b, s0, s1, i == pieces-1)
			w.fresh = false
		}
	}
}

// renew makes the worker's own gradient new: matrices will be written by the first
// chunk's products, which saves a walk over the arena; the rest is zeroed.
func (w *worker) renew() {
	w.fresh, w.freshHead = true, true
	for i := range w.g.layers {
		clear(w.g.layers[i].norm1)
		clear(w.g.layers[i].norm2)
	}
	clear(w.g.finalNorm)
	if !w.model.arch.Tied {
		clear(w.g.embed)
	}
}

// forward computes the residual stream and its final norm for sequences s0 … s1.
func (w *worker) forward(b *engine.Batch, s0, s1 int) {
	a := &w.model.arch
	T, C := b.T, a.Dim
	N := (s1 - s0) * T
	drop := w.model.opt.Dropout
	if w.model.job.mode != training {
		drop = 0
	}

	x := w.acts[0].x[:N*C]
	for i, id := range b.Inputs[s0*T : s1*T] {
		copy(x[i*C:(i+1)*C], w.w.embed[int(id)*C:(int(id)+1)*C])
	}
	w.dropout(x, siteEmbedding, s0*T, drop)

	for l := range a.Layers {
		c := &w.acts[l]
		out := w.x
		if l+1 < a.Layers {
			out = w.acts[l+1].x
		}
		w.layer(l, s0, s1, T, drop)
		w.branch(out, c.x2, c.act, a.FFN, N, w.w.layers[l].down, siteBranch(l, 1), s0*T, drop, func(i, j int) { w.gate(c, i, j) })
	}
	for i := range N {
		w.rstd[i] = kernel.RMSNorm(w.norm[i*C:(i+1)*C], w.x[i*C:(i+1)*C], w.w.finalNorm, a.NormEps)
	}
}

// gate computes rows of act.
func (w *worker) gate(c *layerActs, from, to int) {
	F := w.model.arch.FFN
	for i := from; i < to; i++ {
		row := c.glu[i*2*F : (i+1)*2*F]
		kernel.SwiGLU(c.act[i*F:(i+1)*F], row[:F], row[F:])
	}
}

// layer computes what the backward pass reads of layer l from its input, but for act.
func (w *worker) layer(l, s0, s1, T int, drop float64) {
	a := &w.model.arch
	C, A, F, H, K, D := a.Dim, a.QueryDim(), a.FFN, a.Heads, a.KVHeads, a.HeadDim()
	Q := A + 2*K*D
	N := (s1 - s0) * T
	p, c := &w.w.layers[l], &w.acts[l]
	for i := range N {
		c.rstd1[i] = kernel.RMSNorm(c.n1[i*C:(i+1)*C], c.x[i*C:(i+1)*C], p.norm1, a.NormEps)
	}
	w.linear(c.qkv, Q, c.n1, C, N, p.qkv, false, nil)
	for i := range N {
		cos, sin := w.model.rope.at(i % T)
		kernel.Rope(c.qkv[i*Q:], cos, sin, H+K, 1)
	}
	for s := range s1 - s0 {
		w.attend(c, s*T, T)
	}
	w.branch(c.x2, c.x, c.att, A, N, p.o, siteBranch(l, 0), s0*T, drop, nil)
	for i := range N {
		c.rstd2[i] = kernel.RMSNorm(c.n2[i*C:(i+1)*C], c.x2[i*C:(i+1)*C], p.norm2, a.NormEps)
	}
	w.linear(c.glu, 2*F, c.n2, C, N, p.glu, false, nil)
}

// backward adds the gradients of sequences s0 … s1 to w.g, from w.dn, the
// gradient of the final norm's result. last tells that no other chunk follows.
func (w *worker) backward(b *engine.Batch, s0, s1 int, last bool) {
	a := &w.model.arch
	T, C, A, F, H, K, D := b.T, a.Dim, a.QueryDim(), a.FFN, a.Heads, a.KVHeads, a.HeadDim()
	Q := A + 2*K*D
	N := (s1 - s0) * T
	drop := w.model.opt.Dropout

	dx := w.dx[:N*C] // the residual stream's, all the way down
	clear(dx)
	w.normGrad(dx, w.g.finalNorm, w.dn, w.x, w.w.finalNorm, w.rstd, N)
	if last {
		w.model.over.done(a.Layers)
	}
	for l := a.Layers - 1; l >= 0; l-- {
		p, g, c := &w.w.layers[l], &w.g.layers[l], &w.acts[l]
		if w.model.opt.Recompute && l+1 < a.Layers { // the last layer's are still there
			w.layer(l, s0, s1, T, drop)
			w.gate(c, 0, N)
		}

		dy := w.branchGrad(dx, N, siteBranch(l, 1), s0*T, drop)
		w.linearGrad(w.dact, dy, C, c.act, F, N, p.down, g.down, !w.fresh, nil)
		w.linearGrad(w.dn, c.glu, 2*F, c.n2, C, N, p.glu, g.glu, !w.fresh, func(from, to int) {
			for i := from; i < to; i++ {
				row := c.glu[i*2*F : (i+1)*2*F]
				kernel.SwiGLUGrad(row[:F], row[F:], w.dact[i*F:(i+1)*F], row[:F], row[F:])
			}
		})
		w.normGrad(dx, g.norm2, w.dn, c.x2, p.norm2, c.rstd2, N)

		dy = w.branchGrad(dx, N, siteBranch(l, 0), s0*T, drop)
		w.linearGrad(w.dn, dy, C, c.att, A, N, p.o, g.o, !w.fresh, nil)
		for s := range s1 - s0 {
			w.attendGrad(c, s*T, T)
		}
		w.linearGrad(w.dn, w.dqkv, Q, c.n1, C, N, p.qkv, g.qkv, !w.fresh, func(from, to int) {
			for i := from; i < to; i++ {
				cos, sin := w.model.rope.at(i % T)
				kernel.Rope(w.dqkv[i*Q:], cos, sin, H+K, -1)
			}
		})
		w.normGrad(dx, g.norm1, w.dn, c.x, p.norm1, c.rstd1, N)
		if last {
			w.model.over.done(l)
		}
	}
	w.dropout(dx, siteEmbedding, s0*T, drop)
	for i, id := range b.Inputs[s0*T : s1*T] {
		kernel.Add(w.g.embed[int(id)*C:(int(id)+1)*C], dx[i*C:(i+1)*C])
	}
}

// branch computes out[N, C] = x + dropout(y·Wᵀ), whose y is made as linear's x.
func (w *worker) branch(out, x, y []float32, in, n int, ms []matrix, site uint64, row0 int, drop float64, made fill) {
	C := w.model.arch.Dim
	if drop == 0 {
		copy(out[:n*C], x[:n*C])
		w.linear(out, C, y, in, n, ms, true, made)
		return
	}
	w.linear(w.dy, C, y, in, n, ms, false, made)
	w.dropout(w.dy[:n*C], site, row0, drop)
	kernel.AddTo(out[:n*C], x, w.dy)
}

// branchGrad is the gradient of the branch's product: dx itself, or a copy under
// the branch's dropout.
func (w *worker) branchGrad(dx []float32, n int, site uint64, row0 int, drop float64) []float32 {
	if drop == 0 {
		return dx
	}
	dy := w.dy[:n*w.model.arch.Dim]
	copy(dy, dx)
	w.dropout(dy, site, row0, drop)
	return dy
}

// normGrad adds the gradients through RMSNorm, row by row, to dx and dg.
func (w *worker) normGrad(dx, dg, dy, x, g, rstd []float32, n int) {
	C := w.model.arch.Dim
	for i := range n {
		kernel.RMSNormGrad(dx[i*C:(i+1)*C], dg, dy[i*C:(i+1)*C], x[i*C:(i+1)*C], g, rstd[i])
	}
}

// Sites of dropout.
const siteEmbedding = 0

func siteBranch(layer, branch int) uint64 { return uint64(1 + 2*layer + branch) }

// dropout drops elements of x [N, C], whose first row is row0 of the batch. What
// is dropped depends on the batch's seed, the site and the row alone, not on who
// computes it.
func (w *worker) dropout(x []float32, site uint64, row0 int, p float64) {
	if p == 0 {
		return
	}
	C := w.model.arch.Dim
	for i := range len(x) / C {
		kernel.Dropout(x[i*C:(i+1)*C], dropoutKey(w.model.job.batch.Seed, site, row0+i), p)
	}
}

// dropoutKey mixes seed, site and row (splitmix64's finaliser).
func dropoutKey(seed, site uint64, row int) uint64 {
	z := seed + site*0x9e3779b97f4a7c15 + uint64(row)*0xd1342543de82ef95
	for range 2 {
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		z ^= z >> 31
	}
	return z
}

// head computes the loss of sequences s0 … s1 over blocks of rows, so that few
// rows of logits exist at once; when training it leaves the gradient of w.norm in
// w.dn and adds the output projection's.
func (w *worker) head(b *engine.Batch, s0, s1 int) {
	a := &w.model.arch
	T, C, V := b.T, a.Dim, a.Vocab
	N := (s1 - s0) * T
	mode := w.model.job.mode
	blocks := (N + w.rows - 1) / w.rows
	for i := range blocks {
		r0, r1 := N*i/blocks, N*(i+1)/blocks
		x := w.norm[r0*C : r1*C]
		if mode == logits {
			if hidden := w.model.job.hidden; hidden != nil {
				copy(hidden[(s0*T+r0)*C:], x)
			}
			w.linear(w.model.job.logits[(s0*T+r0)*V:], V, x, C, r1-r0, w.w.head, false, nil)
			continue
		}
		targets := b.Targets[s0*T+r0 : s0*T+r1]
		if !anyScored(targets) {
			if mode == training {
				clear(w.dn[r0*C : r1*C])
			}
			continue
		}
		w.linear(w.logit, V, x, C, r1-r0, w.w.head, false, nil)
		losses := func(from, to int) {
			for r := from; r < to; r++ {
				if t := w.model.job.teacher; t != nil && mode == training {
					w.taught(t, w.logit[r*V:(r+1)*V], s0*T+r0+r, targets[r], b.Norm)
					continue
				}
				loss := w.crossEntropy(w.logit[r*V:(r+1)*V], targets[r], b.Norm)
				if each := w.model.job.each; each != nil {
					each[s0*T+r0+r] = float32(loss)
				}
			}
		}
		if mode != training {
			losses(0, r1-r0)
			continue
		}
		w.linearGrad(w.dn[r0*C:], w.logit, V, x, C, r1-r0, w.w.head, w.g.head, !w.freshHead, losses)
		if t := w.model.job.teacher; t != nil {
			w.likeHidden(t, w.dn[r0*C:r1*C], x, s0*T+r0, targets, b.Norm)
		}
		w.freshHead = false
	}
	if w.freshHead { // nothing was scored
		clear(w.g.head[0].w)
		w.freshHead = false
	}
}

func anyScored(targets []int32) bool {
	for _, t := range targets {
		if t != engine.Ignore {
			return true
		}
	}
	return false
}

// crossEntropy adds one row's loss, returns it and, when training, turns its logits into
// their gradient: (p·(1 + 2·z·logZ) − onehot)/norm.
func (w *worker) crossEntropy(row []float32, target int32, norm float64) (loss float64) {
	train := w.model.job.mode == training
	if target == engine.Ignore {
		if train {
			clear(row)
		}
		return 0
	}
	top, own := kernel.Max(row), row[target]
	sum := kernel.ExpSum(row, row, 1, top)
	logZ := float64(top) + math.Log(float64(sum))
	loss = logZ - float64(own)
	w.nll += loss
	w.tokens++
	if train {
		kernel.Scale(row, float32((1+2*w.model.opt.ZLoss*logZ)/(float64(sum)*norm)))
		row[target] -= float32(1 / norm)
	}
	return loss
}
