// Package ddp sums the gradients of data-parallel ranks in fewer bytes.
//
//	r := ddp.New(comm, ddp.Config{Mode: ddp.Auto, Layout: layout, Size: size})
//	loss, err := model.Backward(batch, r) // each bucket is encoded, summed and decoded as it comes
//	err = r.Wait()                        // every rank now holds the same sums, bit for bit
//	err = r.Commit(step)
//	err = r.Close()
//
// Levels, from plain to small:
//
//	none      float32, as the ring sums it
//	bf16      half the bytes; the ring adds in float32 and rounds once
//	int8      a quarter: blocks of 128 with one scale, gathered and added in rank
//	          order; what rounding loses is added to the next step (error feedback,
//	          Seide et al. 2014)
//	powersgd  of a matrix [m, n] only two factors [m, 4] and [n, 4] travel, with error
//	          feedback and warm start (Vogels, Karimireddy and Jaggi 2019)
//
// Auto chooses for each bucket, from running averages. With t the time of its sum,
// of which remaining backward hides a part, exposed = max(0, t − remaining). A
// bucket goes up a level when exposed·(1 − bytes_next/bytes_now) exceeds the time
// to encode and decode by a tenth, and a share of the step's time that stands for
// what the level loses, for four steps in a row; it goes down when the relative
// error of its encoding passes the level's bound, and from powersgd when the
// gradient's norm shifts fast (Agarwal et al., Accordion, MLSys 2021). Ranks
// exchange their averages every second step, later every eighth, since a rank's own
// hold its waits for slower ones; rank 0 decides and ships the levels; every
// decision is reported with its numbers. Where ranks share memory Auto stays at none.
//
// Where the optimiser's state is divided over the ranks (ZeRO-1) Config.Scatter sums
// by reduce-scatter.
//
// Buckets are host memory, where they are encoded and decoded, whatever the ring takes
// besides: an engine on a GPU copies its gradients there.
//
// Duties: as of ring.Comm, of which a Reducer takes ownership until Close.
//
// Invariant: all ranks hold the same bits after Wait, at every level.
package ddp
