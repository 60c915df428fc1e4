//go:build !libtorch

package node

// newTorch is nil: this build has no libtorch.
var newTorch maker
