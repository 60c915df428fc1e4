//go:build libtorch

package torch

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"unsafe"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// DecoderOptions says where a decoder computes and how much it holds.
type DecoderOptions struct {
	Device  int // CPU, or a CUDA device from 0 on
	Threads int // of libtorch's operations on a CPU, for the whole process; 0 is 1
	MaxSeqs int // most sequences held at once; 0 is 1
	// Precision of the matrices, of the keys and values, and of the products; sums, norms
	// and softmaxes are float32. "" is F32, Auto is BF16 on CUDA.
	Precision engine.Precision
}

// Decoder generates with each sequence's keys and values in tensors on the device, which
// are doubled as the sequence grows. The projections of all tokens of a call are one
// product each; attention is computed sequence by sequence. It implements engine.Decoder
// and engine.Embedder, and is owned by one goroutine.
//
// libtorch chooses its products by their sizes: the logits after a text are the same
// within rounding, not to the bit, however its tokens are split between calls and
// whatever is computed beside it.
//
// It has never run on CUDA: its tests run on libtorch's CPU device.
type Decoder struct {
	arch     glm.Arch
	opt      DecoderOptions
	own      scope             // the tensors below; freed by Close
	weights  map[string]tensor // matrices in the decoder's precision, norms in float32
	cos, sin tensor            // [Context, D] of the rotary embedding
	caches   map[int]*cache
	logits   []float32 // of the last call
}

var (
	_ engine.Decoder  = (*Decoder)(nil)
	_ engine.Embedder = (*Decoder)(nil)
)

// cache is a sequence's keys and values.
type cache struct {
	own  scope    // the tensors below
	n    int      // tokens that are there
	room int      // that fit
	k, v []tensor // of each layer: [K, room, D]
}

// minRoom is how many tokens a new cache has room for, at least.
const minRoom = 64

// span is a run of a call's tokens that belong to one sequence.
type span struct {
	cache    *cache
	from, to int // rows of the call
}

// NewDecoder makes a decoder from the parameters in state, which may hold other tensors
// beside them. It copies what it needs; tensors of few bits are widened.
func NewDecoder(a glm.Arch, state engine.StateDict, o DecoderOptions) (*Decoder, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	opt := Options{Device: o.Device, Threads: o.Threads, Precision: o.Precision}.withDefaults(a)
	if err := opt.Validate(); err != nil {
		return nil, err
	}
	o.Precision = opt.Precision
	if o.MaxSeqs == 0 {
		o.MaxSeqs = 1
	}
	if o.MaxSeqs < 0 {
		return nil, fmt.Errorf("torch: decoder of %d sequences, must be positive", o.MaxSeqs)
	}
	layout, _ := a.Layout()
	params, err := state.Pick(layout)
	if err != nil {
		return nil, fmt.Errorf("torch: load: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := checkDevice(o.Device); err != nil {
		return nil, err
	}
	lib.SetThreads(opt.Threads)
	lib.AtGradSetEnabled(0)
	d := &Decoder{arch: a, opt: o, weights: map[string]tensor{}, caches: map[int]*cache{}}
	for i, p := range layout {
		d.weights[p.Name] = d.upload(params[i], p.Role)
	}
	d.cos, d.sin = d.own.rotary(a, a.Context, o.Device)
	if d.own.err != nil {
		err := fmt.Errorf("torch: decoder: %w", d.own.err)
		d.own.free()
		return nil, err
	}
	return d, nil
}

// upload copies a parameter to the device, in the decoder's precision.
func (d *Decoder) upload(p engine.Tensor, role glm.Role) tensor {
	var s scope
	defer s.free()
	values := p.Floats()
	from := s.blob(values, dims(p.Shape)...)
	kind := d.kind()
	if role == glm.Norm {
		kind = kindFloat32
	}
	shape := dims(p.Shape)
	to := d.own.op(func(o *tensor) { lib.AtgZeros(o, shape, len(shape), kind, int32(d.opt.Device)) })
	s.err = d.own.err
	s.copyInto(to, from)
	d.own.err = s.err
	runtime.KeepAlive(values)
	return to
}

func (d *Decoder) bf16() bool { return d.opt.Precision == engine.BF16 }

// kind is the scalar type of matrices, keys and values.
func (d *Decoder) kind() int32 {
	if d.bf16() {
		return kindBF16
	}
	return kindFloat32
}

// Len implements engine.Decoder.
func (d *Decoder) Len(seq int) int {
	if c := d.caches[seq]; c != nil {
		return c.n
	}
	return 0
}

// Drop implements engine.Decoder.
func (d *Decoder) Drop(seq int) {
	if c := d.caches[seq]; c != nil {
		c.own.free()
		delete(d.caches, seq)
	}
}

// Close frees all tensors. No other call may follow.
func (d *Decoder) Close() error {
	for seq := range d.caches {
		d.Drop(seq)
	}
	d.own.free()
	return nil
}

// Prefill implements engine.Decoder. On an error the sequence is as it was.
func (d *Decoder) Prefill(seq int, ids []int32) ([]float32, error) {
	if err := d.extend(seq, ids, nil); err != nil {
		return nil, err
	}
	return d.logits, nil
}

// Width implements engine.Embedder.
func (d *Decoder) Width() int { return d.arch.Dim }

// Embed implements engine.Embedder. On an error the sequence is as it was.
func (d *Decoder) Embed(seq int, ids []int32, sum []float32) error {
	if len(sum) != d.arch.Dim {
		return fmt.Errorf("torch: hidden states are %d wide, not %d", d.arch.Dim, len(sum))
	}
	return d.extend(seq, ids, sum)
}

// extend appends ids to a sequence: d.logits are those after the last, unless the hidden
// states are to be added to sum.
func (d *Decoder) extend(seq int, ids []int32, sum []float32) error {
	if err := engine.CheckPrefill(seq, ids, d.arch.Vocab); err != nil {
		return fmt.Errorf("torch: %w", err)
	}
	c := d.caches[seq]
	if c == nil {
		if len(d.caches) >= d.opt.MaxSeqs {
			return fmt.Errorf("torch: sequence %d would be number %d, the decoder was made for %d (DecoderOptions.MaxSeqs); Drop one", seq, len(d.caches)+1, d.opt.MaxSeqs)
		}
		c = &cache{}
	}
	if err := d.checkRoom(seq, c, len(ids)); err != nil {
		return err
	}
	err := d.compute(ids, []span{{c, 0, len(ids)}}, sum)
	switch {
	case err != nil && d.caches[seq] == nil:
		c.own.free()
	case err == nil:
		d.caches[seq] = c
	}
	return err
}

// Decode implements engine.Decoder. seqs are distinct. On an error all sequences are as
// they were.
func (d *Decoder) Decode(seqs []int, ids []int32) ([]float32, error) {
	if err := engine.CheckDecode(seqs, ids, d.arch.Vocab, func(s int) bool { return d.caches[s] != nil }); err != nil {
		return nil, fmt.Errorf("torch: %w", err)
	}
	spans := make([]span, len(seqs))
	for i, s := range seqs {
		c := d.caches[s]
		if err := d.checkRoom(s, c, 1); err != nil {
			return nil, err
		}
		spans[i] = span{c, i, i + 1}
	}
	if err := d.compute(ids, spans, nil); err != nil {
		return nil, err
	}
	return d.logits, nil
}

func (d *Decoder) checkRoom(seq int, c *cache, n int) error {
	if c.n+n > d.arch.Context {
		return fmt.Errorf("torch: sequence %d would hold %d tokens, the model's context is %d", seq, c.n+n, d.arch.Context)
	}
	return nil
}

// compute appends the spans' tokens to their sequences. What is wanted of them, the logits
// after each span or the sum of hidden states, is copied to the host.
func (d *Decoder) compute(ids []int32, spans []span, sum []float32) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	lib.AtGradSetEnabled(0)
	var s scope
	defer s.free()
	for _, sp := range spans {
		if s.err == nil {
			s.err = d.reach(sp.cache, sp.cache.n+sp.to-sp.from)
		}
	}
	x := d.forward(&s, ids, spans) // [R, C]
	if sum != nil {
		x = s.op(func(o *tensor) { lib.AtgSumDimIntlist(o, x, []int64{0}, 1, 0, kindFloat32) })
		got := make([]float32, len(sum))
		s.read(got, x)
		if s.err == nil {
			for i, v := range got {
				sum[i] += v
			}
		}
	} else {
		last := make([]int32, len(spans))
		for i, sp := range spans {
			last[i] = int32(sp.to - 1)
		}
		if len(last) < len(ids) {
			x = s.rows(x, s.ids(last, d.opt.Device, int64(len(last))))
		}
		n := len(spans) * d.arch.Vocab
		d.logits = slices.Grow(d.logits[:0], n)[:n]
		s.read(d.logits, s.linear(x, d.head(), d.bf16()))
	}
	if s.err != nil {
		return fmt.Errorf("torch: %d tokens of %d sequences: %w", len(ids), len(spans), s.err)
	}
	for _, sp := range spans {
		sp.cache.n += sp.to - sp.from
	}
	return nil
}

func (d *Decoder) head() tensor {
	if d.arch.Tied {
		return d.weights["model.embed_tokens.weight"]
	}
	return d.weights["lm_head.weight"]
}

// reach makes room for n tokens: twice what there was, as far as the context goes.
func (d *Decoder) reach(c *cache, n int) error {
	if n <= c.room {
		return nil
	}
	room := min(max(n, 2*c.room, minRoom), d.arch.Context)
	grown := cache{n: c.n, room: room}
	shape := []int64{int64(d.arch.KVHeads), int64(room), int64(d.arch.HeadDim())}
	var views scope
	defer views.free()
	larger := func(old []tensor, l int) tensor {
		t := grown.own.op(func(o *tensor) { lib.AtgZeros(o, shape, len(shape), d.kind(), int32(d.opt.Device)) })
		if c.n > 0 && grown.own.err == nil {
			views.copyInto(views.narrow(t, 1, 0, c.n), views.narrow(old[l], 1, 0, c.n))
		}
		return t
	}
	for l := range d.arch.Layers {
		grown.k = append(grown.k, larger(c.k, l))
		grown.v = append(grown.v, larger(c.v, l))
	}
	if grown.own.err == nil {
		grown.own.err = views.err
	}
	if err := grown.own.err; err != nil {
		grown.own.free()
		return fmt.Errorf("keys and values of %d tokens: %w", room, err)
	}
	c.own.free()
	*c = grown
	return nil
}

// forward is the model over R tokens, without its head: hidden states after the final
// norm, [R, C]. Sizes as Model.forward's. It writes the tokens' keys and values behind
// those that the spans' caches hold.
func (d *Decoder) forward(s *scope, ids []int32, spans []span) tensor {
	a := &d.arch
	R := int64(len(ids))
	linear := func(x tensor, name string) tensor { return s.linear(x, d.weights[name], d.bf16()) }
	positions := make([]int32, len(ids))
	for _, sp := range spans {
		for i := sp.from; i < sp.to; i++ {
			positions[i] = int32(sp.cache.n + i - sp.from)
		}
	}
	at := s.ids(positions, d.opt.Device, R)
	cos, sin := s.rows(d.cos, at), s.rows(d.sin, at) // [R, D]
	x := s.rows(d.weights["model.embed_tokens.weight"], s.ids(ids, d.opt.Device, R))
	x = s.cast(x, kindFloat32) // [R, C]
	for l := range a.Layers {
		p := fmt.Sprintf("model.layers.%d.", l)
		y := s.rmsNorm(x, d.weights[p+"input_layernorm.weight"], a.NormEps)
		q := linear(y, p+"self_attn.q_proj.weight")
		k := linear(y, p+"self_attn.k_proj.weight")
		v := linear(y, p+"self_attn.v_proj.weight")
		y = d.attend(s, l, [3]tensor{q, k, v}, cos, sin, spans) // [R, H·D]
		x = s.add(x, linear(y, p+"self_attn.o_proj.weight"))
		y = s.rmsNorm(x, d.weights[p+"post_attention_layernorm.weight"], a.NormEps)
		gate := linear(y, p+"mlp.gate_proj.weight") // [R, F]
		gate = s.op(func(o *tensor) { lib.AtgSilu(o, gate) })
		y = s.mul(gate, linear(y, p+"mlp.up_proj.weight"))
		x = s.add(x, linear(y, p+"mlp.down_proj.weight"))
	}
	return s.rmsNorm(x, d.weights["model.norm.weight"], a.NormEps)
}

// attend is causal grouped-query attention of q [R, H·D], k and v [R, K·D], and of what
// the caches hold, span by span: [R, H·D].
func (d *Decoder) attend(s *scope, layer int, qkv [3]tensor, cos, sin tensor, spans []span) tensor {
	a := &d.arch
	H, K, D := a.Heads, a.KVHeads, a.HeadDim()
	heads := func(x tensor, n int) tensor { return s.transpose(s.view(x, 1, -1, int64(n), int64(D)), 1, 2) } // [1, n, R, D]
	q := s.view(s.rotate(heads(qkv[0], H), cos, sin, D), int64(H), -1, int64(D))
	k := s.view(s.rotate(heads(qkv[1], K), cos, sin, D), int64(K), -1, int64(D))
	v := s.view(heads(qkv[2], K), int64(K), -1, int64(D))
	q = s.cast(q, d.kind())
	var out []tensor
	for _, sp := range spans {
		n, end := sp.to-sp.from, sp.cache.n+sp.to-sp.from
		if s.err != nil {
			return nil
		}
		keys, values := sp.cache.k[layer], sp.cache.v[layer]
		s.copyInto(s.narrow(keys, 1, sp.cache.n, n), s.narrow(k, 1, sp.from, n))
		s.copyInto(s.narrow(values, 1, sp.cache.n, n), s.narrow(v, 1, sp.from, n))
		y := d.attendOne(s, s.narrow(q, 1, sp.from, n), s.narrow(keys, 1, 0, end), s.narrow(values, 1, 0, end), n, end)
		out = append(out, s.view(s.transpose(y, 0, 1), int64(n), int64(H*D)))
	}
	if len(out) == 1 || s.err != nil {
		return s.cast(out[0], kindFloat32)
	}
	y := s.op(func(o *tensor) { lib.AtgCat(o, out, len(out), 0) })
	return s.cast(y, kindFloat32)
}

// attendOne is the attention of a sequence's last n tokens, q [H, n, D], over all N of it,
// k and v [K, N, D]: [H, n, D]. Query heads that share a key and value head stand together,
// so that they are rows of one product.
func (d *Decoder) attendOne(s *scope, q, k, v tensor, n, N int) tensor {
	H, K, D := int64(d.arch.Heads), int64(d.arch.KVHeads), int64(d.arch.HeadDim())
	q = s.view(q, K, H/K*int64(n), D)
	scores := s.cast(s.matmul(q, s.transpose(k, 1, 2)), kindFloat32)
	scores = s.scale(scores, 1/math.Sqrt(float64(D)))
	if n > 1 {
		scores = s.hide(s.view(scores, K, H/K, int64(n), int64(N)), d.opt.Device, n, N)
		scores = s.view(scores, K, H/K*int64(n), int64(N))
	}
	p := s.op(func(o *tensor) { lib.AtgSoftmax(o, scores, -1, kindFloat32) })
	return s.view(s.matmul(s.cast(p, d.kind()), v), H, int64(n), D)
}

// rows are those of x [·, C] that at [R] names: [R, C].
func (s *scope) rows(x, at tensor) tensor {
	return s.op(func(o *tensor) { lib.AtgIndexSelect(o, x, 0, at) })
}

// read copies x, float32 of as many elements, to the host.
func (s *scope) read(to []float32, x tensor) {
	x = s.to(x, cpu)
	x = s.op(func(o *tensor) { lib.AtgContiguous(o, x) })
	if s.err == nil {
		copy(to, unsafe.Slice((*float32)(lib.AtDataPtr(x)), len(to)))
	}
}
