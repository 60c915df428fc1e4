package native

import (
	"fmt"
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// DecoderOptions says how many threads and sequences a decoder has.
type DecoderOptions struct {
	Threads int // goroutines that compute: sequences are shared out to them, and a prompt's tokens; 0 is 1
	MaxSeqs int // most sequences held at once; 0 is 1
	// KVBytes is the most memory of keys and values; 0 is that of MaxSeqs full contexts.
	KVBytes int64
	// Weights says how the matrices are held; "" is as they are given: float32, or
	// int8 or int4 where the state's tensors have as many bits.
	Weights glm.Weights
}

// prefillRows is the most tokens that a thread computes at once.
const prefillRows = glm.PrefillRows

// shareRows is how many of a prompt's tokens are worth a thread: with fewer, reading the
// weights is most of the work.
const shareRows = 16

// Decoder generates with a cache of keys and values, which lie in pages (kv.go). Its weights are packed once,
// as the products read them (weights.go). It implements engine.Decoder and is owned by one
// goroutine.
//
// Invariant: the logits after a text have the same bits however its tokens were split
// between calls, whatever is computed beside it, and on any number of threads.
type Decoder struct {
	arch   glm.Arch
	opt    DecoderOptions
	layers []packedLayer
	embed  embedding
	norm   []float32 // [C]
	head   weights   // [V, C]
	rope   rotary    // of positions 0 … Context-1
	team   *team
	worker []*decodeWorker
	caches map[int]*cache
	pages  pages
	logits []float32 // of the last call
	rows   []row     // of the call: one a token
	hidden []float32 // [C] where the call adds up hidden states, or nil
}

var (
	_ engine.Decoder  = (*Decoder)(nil)
	_ engine.Embedder = (*Decoder)(nil)
)

// packedLayer is a layer's weights, the products' packed.
type packedLayer struct {
	norm1, norm2      []float32
	qkv, o, glu, down weights
}

// row is one token of a call.
type row struct {
	cache *cache
	id    int32
	pos   int
	out   int // row of the logits, or -1
}

// decodeWorker is one thread's scratch, for up to prefillRows rows. Sizes as in
// worker.
type decodeWorker struct {
	from, to int       // rows of the call
	x, n     []float32 // [rows, C]
	qkv      []float32 // [rows, Q]
	att      []float32 // [rows, H·D]
	glu      []float32 // [rows, 2F]
	act      []float32 // [rows, F]
	scores   []float32 // [rows, Context]
	sums     []float32 // [rows, D] in whole panels: a head's values of some pages
	want     []float32 // [rows, C] normed rows whose logits are wanted
	logits   []float32 // [rows, V]
	outs     []int
	product  product
}

// NewDecoder makes a decoder from the parameters in state, which may hold other
// tensors beside them. It copies what it needs.
func NewDecoder(a glm.Arch, state engine.StateDict, o DecoderOptions) (*Decoder, error) {
	if err := a.Validate(); err != nil {
		return nil, err
	}
	if o.Threads == 0 {
		o.Threads = 1
	}
	if o.MaxSeqs == 0 {
		o.MaxSeqs = 1
	}
	if o.Threads < 0 || o.MaxSeqs < 0 || o.KVBytes < 0 {
		return nil, fmt.Errorf("native: decoder of %d threads, %d sequences and %d bytes of keys and values; all must be positive", o.Threads, o.MaxSeqs, o.KVBytes)
	}
	d := &Decoder{arch: a, opt: o, rope: newRotary(a, a.Context), caches: map[int]*cache{}}
	var err error
	if d.pages, err = newPages(a, o.MaxSeqs, o.KVBytes); err != nil {
		return nil, err
	}
	if err := d.load(state); err != nil {
		return nil, fmt.Errorf("native: load: %w", err)
	}
	C, A, F, V := a.Dim, a.QueryDim(), a.FFN, a.Vocab
	Q := A + 2*a.KVDim()
	for range o.Threads {
		const R = prefillRows
		f := func(n int) []float32 { return make([]float32, n) }
		d.worker = append(d.worker, &decodeWorker{
			x: f(R * C), n: f(R * C), qkv: f(R * Q), att: f(R * A), glu: f(R * 2 * F), act: f(R * F),
			scores: f(R * a.Context), sums: f(R * kernel.PackedLen(a.HeadDim(), 1)), want: f(R * C), logits: f(R * V), outs: make([]int, 0, R),
			product: newProduct(d.opt.Weights, R, max(C, A, F)),
		})
	}
	d.team = newTeam(o.Threads, nil, func(t task, i int) { d.work(t, d.worker[i]) })
	return d, nil
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
		d.pages.cut(c, 0)
		delete(d.caches, seq)
	}
}

// Close ends the decoder's goroutines. No other call may follow.
func (d *Decoder) Close() error {
	d.team.close()
	return nil
}

// sequence returns the cache of a sequence that is to grow by n tokens, a new one where it
// is not known.
func (d *Decoder) sequence(seq, n int) (*cache, error) {
	c := d.caches[seq]
	held := 0
	if c != nil {
		held = c.n
	}
	if held+n > d.arch.Context {
		return nil, fmt.Errorf("native: sequence %d would hold %d tokens, the model's context is %d", seq, held+n, d.arch.Context)
	}
	if c != nil {
		return c, nil
	}
	if len(d.caches) >= d.opt.MaxSeqs {
		return nil, fmt.Errorf("native: sequence %d would be number %d, the decoder was made for %d (DecoderOptions.MaxSeqs); Drop one", seq, len(d.caches)+1, d.opt.MaxSeqs)
	}
	c = &cache{}
	d.caches[seq] = c
	return c, nil
}

// reach is sequence with the pages for what is to come.
func (d *Decoder) reach(seq, n int) (*cache, error) {
	known := d.caches[seq] != nil
	c, err := d.sequence(seq, n)
	if err != nil {
		return nil, err
	}
	if err := d.pages.extend(c, n); err != nil {
		if !known {
			delete(d.caches, seq)
		}
		return nil, err
	}
	return c, nil
}

// Prefill implements engine.Decoder. On an error the sequence is as it was.
func (d *Decoder) Prefill(seq int, ids []int32) ([]float32, error) {
	d.grow(1)
	if err := d.extend(seq, ids, 0); err != nil {
		return nil, err
	}
	return d.logits, nil
}

// Width implements engine.Embedder.
func (d *Decoder) Width() int { return d.arch.Dim }

// Embed implements engine.Embedder. On an error the sequence is as it was, and sum is
// not to be used.
func (d *Decoder) Embed(seq int, ids []int32, sum []float32) error {
	if len(sum) != d.arch.Dim {
		return fmt.Errorf("native: hidden states are %d wide, not %d", d.arch.Dim, len(sum))
	}
	d.hidden = sum
	defer func() { d.hidden = nil }()
	return d.extend(seq, ids, -1)
}

// extend appends ids to a sequence; the logits after the last go to row out, or with -1
// nowhere.
func (d *Decoder) extend(seq int, ids []int32, out int) error {
	if err := engine.CheckPrefill(seq, ids, d.arch.Vocab); err != nil {
		return fmt.Errorf("native: %w", err)
	}
	known := d.caches[seq] != nil
	c, err := d.reach(seq, len(ids))
	if err != nil {
		return err
	}
	before := c.n
	for i := 0; i < len(ids); i += len(d.rows) {
		part := ids[i:min(i+prefillRows*len(d.worker), len(ids))]
		d.rows = d.rows[:0]
		for j, id := range part {
			to := -1
			if i+j+1 == len(ids) {
				to = out
			}
			d.rows = append(d.rows, row{c, id, before + i + j, to})
		}
		if err := d.forwardTogether(); err != nil {
			d.pages.cut(c, before)
			if !known {
				d.Drop(seq)
			}
			return err
		}
		c.n += len(part)
	}
	return nil
}

// forwardTogether computes the rows of one sequence, shared out to the workers. Attention
// reads what those of the layer have remembered: there they wait for each other.
func (d *Decoder) forwardTogether() error {
	n := len(d.rows)
	share := max(1, min(len(d.worker), n/shareRows))
	for i, w := range d.worker {
		w.from, w.to = n*min(i, share)/share, n*min(i+1, share)/share
	}
	first, last := taskLayers, taskLayers+task(d.arch.Layers)
	if share == 1 {
		first, last = taskAll, taskAll
	}
	for t := first; t <= last; t++ {
		if err := d.team.run(t); err != nil {
			return err
		}
	}
	if d.hidden == nil {
		return nil
	}
	for _, w := range d.worker {
		for i := range (w.to - w.from) * d.arch.Dim {
			d.hidden[i%d.arch.Dim] += w.n[i]
		}
	}
	return nil
}

// Decode implements engine.Decoder. seqs are distinct. On an error all sequences
// are as they were.
func (d *Decoder) Decode(seqs []int, ids []int32) ([]float32, error) {
	if err := engine.CheckDecode(seqs, ids, d.arch.Vocab, func(s int) bool { return d.caches[s] != nil }); err != nil {
		return nil, fmt.Errorf("native: %w", err)
	}
	d.rows = d.rows[:0]
	for i, s := range seqs {
		c, err := d.reach(s, 1)
		if err != nil {
			d.undo(seqs[:i])
			return nil, err
		}
		d.rows = append(d.rows, row{c, ids[i], c.n, i})
	}
	d.grow(len(seqs))
	for i, w := range d.worker {
		w.from, w.to = len(seqs)*i/len(d.worker), len(seqs)*(i+1)/len(d.worker)
	}
	if err := d.team.run(taskAll); err != nil {
		d.undo(seqs)
		return nil, err
	}
	for _, r := range d.rows {
		r.cache.n++
	}
	return d.logits, nil
}

// undo takes back the pages of tokens that did not come.
func (d *Decoder) undo(seqs []int) {
	for _, s := range seqs {
		d.pages.cut(d.caches[s], d.caches[s].n)
	}
}

// grow makes room for n rows of logits.
func (d *Decoder) grow(n int) {
	n *= d.arch.Vocab
	if cap(d.logits) < n {
		d.logits = make([]float32, n)
	}
	d.logits = d.logits[:n]
}

// The decoder's tasks.
const (
	taskAll    task = iota // a worker's rows from end to end
	taskLayers             // + l: from layer l−1's attention, or from the embedding, to layer l's, or to the logits
)

// work does a task for a worker's rows: prefillRows at a time, or, of taskLayers, as many
// at most.
func (d *Decoder) work(t task, w *decodeWorker) {
	if t == taskAll {
		for i := w.from; i < w.to; i += prefillRows {
			d.forward(w, d.rows[i:min(i+prefillRows, w.to)])
		}
		return
	}
	rows := d.rows[w.from:w.to]
	if len(rows) == 0 {
		return
	}
	if l := int(t - taskLayers); l == 0 {
		d.enter(w, rows)
	} else {
		d.leaveLayer(w, l-1, rows)
	}
	if l := int(t - taskLayers); l < d.arch.Layers {
		d.enterLayer(w, l, rows)
	} else {
		d.leave(w, rows)
	}
}

func (d *Decoder) forward(w *decodeWorker, rows []row) {
	d.enter(w, rows)
	for l := range d.layers {
		d.enterLayer(w, l, rows)
		d.leaveLayer(w, l, rows)
	}
	d.leave(w, rows)
}

// enter reads the embedding.
func (d *Decoder) enter(w *decodeWorker, rows []row) {
	C := d.arch.Dim
	for i, r := range rows {
		d.embed.row(w.x[i*C:(i+1)*C], int(r.id))
	}
}

// enterLayer computes queries, keys and values, and remembers these.
func (d *Decoder) enterLayer(w *decodeWorker, l int, rows []row) {
	a, p := &d.arch, &d.layers[l]
	C, A, H, K, D := a.Dim, a.QueryDim(), a.Heads, a.KVHeads, a.HeadDim()
	Q := A + 2*K*D
	for i := range rows {
		kernel.RMSNorm(w.n[i*C:(i+1)*C], w.x[i*C:(i+1)*C], p.norm1, a.NormEps)
	}
	w.product.times(&p.qkv, len(rows), w.n, w.qkv, false)
	for i, r := range rows {
		cos, sin := d.rope.at(r.pos)
		kernel.Rope(w.qkv[i*Q:], cos, sin, H+K, 1)
		d.remember(l, r, w.qkv[i*Q+A:(i+1)*Q])
	}
}

// leaveLayer computes attention and the perceptron.
func (d *Decoder) leaveLayer(w *decodeWorker, l int, rows []row) {
	a, p := &d.arch, &d.layers[l]
	C, A, F, N := a.Dim, a.QueryDim(), a.FFN, len(rows)
	Q := A + 2*a.KVDim()
	for i := 0; i < N; { // runs of rows of one sequence
		j := i + 1
		for j < N && rows[j].cache == rows[i].cache {
			j++
		}
		d.attend(w, l, rows[i:j], w.qkv[i*Q:], w.att[i*A:])
		i = j
	}
	w.product.times(&p.o, N, w.att, w.x, true)
	for i := range N {
		kernel.RMSNorm(w.n[i*C:(i+1)*C], w.x[i*C:(i+1)*C], p.norm2, a.NormEps)
	}
	w.product.times(&p.glu, N, w.n, w.glu, false)
	for i := range N {
		g := w.glu[i*2*F : (i+1)*2*F]
		kernel.SwiGLU(w.act[i*F:(i+1)*F], g[:F], g[F:])
	}
	w.product.times(&p.down, N, w.act, w.x, true)
}

// leave computes the logits that are wanted, and with d.hidden all rows' last norm, w.n.
func (d *Decoder) leave(w *decodeWorker, rows []row) {
	a := &d.arch
	C, V := a.Dim, a.Vocab
	w.outs = w.outs[:0]
	for i, r := range rows {
		if d.hidden != nil {
			kernel.RMSNorm(w.n[i*C:(i+1)*C], w.x[i*C:(i+1)*C], d.norm, a.NormEps)
		}
		if r.out >= 0 {
			o := len(w.outs)
			kernel.RMSNorm(w.want[o*C:(o+1)*C], w.x[i*C:(i+1)*C], d.norm, a.NormEps)
			w.outs = append(w.outs, r.out)
		}
	}
	if len(w.outs) == 0 {
		return
	}
	w.product.times(&d.head, len(w.outs), w.want, w.logits, false)
	for i, o := range w.outs {
		copy(d.logits[o*V:(o+1)*V], w.logits[i*V:(i+1)*V])
	}
}

// attend computes the heads of consecutive rows of one sequence.
func (d *Decoder) attend(w *decodeWorker, layer int, rows []row, qkv, out []float32) {
	a := &d.arch
	A, H, K, D := a.QueryDim(), a.Heads, a.KVHeads, a.HeadDim()
	Q := A + 2*K*D
	scale := float32(1 / math.Sqrt(float64(D)))
	n := rows[len(rows)-1].pos + 1
	c := rows[0].cache
	for h := range H {
		kv := layer*K + h/(H/K)
		keys, values := d.part(kv)
		kernel.GemmColumns(len(rows), n, D, qkv[h*D:], Q, c.data, keys, w.scores, n)
		for i, r := range rows {
			p := w.scores[i*n : (i+1)*n]
			own := p[:r.pos+1]
			sum := kernel.ExpSum(own, own, scale, kernel.Max(own)*scale)
			kernel.Scale(own, 1/sum)
			clear(p[r.pos+1:])
		}
		// In sums that don't depend on n, so that a row has the same bits whatever rows are
		// computed beside it.
		kernel.GemmRows(len(rows), D, n, w.scores, n, c.data, values, out[h*D:], A, w.sums)
	}
}
