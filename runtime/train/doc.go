// Package train trains one model: it lays tokens on disk (Corpus), cuts them
// into batches, runs the loop of one rank (Run), evaluates, and saves and loads
// checkpoints from which a run goes on exactly.
//
//	run := train.Run{Model: m, Config: cfg, Train: corpus, Valid: valid, World: 1}
//	state, err := run.To(ctx, train.State{}, train.Segment{Steps: 1000, DecayFrom: 800})
//
// Duties: every rank of a data-parallel run has a Run with the same Config,
// State and Segment, its own Rank and Model (with equal parameters), and a
// Collective of one ring. Where the segment is measured in seconds, rank 0's
// clock decides for all.
//
// Sums: an engine hands its gradients to the ring while it computes them.
// Over a ring between GPUs (Collective.Devices) they may be in the GPU's memory and
// are summed there; what the ranks agree on, and the state that a newcomer receives,
// are host memory on every ring. Compression and zero_stage 1 work in host memory:
// with either, gradients go there also over NCCL.
//
// Invariants: which tokens a step sees depends on the seed and the step's number
// alone; a run that is stopped and continued from its checkpoint takes the same
// steps as one that was not; all ranks hold the same parameters after each step, and
// the same average of them.
//
// A fork (Task.FromSequences) begins with another trial's checkpoint of a rung, its
// optimiser and its place in the data; with its parent's configuration it takes the
// parent's very steps. A final training may keep an average of its parameters
// (Task.Average), which becomes the model where it is better on the guard by more than
// noise; and so may the mean of it and checkpoints of its line of parents (Task.Soup).
// Select has several models vote.
//
// Vocabulary: batch_tokens is the tokens of one optimiser step over all ranks;
// micro-batch, what one Backward sees; segment, a stretch of training up to a
// step or a second; position, how far a run is, in the segment's unit; bits per
// byte, Σ nll / (ln 2 · bytes of the scored text), comparable over tokenizers.
package train
