// Package drive runs the program autoglm for the benches, as its users do: built from
// this checkout, each on processors of its own.
package drive

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/bench/corpus"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

// Text is the text of a bench that names none: tinyshakespeare below $AUTOGLM_TESTDATA,
// or without that the sample that every checkout has.
func Text() string {
	if dir := os.Getenv("AUTOGLM_TESTDATA"); dir != "" {
		return filepath.Join(dir, "text", "tinyshakespeare.txt")
	}
	return corpus.Sample
}

// Program builds autoglm into dir.
func Program(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "autoglm")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", path, "./cmd/autoglm").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build ./cmd/autoglm: %w: %s", err, bytes.TrimSpace(out))
	}
	return path, nil
}

// Lane is some of the machine's processors, to which programs are kept (taskset).
type Lane struct {
	CPUs  []int
	locks string // AUTOGLM_LOCKS: builds of other lanes hold none of them
}

// Lanes divides the processors that this process may use into n equal lanes; what is over
// stays idle. dir keeps who holds which.
func Lanes(n int, dir string) ([]Lane, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, err
	}
	var cpus []int
	for i := range len(set) * 64 {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	each := len(cpus) / max(n, 1)
	if each == 0 {
		return nil, fmt.Errorf("%d side by side need as many processors; there are %d", n, len(cpus))
	}
	lanes := make([]Lane, n)
	for i := range lanes {
		lanes[i] = Lane{CPUs: cpus[i*each : (i+1)*each], locks: filepath.Join(dir, fmt.Sprintf("lane%d", i))}
		if err := os.MkdirAll(lanes[i].locks, 0o755); err != nil {
			return nil, err
		}
	}
	return lanes, nil
}

// Command is a program on the lane's processors. Where ctx ends it is interrupted, as by
// Ctrl-C.
func (l Lane) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	list := strings.Trim(strings.Join(strings.Fields(fmt.Sprint(l.CPUs)), ","), "[]")
	c := exec.CommandContext(ctx, "taskset", append([]string{"-c", list, program}, args...)...)
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.Env = append(os.Environ(), "AUTOGLM_LOCKS="+l.locks)
	return c
}

// Score is what a trial reports.
type Score struct {
	Step int     `json:"step"`
	Bits float64 `json:"bits_per_byte"`
}

// Trial runs autoglm trial on the text of a build's folder and gives its last score.
// Failed is why the training failed, where it did: its loss was no number, for example.
func (l Lane) Trial(ctx context.Context, program, data string, cpus int, args ...string) (last Score, failed string, err error) {
	c := l.Command(ctx, program, append([]string{"trial", "--data", data, "--cpus", fmt.Sprint(cpus), "--json"}, args...)...)
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.Output()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return last, "", ctx.Err()
	case errors.As(err, &exit) && exit.ExitCode() == 1:
		return last, cmp.Or(strings.TrimSpace(said.String()), "exit code 1"), nil
	case err != nil:
		return last, "", fmt.Errorf("autoglm trial: %w: %s", err, bytes.TrimSpace(said.Bytes()))
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		if err := json.Unmarshal(lines.Bytes(), &last); err != nil {
			return last, "", fmt.Errorf("autoglm trial said %q: %w", lines.Text(), err)
		}
	}
	if last.Bits == 0 {
		return last, "", fmt.Errorf("autoglm trial gave no score: %s", bytes.TrimSpace(said.Bytes()))
	}
	return last, "", nil
}

// Events runs a build with --json and hands its events over as they come; a false stops
// it. What it said is part of the error.
func (l Lane) Events(ctx context.Context, program string, args []string, each func(e journal.Event) bool) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	c := l.Command(ctx, program, append(args, "--json")...)
	var said bytes.Buffer
	c.Stderr = &said
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<22)
	stopped := false
	for lines.Scan() {
		var e journal.Event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Kind == "" || stopped {
			continue // progress, and other lines that are no events of the journal
		}
		if !each(e) {
			stopped = true
			stop()
		}
	}
	if err := c.Wait(); err != nil && !stopped {
		return fmt.Errorf("autoglm %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(said.Bytes()))
	}
	return ctx.Err()
}

// Prepare reads a text into dir as a build with that budget and seed does, and stops where
// the search has begun. What it gives holds the build's plan and its first decision.
func (l Lane) Prepare(ctx context.Context, program, text, budget string, seed int, dir string) (*journal.State, error) {
	if err := os.RemoveAll(dir); err != nil { // what was cut off
		return nil, err
	}
	err := l.Events(ctx, program, []string{"build", text, "--budget", budget, "--seed", fmt.Sprint(seed), "--out", dir}, func(e journal.Event) bool {
		return e.Kind != journal.Decided
	})
	if err != nil && !errors.Is(err, context.Canceled) {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	log, err := journal.OpenFile(filepath.Join(dir, "journal"))
	if err != nil {
		return nil, err
	}
	st, err := journal.Replayed(log)
	if err = errors.Join(err, log.Close()); err != nil {
		return nil, err
	}
	if st.Plan == nil || len(st.Decisions) == 0 {
		return nil, fmt.Errorf("the build in %s came to no search", dir)
	}
	return st, nil
}
