package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/metric"
)

func evalCommand() *cobra.Command {
	var asJSON bool
	var names string
	c := &cobra.Command{
		Use:   "eval BUNDLE|ENSEMBLE FILE…",
		Short: "Score a model on files: bits per byte, and the task's own metric",
		Long: `Eval slides a window of the model's context over a text with a stride of half of
it, scores each token once, in the first window that reaches it, and divides by
the bytes of the file. A file of examples (JSONL, CSV, …) is scored example by
example, on what the model has to say. In place of a bundle it takes the ensemble
of a build, DIR/ensemble, whose models vote on each token.

--metrics adds others, of up to 100 answers that are generated: ` + strings.Join(metric.Names(), ", ") + `;
precision, recall and f1 are their macro means. All but bits_per_byte are shares of 1,
BLEU too: it is sacrebleu's over 100.`,
		Example: `  autoglm eval run1/bundle held.txt
  autoglm eval run1/bundle answers.jsonl --metrics rouge-l,bleu,exact-match`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			var more []metric.Metric
			if names != "" {
				var err error
				if more, err = metric.Parse(names); err != nil {
					return usageError{fmt.Errorf("--metrics: %w", err)}
				}
				if node.IsEnsemble(args[0]) {
					return usageError{errors.New("--metrics are of answers, and an ensemble gives probabilities alone; serve its models with a soft vote of a policy")}
				}
			}
			score := func(path string) (node.Evaluation, error) { return node.EvaluateEnsemble(c.Context(), args[0], path) }
			if !node.IsEnsemble(args[0]) {
				b, err := openBundle(args[0])
				if err != nil {
					return err
				}
				score = func(path string) (node.Evaluation, error) { return node.EvaluateFile(c.Context(), b, path, more) }
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
				for _, m := range more {
					if m.Name != e.Metric {
						fmt.Printf(", %s %.4f", m.Name, e.Metrics[m.Name])
					}
				}
				if len(more) > 0 && e.Metric == "" && e.Examples > 0 {
					fmt.Printf(" on %d examples", e.Examples)
				}
				fmt.Println()
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON object a file")
	c.Flags().StringVar(&names, "metrics", "", "`NAME,…` of metrics of answers to take as well")
	return c
}
