package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/cluster/replica"
	"github.com/open-autoglm/autoglm/runtime/durable"
)

func nodesCommand() *cobra.Command {
	var t target
	var asJSON bool
	c := &cobra.Command{
		Use: "nodes", Short: "List a cluster's nodes", Args: cobra.NoArgs,
		Long: `Nodes lists who is there. ROLE: leader, which gives jobs to nodes; voter, which
keeps a copy of the journal; others carry jobs out alone.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				n, err := c.Nodes(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(n)
				}
				printNodes(os.Stdout, n, time.Now())
				return nil
			})
		},
	}
	t.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print everything as JSON")
	return c
}

func printNodes(w io.Writer, n daemon.Nodes, now time.Time) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "NODE\tADDRESS\tROLE\tDEVICES\tFREE\tMEMORY\tJOBS\tLOAD\tUP\tVERSION\tLABELS")
	for _, m := range n.Nodes {
		role := "–"
		switch {
		case m.Leader:
			role = "leader"
		case m.Voter:
			role = "voter"
		}
		if m.Draining {
			role += ", draining"
		}
		if m.Note != "" {
			role += ", " + m.Note
		}
		var labels []string
		for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
			labels = append(labels, k+"="+m.Labels[k])
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\t%d\t%.1f\t%s\t%s\t%s\n", m.Name, m.Addr, role, len(m.Devices), m.Free, freeMemory(m.FreeBytes), m.Jobs, m.Load,
			now.Sub(m.Since).Round(time.Second), m.Software, dash(strings.Join(labels, ",")))
	}
	_ = t.Flush() // as fmt.Fprintln: there is no one to tell
	fmt.Fprintf(w, "cluster %s, %d voter(s)\n", n.Cluster, n.Voters)
	if n.Note != "" {
		fmt.Fprintln(w, "note:", n.Note)
	}
}

// freeMemory is what of a host's memory is free.
func freeMemory(bytes int64) string {
	if bytes == 0 {
		return dash("")
	}
	return fmt.Sprintf("%.1f GB", float64(bytes)/(1<<30))
}

func drainCommand() *cobra.Command {
	var t target
	var asJSON bool
	var deadline time.Duration
	c := &cobra.Command{
		Use: "drain NODE", Short: "Have a node give its jobs back and end", Args: cobra.ExactArgs(1),
		Long: `Drain has a node, by name or id, give its jobs to others, with what they have done,
and end. It waits until the node is gone.`,
		RunE: func(c *cobra.Command, args []string) error {
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				asked, err := t.addr()
				if err != nil {
					return err
				}
				if err := drain(ctx, c, asked, args[0], deadline); err != nil {
					return err
				}
				if asJSON {
					return printJSON(map[string]string{"drained": args[0]})
				}
				fmt.Println(args[0], "is gone")
				return nil
			})
		},
	}
	t.add(c)
	c.Flags().DurationVar(&deadline, "deadline", 10*time.Minute, "wait so long")
	c.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	return c
}

const drainLook = 200 * time.Millisecond

// drain asks the node at an address, and waits until the one to drain, which may be
// the same, is no longer there.
func drain(ctx context.Context, c *driver.Client, asked, node string, deadline time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, deadline, fmt.Errorf("%s is still there after %v; it goes on draining", node, deadline))
	defer cancel()
	before, err := c.Nodes(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(before.Nodes, func(n daemon.NodeInfo) bool { return n.Name == node || n.ID == node })
	if i < 0 {
		return usageError{fmt.Errorf("no node %s; autoglm nodes lists them", node)}
	}
	own := slices.Contains(strings.Split(asked, ","), before.Nodes[i].Addr)
	if err := c.Drain(ctx, before.Nodes[i].ID); err != nil && !(own && errors.Is(err, driver.ErrGone)) {
		return err // a node that ends may not come to answer
	}
	for {
		now, err := c.Nodes(ctx)
		if errors.Is(err, driver.ErrNobody) && own {
			return nil
		}
		if err == nil && !slices.ContainsFunc(now.Nodes, func(n daemon.NodeInfo) bool { return n.ID == before.Nodes[i].ID }) {
			return nil
		}
		select {
		case <-time.After(drainLook):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func keysCommand() *cobra.Command {
	c := &cobra.Command{Use: "keys", Short: "The key that seals a cluster's gossip", Args: cobra.NoArgs}
	var t target
	var asJSON bool
	rotate := &cobra.Command{
		Use: "rotate", Short: "Replace the key that seals gossip", Args: cobra.NoArgs,
		Long: `Rotate replaces the key that all nodes seal their gossip with. Autoglm ca revoke does it
too, after a node was given away.`,
		RunE: func(c *cobra.Command, _ []string) error {
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				if err := c.RotateKeys(ctx); err != nil {
					return err
				}
				if asJSON {
					return printJSON(map[string]bool{"rotated": true})
				}
				fmt.Println("The nodes have a new key.")
				return nil
			})
		},
	}
	t.add(rotate)
	rotate.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	c.AddCommand(rotate)
	return c
}

func backupCommand() *cobra.Command {
	var t target
	var asJSON bool
	var out string
	c := &cobra.Command{
		Use: "backup", Short: "Write a cluster's journal to a file", Args: cobra.NoArgs,
		Long: `Backup writes all that was committed: the list of jobs, what happened in each, and
the names of their files. The files themselves (data, checkpoints, bundles) are in
the nodes' stores and not in the backup: fetch the jobs whose models you keep.`,
		Example: `  autoglm backup --out monday.backup`,
		RunE: func(c *cobra.Command, _ []string) error {
			if out == "" {
				return usageError{errors.New("--out FILE says where to write")}
			}
			return t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
				streams, err := backup(ctx, c, out)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(map[string]any{"file": out, "streams": streams})
				}
				fmt.Printf("%s holds %d streams. Bring it back with: autoglm restore %s --data DIR\n", out, streams, out)
				return nil
			})
		},
	}
	t.add(c)
	c.Flags().StringVar(&out, "out", "", "`FILE` to write")
	c.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	return c
}

// backup writes a file, which is there once it is whole.
func backup(ctx context.Context, c *driver.Client, path string) (streams int, err error) {
	err = durable.Write(path, func(w io.Writer) error {
		r, pw := io.Pipe()
		done := make(chan error, 1)
		go func() {
			var err error
			streams, err = replica.Verify(r)
			r.CloseWithError(err) // the rest is not wanted
			done <- err
		}()
		err := c.Backup(ctx, io.MultiWriter(w, pw))
		pw.CloseWithError(err)
		return errors.Join(err, <-done)
	})
	return streams, err
}

func restoreCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use: "restore FILE", Short: "Make a node's folder of a backup, for a cluster that is lost", Args: cobra.ExactArgs(1),
		Long: `Restore makes DIR/journal of a backup. The node that is then started on DIR, without
--join, has the jobs as they were; others join it with empty folders. All nodes of
the lost cluster must be stopped for good, or be started anew with empty folders.

Only the journal comes back. A job's files (data, checkpoints, the bundle) come from
DIR/files where this folder still has them, and from nowhere else: of a job whose
files are lost, jobs, status and logs show what happened, fetch finds nothing, and
one that had not ended waits until it is cancelled.`,
		Example: `  autoglm restore monday.backup --data /var/lib/autoglm
  autoglm node --data /var/lib/autoglm --listen 10.0.0.1:7400 --tls tls`,
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return usageError{err}
			}
			defer f.Close()
			journal := filepath.Join(dir, "journal")
			switch err := replica.Restore(journal, f); {
			case errors.Is(err, replica.ErrHasJournal):
				return usageError{fmt.Errorf("%w; stop the node, and if it is worthless move it away: mv %s %s.lost", err, journal, journal)}
			case err != nil:
				return fmt.Errorf("%s: %w", args[0], err)
			}
			fmt.Printf("%s holds the journal. Next: autoglm node --data %s --listen HOST:PORT\n", journal, dir)
			return nil
		},
	}
	c.Flags().StringVar(&dir, "data", dataDir(), "`DIR` of the node")
	return c
}
