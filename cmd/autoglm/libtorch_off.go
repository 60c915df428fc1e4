//go:build !libtorch

package main

import "github.com/spf13/cobra"

// libtorchVerbs adds what only a build with libtorch can do: nothing.
func libtorchVerbs(*cobra.Command) {}
