// Package compress makes a trained model smaller and faster, and says what that costs.
//
//	held, err := train.OpenCorpus("run1/data/tokens/v512/test.bin")
//	rep, err := compress.Run(ctx, engine, b, "run1/small", compress.Options{Weights: glm.Int8, MaxLoss: 0.01}, compress.Data{Held: held}, nil)
//	var worse *compress.WorseError
//	if errors.As(err, &worse) { … } // nothing was written
//
// Weights of 8 or 4 bits need no data to be made: integers with a scale for each group
// of a row's values, rounded to the nearest; activations are rounded where they are
// multiplied, each 32 values of a token by their own scale, so that nothing has to be
// calibrated. Whatever is taken away from a model otherwise is learnt back on the
// training part: the least important channels of the feed-forward blocks (Prune) or
// single weights (Sparsity), judged by how much the loss would change (first-order
// Taylor: Molchanov et al. 2017) or by size; or layers (Student), whose rest learns from
// the whole model's logits and hidden states (Hinton et al. 2015, Sanh et al. 2019).
//
// The caller's duties: the held-out part is no part of what the model or a recovery
// learns from.
//
// Invariants: what is measured is the folder that is left, opened again, by the decoder
// that will serve it. A model that is worse than MaxLoss allows leaves nothing.
package compress
