// Package ring sums buffers over the ranks of one training step. Here stands the
// in-process form: ranks are goroutines of one process that share memory.
//
//	g := ring.NewGroup(2, epoch)
//	// on each rank's goroutine:
//	m := g.Rank(r)
//	m.Reduce(0, ring.Buffer{Data: gradient}) // for each bucket, same order on every rank
//	err := m.Wait()                          // every rank now holds the same sums, bit for bit
//
// Duties: every rank reduces the same buckets with the same lengths in the same
// order, and calls Wait before it touches the data again. A rank that gives up
// calls Abort; then every rank's Wait returns the reason.
//
// Invariants: sums are taken in rank order, so that all ranks hold the same bits
// and a run repeats exactly. No rank waits for ever for one that aborted.
//
// Vocabulary: rank, world size, bucket (a contiguous piece of gradient), epoch
// (one life of a ring; a lost rank ends it).
package ring
