package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/train"
)

func trialCommand() *cobra.Command {
	var o node.Single
	var config string
	var seed uint64
	var asJSON bool
	var l leaseFlags
	c := &cobra.Command{
		Use:   "trial --data DIR --resume DIR {--until STEP | --for DURATION}",
		Short: "Train one configuration, for searches of your own",
		Long: `Trial trains one model up to a step and scores it: what autoglm's own search does
with each configuration, for optimisers of other makers that want to drive it.

  --data    folder of a build that has read its text: its tokenizer and its parts
            are used, so that scores compare with those of the build's trials
  --config  what to train: config.json of a trial (BUILD/trials/ID/config.json), or
            the dimensions of the space as JSON, as leaderboard.json has them under
            "config": {"layers": 3, "dim": 128, "heads": 4, "kv_heads": 4,
            "ffn_ratio": 3, "context": 128, "vocab": 512, "tied": true, "optimizer":
            "adamw", "lr": 0.004, "batch_tokens": 1024, "dropout": 0,
            "weight_decay": 0.1, "warmup_steps": 50}
  --resume  folder of the trial: new, or left by an earlier call, with which it goes on
  --until   optimiser steps, counted from the beginning
  --for     training time in their place, such as 90s, counted from the beginning too
  --final   train as a build's last training does: on the text that scores trials as well,
            but for a part that tells which of its evaluations was the best

Each evaluation is one line; with --json {"step", "tokens", "seconds",
"bits_per_byte", "loss"}, where loss is of the validation sample, in nats a token.

The rate falls to zero in the last quarter of the steps (--decay), then comes the
score. What a later call goes on with is the state before that: --until 100 and then
--until 300 ends with the bytes of --until 300. So a scheduler stops a trial by not
calling again, and promotes it with a larger --until. Scores in between, on the way
(--eval-every), are of a rate that has not fallen, and therefore worse.

The same configuration, seed, data and number of processors give the same scores, and
those of the build's own trials, but of the ones that began from a parent's weights
(leaderboard --json names it): trial always begins from nothing. Ctrl-C saves and ends
with exit code 130; the same command goes on.`,
		Example: `  autoglm build corpus.txt --out run1                      # once: reads, cleans, tokenizes
  autoglm trial --data run1 --config c.json --resume t1 --until 100 --json
  autoglm trial --data run1 --resume t1 --until 300 --json  # promoted`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, f := range []struct{ name, value string }{{"data", o.Data}, {"resume", o.Dir}} {
				if f.value == "" {
					return usageError{fmt.Errorf("--%s DIR is needed", f.name)}
				}
			}
			switch {
			case o.Until < 1 && o.For == 0:
				return usageError{errors.New("--until STEP is needed, at least 1, or --for DURATION")}
			case o.Until != 0 && o.For != 0:
				return usageError{errors.New("--until and --for are two ends; give one")}
			case o.For < 0:
				return usageError{fmt.Errorf("--for %s is negative", o.For)}
			case o.For > 0 && o.EvalEvery > 0:
				return usageError{errors.New("--eval-every counts steps and goes with --until")}
			case !(o.Decay >= 0 && o.Decay <= 1):
				return usageError{fmt.Errorf("--decay %g is outside 0 … 1", o.Decay)}
			case o.EvalEvery < 0 || o.EvalTokens < 1 || o.CPUs < 1:
				return usageError{errors.New("--eval-every, --eval-tokens and --cpus can't be that small")}
			}
			if config != "" {
				b, err := os.ReadFile(config)
				if err != nil {
					return usageError{err}
				}
				if o.Config, err = node.ReadConfig(config, b, seed); err != nil {
					return err
				}
			}
			o.Lease = l.lease(c.Context(), "trial "+o.Dir)
			_, err := o.Train(c.Context(), func(st train.State, s train.Score) {
				loss := s.NLL / float64(max(s.Tokens, 1))
				if !asJSON {
					fmt.Printf("step %d, %d tokens, %.1f s: %.4f bits per byte, loss %.4f\n", st.Step, st.Tokens, st.Seconds, s.BitsPerByte(), loss)
					return
				}
				_ = printJSON(struct { // as fmt.Printf: there is no one to tell
					Step    int     `json:"step"`
					Tokens  int64   `json:"tokens"`
					Seconds float64 `json:"seconds"`
					Bits    float64 `json:"bits_per_byte"`
					Loss    float64 `json:"loss"`
				}{st.Step, st.Tokens, st.Seconds, s.BitsPerByte(), loss})
			})
			if errors.Is(err, node.ErrInterrupted) {
				fmt.Fprintf(os.Stderr, "autoglm: interrupted; %s is kept, and the same command goes on\n", o.Dir)
			}
			return err
		},
	}
	f := c.Flags()
	f.StringVar(&o.Data, "data", "", "`DIR` of a build whose prepared text to train on")
	f.StringVar(&config, "config", "", "`FILE` that says what to train; left out: as --resume's folder says")
	f.StringVar(&o.Dir, "resume", "", "`DIR` of the trial: new, or to go on with")
	f.IntVar(&o.Until, "until", 0, "train up to `STEP`")
	f.DurationVar(&o.For, "for", 0, "train for `DURATION` in all")
	f.BoolVar(&o.Final, "final", false, "train as a build's last training does, and keep the best of its evaluations")
	f.Float64Var(&o.Decay, "decay", node.SingleDecay, "share of the steps in which the rate falls to zero before the last score")
	f.IntVar(&o.EvalEvery, "eval-every", 0, "score every `STEPS` on the way as well; 0 scores at the end alone")
	f.Int64Var(&o.EvalTokens, "eval-tokens", node.SingleEvalTokens, "tokens of the validation part that a score is taken on")
	f.IntVar(&o.CPUs, "cpus", 1, "processors to train on, leased like a build's")
	f.Uint64Var(&seed, "seed", 1, "seed of a configuration that names none")
	f.BoolVar(&asJSON, "json", false, "print JSON, one evaluation a line")
	l.add(c)
	return c
}
