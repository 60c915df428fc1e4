// Package native is the engine that is always there: training and generation on
// the CPU, in Go and the assembly of gpu/kernel.
//
//	m, err := native.New(arch, native.Options{Threads: 2, MaxBatch: 16, MaxSeq: 128, Seed: 1})
//	loss, err := m.Backward(batch, nil)
//	norm, err := m.Update(engine.DefaultHyper())
//	d, err := native.NewDecoder(arch, m.State(), native.DecoderOptions{MaxSeqs: 8})
//	logits, err := d.Prefill(0, prompt)
//
// It computes what Hugging Face's LlamaForCausalLM computes: RMSNorm, half-split
// rotary embedding, grouped-query attention, SwiGLU, no biases. Forward and
// backward are written out by hand and read top-down in worker.go and
// attention.go.
//
// Options.Precision says how the products of training are made: in float32, or
// from operands rounded to bfloat16 with float32 sums, which takes little more
// than half as long where AVX512_BF16 has its full rate, and less where there is AMX.
// Parameters, moments, softmaxes, losses and everything that Eval computes stay float32. bfloat16's weights are packed once for each version of the
// parameters: products.go.
//
// A decoder holds its weights as DecoderOptions.Weights says: float32, bfloat16, or
// integers of 8 or 4 bits with a scale for each 32 (weights.go). It scores texts by the
// products that it generates with (score.go). Keys and values lie in pages, as many as
// there are tokens, which sequences that begin alike share (kv.go). A sequence has the same
// bits whatever is computed beside it, on whatever pages and on any number of threads. BackwardTaught trains on what another model says beside the
// labels (teacher.go).
//
// A gradient is handed over during the backward pass, layer by layer: overlap.go.
// Under Options.Recompute a thread keeps each layer's input only.
//
// The caller's duties: one goroutine owns a Model or a Decoder and its calls never
// overlap; batches stay unchanged during a call; Close ends its goroutines.
//
// Invariants:
//   - Threads shard a batch by sequences, and a prompt that is read by its tokens. Each has its own activations and its own
//     gradient, so that they meet once a Backward; gradients are then summed in
//     the threads' order. The same seed, batches and number of threads give the
//     same bits, however the threads were scheduled.
//   - A step allocates nothing. Parameters, gradients, moments and each thread's
//     activations are one arena each.
//   - Threads park between tasks; they do not spin. Under Options.CPUs each works on
//     one processor.
//   - A panic in a thread becomes the call's error, the others finish.
//
// Vocabulary: a chunk is the sequences whose activations a thread holds at once; a
// branch is attention or the feed-forward block, which adds to the residual
// stream; a site is a place of dropout.
package native
