package main

import (
	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/node"
)

// workerCommand is what a node starts for a device whose arithmetic runs in a
// process of its own.
func workerCommand() *cobra.Command {
	return &cobra.Command{
		Use: "worker", Hidden: true, Args: cobra.NoArgs,
		Short: "Compute for the node that started this process",
		RunE:  func(*cobra.Command, []string) error { return node.ServeWorker() },
	}
}
