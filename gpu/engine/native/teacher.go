package native

import (
	"fmt"
	"math"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// BackwardTaught is Backward of a loss that learns from a teacher beside the labels, for
// each scored target:
//
//	(1−w)·nll + w·τ²·KL(softmax(teacher/τ) ‖ softmax(logits/τ)) + h·mean (hidden − teacher's)²
//
// (Hinton et al. 2015; τ² keeps the gradient's size). A z-loss does not act.
func (m *Model) BackwardTaught(b engine.Batch, t engine.Teacher, sync engine.GradientSync) (float64, error) {
	if err := t.Check(b, m.arch.Vocab, m.arch.Dim); err != nil {
		return 0, fmt.Errorf("native: %w", err)
	}
	m.job.teacher = &t
	defer func() { m.job.teacher = nil }()
	return m.Backward(b, sync)
}

// taught is crossEntropy with a teacher, of the batch's token at.
func (w *worker) taught(t *engine.Teacher, row []float32, at int, target int32, norm float64) {
	if target == engine.Ignore {
		clear(row)
		return
	}
	V := len(row)
	theirs := t.Logits[at*V : (at+1)*V]
	if len(w.soft) < 2*V {
		w.soft = make([]float32, 2*V)
	}
	own, their := w.soft[:V], w.soft[V:2*V]
	inverse := float32(1 / t.Temperature)
	// Exponentials at temperature τ, their sums, and with them the logs of denominators.
	top, theirTop := kernel.Max(row), kernel.Max(theirs)
	ownSum := kernel.ExpSum(own, row, inverse, top*inverse)
	theirSum := kernel.ExpSum(their, theirs, inverse, theirTop*inverse)
	ownZ := float64(top*inverse) + math.Log(float64(ownSum))
	theirZ := float64(theirTop*inverse) + math.Log(float64(theirSum))
	kernel.Scale(their, 1/theirSum)
	kl := float64(inverse)*float64(kernel.Dot(their, theirs)-kernel.Dot(their, row)) - theirZ + ownZ

	label := row[target]
	sum := kernel.ExpSum(row, row, 1, top)
	nll := float64(top) + math.Log(float64(sum)) - float64(label)
	hard, gentle := (1-t.Weight)/norm, t.Weight*t.Temperature/norm
	kernel.Scale(row, float32(hard/float64(sum)))
	kernel.Axpy(row, float32(gentle/float64(ownSum)), own)
	kernel.Axpy(row, float32(-gentle), their)
	row[target] -= float32(hard)
	w.nll += (1-t.Weight)*nll + t.Weight*t.Temperature*t.Temperature*kl
	w.tokens++
}

// likeHidden adds the hidden states' distance, of rows from the batch's token at on: to
// the loss, and to dn its gradient.
func (w *worker) likeHidden(t *engine.Teacher, dn, x []float32, at int, targets []int32, norm float64) {
	if t.Hidden == nil || t.HiddenLoss == 0 {
		return
	}
	C := w.model.arch.Dim
	by := t.HiddenLoss / float64(C)
	for r, target := range targets {
		if target == engine.Ignore {
			continue
		}
		theirs := t.Hidden[(at+r)*C : (at+r+1)*C]
		var squares float64
		for i := range C {
			d := float64(x[r*C+i] - theirs[i])
			squares += d * d
			dn[r*C+i] += float32(2 * by * d / norm)
		}
		w.nll += by * squares
	}
}
