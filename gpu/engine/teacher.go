package engine

import "fmt"

// Teacher is what another model says of a batch, to learn from it beside the labels.
type Teacher struct {
	Logits []float32 // [B, T, V]
	Hidden []float32 // [B, T, C], of a model as wide; nil leaves it out

	Weight      float64 // of its logits against the labels, 0 … 1
	Temperature float64 // that both models' logits are divided by, so that unlikely tokens count too; > 0
	HiddenLoss  float64 // weight of the hidden states' distance
}

// Check reports the first thing that does not fit a batch of a model's.
func (t *Teacher) Check(b Batch, vocab, dim int) error {
	switch {
	case len(t.Logits) != b.B*b.T*vocab:
		return fmt.Errorf("teacher gives %d logits for a batch of %d tokens and a vocabulary of %d", len(t.Logits), b.B*b.T, vocab)
	case t.Hidden != nil && len(t.Hidden) != b.B*b.T*dim:
		return fmt.Errorf("teacher gives %d hidden values for a batch of %d tokens of width %d", len(t.Hidden), b.B*b.T, dim)
	case !(t.Weight >= 0 && t.Weight <= 1) || !(t.Temperature > 0) || !(t.HiddenLoss >= 0):
		return fmt.Errorf("teacher has weight %g, temperature %g and hidden loss %g", t.Weight, t.Temperature, t.HiddenLoss)
	}
	return nil
}
