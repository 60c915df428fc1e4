package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/runtime/serve/policy"
)

func policyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "policy",
		Short: "Rules, gates and votes over answers that are served",
	}
	c.AddCommand(&cobra.Command{
		Use:   "check FILE",
		Short: "Compile a policy and run its tests",
		Long: `Check reads a policy as serve --policy does: strictly, every rule compiled, every test
run. It prints each test with what was decided, and fails where one is not what its file
wants. It needs no model.

  models:
    chat:                                # a served name
      rules:
        - {name: empty, when: answer.trim() == "", then: {retry: 2}}
        - {name: json, when: json == null, then: next}
      gate: {confidence: 0.6, below: abstain}
      next: [large]
      tests:
        - {answer: "{}", confidence: 0.5, want: abstain}
    panel:                               # a name of its own, for a vote
      vote: {over: [chat, large], kind: majority}`,
		Example: `  autoglm policy check policy.yaml
  autoglm serve chat=run1/bundle large=run2/bundle --policy policy.yaml`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := policy.Read(args[0])
			if err != nil {
				return usageError{err}
			}
			failed, ran := 0, 0
			for _, t := range p.Test() {
				ran++
				mark := "ok  "
				if t.Err != nil {
					mark = "FAIL"
					failed++
				}
				fmt.Fprintf(c.OutOrStdout(), "%s %s, test %s: %s\n", mark, t.Model, t.Name, t.Got)
				if t.Err != nil {
					fmt.Fprintf(c.OutOrStdout(), "     %v\n", t.Err)
				}
			}
			if failed > 0 {
				return usageError{fmt.Errorf("%s: %d of %d tests failed", args[0], failed, ran)}
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %d served names, %d tests passed\n", args[0], len(p.Names()), ran)
			return nil
		},
	})
	return c
}
