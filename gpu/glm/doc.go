// Package glm is the model family: the shape of a decoder (Arch), the names and
// places of its parameters (Layout), their number, their initial values and how these
// and rates depend on the width (Width), how those of a smaller shape become those of a larger one that computes the same (Growth), and
// what training them costs in memory (TrainingBytes) and in time (StepSeconds, from
// Rates that Probes measure), and what generating does (DecodingBytes, for each kind of Weights). It holds no arithmetic on activations; engines do.
//
// The family is what Hugging Face calls LlamaForCausalLM: token embedding, then
// per layer RMSNorm, grouped-query attention with full half-split rotary
// embedding, RMSNorm, SwiGLU; a final RMSNorm and a tied or untied output
// projection; no biases anywhere.
//
//	a := glm.Arch{Vocab: 512, Dim: 128, Layers: 4, Heads: 4, KVHeads: 4, FFN: 384, Context: 128, Tied: true}.WithDefaults()
//	params, size := a.Layout()
//
// Vocabulary: V rows of the embedding, C width, L layers, H query heads, K key
// and value heads, F inner width of the feed-forward block, T tokens of a
// sequence, B sequences of a batch.
package glm
