//go:build libtorch

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/gpu/engine/torch"
)

// libtorchVerbs adds what only a build with libtorch can do: check it.
func libtorchVerbs(root *cobra.Command) {
	root.AddCommand(&cobra.Command{
		Use:   "check",
		Short: "Compute through libtorch and say whether it answers rightly",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lines, err := torch.SelfCheck()
			for _, line := range lines {
				fmt.Fprintln(cmd.OutOrStdout(), line)
			}
			if err != nil {
				return fmt.Errorf("libtorch check: %w", err)
			}
			return nil
		},
	})
}
