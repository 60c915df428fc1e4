// Package torch is the engine that computes through libtorch, on a CPU or on
// CUDA. All but this file stands behind the build tag libtorch, which needs a
// copy of gotch fitted to the libtorch at hand:
//
//	autoglm libtorch fit
//
// The same Arch and the same state give the same logits and gradients as engine
// native, within float tolerance. Dropout draws from libtorch's generator, so
// that it drops other elements than native does.
//
// Ownership: libtorch's error, its gradient mode and a scope of tensors belong to
// one thread and one call. Each call of a Model locks its goroutine to a thread,
// and frees every tensor that it made before it returns. No tensor has a
// finalizer.
//
// Gradients are handed over to be summed while the backward pass still runs:
// autograd's graph is cut between the layers, so that each layer's gradient is final
// before the pass goes on to the one below (cuts). The bits are those of the whole
// graph. On CUDA gradients are summed where they are, where the sync takes that
// (engine.DeviceSync): over NCCL nothing of them passes through host memory, and
// Update works on the sums in place. For every other ring they are copied to the
// host and back. All work is on CUDA's default stream.
//
// A device that fails underneath (CUDA's sticky errors) is engine.ErrDevice: its
// process has to end, which is why CUDA belongs into a worker's.
//
// A Decoder generates, with keys and values on the device.
//
// Not yet run on hardware: Options.Device ≥ 0 (CUDA), and a Decoder's. Placement, bf16 products,
// the retry after out-of-memory, the allocator's statistics, the fault of a device
// and sums in its memory are written for it; on a CPU the first is untouched, the
// second runs, the third is tested by a stand-in failure, the fourth is compiled and
// says 0, the fifth is tested by the texts of CUDA's errors, and the last on a stub of
// NCCL for which host memory is the device's: so the order of CUDA's streams, that
// the sums wait for the gradients, has never been seen to hold.
package torch
