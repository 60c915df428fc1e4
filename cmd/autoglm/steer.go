package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/search"
)

func steerCommand() *cobra.Command {
	var t target
	var asJSON bool
	c := &cobra.Command{
		Use:   "steer RUN|JOB ORDER…",
		Short: "Steer a search that runs: enqueue, narrow, extend, stop",
		Long: `Steer changes the search of a build while it runs: of one on this machine, which is
named by its folder (from any terminal of the same user), or of a job of a cluster,
which is named by its id (with the role submit).

  enqueue NAME=VALUE…   the next trial to start has these values; what is not given is
                        as in the job's first trial, or as near to that as is allowed
  narrow NAME=RANGE…    from now on only such values are proposed: LOW..HIGH, one
                        value, or what a job's space takes: [64, 128], int(2, 4),
                        log_uniform(1e-4, 1e-3). What was tried outside still counts.
                        A second narrow of a dimension takes the place of the first
  extend +AMOUNT        the budget grows, in the unit that it has: +10m, +20 trials,
                        +1e6 tokens. The search goes on with further trials on the same
                        rungs, and the final training gets its share
  stop TRIAL            the trial ends at its next step, is not promoted, and does not
                        become the model

An order is checked at once, and it is in the journal before it takes effect: after a
crash resume goes on with it, and the same decisions follow. autoglm trials, the view
of the build and its report show what was ordered. Before the search has begun and
once it is over there is nothing to steer.`,
		Example: `  autoglm steer run1 enqueue lr=3e-3 dim=64
  autoglm steer run1 narrow lr=1e-3..1e-2 "dim=[128, 256]"
  autoglm steer run1 extend +10m
  autoglm steer run1 stop t003
  autoglm steer j1 extend +20 trials --attach 10.0.0.1:7400`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			o, err := search.ParseOrder(args[1:])
			if err != nil {
				return usageError{err}
			}
			info, err := os.Stat(args[0])
			if here := err == nil && info.IsDir() && t.attach == ""; here {
				o, err = node.SteerFolder(c.Context(), args[0], o)
			} else {
				err = t.with(c.Context(), func(ctx context.Context, c *driver.Client) (err error) {
					o, err = c.Steer(ctx, args[0], o)
					return err
				})
			}
			var refusal *node.Refusal
			if errors.As(err, &refusal) {
				return usageError{err}
			}
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(o)
			}
			fmt.Println(ordered(o))
			return nil
		},
	}
	t.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the order as the journal has it")
	return c
}

// ordered says what an order that was taken does.
func ordered(o search.Order) string {
	switch o.Kind {
	case search.Enqueue:
		return "enqueued for the next trial that starts: " + o.Config.Key()
	case search.Narrow:
		return fmt.Sprintf("%s: holds from decision %d on", strings.Replace(o.String(), "narrow", "narrowed to", 1), o.Before)
	case search.Extend:
		trials := 0
		for _, b := range o.Brackets {
			trials += b.Trials
		}
		more := "1 trial"
		if trials != 1 {
			more = fmt.Sprintf("%d trials", trials)
		}
		return fmt.Sprintf("%s: %s more, and the final training's share", strings.Replace(o.String(), "extend", "extended by", 1), more)
	}
	return "stopped " + o.Trial + ": it ends at its next step"
}
