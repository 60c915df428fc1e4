package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// spread measures jobs over several nodes, each with all of this machine's processors.
func spread(rounds int, show func(result)) error {
	var used, killed, stopped []float64
	for range rounds {
		u, err := joined()
		if err != nil {
			return err
		}
		used = append(used, u...)
		for signal, to := range map[syscall.Signal]*[]float64{syscall.SIGKILL: &killed, syscall.SIGSTOP: &stopped} {
			v, err := struck(signal)
			if err != nil {
				return err
			}
			*to = append(*to, v)
		}
	}
	show(of("node ready to a waiting trial's training there", 3, "s", "2", used))
	show(of("node of a ring killed to the next step", 3, "s", "2", killed))
	show(of("node of a ring silent to the next step", 3, "s", "5", stopped))
	return nil
}

// settlement is a town of nodes with devices of their own, and a job.
func settlement(nodes int, tokens int64, change func(*job.Spec)) (*town, *driver.Client, string, error) {
	dir, err := os.MkdirTemp("", "bench-spread-*")
	if err != nil {
		return nil, nil, "", err
	}
	t := &town{dir: dir, apart: true}
	fail := func(err error) (*town, *driver.Client, string, error) {
		t.end()
		return nil, nil, "", err
	}
	for range nodes {
		if _, err := t.start(); err != nil {
			return fail(err)
		}
	}
	if _, err := t.leader(); err != nil {
		return fail(err)
	}
	text := filepath.Join(dir, "log.txt")
	if err := os.WriteFile(text, []byte(actorstest.Text(1200)), 0o600); err != nil {
		return fail(err)
	}
	s := actorstest.TinySpec(text, tokens)
	change(&s)
	c := driver.NewClient(t.nodes[0].addr, nil)
	id, err := c.Submit(context.Background(), "", s, nil)
	if err != nil {
		return fail(err)
	}
	return t, c, id, nil
}

// joined has a node join while trials wait, and gives the time from then until it has
// trained for its first report.
func joined() ([]float64, error) {
	t, c, id, err := settlement(2, 4000000, func(s *job.Spec) { s.HardwareConstraint = "cpu-any" })
	if err != nil {
		return nil, err
	}
	defer t.end()
	defer c.Close()
	if err := until(c, id, func(d daemon.Detail) bool { return len(d.Lent) == 1 && len(d.Board.Trials) > 2 }); err != nil {
		return nil, err
	}
	p, err := t.start()
	if err != nil {
		return nil, err
	}
	late := time.Now().Add(30 * time.Second)
	for time.Now().Before(late) {
		found, _ := filepath.Glob(filepath.Join(t.dir, p.name, "jobs", id, "trials", "*", "metrics.jsonl"))
		for _, f := range found {
			if info, err := os.Stat(f); err == nil && info.Size() > 0 {
				return []float64{time.Since(p.ready).Seconds()}, nil
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	return nil, fmt.Errorf("node %s has trained nothing within 30 s", p.name)
}

// until looks at a job until it is as it should be.
func until(c *driver.Client, id string, is func(daemon.Detail) bool) error {
	for late := time.Now().Add(60 * time.Second); time.Now().Before(late); time.Sleep(20 * time.Millisecond) {
		if d, err := c.Job(context.Background(), id); err == nil && is(d) {
			return nil
		}
	}
	return fmt.Errorf("job %s is not as it should be after a minute", id)
}

// struck has a node of a training over three of them be struck by a signal, and gives
// the time until the training has gone on by more than was on its way.
func struck(signal syscall.Signal) (float64, error) {
	t, c, id, err := settlement(3, 700000, func(s *job.Spec) { s.HardwareConstraint, s.Backend = "cpu-6", "tcp" })
	if err != nil {
		return 0, err
	}
	defer t.end()
	defer c.Close()
	w := &strike{at: func() error {
		d, err := c.Job(context.Background(), id)
		if err != nil {
			return err
		}
		for _, l := range d.Lent {
			for _, p := range t.nodes[1:] { // the first is asked
				if p.name == l.NodeName {
					return p.cmd.Process.Signal(signal)
				}
			}
		}
		return fmt.Errorf("job %s has devices of no other node", id)
	}}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	w.done = cancel
	_, err = c.Follow(ctx, id, w, nil)
	switch {
	case w.err != nil:
		return 0, w.err
	case w.after == 0:
		return 0, fmt.Errorf("job %s was over before the loss was felt: %w", id, err)
	}
	return w.after.Seconds(), nil
}

// strike is a driver.View that strikes in the middle of the final training.
type strike struct {
	at     func() error
	done   func()
	err    error
	struck time.Time
	steps  int
	after  time.Duration
}

// Update implements driver.View.
func (s *strike) Update(driver.Update) {}

// Notice implements driver.View.
func (s *strike) Notice(string) {}

// Progress implements driver.View.
func (s *strike) Progress(p actors.Progress) {
	switch {
	case p.Seq >= 0 || p.Metrics.Step < 50:
	case s.struck.IsZero():
		s.struck, s.steps = time.Now(), p.Metrics.Step
		if s.err = s.at(); s.err != nil {
			s.done()
		}
	case s.after == 0 && p.Metrics.Step > s.steps+20:
		s.after = time.Since(s.struck)
		s.done()
	}
}
