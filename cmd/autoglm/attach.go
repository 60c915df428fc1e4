package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/cluster/cert"
)

// target is the node that a verb speaks to.
type target struct{ attach, tls string }

func (t *target) add(c *cobra.Command) {
	c.Flags().StringVar(&t.attach, "attach", "", "`HOST:PORT` of any node of the cluster, or of several, so that one may be lost (default $AUTOGLM_ATTACH, then the last one used)")
	c.Flags().StringVar(&t.tls, "tls", "", "`DIR` of your certificate, or none (default $AUTOGLM_TLS, then "+home("tls")+" where it is there)")
}

// addr is the node's address.
func (t *target) addr() (string, error) {
	addr := t.attach
	if addr == "" {
		addr = os.Getenv("AUTOGLM_ATTACH")
	}
	if addr == "" {
		b, err := os.ReadFile(home("attach"))
		if err != nil {
			return "", usageError{errors.New("which cluster? Name one of its nodes: --attach HOST:PORT, or AUTOGLM_ATTACH")}
		}
		addr = strings.TrimSpace(string(b))
	}
	if !strings.Contains(addr, ":") {
		return "", usageError{fmt.Errorf("--attach %q: give HOST:PORT", addr)}
	}
	return addr, nil
}

// identity is the user's certificate; nil speaks plaintext.
func (t *target) identity() (*cert.Identity, error) {
	dir := t.tls
	if dir == "" {
		dir = os.Getenv("AUTOGLM_TLS")
	}
	if dir == "" {
		if _, err := os.Stat(home("tls")); err == nil {
			dir = home("tls")
		}
	}
	if dir == "" || dir == "none" {
		return nil, nil
	}
	id, err := cert.Load(dir)
	if err != nil {
		return nil, usageError{err}
	}
	return id, nil
}

// with calls f with a client, and remembers a node that answered.
func (t *target) with(ctx context.Context, f func(ctx context.Context, c *driver.Client) error) error {
	addr, err := t.addr()
	if err != nil {
		return err
	}
	id, err := t.identity()
	if err != nil {
		return err
	}
	c := driver.NewClient(addr, id)
	defer c.Close()
	err = f(ctx, c)
	var answered *daemon.StatusError
	if err == nil || errors.As(err, &answered) || errors.Is(err, errJobEnded) || ctx.Err() != nil {
		if os.MkdirAll(filepath.Dir(home("attach")), 0o700) == nil {
			_ = os.WriteFile(home("attach"), []byte(addr+"\n"), 0o600) // a convenience
		}
	}
	return err
}

func attachCommand() *cobra.Command {
	var t target
	var asJSON bool
	c := &cobra.Command{
		Use: "attach [ADDR] [JOB]", Short: "Watch a job of a cluster", Args: cobra.MaximumNArgs(2),
		Long: `Attach shows a job as build does, from its beginning, through the loss of nodes: of
several addresses it goes on with the next one.
Without JOB it is the newest one that runs. Several may watch. Ctrl-C leaves the job
running; attach again to come back.`,
		Example: `  autoglm attach 10.0.0.1:7400,10.0.0.2:7400
  autoglm attach j3`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 && strings.Contains(args[0], ":") {
				t.attach, args = args[0], args[1:]
			}
			if len(args) > 1 {
				return usageError{fmt.Errorf("attach %s %s: the address comes first, as HOST:PORT", args[0], args[1])}
			}
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				id := ""
				if len(args) > 0 {
					id = args[0]
				} else {
					jobs, err := c.Jobs(ctx)
					if err != nil {
						return err
					}
					if id = newest(jobs); id == "" {
						return usageError{errors.New("no job runs or waits; autoglm jobs lists those that are over")}
					}
				}
				_, err := watchJob(ctx, c, id, asJSON)
				return err
			})
		},
	}
	t.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON event a line")
	return c
}

// newest is the job that began last among those that run, or else that wait.
func newest(jobs []daemon.Job) string {
	for _, s := range []daemon.JobState{daemon.Running, daemon.Queued} {
		for i := len(jobs) - 1; i >= 0; i-- {
			if jobs[i].State == s {
				return jobs[i].ID
			}
		}
	}
	return ""
}

// errJobEnded means that the job is over and gave no model.
var errJobEnded = errors.New("the job gave no model")

// watchJob shows a job until it is over, and says what to type next. When ctx ends
// the job goes on.
func watchJob(ctx context.Context, c *driver.Client, id string, asJSON bool) (driver.Followed, error) {
	j, err := c.Job(ctx, id)
	if err != nil {
		return driver.Followed{}, err
	}
	v := newView("", asJSON)
	v.watch(j.Job)
	defer v.close()
	f, err := c.Follow(ctx, id, v, v.stands)
	v.close()
	switch {
	case ctx.Err() != nil:
		fmt.Fprintf(os.Stderr, "Detached; the job goes on. Come back with:\n  autoglm attach %s\n", id)
		return f, ctx.Err()
	case err != nil:
		return f, err
	case f.Job.State == daemon.Done:
		if !asJSON {
			fmt.Fprintf(v.out, "%s is done. Bring it here with: autoglm fetch %s --out DIR\n", id, id)
		}
		return f, nil
	}
	return f, ended(f.Job)
}

// ended is the error of a job that is over without a model.
func ended(j daemon.Job) error {
	if j.State == daemon.Cancelled {
		return fmt.Errorf("%w: %s was cancelled", errJobEnded, j.ID)
	}
	return fmt.Errorf("%w: %s failed: %s", errJobEnded, j.ID, j.Why)
}

// watch begins the view of a job.
func (v *view) watch(j daemon.Job) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.job, v.rests = j.ID, j.State != daemon.Running
	if !v.json {
		fmt.Fprintf(v.out, "Job %s%s; Ctrl-C leaves it running\n", j.ID, called(j.Name))
	}
	v.animate()
}

func called(name string) string {
	if name == "" {
		return ""
	}
	return fmt.Sprintf(" (%s)", name)
}

// stands tells how a followed job stands.
func (v *view) stands(j daemon.Job) {
	v.mu.Lock()
	if rests := j.State != daemon.Running; rests != v.rests {
		v.rests, v.start = rests, time.Now()
	}
	if v.json {
		v.line(struct {
			Event string        `json:"event"`
			Job   string        `json:"job"`
			State string        `json:"state"`
			Node  string        `json:"node,omitempty"`
			Epoch uint64        `json:"epoch"`
			Why   string        `json:"why,omitempty"`
			Lent  []daemon.Lent `json:"lent,omitempty"`
		}{"job", j.ID, string(j.State), j.NodeName, j.Epoch, j.Why, j.Lent})
		v.mu.Unlock()
		return
	}
	v.mu.Unlock()
	switch {
	case j.State == daemon.Running && len(j.Lent) > 0:
		n := len(j.Devices)
		for _, l := range j.Lent {
			n += len(l.Devices)
		}
		v.Notice(fmt.Sprintf("%s runs on nodes %s: %d devices", j.ID, nodesOf(&j), n))
	case j.State == daemon.Running && j.Epoch > 1:
		v.Notice(fmt.Sprintf("%s goes on on node %s (attempt %d)", j.ID, j.NodeName, j.Epoch))
	case j.State == daemon.Running:
		v.Notice(fmt.Sprintf("%s runs on node %s", j.ID, j.NodeName))
	case j.State == daemon.Queued && j.Why != "":
		v.Notice(fmt.Sprintf("%s waits: %s", j.ID, j.Why))
	}
}
