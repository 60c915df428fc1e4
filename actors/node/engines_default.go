//go:build !libtorch

package node

import "github.com/open-autoglm/autoglm/actors/worker"

// newTorch is nil: this build has no libtorch.
var newTorch func(cuda bool) maker

func torchFacts() (worker.Facts, error) { return worker.Facts{}, nil }
