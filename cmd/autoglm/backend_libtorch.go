//go:build libtorch

package main

// What this build joins ranks by, beside what every build does.
import _ "github.com/open-autoglm/autoglm/gpu/ring/gloo"
