package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/telemetry"
	"github.com/open-autoglm/autoglm/runtime/train"
)

func trialsCommand() *cobra.Command {
	var asJSON, asCSV, asOptuna bool
	var parquet string
	c := &cobra.Command{
		Use:   "trials DIR",
		Short: "Show the trials of a build, for people or for other programs",
		Long: `Trials prints what a build has tried, best first: as a table, or as CSV, Parquet or
JSON for other programs. A trial's parameters are columns params_NAME.

--optuna prints JSON that makes an Optuna study of a build that has ended or is
interrupted:

  import json, optuna
  b = json.load(open("trials.json"))
  dist = lambda t: {n: optuna.distributions.json_to_distribution(json.dumps(d)) for n, d in t["distributions"].items()}
  make = lambda t: optuna.create_trial(**t | {"state": optuna.trial.TrialState[t["state"]], "distributions": dist(t), "intermediate_values": {int(s): v for s, v in t["intermediate_values"].items()}})
  study = optuna.create_study(direction=b.get("direction"), directions=b.get("directions")); study.add_trials([make(t) for t in b["trials"]])

Of a job with several objectives each trial has values, in the order of the objectives;
the study then tells best_trials, its front. The constraints are in user_attrs alone.`,
		Example: `  autoglm trials run1
  autoglm trials run1 --csv > trials.csv
  autoglm trials run1 --parquet trials.parquet
  autoglm trials run1 --optuna > trials.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			dir, ways := args[0], 0
			for _, on := range []bool{asJSON, asCSV, parquet != "", asOptuna} {
				if on {
					ways++
				}
			}
			if ways > 1 {
				return usageError{errors.New("--json, --csv, --parquet and --optuna: give one of them")}
			}
			if asOptuna {
				st, err := replay(dir)
				if err != nil {
					return err
				}
				sp, err := node.SearchSpace(dir, st)
				if err != nil {
					return err
				}
				return telemetry.WriteOptuna(os.Stdout, st, sp)
			}
			b, err := boardOf(dir)
			if err != nil {
				return err
			}
			switch {
			case asJSON:
				return printJSON(b)
			case asCSV:
				return telemetry.WriteCSV(os.Stdout, b)
			case parquet != "":
				return durable.Write(parquet, func(w io.Writer) error { return telemetry.WriteParquet(w, b) })
			}
			printBoard(os.Stdout, b, 0)
			return nil
		},
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "print leaderboard.json")
	f.BoolVar(&asCSV, "csv", false, "print CSV")
	f.StringVar(&parquet, "parquet", "", "write Parquet to `FILE`")
	f.BoolVar(&asOptuna, "optuna", false, "print JSON for Optuna")
	return c
}

// boardOf reads the leaderboard of a folder that a user names.
func boardOf(dir string) (journal.Leaderboard, error) {
	b, err := readBoard(dir)
	if err != nil {
		return b, usageError{fmt.Errorf("%w; is %s a folder that build made?", err, dir)}
	}
	return b, nil
}

// standing is a line of leaderboard.
type standing struct {
	Place     int      `json:"place"` // 0 is the final model
	Model     string   `json:"model"`
	Score     *float64 `json:"score_val"` // null where there is none; lower is better
	Params    int64    `json:"params"`
	Megabytes float64  `json:"megabytes"`
	Tokens    int64    `json:"tokens"`
	FitTime   float64  `json:"fit_time"` // seconds of its own training
	PerSecond float64  `json:"tokens_per_s"`
	Status    string   `json:"status"`
	Parent    string   `json:"parent,omitempty"`
	Reason    string   `json:"reason"`

	Cost   *train.Cost `json:"cost,omitempty"` // of generating with it, where the job asks
	Misses []string    `json:"misses,omitempty"`
	Front  bool        `json:"front,omitempty"`
	Knee   bool        `json:"knee,omitempty"`
	costs  []string    // columns, and the mark
}

// standings are the final model, where there is one, and the trials, best first.
func standings(dir string, b journal.Leaderboard) []standing {
	var out []standing
	add := func(place int, e journal.Entry) {
		out = append(out, standing{
			Place: place, Model: e.ID, Score: e.Score, Params: e.Params, Megabytes: 4e-6 * float64(e.Params), Tokens: e.Tokens, FitTime: e.Seconds,
			PerSecond: e.PerSecond, Status: e.Status, Parent: e.Parent, Reason: e.Reason,
			Cost: e.Cost, Misses: e.Misses, Front: e.Front, Knee: e.Knee,
		})
		last := &out[len(out)-1]
		for _, c := range b.Columns() {
			last.costs = append(last.costs, amount(c, e))
		}
		if len(last.costs) > 0 {
			last.costs = append(last.costs, mark(e))
		}
	}
	if b.Final != nil {
		add(0, *b.Final)
		if info, err := os.Stat(filepath.Join(dir, "bundle", bundle.WeightsFile)); err == nil {
			out[0].Megabytes = 1e-6 * float64(info.Size())
		}
	}
	for i, e := range b.Trials {
		add(i+1, e)
	}
	return out
}

func leaderboardCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "leaderboard DIR",
		Short: "Rank the models of a build by score, with what each cost",
		Long: `Leaderboard ranks what a build has trained, as users of AutoGluon know it: the final
model first, then the trials.

  score_val  bits per byte, lower is better: of the final model on the held-out part,
             of a trial on a sample of the validation part. Trials that went further
             stand before those that were stopped, whatever their score
  params, MB the model's size; a trial's MB are of its weights in float32
  tokens     that it was trained on, without those of a parent whose weights it began from
  fit_time   seconds of its own training, and tokens/s of that
  status     finished, stopped (others did better), paused, running or failed
  reason     why it went so far, or why it failed

Of a job with several objectives, or constraints on what generating costs, also

  s/token, J/token, memory, size    as the job asks, of generating one text on serves_on
  mark       knee and front: of those that hold the constraints no other is as good in
             all objectives and better in one, and the knee of these is the one that was
             trained to the end; misses: a constraint does not hold. Those that miss one
             stand below those that hold all. autoglm bundle makes a bundle of any

autoglm trials has the parameters of each.`,
		Example: `  autoglm leaderboard run1
  autoglm leaderboard run1 --json | jq '.[0]'`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := boardOf(args[0])
			if err != nil {
				return err
			}
			rows := standings(args[0], b)
			if asJSON {
				if rows == nil {
					rows = []standing{}
				}
				return printJSON(rows)
			}
			fmt.Print(standingTable(rows, b.Columns()))
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func standingTable(rows []standing, costs []string) string {
	var out bytes.Buffer
	t := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	head := ""
	for _, c := range costs {
		head += columnHeads[c] + "\t"
	}
	if head != "" {
		head += "mark\t"
	}
	fmt.Fprintln(t, "\tmodel\tscore_val\t"+head+"params\tMB\ttokens\tfit_time\ttokens/s\tstatus\treason")
	for _, r := range rows {
		place, score := fmt.Sprint(r.Place), "–"
		if r.Place == 0 {
			place = "★"
		}
		if r.Score != nil {
			score = fmt.Sprintf("%.4f", *r.Score)
		}
		cells := strings.Join(r.costs, "\t")
		if len(r.costs) > 0 {
			cells += "\t"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s%s\t%.2f\t%d\t%.1f s\t%.0f\t%s\t%s\n", place, r.Model, score, cells, size(r.Params), r.Megabytes, r.Tokens, r.FitTime, r.PerSecond, r.Status, clip(firstLine(r.Reason), 70))
	}
	_ = t.Flush() // into memory
	return out.String()
}
