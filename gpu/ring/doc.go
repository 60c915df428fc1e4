// Package ring sums buffers over the ranks of one training step: all-reduce,
// reduce-scatter, all-gather, broadcast and barrier of float32, bf16 and f16, over
// one process's memory, memory that processes of a host share, unix sockets, TCP
// with or without TLS, several hosts of several ranks each, and through libraries
// that a build may hold: NCCL, MPI, Gloo.
//
//	c, err := ring.Form(ctx, ring.Config{Rank: r, World: n, Epoch: 1, Rendezvous: meet})
//	c.Reduce(0, ring.Buffer{Data: gradient}) // each bucket, in the same order on every rank
//	err = c.Wait()                           // every rank now holds the same sums, bit for bit
//	err = c.Commit(step)                     // … and knows that all of them do
//	if errors.Is(err, ring.ErrLost) {
//		c, err = c.Reform(ctx)               // the survivors' ring, one epoch later
//	}
//
// Path of an operation: Comm numbers it and hands it to its Transport. The
// transport compares what the ranks call (kind, element type, length, bucket), so
// that ranks which are out of step are told which one is; moves the data; sums.
//
//	memory      board: counters and slots that all ranks see     board.go
//	            inproc: ranks are goroutines                     inproc.go
//	            shm: a memfd; buffers of Alloc need no copies    shm.go
//	sockets     direct exchange, polled by the caller            socket.go, stream.go
//	hierarchy   a board in each host, a chain between hosts      hierarchy.go
//	            buffers on GPUs: NCCL in each host               ongpus.go
//	libraries   what all have announced alike is left to one     beside.go, library.go
//	beside all  mesh: heartbeats, loss, goodbye, descriptors     mesh.go
//
// How ranks meet: a Rendezvous gives all ranks each other's cards (Meeting in one
// process, Master by RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, see FromEnv);
// then each dials the others' Endpoints. From the cards all ranks choose one backend
// and say why (choose.go, Comm.Choice). nccl, mpi and gloo register themselves:
// import their packages, in builds with the tags gpu and libtorch.
//
// Duties: every rank calls the same collectives with the same lengths in the same
// order, and calls Wait before it touches the data again. One goroutine owns a
// Comm. A rank that gives up calls Abort; then every operation returns the reason.
//
// Invariants: sums are taken in rank order, and half-width ones rounded once, so
// all ranks hold the same bits, over every transport of ours, in every run; a
// library's sums, and those of buffers on GPUs, are the same on all ranks. (A
// hierarchy whose hosts' ranks are not consecutive sums host by host.) Nothing waits
// without a bound: for a living rank Config.Timeout, for a silent one Config.Suspect,
// to form a ring Config.FormTimeout; a library may take seconds more to be given up,
// which it states. A dead process is known within milliseconds by the end of its
// connection. No message of one epoch is read in another: connections are new, and
// greet with their epoch.
//
// Vocabulary: rank, world size, bucket (a contiguous piece of gradient), share
// (the part of a buffer that a rank sums), epoch (one life of a ring; a lost rank
// ends it), commit (the end of a step that all or none apply).
package ring
