// Package engine declares what an engine computes: a Model that trains and a
// Decoder that generates, for any shape of package glm. One folder beside it is
// one engine: native (Go and assembly, always there).
//
// The same Arch and the same state give the same logits and gradients on every
// engine, within float tolerance.
//
// A step of the caller is: Backward for each micro-batch (the last one with the
// GradientSync), Wait on the sync, Update.
package engine
