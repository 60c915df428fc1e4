//go:build libtorch

package main

import _ "github.com/open-autoglm/autoglm/gpu/ring/gloo"
