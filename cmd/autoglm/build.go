package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/telemetry"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// jobFlags are the flags that build and plan share.
type jobFlags struct {
	job      string
	valid    []string
	warm     []string
	out      string
	budget   string
	trials   int
	seed     uint64
	plain    bool
	fallback bool
	steps    bool
	json     bool
}

func (f *jobFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.job, "job", "", "job `FILE`: YAML, or JSON with comments")
	fl.StringArrayVar(&f.valid, "valid", nil, "your own held-out `FILE` (may be repeated)")
	fl.StringSliceVar(&f.warm, "warm-start", nil, "begin from what earlier searches know: folders of builds (`RUN`), or their trials as CSV, Parquet or JSON; several with commas")
	fl.StringVar(&f.budget, "budget", "", "wall clock of the whole build, such as 3m or 2h (default 3m)")
	fl.IntVar(&f.trials, "trials", 0, "a budget in trials in place of a wall clock: the same result each time")
	fl.Uint64Var(&f.seed, "seed", 1, "seed of everything random")
	fl.BoolVar(&f.plain, "plaintext-collectives", false, "let NCCL, MPI and Gloo, which neither encrypt nor authenticate, join ranks that have certificates")
	fl.BoolVar(&f.json, "json", false, "print one JSON event a line on standard output, and nothing else there")
}

// addFallback is for verbs that compute here.
func (f *jobFlags) addFallback(c *cobra.Command) {
	c.Flags().BoolVar(&f.fallback, "allow-fallback", false, "compute on this machine's CPU when the hardware asked for isn't there")
}

// stepsFlag lets a job run programs here.
func stepsFlag(c *cobra.Command, on *bool) {
	c.Flags().BoolVar(on, "allow-steps", false, "run the programs that the job names as its steps: they may do here whatever you may")
}

// spec puts the job file, the flags and the files named on the command line
// together.
func (f *jobFlags) spec(c *cobra.Command, files []string) (job.Spec, error) {
	spec := job.Default()
	if f.job != "" {
		var err error
		if spec, err = job.Load(f.job); err != nil {
			var field *job.FieldError
			if errors.As(err, &field) {
				return spec, err
			}
			return spec, usageError{err}
		}
	}
	if len(files) > 0 {
		spec.Data.Files = files
	}
	if len(f.valid) > 0 {
		spec.Data.Valid = f.valid
	}
	if len(f.warm) > 0 {
		spec.WarmStart = f.warm
	}
	if c.Flags().Changed("seed") {
		spec.Seed = f.seed
	}
	if c.Flags().Changed("plaintext-collectives") {
		spec.PlaintextCollectives = f.plain
	}
	if f.budget != "" && c.Flags().Changed("trials") {
		return spec, usageError{errors.New("--budget and --trials are two budgets; give one")}
	}
	if f.budget != "" {
		var d job.Duration
		if err := d.UnmarshalText([]byte(f.budget)); err != nil || d == 0 {
			return spec, usageError{fmt.Errorf("--budget %s is no duration; write 90s, 3m or 1h30m", f.budget)}
		}
		spec.Budget = job.Budget{WallClock: d}
	}
	if c.Flags().Changed("trials") {
		spec.Budget = job.Budget{Trials: f.trials}
		if f.trials < 1 {
			return spec, usageError{fmt.Errorf("--trials %d: give at least 1", f.trials)}
		}
	}
	for _, list := range [][]string{spec.Data.Files, spec.Data.Valid, spec.Data.Plugin, spec.WarmStart} {
		for i, p := range list {
			if _, made := spec.StepFile(p); made {
				continue
			}
			abs, err := filepath.Abs(p)
			if err != nil {
				return spec, err
			}
			list[i] = abs
		}
	}
	for _, t := range spec.Steps {
		for i, p := range t.Files {
			abs, err := filepath.Abs(p)
			if err != nil {
				return spec, err
			}
			t.Files[i] = abs
		}
	}
	spec.Resolve()
	return spec, spec.Validate()
}

// named tells whether the spec says where data comes from.
func named(s job.Spec) bool {
	return len(s.Data.Files)+len(s.Data.URLs)+len(s.Data.Plugin) > 0
}

func buildCommand() *cobra.Command {
	var f jobFlags
	var l leaseFlags
	var t target
	c := &cobra.Command{
		Use:   "build [FILE…]",
		Short: "Build a model from text",
		Long: `Build reads and cleans the text, trains a tokenizer, searches for the best model
that the budget can train, trains it, and leaves it in OUT/bundle.

Without a FILE it builds from an embedded sample (Moby Dick). Without --out the
folder is run1, or the next one that is free. Ctrl-C keeps the state; go on with
'autoglm resume OUT'.

A build leases the processors that it computes on; autoglm devices shows who
holds them. Another build takes those that are free. When there are too few it
waits and says for whom: --wait bounds that, --share computes beside the others.

--warm-start begins where earlier searches came to: the best few of their trials, as far
as they differ, are tried first, and the others say what to expect, as much as the new
trials bear them out. Spaces may differ: what is missing is filled in, what is unknown is
left out, and the build says how much was of use. It is read once, into the journal.

With --attach a cluster builds: submit, attach and fetch in one.`,
		Example: `  autoglm build
  autoglm build corpus.jsonl --budget 10m --out run1
  autoglm build new-corpus.jsonl --warm-start run1,trials.csv
  autoglm build questions.csv --job job.yaml --valid held-out.csv`,
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := f.spec(c, args)
			if err != nil {
				return err
			}
			out := f.out
			if out == "" {
				out = freeFolder()
			}
			if t.attach != "" {
				for _, here := range []string{"allow-fallback", "allow-steps", "wait", "share"} {
					if c.Flags().Changed(here) {
						return usageError{fmt.Errorf("--%s is about this machine, and --attach builds on others; a job file's hardware_constraint says what a job takes there", here)}
					}
				}
				return buildOnCluster(c.Context(), &t, spec, out, f.json)
			}
			sample := !named(spec)
			if sample {
				dir, err := filepath.Abs(filepath.Join(out, "sample"))
				if err != nil {
					return err
				}
				spec.Data.Files = []string{filepath.Join(dir, sampleName)}
				if spec.Name == "" {
					spec.Name = "moby-dick"
				}
			} else if err := lookAt(c.Context(), spec); err != nil {
				return err // before anything is written
			}
			return carry(c.Context(), node.Options{Dir: out, Spec: spec, AllowFallback: f.fallback, AllowSteps: f.steps, Lease: l.lease(c.Context(), "build "+out)}, f.json, sample)
		},
	}
	f.add(c)
	f.addFallback(c)
	stepsFlag(c, &f.steps)
	l.add(c)
	t.add(c)
	c.Flags().Lookup("attach").Usage = "build on the cluster of the node at `HOST:PORT`, rather than here"
	c.Flags().StringVar(&f.out, "out", "", "`DIR` to build in (default run1, run2, …)")
	return c
}

func resumeCommand() *cobra.Command {
	var asJSON, fallback, steps bool
	var l leaseFlags
	c := &cobra.Command{
		Use:   "resume DIR",
		Short: "Go on after Ctrl-C, a crash or a reboot",
		Long: `Resume goes on with a build where it stopped: finished trials are not run again,
running ones continue from their last checkpoint, and the clock of the budget
counts only the time that the build has worked.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return carry(c.Context(), node.Options{Dir: args[0], Resume: true, AllowFallback: fallback, AllowSteps: steps, Lease: l.lease(c.Context(), "resume "+args[0])}, asJSON, false)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON event a line on standard output, and nothing else there")
	c.Flags().BoolVar(&fallback, "allow-fallback", false, "compute on this machine's CPU when the hardware asked for isn't there")
	stepsFlag(c, &steps)
	l.add(c)
	return c
}

// lookAt is what can be told of a job's files before it begins: that data which is
// there makes sense, and that the programs of steps are.
func lookAt(ctx context.Context, spec job.Spec) error {
	for i, t := range spec.Steps {
		for j, f := range t.Files {
			if _, err := os.Stat(f); err != nil {
				return &job.FieldError{Path: fmt.Sprintf("steps[%d].files[%d]", i, j), Msg: err.Error()}
			}
		}
	}
	if _, err := telemetry.ReadPast(spec.WarmStart); err != nil {
		return err
	}
	if madeBySteps(spec) {
		return nil
	}
	_, err := data.Probe(ctx, node.DataConfig(spec))
	return err
}

// madeBySteps tells whether steps make some of the job's data.
func madeBySteps(spec job.Spec) bool {
	return slices.ContainsFunc(append(slices.Clone(spec.Data.Files), spec.Data.Valid...), func(p string) bool {
		_, made := spec.StepFile(p)
		return made
	})
}

// carry opens the folder and carries the job out before the user's eyes.
func carry(ctx context.Context, o node.Options, asJSON, sample bool) error {
	o.Fallback = func(asked error, has []device.Device) {
		why := "as hardware_constraint auto allows"
		if o.AllowFallback {
			why = "as --allow-fallback says"
		}
		fmt.Fprintf(os.Stderr, "autoglm: %v; going on with %d CPU core(s), %s\n", asked, len(has), why)
	}
	v := newView(o.Dir, asJSON)
	defer v.close()
	before := func(n *node.Node) error {
		v.begin(n)
		if sample {
			if _, err := writeSample(filepath.Join(o.Dir, "sample")); err != nil {
				return err
			}
		}
		return nil
	}
	err := driver.Run(ctx, o, before, v)
	if errors.Is(err, device.ErrUnmet) {
		return fmt.Errorf("%w.\nUse --allow-fallback to compute on what is there, or \"hardware_constraint\": \"auto\"", err)
	}
	v.close()
	if err != nil && v.last.State.Plan != nil {
		// What there is so far; the error that ended the build is the one to tell.
		state := v.last.State
		_ = writeReport(o.Dir, &state)
	}
	switch {
	case errors.Is(err, node.ErrInterrupted):
		v.interrupted()
	case err == nil:
		err = v.done(ctx)
	}
	if actors.DiskError(err) {
		return fmt.Errorf("%w.\nWhat was done is kept: free some space (or mend the disk), then go on with: autoglm resume %s", err, o.Dir)
	}
	if errors.Is(err, train.ErrCheckpoint) {
		return fmt.Errorf("%w.\nWhat was done is kept; then go on with: autoglm resume %s", err, o.Dir)
	}
	return err
}

// freeFolder is the first of run1, run2, … that isn't there.
func freeFolder() string {
	for i := 1; ; i++ {
		name := fmt.Sprintf("run%d", i)
		if _, err := os.Lstat(name); errors.Is(err, os.ErrNotExist) {
			return name
		}
	}
}

// clock prints seconds as 1m05s.
func clock(seconds float64) string {
	d := time.Duration(max(seconds, 0) * float64(time.Second)).Round(time.Second)
	return strings.Replace(d.String(), "m0s", "m00s", 1)
}
