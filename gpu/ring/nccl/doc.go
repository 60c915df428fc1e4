// Package nccl sums between GPUs through NVIDIA's NCCL: the backend nccl of
// gpu/ring in builds with the tag gpu, without cgo of its own. Without the tag it is
// empty.
//
//	import _ "github.com/open-autoglm/autoglm/gpu/ring/nccl"
//	ring.Form(ctx, ring.Config{Backend: ring.NCCL, GPU: &ring.GPU{Ordinal: 0}, …})
//
// libnccl.so.2 (2.14 or newer) and the driver's libcuda.so.1 are loaded when they
// are first asked for; AUTOGLM_NCCL and AUTOGLM_CUDA name other files.
//
//	ring             who is there, who is lost, what is called, barriers, commits
//	comm.go          one rank: a thread of its own for its GPU, bounds, abort
//	nccl.go, cuda.go the functions of the two libraries
//
// NCCL's ways, and what is made of them: a blocking communicator can't be given
// up, so all are non-blocking and polled. A lost rank leaves the others' kernels
// spinning for ever: the ring's own heartbeats find it, and then the communicator
// is aborted and the survivors make a new one. Calls may hang: they are made on
// the GPU's thread, and whoever waits for them gives up at a bound and aborts.
//
// Over several hosts the ring chooses: one communicator over all where RDMA joins the
// hosts, otherwise one inside each, and the ring's own connections between them.
//
// Buffers on the GPU are summed where they are. Buffers of host memory go through
// the GPU's memory, so that the few numbers a training agrees on need no second
// ring. Sums are taken in NCCL's order, half-width ones rounded at each hop: all
// ranks hold the same bits, though not those of the other backends.
//
// What runs in tests is a stub of both libraries (testdata/stub.c) that sums between
// processes and fails on demand. None of this has yet run on a GPU.
package nccl
