package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/node"
)

func calibrateCommand() *cobra.Command {
	var data string
	var asJSON bool
	c := &cobra.Command{
		Use:   "calibrate BUNDLE",
		Short: "Fit how far a model's probabilities may be believed",
		Long: `Calibrate fits a temperature by which logits are divided, so that probabilities mean
what they say (temperature scaling, Guo et al. 2017): the gate of a policy then knows how
sure the model was. It changes no text.

It is fitted to half of the windows of a text that the model has not learnt from, and
judged by the others: their mean negative log-likelihood of a token in nats, and the
expected calibration error in 15 bins, before and after. Where those are not better by it,
the temperature is 1. The text is the file --data, or
the held-out part of the build that left the bundle, which lies beside it (BUNDLE/../data).

The result stands in BUNDLE/eval.json. Weights that change want it anew: compress drops it.`,
		Example: `  autoglm calibrate run1/bundle
  autoglm calibrate run1/bundle --data held.txt`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if filepath.Ext(args[0]) == ".gguf" {
				return usageError{errors.New("a GGUF file keeps no calibration; calibrate the bundle that it was made of")}
			}
			if _, err := openBundle(args[0]); err != nil {
				return err
			}
			k, err := node.Calibrate(c.Context(), args[0], data)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(k)
			}
			fmt.Printf("temperature %.4f, fitted to %d tokens of %s; on %d others:\n", k.Temperature, k.Fitted, k.Part, k.Judged)
			fmt.Printf("                              before   after\n")
			fmt.Printf("  negative log-likelihood     %.4f   %.4f nats a token\n", k.Before.NLL, k.After.NLL)
			fmt.Printf("  expected calibration error  %.4f   %.4f\n", k.Before.ECE, k.After.ECE)
			if k.Temperature == 1 {
				fmt.Println("No temperature that the first half asks for is better than 1 on the other; more text may tell.")
			}
			fmt.Println(filepath.Join(args[0], "eval.json"))
			return nil
		},
	}
	c.Flags().StringVar(&data, "data", "", "`FILE` of text that the model has not learnt from")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return c
}
