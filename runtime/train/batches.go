package train

import (
	"math/rand/v2"
	"sort"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// Batches cuts a corpus into the batches of each step. In every epoch the
// documents are shuffled and joined, the joined text is cut into windows from a
// random first token on, and the windows are shuffled: each token is seen once
// an epoch. Batches is owned by one goroutine.
type Batches struct {
	c    *Corpus
	t    int // tokens of a window
	seed uint64

	windows int // of an epoch

	// The epoch that is laid out.
	epoch  int
	phase  int
	order  []int32 // documents
	starts []int   // where each stands in the joined text
	perm   []int32 // windows
}

// NewBatches prepares windows of t tokens.
func NewBatches(c *Corpus, t int, seed uint64) *Batches {
	b := &Batches{c: c, t: t, seed: seed, epoch: -1}
	b.windows = max(1, (len(c.tokens)-1-t)/t)
	return b
}

// Windows is the number of sequences of an epoch.
func (b *Batches) Windows() int { return b.windows }

func (b *Batches) lay(epoch int) {
	if b.epoch == epoch {
		return
	}
	rng := rand.New(rand.NewPCG(b.seed, uint64(epoch)*2+1))
	b.epoch = epoch
	b.phase = 0
	if spare := len(b.c.tokens) - 1 - b.windows*b.t; spare > 0 {
		b.phase = rng.IntN(min(spare, b.t) + 1)
	}
	n := len(b.c.docs)
	if b.order == nil {
		b.order, b.starts, b.perm = make([]int32, n), make([]int, n), make([]int32, b.windows)
	}
	for i := range b.order {
		b.order[i] = int32(i)
	}
	rng.Shuffle(n, func(i, j int) { b.order[i], b.order[j] = b.order[j], b.order[i] })
	at := 0
	for k, d := range b.order {
		b.starts[k] = at
		from, to := b.c.doc(int(d))
		at += to - from
	}
	for i := range b.perm {
		b.perm[i] = int32(i)
	}
	rng.Shuffle(len(b.perm), func(i, j int) { b.perm[i], b.perm[j] = b.perm[j], b.perm[i] })
}

// Sequence fills one window: inputs and targets of t tokens each. It returns
// the number of scored targets. Sequences are numbered over all epochs.
func (b *Batches) Sequence(n int, inputs, targets []int32) (scored int) {
	b.lay(n / b.windows)
	at := b.phase + int(b.perm[n%b.windows])*b.t
	k := sort.SearchInts(b.starts, at+1) - 1
	filled := 0
	var prev uint32
	for filled <= b.t {
		if k >= len(b.order) {
			break
		}
		from, to := b.c.doc(int(b.order[k]))
		for i := from + at - b.starts[k]; i < to && filled <= b.t; i++ {
			tok := b.c.tokens[i]
			if filled > 0 {
				inputs[filled-1] = int32(prev &^ scoredBit)
				targets[filled-1] = engine.Ignore
				if tok&scoredBit != 0 {
					targets[filled-1] = int32(tok &^ scoredBit)
					scored++
				}
			}
			prev = tok
			filled++
			at++
		}
		k++
	}
	for i := max(filled-1, 0); i < b.t; i++ { // a corpus shorter than a window
		inputs[i], targets[i] = 0, engine.Ignore
	}
	return scored
}
