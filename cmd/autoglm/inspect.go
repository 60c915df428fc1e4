package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/gpu/ring"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
)

func printJSON(v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Printf("%s\n", b)
	}
	return err
}

func probeCommand() *cobra.Command {
	var asJSON bool
	var task string
	c := &cobra.Command{
		Use:   "probe FILE…",
		Short: "Say what build would understand of this data, and why",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg := data.DefaultConfig()
			cfg.Files, cfg.Task = args, data.Task(task)
			p, err := data.Probe(c.Context(), cfg)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(p)
			}
			for _, f := range p.Files {
				about := ""
				if !f.RowsExact {
					about = "about "
				}
				fmt.Printf("%s: %s", f.File, f.Format)
				for _, s := range []string{f.Encoding, f.Compression} {
					if s != "" {
						fmt.Printf(", %s", s)
					}
				}
				if f.Delimiter != "" {
					fmt.Printf(", delimiter %q", f.Delimiter)
				}
				fmt.Printf(", %d bytes, %s%d rows\n", f.Bytes, about, f.Rows)
				if f.BadRows > 0 {
					fmt.Printf("  %d rows of the sample cannot be read\n", f.BadRows)
				}
				printGuess("  ", f.Guess)
				keys := make([]string, 0, len(f.Sample))
				for k := range f.Sample {
					keys = append(keys, k)
				}
				sort.Strings(keys)
				for _, k := range keys {
					fmt.Printf("    %s: %s\n", k, clip(strings.ReplaceAll(f.Sample[k], "\n", "⏎"), 100))
				}
			}
			if len(p.Files) > 1 {
				fmt.Println("Together:")
				printGuess("  ", p.Guess)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	c.Flags().StringVar(&task, "task", "auto", "take the task as given: "+strings.Join(job.TaskTypes(), ", "))
	return c
}

func printGuess(pad string, g data.Guess) {
	fmt.Printf("%stask %s, confidence %.2f\n", pad, g.Task, g.Confidence)
	for _, r := range g.Reasons {
		fmt.Printf("%s  because %s\n", pad, r)
	}
	roles := make([]string, 0, len(g.Roles))
	for r, col := range g.Roles {
		roles = append(roles, r+" = "+col)
	}
	sort.Strings(roles)
	if len(roles) > 0 {
		fmt.Printf("%s  %s\n", pad, strings.Join(roles, ", "))
	}
}

func planCommand() *cobra.Command {
	var f jobFlags
	c := &cobra.Command{
		Use:   "plan [FILE…]",
		Short: "Show what would be tried, on what and for how long; trains nothing",
		Long: `Plan takes the flags of build, looks at the data, times the machine for about
three seconds, and shows how the budget would be spent, and for how long by the
clock where it is one in trials or tokens.`,
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := f.spec(c, args)
			if err != nil {
				return err
			}
			return plan(c.Context(), spec, f)
		},
	}
	f.add(c)
	f.addFallback(c)
	return c
}

func plan(ctx context.Context, spec job.Spec, f jobFlags) error {
	if !named(spec) {
		dir, err := os.MkdirTemp("", "autoglm-plan-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		path, err := writeSample(dir)
		if err != nil {
			return err
		}
		spec.Data.Files = []string{path}
	}
	if madeBySteps(spec) {
		// What would be tried depends on data that is not there yet.
		if f.json {
			return printJSON(map[string]any{"graph": job.StagesOf(spec)})
		}
		printGraph(os.Stdout, spec)
		fmt.Println("Data: made by steps of the job, which plan does not run; what would be tried can be told once it is there")
		return nil
	}
	p, err := data.Probe(ctx, node.DataConfig(spec))
	if err != nil {
		return err
	}
	var bytes int64
	for _, file := range p.Files {
		n := file.Bytes
		if file.Compression != "" {
			n *= 3
		}
		bytes += n
	}
	o, err := node.Preview(ctx, spec, bytes, f.fallback)
	if err != nil {
		return err
	}
	if f.json {
		return printJSON(struct {
			Task string `json:"task"`
			node.Outlook
		}{string(p.Task), o})
	}
	printGraph(os.Stdout, spec)
	fmt.Printf("Data: %s, about %d bytes of text\n", p.Task, bytes)
	fmt.Printf("Devices: %d × %s\n", len(o.Devices), o.Devices[0].Model)
	for _, l := range planLines(&spec, o.Plan) {
		fmt.Println(strings.ToUpper(l[:1]) + l[1:])
	}
	if spec.GrowsFinal() {
		fmt.Println("Final model: the winner, or a larger one that it is grown into where a law that is fitted to the trials foretells that it ends better")
	}
	if o.Plan.Unit != search.Seconds {
		fmt.Printf("Time: about %s here: %s search, %s final training\n", clock(o.Seconds.Total), clock(o.Seconds.Search), clock(o.Seconds.Final))
	}
	fmt.Println(oddsLine(o.Odds))
	fmt.Println("First trial:", summary(o.First))
	printObjectives(os.Stdout, spec, o)
	fmt.Println("Space:")
	for _, d := range o.Space {
		fmt.Printf("  %-14s %s\n", d.Name, d.Range)
	}
	for _, text := range spec.Forbidden {
		fmt.Println("Never:", text)
	}
	return nil
}

// oddsLine says what a search is likely to find.
func oddsLine(o search.Odds) string {
	var ends []string
	for _, e := range o.Ends {
		ends = append(ends, fmt.Sprintf("%.0f at %.4g", e.Trials, e.Resource))
	}
	return fmt.Sprintf("Odds: with trials drawn at random the winner is among the best %.1f %% of the space in half of such searches, the best %.1f %% in nine of ten\n"+
		"  (%.1f %% if as much training went into whole trials); trials end: %s", 100*o.Median, 100*o.Ninety, 100*o.Whole, strings.Join(ends, ", "))
}

// printGraph prints a job's stages and steps in an order in which they could run.
func printGraph(w io.Writer, spec job.Spec) {
	fmt.Fprintf(w, "Graph: priority %d\n", spec.Priority)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "  STAGE\tNEEDS\tTIMEOUT\tRETRIES\tTAKES\tRUNS")
	for _, s := range job.StagesOf(spec) {
		timeout, retries := "–", fmt.Sprint(s.Retries)
		if s.Timeout > 0 {
			timeout = s.Timeout.String()
		}
		if s.Backoff > 0 && s.Retries > 0 {
			retries += fmt.Sprintf(" after %s, doubled", s.Backoff)
		}
		takes, runs := "the job's devices", "ours"
		if step, ok := spec.Step(s.Name); ok {
			var has []string
			if r := s.Resources; r.CPUs > 0 {
				has = append(has, fmt.Sprintf("%v CPUs", r.CPUs))
			}
			if r := s.Resources; r.Memory > 0 {
				has = append(has, r.Memory.String())
			}
			takes = strings.Join(has, ", ")
			runs = strings.Join(step.Run, " ")
			if step.Image != "" {
				runs += " (in " + step.Image + ")"
			}
			if s.Priority != 0 {
				runs += fmt.Sprintf(" (priority %d)", s.Priority)
			}
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\t%s\t%s\t%s\n", s.Name, dash(strings.Join(s.Needs, ", ")), timeout, retries, dash(takes), clip(firstLine(runs), 60))
	}
	_ = t.Flush() // as fmt.Fprintln: there is no one to tell
}

// printBoard prints the best n trials; 0 is all.
func printBoard(w io.Writer, b journal.Leaderboard, n int) {
	fmt.Fprintf(w, "%-6s %-8s %4s %8s %7s %9s%s  %s\n", "trial", "status", "rung", "bits/B", "steps", "tokens/s", costHead(&b), "configuration")
	rows := b.Trials
	if n > 0 && len(rows) > n {
		rows = rows[:n]
	}
	if b.Final != nil {
		rows = append([]journal.Entry{*b.Final}, rows...)
	}
	for _, t := range rows {
		bits := "–"
		if t.Bits != nil {
			bits = fmt.Sprintf("%.4f", *t.Bits)
		}
		line := lineOf(t) + summary(t.Config)
		if t.Status == "failed" {
			line = firstLine(t.Reason)
		}
		fmt.Fprintf(w, "%-6s %-8s %4s %8s %7d %9.0f%s  %s\n", t.ID, t.Status, rung(t), bits, t.Steps, t.PerSecond, costRow(&b, t), line)
	}
	if n > 0 && len(b.Trials) > n {
		fmt.Fprintf(w, "… and %d more: see leaderboard.json\n", len(b.Trials)-n)
	}
}

func doctorCommand() *cobra.Command {
	var listen, dir string
	var store storeFlags
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine has and lacks",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := node.Inventory()
			if err != nil {
				return err
			}
			fmt.Printf("devices   %s\n", m)
			fmt.Printf("memory    %d MB usable\n", m.MemoryBytes>>20)
			fmt.Printf("kernels   %s\n", kernel.Level())
			if kernel.FastBF16() {
				fmt.Println("          bf16 products in hardware, faster than f32: precision auto uses them to train")
			}
			if kernel.Level() == "generic" {
				fmt.Println("          no AVX2: training runs on portable code, many times slower")
			}
			switch f, err := node.Torch(c.Context()); {
			case err != nil:
				fmt.Printf("engines   native; torch does not start: %v\n", err)
			case f.Torch != "":
				fmt.Printf("engines   native, torch (%s, %d CUDA devices)\n", f.Torch, f.CUDA)
			default:
				fmt.Println("engines   native; autoglm libtorch fit makes a build that has torch, and computes on GPUs")
			}
			fmt.Println("backends  in memory, over sockets and between hosts: always")
			for _, name := range []string{ring.NCCL, ring.MPI, ring.Gloo} {
				text := name + ": can be used"
				if err := ring.Available(name); err != nil {
					text = strings.TrimPrefix(err.Error(), ring.ErrUnavailable.Error()+": ")
				}
				fmt.Printf("          %s\n", text)
			}
			n := min(m.Count(device.CPU), 8)
			rate, err := node.Rate(c.Context(), n, 1, "auto", engine.Auto, 1)
			if err != nil {
				return err
			}
			fmt.Printf("speed     %.0f GFLOP/s a core in whole training steps, %d core(s) at once\n", rate/1e9, n)
			doctorNode(listen, dir)
			switch said, err := store.check(c.Context()); {
			case err != nil && !errors.As(err, &usageError{}):
				fmt.Printf("store     %v\n", err)
			case err != nil:
				return err
			case said != "":
				fmt.Printf("store     %s\n", said)
			}
			return nil
		},
	}
	c.Flags().StringVar(&listen, "listen", "0.0.0.0:7400", "`HOST:PORT` at which a node would listen")
	c.Flags().StringVar(&dir, "data", ".", "`DIR` that a build or a node would write to")
	store.add(c)
	return c
}

func configCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "config", Short: "Work with job files and files of nodes",
		Long: `Config checks files of jobs and nodes. Of a job, beside what the README lists:

  objectives   the main score, bits_per_byte, and what else is to be small: latency
               (seconds of a generated token), memory (bytes resident while generating),
               size (bytes of weights and tokenizer), energy (joules of a token),
               task_error (1 − accuracy, token F1 or ROUGE-L of answers)
  metric       of answers, in task_error and of the finished model: auto is the task's
               own; rouge-1, rouge-2, rouge-l, bleu, exact-match, f1, precision, recall, …
  serves_on    the processors that the finished model generates on: cpu-1, cpu-4
  constraints  max_latency            of a generated token, such as 20ms
               max_size_mb            of weights and tokenizer, 10^6 bytes
               max_serving_memory_mb  while generating, 10^6 bytes
               max_params
               max_memory_mb          while training, MiB
  compress     int8 or int4, or an object: weights, prune, sparsity, student (auto),
               recover (2m) or recover_steps, max_loss (0.01); autoglm compress --help

The knee of the front is trained to the end; autoglm bundle makes a bundle of another.`,
	}
	c.AddCommand(&cobra.Command{
		Use:   "check FILE…",
		Short: "Check files of jobs and nodes and print them with all defaults",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, a := range args {
				if isNodeConfig(a) {
					if err := checkNodeConfig(c.Context(), a); err != nil {
						return err
					}
					continue
				}
				s, err := job.Load(a)
				if err != nil {
					if os.IsNotExist(err) {
						return usageError{err}
					}
					return err
				}
				s.Resolve()
				b, err := json.MarshalIndent(s, "", "  ")
				if err != nil {
					return err
				}
				fmt.Printf("%s\n", b)
			}
			return nil
		},
	})
	return c
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			fmt.Printf("autoglm %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

// version is this program's, as its build knows it.
func version() string {
	version := "devel"
	if info, ok := debug.ReadBuildInfo(); ok {
		if info.Main.Version != "" && info.Main.Version != "(devel)" {
			version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				version += " " + s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return version
}
