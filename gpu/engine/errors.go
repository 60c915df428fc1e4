package engine

import "errors"

// ErrNotFinite is returned by Update when the gradient holds NaN or infinity;
// a caller may skip the step or fail the trial.
var ErrNotFinite = errors.New("gradient is not finite")
