// Package gloo sums through the Gloo of libtorch's c10d: the backend gloo of
// gpu/ring in builds with the tag libtorch. Without the tag it is empty.
//
// c10d is C++: c10d/shim.cpp wraps what is needed of it in C. `autoglm libtorch fit`
// compiles it to libautoglm-gloo.so beside the binary that it builds; AUTOGLM_GLOO
// names another place.
//
// Ranks meet at a TCPStore that rank 0 opens. Gloo can't be told to give up: calls
// are made on a thread of their own, and whoever waits for one gives up at the
// ring's bounds, on which the process has to end. A lost rank ends the ring for all
// (ring.ErrUnmendable).
//
// Sums are taken in Gloo's order, half-width ones in float32 and rounded once. All
// ranks hold the same bits.
package gloo
