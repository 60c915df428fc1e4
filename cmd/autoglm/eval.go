package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/node"
)

func evalCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "eval BUNDLE|ENSEMBLE FILE…",
		Short: "Score a model on files: bits per byte, and the task's own metric",
		Long: `Eval slides a window of the model's context over a text with a stride of half of
it, scores each token once, in the first window that reaches it, and divides by
the bytes of the file. A file of examples (JSONL, CSV, …) is scored example by
example, on what the model has to say. In place of a bundle it takes the ensemble
of a build, DIR/ensemble, whose models vote on each token.`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			score := func(path string) (node.Evaluation, error) { return node.EvaluateEnsemble(c.Context(), args[0], path) }
			if !node.IsEnsemble(args[0]) {
				b, err := openBundle(args[0])
				if err != nil {
					return err
				}
				score = func(path string) (node.Evaluation, error) { return node.EvaluateFile(c.Context(), b, path) }
			}
			for _, path := range args[1:] {
				e, err := score(path)
				if err != nil {
					return err
				}
				if asJSON {
					if err := printJSON(e); err != nil {
						return err
					}
					continue
				}
				fmt.Printf("%s: %.4f bits per byte, perplexity %.2f a token, %d bytes, %d tokens", path, e.BitsPerByte, e.Perplexity, e.Bytes, e.Tokens)
				if e.Metric != "" {
					fmt.Printf(", %s %.4f on %d examples", e.Metric, e.Value, e.Examples)
				}
				fmt.Println()
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a file")
	return c
}
