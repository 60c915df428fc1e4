//go:build libtorch

package torch

import (
	"errors"
	"fmt"
	"slices"

	lib "github.com/sugarme/gotch/libtch"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// mode is what a pass over a batch is for.
type mode int

const (
	training mode = iota // loss and gradients
	scoring              // loss
)

func (m mode) String() string {
	if m == training {
		return "backward"
	}
	return "eval"
}

// cuts are where autograd's graph ends between the model's parts: the result of each
// part but the last, and a leaf of the same values, which the next part begins with.
// So the backward pass runs part by part, and a part's gradients are final while
// those before it are still to come. No cuts are nil.
type cuts struct{ ends, leaves []tensor }

func (c *cuts) cut(s *scope, x tensor) tensor {
	if c == nil {
		return x
	}
	leaf := s.leaf(x)
	c.ends, c.leaves = append(c.ends, x), append(c.leaves, leaf)
	return leaf
}

// passes runs a batch in pieces that fit the device and sums their losses. When
// training fails the gradient is dropped, unless part of it was handed over: then
// it is the sync's as long as the sums last, and the caller drops it behind them.
func (m *Model) passes(b engine.Batch, mode mode, over *handOver) (nll float64, err error) {
	if err := b.Check(m.opt.MaxBatch, m.opt.MaxSeq, m.arch.Vocab, true); err != nil {
		return 0, fmt.Errorf("torch: %w", err)
	}
	// A piece that was refused memory in its backward pass has left its gradient in
	// the last parts. missing says up to which element that of each sequence is.
	missing := slices.Repeat([]int{m.size}, b.B)
	for from := 0; from < b.B; {
		p := piece{Batch: b, from: from, to: from + 1, missing: missing[from], mode: mode}
		for p.to < b.B && p.to-from < m.micro && missing[p.to] == p.missing {
			p.to++
		}
		if p.to == b.B { // before that gradients only add up
			p.over = over
		}
		sum, err := m.pass(&p)
		if n := p.to - from; errors.Is(err, errMemory) && n > 1 {
			m.micro = (n + 1) / 2
			for i := from; i < p.to; i++ {
				missing[i] = p.missing
			}
			continue
		}
		if err != nil {
			if mode == training && !over.begun() {
				m.ZeroGrad()
			}
			return 0, fmt.Errorf("torch: %s of %d sequences: %w", mode, p.to-from, err)
		}
		nll += sum
		from = p.to
	}
	return nll, nil
}

// piece is a run of sequences of a batch that the device computes at once.
type piece struct {
	engine.Batch
	from, to int // sequences
	mode     mode
	missing  int       // elements of the gradient that the pass still has to add to, the first ones
	over     *handOver // gets what is final; nil: more is to be added
}

// targets are the piece's own.
func (p *piece) targets() []int32 { return p.Targets[p.from*p.T : p.to*p.T] }

// pass returns the sum of the piece's negative log-likelihoods over its scored
// targets. When training it adds their gradients. After an error p.missing
// says what of those is still to be added.
func (m *Model) pass(p *piece) (nll float64, err error) {
	n := p.to - p.from
	if m.refuse != nil && m.refuse(n, -1) {
		return 0, errMemory
	}
	var s scope
	defer s.free()
	lib.AtGradSetEnabled(0)
	defer lib.AtGradSetEnabled(0)
	if p.mode != training {
		_, nll = m.loss(&s, p, nil)
		return nll, s.err
	}
	lib.AtGradSetEnabled(1)
	// Pieces of one batch drop different elements. (Where one is done again in smaller
	// ones, the parts that it had got to keep what they have: each part's gradient is
	// of one draw, not all of the same.)
	lib.SetSeed(int64(p.Seed + uint64(p.from)*0x9e3779b97f4a7c15))
	var c cuts
	objective, nll := m.loss(&s, p, &c)
	m.gradients(&s, p, objective, &c)
	return nll, s.err
}

// loss runs a piece forward: what to minimise, and the sum of negative
// log-likelihoods alone.
func (m *Model) loss(s *scope, p *piece, c *cuts) (objective tensor, nll float64) {
	n := p.to - p.from
	logits := m.forward(s, p.Batch, p.from, n, p.mode == training, c) // [n·T, V]
	targets := s.ids(p.targets(), m.opt.Device, int64(n*p.T))
	// The sum over targets that are not ignored.
	const sumReduction = 2
	objective = s.op(func(o *tensor) {
		lib.AtgCrossEntropyLoss(o, logits, targets, nil, sumReduction, int64(engine.Ignore), 0)
	})
	nll = s.value(objective)
	if p.mode != training {
		return objective, nll
	}
	if m.opt.ZLoss > 0 {
		objective = s.add(objective, s.scale(m.logZ(s, logits, p.targets()), m.opt.ZLoss))
	}
	return s.scale(objective, 1/p.Norm), nll
}

// gradients runs the cut graph backwards, adds each part's gradient as it comes, and
// has it handed over: parts are final from the last to the first.
func (m *Model) gradients(s *scope, p *piece, objective tensor, c *cuts) {
	last := len(m.parts) - 2
	var tied []tensor // the embedding's gradient as the head, which the embedding's own joins
	for part := last; part >= 0; part-- {
		if s.err == nil && m.refuse != nil && m.refuse(p.to-p.from, part) {
			s.err = errMemory
		}
		lo, hi := m.parts[part], m.parts[part+1]
		first := m.layout[lo].Offset
		var of []tensor
		if part > 0 {
			of = append(of, c.leaves[part-1])
		}
		if first < p.missing {
			of = append(of, m.order[lo:hi]...)
		}
		if part == last && m.arch.Tied {
			of = append(of, m.order[0])
		}
		grads := s.backward(objective, of)
		if s.err != nil {
			return
		}
		if part == last && m.arch.Tied {
			tied, grads = grads[len(grads)-1:], grads[:len(grads)-1]
		}
		var through tensor
		if part > 0 {
			through, grads = grads[0], grads[1:]
		} else if tied != nil {
			grads[0] = s.add(tied[0], grads[0])
		}
		for i, g := range grads {
			s.addInto(m.grads.views[lo+i], g)
		}
		if s.err == nil {
			p.missing = min(p.missing, first)
			p.over.ready(s, p.missing)
		}
		if part > 0 {
			// A scalar whose gradient for the part before is the one that came through; its
			// own value doesn't matter.
			objective = s.sum(s.mul(c.ends[part-1], through), kindFloat32)
		}
	}
}

// backward is the gradient of a scalar for each of the leaves; what the leaves
// hold is untouched.
func (s *scope) backward(loss tensor, leaves []tensor) []tensor {
	if s.err != nil {
		return nil
	}
	if !lib.AtRequiresGrad(loss) {
		s.err = errors.New("the loss has no gradient; was it computed with gradients off?")
		return nil // libtorch would crash
	}
	grads := make([]tensor, len(leaves))
	root := []tensor{loss}
	lib.AtRunBackward(&root[0], 1, &leaves[0], len(leaves), &grads[0], 0, 0)
	if s.check(); s.err != nil {
		return nil
	}
	s.made = append(s.made, grads...)
	return grads
}

// handOver gives the gradient to be summed as it becomes final: where it is, if the
// sync takes a device's memory, otherwise in the host's, from which Update fetches
// the sums. Without a sync it is nil, and does nothing.
//
// Never run on CUDA: there the sum of a bucket waits for the work that the stream
// holds when the sum begins, and the copy to the host for all that it holds by then;
// so both come behind the gradients that they are of.
type handOver struct {
	model   *Model
	device  bool // the sync takes the device's memory
	from    int  // from there on the gradient was handed over, or will be with its bucket
	buckets engine.Buckets
}

func (m *Model) newHandOver(sync engine.GradientSync) *handOver {
	if sync == nil {
		return nil
	}
	h := &handOver{model: m, from: m.size}
	if d, ok := sync.(engine.DeviceSync); ok && m.apart && d.TakesDevice() {
		h.device = true
		// Stream stays 0: nothing here, nor in gotch, leaves CUDA's default stream, and
		// autograd's threads compute on that of the forward pass.
		h.buckets = engine.NewBufferBuckets(ring.Buffer{Device: uintptr(lib.AtDataPtr(m.grads.flat)), N: m.size}, sync)
	} else {
		h.buckets = engine.NewBuckets(m.grads.host, sync)
	}
	return h
}

func (h *handOver) begun() bool { return h != nil && h.from < h.model.size }

// ready tells that nothing is added any more to the elements from from on.
func (h *handOver) ready(s *scope, from int) {
	if h == nil || from == h.from {
		return
	}
	m := h.model
	if m.apart && !h.device {
		n := h.from - from
		s.copyInto(s.blob(m.grads.host[from:h.from], int64(n)), s.narrow(m.grads.flat, 0, from, n))
		if s.err != nil {
			s.err = fmt.Errorf("gradients to the host: %w", s.err)
			return
		}
		m.staged = true
	}
	h.from = from
	h.buckets.Ready(from)
}
