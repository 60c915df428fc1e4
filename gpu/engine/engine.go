package engine

import (
	"slices"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// Ignore marks a target position that is not scored: it adds nothing to the
// loss and receives no gradient.
const Ignore int32 = -1

// Batch is B sequences of T tokens, row-major [B, T].
type Batch struct {
	B, T    int
	Inputs  []int32 // token ids, 0 ≤ id < V
	Targets []int32 // id to predict at each position, or Ignore
	// Norm is the loss's denominator: the number of scored targets over all
	// micro-batches and all ranks of this optimiser step. Summed over those,
	// the losses (and gradients) then give the mean.
	Norm float64
	// Seed drives dropout; the same seed drops the same activations. Ranks and
	// micro-batches pass different seeds.
	Seed uint64
}

// Model is one replica on one device. It is owned by one goroutine: calls never
// overlap.
type Model interface {
	Arch() glm.Arch
	// Backward runs forward and backward and adds the gradient of
	// Σ nll(target)/Norm to what the last Update left (zero). It returns that sum
	// as loss. When sync is not nil each bucket of the gradient is handed over
	// as soon as nothing more will be added to it, while the pass still runs; after an error the sync
	// may hold part of them. The caller waits on sync before Update.
	Backward(b Batch, sync GradientSync) (loss float64, err error)
	// Update clips the gradient by its global norm, takes one optimiser step and
	// zeroes the gradient. The returned norm is the one before clipping. A norm
	// that is not finite is ErrNotFinite: parameters are untouched.
	Update(h Hyper) (gradNorm float64, err error)
	// ZeroGrad drops what Backward accumulated.
	ZeroGrad()
	// Eval returns the summed negative log-likelihood (nats) of the scored
	// targets, without dropout, and their number.
	Eval(b Batch) (nll float64, tokens int, err error)
	// State is every named tensor needed to continue exactly: parameters and
	// optimiser moments. Its slices alias the model's memory: they are valid and constant
	// until the next Update or Load.
	State() StateDict
	// Load copies the tensors of s in. Parameters must all be there with their
	// shape; optimiser tensors may all be absent (then they are zeroed).
	Load(s StateDict) error
	Close() error
}

// GradientViews is a Model whose gradients can live in the caller's memory, for
// example in a buffer that a ring has registered, so that sums copy nothing.
type GradientViews interface {
	// UseGradients keeps the gradients in mem from now on: as many elements as the
	// arena of glm.Arch.Layout, which are zeroed. What Backward accumulated before is
	// dropped. mem must outlive the model or the next UseGradients; nil takes memory
	// of the model's own again.
	UseGradients(mem []float32) error
}

// GradientSync sums gradients over ranks. Reduce may return before the sum is
// done. Calls never overlap and come in the same order on every rank, but may come
// from any goroutine of the engine, while it still computes.
type GradientSync interface {
	Reduce(bucket int, grad ring.Buffer)
	Wait() error // all buckets summed, or why not
}

// DeviceSync is a GradientSync that may sum buffers of a GPU where they are. An
// engine whose gradients are there asks before it hands over, each time: the next
// ring may be another. Where it is no DeviceSync, or says no, it takes host memory
// alone.
type DeviceSync interface {
	GradientSync
	// TakesDevice tells whether Reduce takes ring.Buffers with an address of the
	// GPU that the ring was formed with.
	TakesDevice() bool
}

// Decoder generates: many sequences at once, each with its own cache of keys and
// values. Owned by one goroutine.
//
// The logits after a text have the same bits however its tokens were split between calls
// and whatever other sequences were computed beside it; where a library chooses its
// products by their sizes (engine torch) they are the same within rounding.
type Decoder interface {
	// Prefill appends ids to the (new or known) sequence and returns the logits
	// after the last one, [V]; valid until the next call.
	Prefill(seq int, ids []int32) (logits []float32, err error)
	// Decode appends one id to each sequence and returns the logits after each,
	// [len(seqs), V]; valid until the next call.
	Decode(seqs []int, ids []int32) (logits []float32, err error)
	// Len is the number of tokens the sequence holds.
	Len(seq int) int
	// Drop frees a sequence.
	Drop(seq int)
	Close() error
}

// KVCache is a Decoder whose keys and values lie in pages, which sequences that begin
// with the same tokens share. A page that is shared, or kept, is not written: what would be
// is copied first.
type KVCache interface {
	KV() KVState
	// KeepKV keeps the page that begins at token from, a multiple of KVState.Tokens, of a
	// sequence that holds it whole, whatever becomes of the sequence, until it was released
	// as often as it was kept.
	KeepKV(seq, from int) (KVPage, error)
	// UseKV appends a page that is kept to a (new or known) sequence that holds whole ones.
	UseKV(seq int, p KVPage) error
	// ReleaseKV takes one KeepKV back. A page that nobody keeps is free when no sequence
	// has it.
	ReleaseKV(p KVPage)
	// Trim forgets all but the first n tokens of a sequence.
	Trim(seq, n int)
}

// KVPage is the number of a page.
type KVPage int

// KVState is how the pages fare.
type KVState struct {
	Tokens int   // of a page
	Bytes  int64 // of a page
	Pages  int   // that there are at most
	Free   int   // that nobody has, and which nobody keeps
	Held   int   // that sequences have
}

// Embedder is a Decoder that gives its hidden states.
type Embedder interface {
	Width() int // of a hidden state
	// Embed appends ids to a sequence as Prefill does, and adds the hidden state of each
	// of them, after the final norm, to sum, [Width].
	Embed(seq int, ids []int32, sum []float32) error
}

// Optimizer names an update rule.
type Optimizer string

// Optimizers.
const (
	AdamW Optimizer = "adamw" // Loshchilov and Hutter 2019
	Muon  Optimizer = "muon"  // Jordan et al. 2024: Newton–Schulz on the matrices, AdamW on embeddings, norms and head
)

// Precision is how an engine multiplies matrices while it trains. Parameters,
// sums, moments, softmaxes and every score stay float32.
type Precision string

// Precisions.
const (
	Auto Precision = "auto" // the fastest that the device multiplies in hardware
	F32  Precision = "f32"
	BF16 Precision = "bf16" // operands rounded to bfloat16, sums in float32
)

// Hyper is what one optimiser step needs. Rates are already scheduled: the
// caller computes them for the step.
type Hyper struct {
	Optimizer    Optimizer
	LR           float64 // AdamW's rate, for all parameters, or with Muon for those that are not matrices
	Beta1, Beta2 float64
	Eps          float64
	WeightDecay  float64 // decoupled; matrices, embeddings and head, never norms
	Clip         float64 // largest global gradient norm; 0 is no clipping
	MuonLR       float64 // rate of the matrices under Muon
	MuonMomentum float64 // Nesterov momentum of Muon
}

// DefaultHyper is AdamW with the field's usual constants for small language models.
func DefaultHyper() Hyper {
	return Hyper{Optimizer: AdamW, LR: 1e-3, Beta1: 0.9, Beta2: 0.95, Eps: 1e-8, WeightDecay: 0.1, Clip: 1, MuonLR: 0.02, MuonMomentum: 0.95}
}

// Tensor is a named, shaped, row-major array: of float32, or of few bits.
type Tensor struct {
	Name   string
	Shape  []int
	Data   []float32
	Blocks *kernel.Blocks // in place of Data
}

// Elems is the number of values that the shape has.
func (t Tensor) Elems() int {
	n := 1
	for _, s := range t.Shape {
		n *= s
	}
	return n
}

// Floats are the tensor's values: Data, or what Blocks widens to.
func (t Tensor) Floats() []float32 {
	if t.Blocks == nil {
		return t.Data
	}
	out := make([]float32, len(t.Blocks.Q))
	t.Blocks.Floats(out, 0, t.Blocks.Rows)
	return out
}

// fits reports whether the tensor holds as many values as its shape says.
func (t Tensor) fits() bool {
	if b := t.Blocks; b != nil {
		return len(t.Shape) == 2 && b.Rows == t.Shape[0] && b.Cols == t.Shape[1] && t.Data == nil && b.Validate() == nil
	}
	return len(t.Data) == t.Elems()
}

// StateDict is an ordered set of tensors. Parameters carry Hugging Face's names;
// optimiser state is named "optimizer.<slot>.<parameter>" (slots: exp_avg,
// exp_avg_sq, momentum) and "optimizer.step" (shape [1], the number of updates
// taken).
type StateDict []Tensor

// Clone is a copy that shares no memory with s, whose tensors hold floats.
func (s StateDict) Clone() StateDict {
	out := make(StateDict, len(s))
	for i, t := range s {
		t.Data = slices.Clone(t.Data)
		out[i] = t
	}
	return out
}

// Get returns the tensor of that name.
func (s StateDict) Get(name string) (Tensor, bool) {
	for _, t := range s {
		if t.Name == name {
			return t, true
		}
	}
	return Tensor{}, false
}
