// Command autoglm builds language models by itself: see the README, or
//
//	autoglm --help
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// Exit codes.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130
)

// usageError marks what the user can mend on the command line.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := interruptible()
	defer stop()
	// A limit on file sizes is an error of the write that meets it, not the end.
	signal.Ignore(syscall.SIGXFSZ)
	root := newRoot()
	root.SetArgs(args)
	err := unknownSub(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	if err != nil && strings.HasPrefix(err.Error(), "unknown command") {
		err = usageError{err}
	}
	code := exitCode(err)
	if err != nil && code != exitInterrupted {
		fmt.Fprintln(os.Stderr, "autoglm:", err)
		var u usageError
		if errors.As(err, &u) {
			fmt.Fprintln(os.Stderr, "See 'autoglm --help'.")
		}
	}
	return code
}

// unknownSub refuses a word after a group of commands that is none of them, for which
// cobra would print a help and call it done.
func unknownSub(root *cobra.Command, args []string) error {
	c, rest, err := root.Find(args)
	if err == nil && c != root && !c.Runnable() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		return usageError{fmt.Errorf("unknown command %q for %q; see %s --help", rest[0], c.CommandPath(), c.CommandPath())}
	}
	return nil
}

// interruptible is a context that the first Ctrl-C or SIGTERM ends; the second
// one ends the process.
func interruptible() (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	sig := make(chan os.Signal, 2)
	signal.Notify(sig, os.Interrupt, syscall.SIGTERM)
	go func() {
		if _, ok := <-sig; !ok {
			return
		}
		cancel()
		if _, ok := <-sig; ok {
			os.Exit(exitInterrupted)
		}
	}()
	return ctx, func() {
		signal.Stop(sig)
		close(sig)
		cancel()
	}
}

func exitCode(err error) int {
	var u usageError
	var field *job.FieldError
	var input *data.InputError
	var refused *daemon.StatusError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, node.ErrInterrupted), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &u), errors.As(err, &field), errors.As(err, &input), errors.Is(err, device.ErrUnmet), errors.Is(err, device.ErrBusy),
		errors.Is(err, node.ErrHasJob), errors.Is(err, node.ErrNoJob), errors.Is(err, node.ErrInUse), errors.Is(err, node.ErrNoTrial), errors.Is(err, driver.ErrNeedsTLS):
		return exitUsage
	case errors.As(err, &refused) && refused.Code/100 == 4 && refused.Code != http.StatusMisdirectedRequest:
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "autoglm",
		Short: "Build language models from your own text, on your own machines",
		Long: `autoglm reads your text (JSONL, JSON, CSV, Parquet, plain; compressed or not),
cleans it, trains a tokenizer, searches for the best small language model that
your machine can train within a budget, trains it, and leaves a folder that
Hugging Face transformers, vLLM and autoglm itself load.

Start here:
  autoglm build                           a model from the embedded sample, 3 minutes
  autoglm build corpus.jsonl --budget 10m --out run1
  autoglm generate run1/bundle --prompt "Call me"
  autoglm serve run1/bundle               over HTTP and gRPC; a page to try it
On several machines:
  autoglm node --help                     nodes; then submit, attach, fetch
  autoglm deploy --help                   units and manifests that start them

Exit codes: 0 done, 1 failed, 2 bad usage or bad input, 130 interrupted (the
state is kept; resume goes on).`,
		SilenceUsage: true, SilenceErrors: true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(buildCommand(), resumeCommand(), steerCommand(), planCommand(), probeCommand(), generateCommand(), serveCommand(), policyCommand(), calibrateCommand(), apikeyCommand(), evalCommand(), compressCommand(),
		trialsCommand(), leaderboardCommand(), trialCommand(), bundleCommand(), exportCommand(), pushCommand(), keygenCommand(), signCommand(), verifyCommand(), reportCommand(), devicesCommand(), doctorCommand(), configCommand(), libtorchCommand(), versionCommand(), workerCommand(),
		nodeCommand(), caCommand(), nodesCommand(), drainCommand(), submitCommand(), jobsCommand(), statusCommand(), attachCommand(), logsCommand(),
		cancelCommand(), fetchCommand(), rmCommand(), backupCommand(), restoreCommand(), keysCommand(), deployCommand(), healthCommand())
	for _, c := range root.Commands() {
		wrapArgs(c)
	}
	return root
}

// wrapArgs makes a wrong number of arguments a usage error.
func wrapArgs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
	check := c.Args
	if check == nil {
		return
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{fmt.Errorf("%s: %w", cmd.CommandPath(), err)}
		}
		return nil
	}
}
