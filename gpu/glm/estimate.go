package glm

// ChunkTokens is the number of tokens whose activations an engine on the CPU
// keeps at once (at least one sequence): few enough to stay in the last-level
// cache, enough to feed the matrix products.
const ChunkTokens = 512

// TrainingBytes is the memory of training on the CPU with micro-batches of b
// sequences of t tokens on threads workers: parameters, two moments, a gradient
// a thread, and a thread's activations of one chunk of sequences.
func (a Arch) TrainingBytes(b, t, threads int) int64 {
	_, size := a.Layout()
	threads = max(1, min(threads, b))
	return 4 * (int64(size)*int64(3+threads) + int64(threads)*a.activations(b, t))
}

// activations is the number of floats that one worker holds for its chunk.
func (a Arch) activations(b, t int) int64 {
	n := int64(min(max(ChunkTokens, t), b*t))
	c, q, f := int64(a.Dim), int64(a.Dim+2*a.KVDim()), int64(a.FFN)
	layer := n * (5*c + q + 3*f + int64(a.Heads) + 2)
	scratch := n * (5*c + q + f)
	return int64(a.Layers)*layer + scratch + LogitRows(a.Vocab)*int64(a.Vocab)
}

// LogitRows is the number of rows of logits that are held at once for a
// vocabulary of v.
func LogitRows(v int) int64 { return int64(min(max(1<<20/v, 32), ChunkTokens)) }

// DecodingBytes is the memory of generating seqs sequences at once with full
// caches: parameters, their packed copy, keys and values.
func (a Arch) DecodingBytes(seqs int) int64 {
	_, size := a.Layout()
	cache := int64(a.Layers) * int64(a.Context) * 2 * int64(a.KVDim())
	return 4 * (2*int64(size) + int64(seqs)*cache)
}

// StepFLOPs is the arithmetic of one optimiser step over tokens tokens in
// sequences of t.
func (a Arch) StepFLOPs(tokens, t int) float64 { return a.FLOPsPerToken(t) * float64(tokens) }
