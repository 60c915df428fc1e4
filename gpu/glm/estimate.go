package glm

import "github.com/open-autoglm/autoglm/gpu/kernel"

// ChunkTokens is the number of tokens whose activations an engine on the CPU
// keeps at once (at least one sequence): few enough to stay in the last-level
// cache, enough to feed the matrix products.
const ChunkTokens = 512

// QueryRows is the most query rows that attention on the CPU computes at once:
// two blocks of AMX tiles, or five of AVX-512's. Rows i0 … i1 meet keys 0 … i1 only,
// so that smaller blocks waste less of the causal half.
const QueryRows = 64

// Training says how a shape is trained on the CPU.
type Training struct {
	Sequences int  // of one micro-batch
	Tokens    int  // of a sequence
	Threads   int  // that share a micro-batch by sequences; 0 is 1
	BF16      bool // products of bfloat16
	Muon      bool // else AdamW
	Recompute bool // activations are computed again in the backward pass, but for each layer's input
}

// TrainingBytes is the memory that the native engine allocates to train:
// parameters, their packed forms, gradients of each thread, two moments, and each
// thread's activations of one chunk of sequences.
func (a Arch) TrainingBytes(t Training) int64 {
	layout, size := a.Layout()
	threads := max(1, t.Threads)
	n := (3+threads)*size + 2*t.Tokens*(a.HeadDim()/2) + threads*a.threadFloats(layout, t)
	if t.BF16 {
		n += a.packedFloats()
	}
	return 4 * int64(n)
}

// products are the shapes [rows, in] of a layer's products and of the head's.
func (a Arch) products() (layer [4][2]int, head [2]int) {
	c, q, f := a.Dim, a.QueryDim(), a.FFN
	return [4][2]int{{q + 2*a.KVDim(), c}, {c, q}, {2 * f, c}, {c, f}}, [2]int{a.Vocab, c}
}

// packedFloats is the size of the weights, packed for products from either side.
// Weights that read the same input and lie one after the other are packed as one.
func (a Arch) packedFloats() int {
	packed := func(in int, rows ...int) (n int) {
		joined := 0
		for i, r := range rows {
			joined += r
			if i+1 == len(rows) || r*in%16 != 0 {
				n += kernel.PairsLen(joined, in) + kernel.PairsLen(in, joined)
				joined = 0
			}
		}
		return n
	}
	c, q, kv, f := a.Dim, a.QueryDim(), a.KVDim(), a.FFN
	return a.Layers*(packed(c, q, kv, kv)+packed(q, c)+packed(c, f, f)+packed(f, c)) + packed(c, a.Vocab)
}

// ThreadTokens is the most tokens whose activations a thread holds at once.
func (t Training) ThreadTokens() int {
	threads := max(1, t.Threads)
	return min(max(ChunkTokens, t.Tokens), (t.Sequences+threads-1)/threads*t.Tokens)
}

// threadFloats is what one thread holds.
func (a Arch) threadFloats(layout []Param, t Training) int {
	tokens := t.ThreadTokens()
	rows := min(tokens, LogitRows(a.Vocab))
	c, d, h, q, f, v := a.Dim, a.HeadDim(), a.QueryDim(), a.QueryDim()+2*a.KVDim(), a.FFN, a.Vocab
	sum := func(sizes ...int) (n int) {
		for _, s := range sizes {
			n += (s + 15) &^ 15
		}
		return n
	}
	x := sum(tokens * c)
	others := sum(tokens, tokens*c, tokens*q, tokens*a.Heads, tokens*h, tokens*c, tokens, tokens*c, tokens*2*f, tokens*f)
	n := a.Layers * (x + others)
	if t.Recompute {
		n = a.Layers*x + others
	}
	n += sum(tokens*c, tokens, tokens*c, rows*v, tokens*c, tokens*c, tokens*max(c, h), tokens*q, tokens*f)
	keys, values := kernel.PackedLen(t.Tokens, d), kernel.PackedLen(d, t.Tokens)
	n += sum(QueryRows*t.Tokens, QueryRows*t.Tokens, keys, keys, values, values, kernel.WorkLen)
	if t.BF16 {
		left, right := a.Operands(tokens, rows, t.Tokens)
		n += sum(left, left, right)
	}
	if t.Muon {
		elems, side := MuonScratch(layout)
		n += sum(elems, elems, side*side, side*side)
	}
	return n
}

// LogitRows is the number of rows of logits that are held at once for a
// vocabulary of v: each block of them reads and writes the gradient of the whole
// output projection, and 16 MiB of logits make that little beside its products.
func LogitRows(v int) int { return min(max(1<<22/v, 32), ChunkTokens) }

// Operands are the lengths of the largest left and right operands, rounded, of
// the products of a chunk of tokens, blocks of rows logits and sequences of t
// tokens.
func (a Arch) Operands(tokens, rows, t int) (left, right int) {
	fits := func(m, k, n int) {
		left, right = max(left, kernel.LeftLen(m, k)), max(right, kernel.PairsLen(n, k))
	}
	layer, head := a.products()
	each := func(n int, w [2]int) {
		fits(n, w[1], 0)
		fits(n, w[0], 0)
		fits(w[0], n, w[1])
	}
	for _, w := range layer {
		each(tokens, w)
	}
	each(rows, head)
	fits(QueryRows, max(t, a.HeadDim()), 0)
	fits(t, QueryRows, a.HeadDim())
	return left, right
}

// MuonScratch is the size of the largest matrix that Muon owns, and the largest of
// their shorter sides.
func MuonScratch(layout []Param) (elems, side int) {
	for i := range layout {
		if p := &layout[i]; p.Role == Matrix || p.Role == Residual {
			elems = max(elems, p.Elems)
			side = max(side, min(p.Shape[0], p.Shape[1]))
		}
	}
	return elems, side
}

// StepFLOPs is the arithmetic of one optimiser step over tokens tokens in
// sequences of t.
func (a Arch) StepFLOPs(tokens, t int) float64 { return a.FLOPsPerToken(t) * float64(tokens) }
