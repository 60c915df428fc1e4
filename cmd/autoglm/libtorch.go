package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/gpu/engine/torch/fit"
)

// libtorchCommand builds an autoglm that computes through libtorch.
func libtorchCommand() *cobra.Command {
	root := &cobra.Command{Use: "libtorch", Short: "Build an autoglm that computes through libtorch", Args: cobra.NoArgs}
	c := fit.Config{GPU: true}
	cmd := &cobra.Command{
		Use:   "fit",
		Short: "Fit the bindings to a libtorch, build autoglm-torch and check it",
		Long: `fit finds a libtorch (--libtorch, the torch of AUTOGLM_PYTHON or of python3,
Debian's libtorch-dev), fits the bindings to it, and builds autoglm from its
source with the tag libtorch. It needs go and g++; the first time takes minutes.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := fit.Run(cmd.Context(), c, func(line string) { fmt.Fprintln(cmd.ErrOrStderr(), line) })
			if err != nil {
				return fmt.Errorf("libtorch fit: %w", err)
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%s: libtorch %s, tags %s\n", c.Out, r.Libtorch.Version, r.Tags)
			fmt.Fprintf(out, "left out of the bindings: %d wrappers %s\n", len(r.Blanked), strings.Join(r.Blanked, " "))
			fmt.Fprintf(out, "mod file for go build and go test: -tags %s -modfile=%s\n%s\n", r.Tags, r.ModFile, r.Check)
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.Libtorch, "libtorch", "", "folder of a libtorch (of a wheel: site-packages/torch)")
	f.StringVar(&c.Source, "source", ".", "folder of autoglm's source")
	f.StringVar(&c.Cache, "cache", "", "folder of the fitted bindings (default: autoglm/libtorch in the user's cache)")
	f.StringVar(&c.Out, "out", "autoglm-torch", "the binary")
	root.AddCommand(cmd)
	libtorchVerbs(root)
	return root
}
