//go:build gpu

package main

// What this build joins ranks by, beside what every build does.
import (
	_ "github.com/open-autoglm/autoglm/gpu/ring/mpi"
	_ "github.com/open-autoglm/autoglm/gpu/ring/nccl"
)
