package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	Place     int      `json:"place"` // 0 is the final model, and the ensemble
	Model     string   `json:"model"`
	Test      *float64 `json:"score_test"`        // on the held-out part; null where it was not scored there; lower is better
	Score     *float64 `json:"score_val"`         // on what chose; null where there is none
	Latency   float64  `json:"latency,omitempty"` // ms to score a thousand tokens on the machine that built it; 0 is not measured
	Params    int64    `json:"params"`
	Megabytes float64  `json:"megabytes"`
	Tokens    int64    `json:"tokens"`
	FitTime   float64  `json:"fit_time"` // seconds of its own training
	PerSecond float64  `json:"tokens_per_s"`
	Level     int      `json:"stack_level"` // 1 is one model, 2 an ensemble
	CanInfer  bool     `json:"can_infer"`   // its weights are kept as it was scored
	Status    string   `json:"status"`
	Parent    string   `json:"parent,omitempty"`
	Reason    string   `json:"reason"`

	Cost   *train.Cost `json:"cost,omitempty"` // of generating with it, where the job asks
	Misses []string    `json:"misses,omitempty"`
	Front  bool        `json:"front,omitempty"`
	Knee   bool        `json:"knee,omitempty"`
	costs  []string    // columns, and the mark
}

// standings are the final model and the ensemble, where there are such, and the trials,
// best first.
func standings(dir string, b journal.Leaderboard) ([]standing, error) {
	var out []standing
	add := func(place int, e journal.Entry) {
		out = append(out, standing{
			Place: place, Model: e.ID, Score: e.Score, Params: e.Params, Megabytes: 4e-6 * float64(e.Params), Tokens: e.Tokens, FitTime: e.Seconds, Level: 1,
			PerSecond: e.PerSecond, Status: e.Status, Parent: e.Parent, Reason: e.Reason,
			Cost: e.Cost, Misses: e.Misses, Front: e.Front, Knee: e.Knee,
		})
		last := &out[len(out)-1]
		for _, c := range b.Columns() {
			last.costs = append(last.costs, amount(c, e))
		}
		if len(last.costs) > 0 {
			last.costs = append(last.costs, e.Mark())
		}
	}
	if b.Final != nil {
		add(0, *b.Final)
		f := &out[0]
		f.Test, f.Score = b.Final.Score, b.Final.Valid
		if info, err := os.Stat(filepath.Join(dir, "bundle", bundle.WeightsFile)); err == nil {
			f.Megabytes, f.CanInfer = 1e-6*float64(info.Size()), true
		}
	}
	for i, e := range b.Trials {
		add(i+1, e)
		if _, err := train.CheckpointState(train.BestDir(filepath.Join(dir, "trials", e.ID))); err == nil {
			out[len(out)-1].CanInfer = true // see job.Spec.Costed
		}
	}
	vote, err := node.ReadEnsemble(filepath.Join(dir, node.EnsembleDir))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(vote.Members) == 0 {
		return out, nil
	}
	if err != nil {
		return out, err
	}
	row := standing{Model: "ensemble", Level: 2, CanInfer: true, Status: "finished", Score: &vote.Valid.Bits}
	if vote.HeldOut != nil {
		row.Test = &vote.HeldOut.Bits
	}
	var names []string
	for _, m := range vote.Members {
		names = append(names, fmt.Sprintf("%.2f %s", m.Weight, m.Model))
		row.Params += m.Arch.Params()
		row.Megabytes += 4e-6 * float64(m.Arch.Params())
		row.Latency += m.Took
		for i := range out {
			if out[i].Model == m.Model {
				out[i].Latency = m.Took
				row.Tokens, row.FitTime = row.Tokens+out[i].Tokens, row.FitTime+out[i].FitTime
			}
		}
	}
	row.Reason = "the vote of " + strings.Join(names, " + ")
	return slices.Insert(out, min(1, len(out)), row), nil
}

func leaderboardCommand() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "leaderboard DIR",
		Short: "Rank the models of a build by score, with what each cost",
		Long: `Leaderboard ranks what a build has trained, as users of AutoGluon know it: the final
model first, then the trials.

  score_test bits per byte on the held-out part, which nothing was chosen by; lower is
             better. Trials are not scored there
  score_val  bits per byte on what chose: of the final model and the ensemble on text
             that the final training left out, of a trial on a sample of the
             validation part. Trials that went further stand before those that were
             stopped, whatever their score
  latency    milliseconds to score a thousand tokens on the machine that built it, of
             models that an ensemble was made of
  params, MB the model's size; a trial's MB are of its weights in float32
  tokens     that it was trained on, without those of a parent whose weights it began from
  fit_time   seconds of its own training, and tokens/s of that
  level      1 is one model, 2 the ensemble: a vote of several (job field ensemble), which
             autoglm eval DIR/ensemble scores
  infer      whether its weights are kept as they were scored: a trial's checkpoint is
             from before its rate fell, unless the job has several objectives
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
			rows, err := standings(args[0], b)
			if err != nil {
				return err
			}
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
	fmt.Fprintln(t, "\tmodel\tscore_test\tscore_val\tlatency\t"+head+"params\tMB\ttokens\tfit_time\ttokens/s\tlevel\tinfer\tstatus\treason")
	number := func(x *float64) string {
		if x == nil {
			return "–"
		}
		return fmt.Sprintf("%.4f", *x)
	}
	for _, r := range rows {
		place, latency, infer := fmt.Sprint(r.Place), "–", "no"
		switch {
		case r.Level > 1:
			place = ""
		case r.Place == 0:
			place = "★"
		}
		if r.Latency > 0 {
			latency = fmt.Sprintf("%.1f ms", r.Latency)
		}
		cells := strings.Repeat("–\t", strings.Count(head, "\t")) // of an ensemble
		if len(r.costs) > 0 {
			cells = strings.Join(r.costs, "\t") + "\t"
		}
		if r.CanInfer {
			infer = "yes"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s%s\t%.2f\t%d\t%.1f s\t%.0f\t%d\t%s\t%s\t%s\n", place, r.Model, number(r.Test), number(r.Score), latency, cells, size(r.Params), r.Megabytes, r.Tokens, r.FitTime, r.PerSecond, r.Level, infer, r.Status, clip(firstLine(r.Reason), 70))
	}
	_ = t.Flush() // into memory
	return out.String()
}
