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
// Not yet run on hardware: Options.Device ≥ 0 (CUDA). Placement, bf16 products
// and the retry after out-of-memory are written for it; on a CPU the first is
// untouched, the second runs, and the third is tested by a stand-in failure.
package torch
