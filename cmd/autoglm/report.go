package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/telemetry"
)

// writeReport writes report.html into a build's folder.
func writeReport(dir string, st *journal.State) error { return telemetry.WriteReport(dir, st) }

func reportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "report DIR",
		Short: "Write report.html of a build again",
		Long: `Report writes DIR/report.html from what the folder holds: one file with all plots,
which needs no network. The build may be finished, failed or interrupted, but not
running.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir := args[0]
			st, err := replay(dir)
			if err != nil {
				return err
			}
			if st.Finished && !telemetry.HasSamples(dir) {
				if err := makeSamples(c.Context(), dir); err != nil {
					return err
				}
			}
			if err := writeReport(dir, st); err != nil {
				return err
			}
			fmt.Println(filepath.Join(dir, telemetry.ReportFile))
			return nil
		},
	}
}

// replay reads the journal of a build that nobody carries out now.
func replay(dir string) (*journal.State, error) {
	jdir := filepath.Join(dir, "journal")
	if _, err := os.Stat(filepath.Join(jdir, journal.FileName)); err != nil {
		return nil, usageError{fmt.Errorf("%s %w; name a folder that build made", dir, node.ErrNoJob)}
	}
	log, err := journal.OpenFile(jdir)
	if errors.Is(err, journal.ErrInUse) {
		return nil, fmt.Errorf("%s %w; the build writes the report when it ends", dir, node.ErrInUse)
	}
	if err != nil {
		return nil, err
	}
	st, err := journal.Replayed(log)
	return st, errors.Join(err, log.Close())
}

// makeSamples lets the finished model complete the beginnings of held-out texts.
func makeSamples(ctx context.Context, dir string) error {
	b, err := bundle.Open(filepath.Join(dir, "bundle"))
	if err != nil {
		return err
	}
	prompts := samplePrompts(dir)
	texts := make([]string, len(prompts))
	for i, p := range prompts {
		if texts[i], err = complete(ctx, b, p, uint64(i+1)); err != nil {
			return err
		}
	}
	return keepSamples(dir, prompts, texts)
}

// keepSamples stores completions for the report.
func keepSamples(dir string, prompts []prompt, texts []string) error {
	out := make([]telemetry.Sample, len(prompts))
	for i, p := range prompts {
		out[i] = telemetry.Sample{Prompt: p.shown, Completion: texts[i]}
	}
	return telemetry.WriteSamples(dir, out)
}
