//go:build gpu

package main

import (
	_ "github.com/open-autoglm/autoglm/gpu/ring/mpi"
	_ "github.com/open-autoglm/autoglm/gpu/ring/nccl"
)
