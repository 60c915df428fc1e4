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
// A device that fails underneath (CUDA's sticky errors) is engine.ErrDevice: its
// process has to end, which is why CUDA belongs into a worker's.
//
// Not yet run on hardware: Options.Device ≥ 0 (CUDA). Placement, bf16 products,
// the retry after out-of-memory, the allocator's statistics and the fault of a
// device are written for it; on a CPU the first is untouched, the second runs, the
// third is tested by a stand-in failure, the fourth is compiled and says 0, and the
// last is tested by the texts of CUDA's errors.
package torch
