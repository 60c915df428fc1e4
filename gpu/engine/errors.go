package engine

import "errors"

// ErrNotFinite is returned by Update when the gradient holds NaN or infinity;
// a caller may skip the step or fail the trial.
var ErrNotFinite = errors.New("gradient is not finite")

// ErrDevice means that the device failed underneath the engine (CUDA's sticky
// errors: a launch that failed, a device that vanished). Nothing works in this
// process any more: it has to end, and another one may go on.
var ErrDevice = errors.New("the device failed")
