package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/compress"
)

func compressCommand() *cobra.Command {
	var o node.Compression
	var int8, int4, distil, asJSON bool
	var maxLoss string
	c := &cobra.Command{
		Use:   "compress BUNDLE --out DIR",
		Short: "Make a model smaller and faster, and say what that costs",
		Long: `Compress makes a smaller bundle of a bundle, and prints size, speed and held-out
score before and after. When the score has become worse by more than --max-loss
it fails and writes nothing.

  --int8         weights of 8 bits: little more than a quarter of the size, a few
                 times the speed, a loss that is hard to measure. Start here.
  --int4         weights of 4 bits (embedding and head of more): smaller and faster
                 still, and one notices.
  --prune 0.3    take away the 30 % of the feed-forward channels that matter least
  --prune-heads 0.25
                 take away a quarter of the attention's heads, the same way: with the
                 keys and values that they read, where those are not shared by all
  --sparsity 0.5 set the smaller half of each matrix's weights to 0; the model gets
                 no faster by it
  --distil       a student with about half the work for a token, made of the model's
                 own layers, that learns from what the whole model says

The first two need no data and take seconds. After the others the model learns for
--recover, on the training part. They go together with --int8 or --int4.

What is scored is the held-out part of the build that left the bundle, which lies
beside it (BUNDLE/../data), or the file --data; what is learnt from is that build's
training part, or the file --train.

The result is a folder like any other bundle: generate, eval and transformers (with
the compressed-tensors package) load it.`,
		Example: `  autoglm compress run1/bundle --int8 --out run1/small
  autoglm compress run1/bundle --prune 0.3 --recover 2m --int8 --out run1/pruned
  autoglm compress run1/bundle --distil --recover 5m --max-loss 5% --out run1/student
  autoglm compress run1/bundle --distil --teacher run1/ensemble --int8 --out run1/pupil
  autoglm compress downloaded --int4 --data heldout.txt --out small`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o.Bundle = args[0]
			switch {
			case o.Out == "":
				return usageError{errors.New("--out names the folder of the compressed bundle; give one")}
			case int8 && int4:
				return usageError{errors.New("--int8 and --int4 are two kinds of weights; give one")}
			case int8:
				o.Options.Weights = glm.Int8
			case int4:
				o.Options.Weights = glm.Int4
			}
			ch := &o.Options.Change
			if distil && ch.Student == "" {
				ch.Student = compress.Auto
			}
			if ch.Student != "" && !distil {
				return usageError{errors.New("--student is of --distil; give both")}
			}
			if o.Teacher != "" && !o.Options.NeedsText() {
				return usageError{errors.New("--teacher has nobody to teach; give --distil, --prune, --prune-heads or --sparsity too")}
			}
			if o.Options.NeedsText() && ch.RecoverSteps == 0 && !c.Flags().Changed("recover") {
				ch.Recover = defaultRecovery
			}
			var err error
			if o.Options.MaxLoss, err = parseShare(maxLoss); err != nil {
				return usageError{fmt.Errorf("--max-loss %q: %w", maxLoss, err)}
			}
			if err := o.Options.Validate(); err != nil {
				return usageError{err}
			}
			if _, err := openBundle(o.Bundle); err != nil {
				return err
			}
			rep, part, err := node.Compress(c.Context(), o)
			var worse *compress.WorseError
			if err != nil && !errors.As(err, &worse) {
				return err
			}
			if asJSON {
				return errors.Join(printJSON(compressed{o.Out, part, rep, rep.Loss(), worse == nil}), err)
			}
			w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
			fmt.Fprintf(w, "\tbefore\tafter\n")
			for _, r := range node.CompressionRows(rep) {
				fmt.Fprintf(w, "%s\t%s\t%s\n", r[0], r[1], r[2])
			}
			if ferr := w.Flush(); ferr != nil {
				return errors.Join(err, ferr)
			}
			b, a := rep.Before, rep.After
			fmt.Printf("%.3f of the size, %.2f times as fast, score on %s %s", float64(a.Bytes)/float64(b.Bytes), b.Latency/a.Latency, part, rep.Said())
			if rep.Steps > 0 {
				fmt.Printf(" after %d steps of recovery", rep.Steps)
			}
			fmt.Println()
			if err == nil {
				fmt.Println(o.Out)
			}
			return err
		},
	}
	fl := c.Flags()
	fl.StringVar(&o.Out, "out", "", "folder to write the compressed bundle to; a bundle that is there is replaced")
	fl.BoolVar(&int8, "int8", false, "weights of 8 bits")
	fl.BoolVar(&int4, "int4", false, "weights of 4 bits")
	fl.Float64Var(&o.Options.Prune, "prune", 0, "share of the feed-forward channels to take away")
	fl.Float64Var(&o.Options.Heads, "prune-heads", 0, "share of the attention's heads to take away")
	fl.Float64Var(&o.Options.Sparsity, "sparsity", 0, "share of each matrix's weights to set to 0")
	fl.BoolVar(&distil, "distil", false, "train a student")
	fl.StringVar(&o.Options.Student, "student", "", "the student's shape: auto (the default)")
	fl.StringVar(&o.Teacher, "teacher", "", "`DIR` of the bundle, or of a build's ensemble, whose logits are learnt from in place of the model's own")
	fl.DurationVar(&o.Options.Recover, "recover", 0, "how long to learn after pruning or for a student (default "+defaultRecovery.String()+")")
	fl.IntVar(&o.Options.RecoverSteps, "recover-steps", 0, "how many steps to learn, in place of a time: the same steps give the same model")
	fl.StringVar(&maxLoss, "max-loss", "1%", "how much worse the held-out score may get")
	fl.StringVar(&o.Data, "data", "", "`FILE` to score on in place of the build's held-out part")
	fl.StringVar(&o.Train, "train", "", "`FILE` to learn from in place of the build's training part")
	fl.IntVar(&o.Options.Threads, "threads", 1, "threads that score and learn")
	fl.Uint64Var(&o.Options.Seed, "seed", 0, "seed of the order in which a recovery reads")
	fl.BoolVar(&asJSON, "json", false, "print the report as JSON")
	return c
}

const defaultRecovery = 2 * time.Minute

// compressed is what compress prints as JSON.
type compressed struct {
	Out    string          `json:"out"`
	Part   string          `json:"part"`
	Report compress.Report `json:"report"`
	Loss   float64         `json:"loss"`
	Done   bool            `json:"done"`
}

// parseShare reads "1%" or "0.01".
func parseShare(s string) (float64, error) {
	number, percent := strings.CutSuffix(strings.TrimSpace(s), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil {
		return 0, errors.New("give a share such as 1% or 0.01")
	}
	if percent {
		v /= 100
	}
	return v, nil
}
