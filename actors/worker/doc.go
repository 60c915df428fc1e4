// Package worker lets a device's arithmetic run in a process of its own, so that
// an abort inside libtorch, a poisoned CUDA context or the out-of-memory killer
// takes one rank and never the node.
//
//	h := worker.NewHost(worker.Config{Command: worker.Self, Env: []string{"CUDA_VISIBLE_DEVICES=" + uuid}})
//	defer h.Close()
//	report, err := h.Train(ctx, assign, worker.On{Engine: "torch", CUDA: true}, progress)
//
// Both sides are here. A Host (node's side) starts the child when there is work,
// keeps it warm for the next piece, asks it every second whether it lives, and
// kills it when it does not answer or does not stop. Serve (the child's side, what
// `autoglm worker` runs) trains with train.Execute, times the machine, or looks at
// GPUs through NVML. They talk in frames over one socket pair that nobody else can
// reach:
//
//	host → child   ping, train, next, cards, abort, stop, time, score, look, facts
//	child → host   hello, pong, progress, card, rejoin, ended, timed, scored, seen, facts
//
// Ranks of one trial form their ring between the children: each hands its card to
// its host (card), which meets the others in the assignment's ring.Group and hands
// all cards back (cards). Gradients never come near a host; on their way to ranks of
// other nodes they pass through the node's Relay (relay.go). Children that compute
// on GPUs say so in their cards: under backend auto the ring is then NCCL's, where all
// have one; those on slices of a GPU (MIG), which NCCL refuses, sum in host memory.
//
// The caller's duties: one call of a Host's Train, Time, Score, Look or Facts at a
// time; Close when the node ends.
//
// Invariants: a call returns within its own bounds whatever the child does. A
// child that dies by itself is a ring.LostError with its last words. A child ends
// with its host, however that ends: by the end of the socket, and by SIGKILL from
// the kernel (PR_SET_PDEATHSIG). It leaves no file and no process.
package worker
