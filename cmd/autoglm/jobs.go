package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

func submitCommand() *cobra.Command {
	var f jobFlags
	var t target
	var name string
	var followIt bool
	c := &cobra.Command{
		Use: "submit [FILE…]", Short: "Give a job to a cluster",
		Long: `Submit looks at the data as build does, uploads it to a node and enters the job,
which then needs this machine no longer. It prints the job's id. Data that comes by
URL is fetched by the node that carries the job out; plugins run here alone, so
prepare what they give and submit that. Without a FILE it is the embedded sample.`,
		Example: `  autoglm submit corpus.jsonl --budget 30m --attach 10.0.0.1:7400
  job=$(autoglm submit corpus.jsonl --job job.yaml) && autoglm attach $job`,
		RunE: func(c *cobra.Command, args []string) error {
			spec, err := f.spec(c, args)
			if err != nil {
				return err
			}
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				id, err := submit(ctx, c, name, spec)
				if err != nil {
					return err
				}
				if f.json {
					err = printJSON(map[string]string{"job": id})
				} else {
					fmt.Println(id)
				}
				if err != nil || !followIt {
					if !f.json {
						fmt.Fprintf(os.Stderr, "Watch it with: autoglm attach %s\n", id)
					}
					return err
				}
				_, err = watchJob(ctx, c, id, f.json)
				return err
			})
		},
	}
	f.add(c)
	t.add(c)
	c.Flags().StringVar(&name, "name", "", "`NAME` of the job, as jobs shows it (default its first file's)")
	c.Flags().BoolVar(&followIt, "follow", false, "watch the job until it is over")
	return c
}

// submit looks at the data, uploads it and enters the job.
func submit(ctx context.Context, c *driver.Client, name string, spec job.Spec) (string, error) {
	if !named(spec) {
		dir, err := os.MkdirTemp("", "autoglm-submit-")
		if err != nil {
			return "", err
		}
		defer os.RemoveAll(dir)
		path, err := writeSample(dir)
		if err != nil {
			return "", err
		}
		spec.Data.Files = []string{path}
		if spec.Name == "" {
			spec.Name = "moby-dick"
		}
	}
	if len(spec.Data.Plugin) > 0 {
		return "", &job.FieldError{Path: "data.plugin", Msg: "is a program of yours, which no node runs; prepare the data here and submit the result"}
	}
	if len(spec.Data.URLs) == 0 {
		if err := lookAt(ctx, spec); err != nil {
			return "", err // before anything is uploaded
		}
	}
	if name == "" && len(spec.Data.Files) > 0 {
		name = filepath.Base(spec.Data.Files[0])
	}
	p := newMeter()
	defer p.clear()
	return c.Submit(ctx, name, spec, func(path string, n int64) {
		p.show("uploading %s  %.1f MB", filepath.Base(path), float64(n)/1e6)
	})
}

// meter shows on a terminal how far something is, in one line.
type meter struct {
	on    bool
	last  time.Time
	shown bool
}

func newMeter() *meter {
	return &meter{on: term.IsTerminal(int(os.Stderr.Fd())) && os.Getenv("TERM") != "dumb"}
}

func (m *meter) show(format string, a ...any) {
	if m.on && time.Since(m.last) > 100*time.Millisecond {
		m.last, m.shown = time.Now(), true
		fmt.Fprintf(os.Stderr, "\r\x1b[K%s", clip(fmt.Sprintf(format, a...), 79))
	}
}

func (m *meter) clear() {
	if m.shown {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}

func jobsCommand() *cobra.Command {
	var t target
	var asJSON bool
	c := &cobra.Command{
		Use: "jobs", Short: "List a cluster's jobs", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				jobs, err := c.Jobs(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					if jobs == nil {
						jobs = []daemon.Job{}
					}
					return printJSON(jobs)
				}
				printJobs(os.Stdout, jobs, time.Now())
				return nil
			})
		},
	}
	t.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	return c
}

func printJobs(w io.Writer, jobs []daemon.Job, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "JOB\tNAME\tSTATE\tNODE\tBY\tSUBMITTED\tTOOK\tWHY")
	for _, j := range jobs {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", j.ID, dash(j.Name), j.State, dash(nodesOf(&j)), dash(j.By),
			j.Submitted.Local().Format("2006-01-02 15:04"), took(j, now), clip(firstLine(j.Why), 100))
	}
	_ = t.Flush() // as fmt.Fprintln: there is no one to tell
}

// nodesOf are the node of a job and, behind a plus, those that lend it devices.
func nodesOf(j *daemon.Job) string {
	out := j.NodeName
	for _, l := range j.Lent {
		out += "+" + l.NodeName
	}
	return out
}

func dash(s string) string {
	if s == "" {
		return "–"
	}
	return s
}

// after is a text behind a lead, nothing where there is none.
func after(lead, s string) string {
	if s == "" {
		return ""
	}
	return lead + s
}

// took is the time from a job's first start to its end, or to now.
func took(j daemon.Job, now time.Time) string {
	switch {
	case j.Started.IsZero():
		return "–"
	case !j.Ended.IsZero():
		now = j.Ended
	}
	return clock(now.Sub(j.Started).Seconds())
}

func statusCommand() *cobra.Command {
	var t target
	var asJSON bool
	c := &cobra.Command{
		Use: "status JOB", Short: "Show a job of a cluster and its leaderboard", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				d, err := c.Job(ctx, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(d)
				}
				printJobs(os.Stdout, []daemon.Job{d.Job}, time.Now())
				for _, u := range d.Files {
					fmt.Printf("data      %s, %d bytes\n", u.Name, u.Ref.Size)
				}
				if d.State == daemon.Running {
					fmt.Printf("devices   %s: %s\n", d.NodeName, strings.Join(d.Devices, " "))
				}
				for _, l := range d.Lent {
					fmt.Printf("lent      %s: %s%s\n", l.NodeName, strings.Join(l.Devices, " "), after("; to come back: ", l.Stopping))
				}
				if d.Epoch > 1 {
					fmt.Printf("attempts  %d\n", d.Epoch)
				}
				if d.Why != "" {
					fmt.Println("why      ", d.Why)
				}
				printStages(os.Stdout, d)
				if len(d.Board.Trials) > 0 {
					fmt.Println()
					printBoard(os.Stdout, d.Board, 20)
				}
				return nil
			})
		},
	}
	t.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	return c
}

// printStages prints how a job's stages stand: of one without steps, those that run or
// failed.
func printStages(w io.Writer, d daemon.Detail) {
	for _, n := range d.Graph {
		if len(d.Spec.Steps) == 0 && n.Status != job.Running && n.Err == "" {
			continue
		}
		fmt.Fprintf(w, "%-9s %-16s %s", map[bool]string{true: "step", false: "stage"}[n.Step], n.Stage, n.Status)
		if n.Attempt > 1 {
			fmt.Fprintf(w, ", attempt %d", n.Attempt)
		}
		if n.Seconds > 0 {
			fmt.Fprintf(w, ", %s", clock(n.Seconds))
		}
		if n.Err != "" {
			fmt.Fprintf(w, "; attempt failed: %s", firstLine(n.Err))
		}
		fmt.Fprintln(w)
	}
}

func logsCommand() *cobra.Command {
	var t target
	var asJSON bool
	c := &cobra.Command{
		Use: "logs JOB", Short: "Print what has happened in a job of a cluster", Args: cobra.ExactArgs(1),
		Long: `Logs prints what a job's nodes outlived of late, and its events up to now; attach goes
on with what follows. --json prints the journal's records as they are.`,
		RunE: func(c *cobra.Command, args []string) error {
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				v := newView("", asJSON)
				v.live = false
				st := journal.NewState()
				return c.Events(ctx, args[0], 0, false, func(l daemon.Line) error {
					if l.Notice != nil && !asJSON {
						v.Notice(time.UnixMilli(l.Notice.At).Format(time.TimeOnly) + " " + l.Notice.Text)
					}
					if l.Event == nil {
						return nil
					}
					if asJSON {
						return printJSON(l.Event)
					}
					e, err := journal.Decode(l.Event)
					if err != nil {
						return err
					}
					st.Apply(e)
					if e.Kind != journal.Tick {
						v.Update(driver.Update{Event: e, Board: st.Leaderboard(args[0]), State: *st})
					}
					return nil
				})
			})
		},
	}
	t.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the records of the journal")
	return c
}

func cancelCommand() *cobra.Command {
	var t target
	var asJSON bool
	c := &cobra.Command{
		Use: "cancel JOB", Short: "Stop a job of a cluster", Args: cobra.ExactArgs(1),
		Long: `Cancel stops a job. What it has made can be fetched; rm then forgets it.`,
		RunE: func(c *cobra.Command, args []string) error {
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				if err := c.Cancel(ctx, args[0]); err != nil {
					return err
				}
				if asJSON {
					return printJSON(map[string]any{"job": args[0], "cancel": true})
				}
				fmt.Printf("%s is asked to stop; autoglm status %s shows when it has\n", args[0], args[0])
				return nil
			})
		},
	}
	t.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	return c
}

func rmCommand() *cobra.Command {
	var t target
	var asJSON bool
	c := &cobra.Command{
		Use: "rm JOB", Short: "Forget a job of a cluster that is over, with its model", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				if err := c.Remove(ctx, args[0]); err != nil {
					return err
				}
				if asJSON {
					return printJSON(map[string]string{"removed": args[0]})
				}
				fmt.Println(args[0], "is forgotten")
				return nil
			})
		},
	}
	t.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	return c
}

func fetchCommand() *cobra.Command {
	var t target
	var asJSON bool
	var out string
	c := &cobra.Command{
		Use: "fetch JOB", Short: "Bring a job's folder from a cluster", Args: cobra.ExactArgs(1),
		Long: `Fetch lays out in --out what build would have left there: the bundle, the report,
the leaderboard, the trials. Interrupted, it goes on with the same command. Of a job
that still runs it brings what has been kept so far.`,
		Example: `  autoglm fetch j1 --out run1
  autoglm generate run1/bundle --prompt "Call me"`,
		RunE: func(c *cobra.Command, args []string) error {
			if out == "" {
				out = freeFolder()
			}
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				return fetch(ctx, c, args[0], out, asJSON)
			})
		},
	}
	t.add(c)
	c.Flags().StringVar(&out, "out", "", "`DIR` to lay it out in (default run1, run2, …)")
	c.Flags().BoolVar(&asJSON, "json", false, "print one JSON event a line")
	return c
}

// fetchedFile says whose folder it is that a fetch lays out.
const fetchedFile = "fetched.json"

// fetch lays a job's folder out in dir and ends as build does.
func fetch(ctx context.Context, c *driver.Client, id, dir string, asJSON bool) error {
	j, err := c.Job(ctx, id)
	if err != nil {
		return err
	}
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	if err := claim(dir, map[string]string{"cluster": nodes.Cluster, "job": id}); err != nil {
		return err
	}
	p := newMeter()
	count, bytes := 0, int64(0)
	err = c.Fetch(ctx, id, dir, func(path string, size int64) {
		count++
		bytes += size
		if asJSON {
			_ = printJSON(map[string]any{"event": "file", "path": path, "bytes": size})
		}
		p.show("fetching %s", path)
	})
	p.clear()
	if err != nil {
		return err
	}
	if !asJSON {
		fmt.Printf("%d files, %.1f MB of %s in %s\n", count, float64(bytes)/1e6, id, dir)
	}
	if !j.State.Over() {
		fmt.Fprintf(os.Stderr, "autoglm: %s is %s: this is what it has kept so far\n", id, j.State)
		return nil
	}
	v := newView(dir, asJSON)
	st, err := fetchJournal(ctx, c, id, filepath.Join(dir, "journal"))
	if err != nil {
		return err
	}
	v.last.State = *st
	if j.State != daemon.Done {
		if st.Plan != nil {
			if err := writeReport(dir, st); err != nil {
				return err
			}
		}
		fmt.Fprintf(os.Stderr, "autoglm: %v\n", ended(j.Job))
		return nil
	}
	return v.done(ctx)
}

// claim makes a folder for a job, or takes the one that a fetch of the same began.
func claim(dir string, whose map[string]string) error {
	b, err := json.Marshal(whose)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, fetchedFile)
	was, err := os.ReadFile(path)
	if err == nil && string(was) == string(b) {
		return nil
	}
	if list, lerr := os.ReadDir(dir); lerr == nil && len(list) > 0 {
		return usageError{fmt.Errorf("%s is not empty, and not a folder that a fetch of this job began; name another with --out", dir)}
	} else if lerr != nil && !errors.Is(lerr, os.ErrNotExist) {
		return usageError{lerr}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// fetchJournal writes a job's journal as build keeps it.
func fetchJournal(ctx context.Context, c *driver.Client, id, dir string) (*journal.State, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	log, err := journal.OpenFile(dir)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	if err := log.Reset(); err != nil {
		return nil, err
	}
	err = c.Events(ctx, id, 0, false, func(l daemon.Line) error {
		if l.Event == nil {
			return nil
		}
		return log.Append(l.Event, false)
	})
	if err != nil {
		return nil, err
	}
	return journal.Replayed(log)
}

// buildOnCluster submits, follows and fetches.
func buildOnCluster(ctx context.Context, t *target, spec job.Spec, out string, asJSON bool) error {
	if list, err := os.ReadDir(out); err == nil && len(list) > 0 {
		return usageError{fmt.Errorf("%s is not empty; name another folder with --out", out)}
	}
	return t.with(ctx, func(ctx context.Context, c *driver.Client) error {
		id, err := submit(ctx, c, filepath.Base(out), spec)
		if err != nil {
			return err
		}
		if asJSON {
			if err := printJSON(map[string]string{"event": "submitted", "job": id}); err != nil {
				return err
			}
		}
		if _, err = watchJob(ctx, c, id, asJSON); err != nil {
			if ctx.Err() != nil {
				fmt.Fprintf(os.Stderr, "and bring it here, when it is done, with:\n  autoglm fetch %s --out %s\n", id, out)
			}
			return err
		}
		return fetch(ctx, c, id, out, asJSON)
	})
}
