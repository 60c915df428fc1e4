package engine

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// What engines have in common: the checks of what they are given, the order in
// which gradients leave, and the names of what they keep.

// Check refuses a batch that would read outside a model's tables. scored says
// whether the targets are used. Engines put their name before the error.
func (b Batch) Check(maxBatch, maxSeq, vocab int, scored bool) error {
	n := b.B * b.T
	switch {
	case b.B < 1 || b.B > maxBatch:
		return fmt.Errorf("batch has %d sequences, model was made for 1 to %d (Options.MaxBatch)", b.B, maxBatch)
	case b.T < 1 || b.T > maxSeq:
		return fmt.Errorf("sequences have %d tokens, model was made for 1 to %d (Options.MaxSeq)", b.T, maxSeq)
	case len(b.Inputs) != n:
		return fmt.Errorf("batch has %d inputs, %d×%d has %d", len(b.Inputs), b.B, b.T, n)
	case scored && len(b.Targets) != n:
		return fmt.Errorf("batch has %d targets, %d×%d has %d", len(b.Targets), b.B, b.T, n)
	}
	v := int32(vocab)
	for i, id := range b.Inputs {
		if id < 0 || id >= v {
			return fmt.Errorf("input %d is token %d, vocabulary has %d", i, id, v)
		}
	}
	if !scored {
		return nil
	}
	for i, id := range b.Targets {
		if id != Ignore && (id < 0 || id >= v) {
			return fmt.Errorf("target %d is token %d, vocabulary has %d", i, id, v)
		}
	}
	return nil
}

// CheckNorm refuses a denominator of the loss that is no positive number.
func (b Batch) CheckNorm() error {
	if !(b.Norm > 0) || math.IsInf(b.Norm, 0) {
		return fmt.Errorf("batch norm is %g, must be the positive number of scored targets", b.Norm)
	}
	return nil
}

// Bucket sizes in elements: the first is small so that the sum starts early.
const (
	firstBucket = 1 << 16 // 256 KiB
	laterBucket = 1 << 18 // 1 MiB
)

// cut is where the bucket of that number begins which ends at end.
func cut(number, end int) int {
	size := laterBucket
	if number == 0 {
		size = firstBucket
	}
	if begin := end - size; begin >= size/2 { // no small rest
		return begin
	}
	return 0
}

// Buckets hand a gradient to a sync from its end to its beginning, the order in
// which a backward pass finishes it. Where they are cut depends on the gradient's
// length alone: ranks of different engines cut alike and may share a ring.
// Owned by one goroutine at a time.
type Buckets struct {
	grads ring.Buffer
	sync  GradientSync
	next  int // number of the next bucket
	end   int // where it ends
}

// NewBuckets begins a hand-over. Nothing is handed over yet.
func NewBuckets(grads []float32, sync GradientSync) Buckets {
	return NewBufferBuckets(ring.Buffer{Data: grads}, sync)
}

// NewBufferBuckets begins the hand-over of a gradient that may be in a GPU's memory
// (see DeviceSync): the buckets are cut as in host memory, and come in the same
// order with the same numbers.
func NewBufferBuckets(grads ring.Buffer, sync GradientSync) Buckets {
	return Buckets{grads: grads, sync: sync, end: grads.Len()}
}

// Ready says that all elements from from on are final, and hands over the buckets
// that are now whole. Ready(0) ends the hand-over.
func (b *Buckets) Ready(from int) {
	for b.end > 0 {
		begin := cut(b.next, b.end)
		if begin < from {
			return
		}
		b.sync.Reduce(b.next, b.grads.Slice(begin, b.end))
		b.end = begin
		b.next++
	}
}

// HandOver hands a whole gradient over.
func HandOver(grads []float32, sync GradientSync) {
	b := NewBuckets(grads, sync)
	b.Ready(0)
}

// Coefficients and number of Muon's quintic Newton–Schulz steps (Jordan et al.
// 2024): they push all singular values to about 1, within 0.7 to 1.2.
const (
	NewtonA, NewtonB, NewtonC = 3.4445, -4.7750, 2.0315
	NewtonSteps               = glm.NewtonSteps
)

// ByMuon tells whether Muon updates that parameter, under this optimiser.
func (o Optimizer) ByMuon(p *glm.Param) bool {
	return o == Muon && (p.Role == glm.Matrix || p.Role == glm.Residual)
}

const (
	optimizerPrefix = "optimizer."
	stepName        = optimizerPrefix + "step"
)

// Parameters are views of an arena laid out as layout says.
func Parameters(layout []glm.Param, arena []float32) StateDict {
	var s StateDict
	for i := range layout {
		s = append(s, view(layout[i].Name, &layout[i], arena))
	}
	return s
}

func view(name string, p *glm.Param, arena []float32) Tensor {
	return Tensor{Name: name, Shape: p.Shape, Data: arena[p.Offset : p.Offset+p.Elems : p.Offset+p.Elems]}
}

// States are views of the arenas of a model that trains: parameters, then the
// optimiser's tensors (AdamW's moments m and v; Muon's momentum in m), then the
// number of updates taken.
func States(layout []glm.Param, o Optimizer, params, m, v, step []float32) StateDict {
	s := Parameters(layout, params)
	for i := range layout {
		p := &layout[i]
		if o.ByMuon(p) {
			s = append(s, view(optimizerPrefix+"momentum."+p.Name, p, m))
			continue
		}
		s = append(s, view(optimizerPrefix+"exp_avg."+p.Name, p, m), view(optimizerPrefix+"exp_avg_sq."+p.Name, p, v))
	}
	return append(s, Tensor{Name: stepName, Shape: []int{1}, Data: step})
}

// CopyTo copies s into want, of which the first params tensors are parameters and
// the others, if any, the optimiser's. Nothing is copied unless all of s fits:
// every parameter present, of its shape and finite; every optimiser tensor
// present, or none; no name unknown. It tells whether optimiser tensors were
// copied. Where want has none, those of s are passed over.
func (s StateDict) CopyTo(want StateDict, params int) (optimizer bool, err error) {
	given, optimizer, err := s.pick(want, params)
	if err != nil {
		return false, err
	}
	for i, g := range given {
		if g.Blocks != nil {
			g.Blocks.Floats(want[i].Data, 0, g.Blocks.Rows)
			continue
		}
		copy(want[i].Data, g.Data)
	}
	return optimizer, nil
}

// Pick returns the parameters of a layout in its order, as s holds them. It refuses what
// CopyTo refuses.
func (s StateDict) Pick(layout []glm.Param) (StateDict, error) {
	var want StateDict
	for _, p := range layout {
		want = append(want, Tensor{Name: p.Name, Shape: p.Shape})
	}
	given, _, err := s.pick(want, len(want))
	return given, err
}

// pick finds the tensors of want, of which it looks at names and shapes.
func (s StateDict) pick(want StateDict, params int) (picked StateDict, optimizer bool, err error) {
	given := make(map[string]Tensor, len(s))
	theirs := 0 // optimiser tensors
	for _, t := range s {
		if _, twice := given[t.Name]; twice {
			return nil, false, fmt.Errorf("tensor %s is there twice", t.Name)
		}
		given[t.Name] = t
		if strings.HasPrefix(t.Name, optimizerPrefix) {
			theirs++
		}
	}
	skip := len(want) == params // … all of them
	if optimizer = theirs > 0 && !skip; !optimizer {
		want = want[:params]
	}
	known := make(map[string]bool, len(want))
	for _, w := range want {
		known[w.Name] = true
		g, ok := given[w.Name]
		if !ok {
			return nil, false, fmt.Errorf("tensor %s is missing", w.Name)
		}
		if !slices.Equal(g.Shape, w.Shape) || !g.fits() {
			return nil, false, fmt.Errorf("tensor %s has shape %v and %d values, want %v", w.Name, g.Shape, len(g.Data), w.Shape)
		}
		for i, v := range g.Data {
			if v-v != 0 { // NaN and infinities
				return nil, false, fmt.Errorf("tensor %s holds %g at element %d; the checkpoint is damaged or its training diverged", w.Name, v, i)
			}
		}
		picked = append(picked, g)
	}
	for _, t := range s {
		if !known[t.Name] && !(skip && strings.HasPrefix(t.Name, optimizerPrefix)) {
			return nil, false, fmt.Errorf("tensor %s is unknown to this shape", t.Name)
		}
	}
	return picked, optimizer, nil
}

// CheckTraining refuses settings that no engine can train with; precision is one
// that Auto was resolved to.
func CheckTraining(dropout, zLoss float64, p Precision, o Optimizer) error {
	switch {
	case !(dropout >= 0 && dropout < 1):
		return fmt.Errorf("dropout is %g, must be in [0, 1)", dropout)
	case !(zLoss >= 0) || math.IsInf(zLoss, 0):
		return fmt.Errorf("z-loss weight is %g, must be finite and not negative", zLoss)
	case p != F32 && p != BF16:
		return fmt.Errorf("precision %q is unknown, use %q, %q or %q", p, Auto, F32, BF16)
	case o != AdamW && o != Muon:
		return fmt.Errorf("optimizer %q is unknown, use %q or %q", o, AdamW, Muon)
	}
	return nil
}
