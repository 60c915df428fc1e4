package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/node"
)

func bundleCommand() *cobra.Command {
	var trial, out string
	c := &cobra.Command{
		Use:   "bundle DIR --trial ID --out DIR",
		Short: "Make a bundle of any trial of a build, such as another one of the front",
		Long: `Bundle writes a model that a search has tried as a bundle, as it was when it got its
score, and scores it on the held-out part. Nothing is trained. It can do so for builds
with several objectives, or with constraints on what generating costs: those keep the
parameters of their trials. autoglm leaderboard marks the front.`,
		Example: `  autoglm leaderboard run1
  autoglm bundle run1 --trial t007 --out small`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if trial == "" || out == "" {
				return usageError{errors.New("--trial ID and --out DIR are needed")}
			}
			st, err := replay(args[0])
			if err != nil {
				return err
			}
			e, err := node.BundleTrial(c.Context(), args[0], st, trial, out)
			if err != nil {
				return err
			}
			lb := st.Leaderboard("")
			for _, t := range lb.Trials {
				if t.ID == trial {
					fmt.Printf("%s: %.4f bits per byte on held-out text%s\n", out, e.BitsPerByte, costWords(&lb, t.Cost))
					for _, m := range t.Misses {
						fmt.Printf("!! A constraint is MISSED: %s\n", m)
					}
				}
			}
			return nil
		},
	}
	c.Flags().StringVar(&trial, "trial", "", "`ID` of the trial")
	c.Flags().StringVar(&out, "out", "", "`DIR` of the bundle: new, or one that it replaces")
	return c
}
