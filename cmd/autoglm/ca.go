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

// home is a file or folder among what autoglm keeps for this user.
func home(name string) string {
	dir, err := os.UserConfigDir()
	if err != nil {
		dir = "." // no home: the folder is named on the command line, or stands here
	}
	return filepath.Join(dir, "autoglm", name)
}

func caCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "ca", Short: "Make the certificates of a cluster's nodes and users", Args: cobra.NoArgs,
		Long: `Nodes that listen beyond their own machine know each other, and their users, by
certificates of one authority. It is a folder; keep it where few can read it.

  autoglm ca init                            once
  autoglm ca issue node1 10.0.0.1            for a machine: all names and addresses it is reached by
  autoglm ca issue --role submit ada         for a person
  autoglm ca token                           or let a machine ask for its own
  autoglm ca revoke ada                      and what was issued is good no more`,
	}
	dir := c.PersistentFlags().String("ca", home("ca"), "`DIR` of the authority")
	c.AddCommand(caInitCommand(dir), caIssueCommand(dir), caTokenCommand(dir), caRevokeCommand(dir))
	return c
}

func caInitCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use: "init", Short: "Make an authority", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := cert.InitCA(*dir); err != nil {
				return usageError{err}
			}
			fmt.Printf("Made the authority %s; its key never leaves it.\nNext: autoglm ca issue HOST%s\n", *dir, caFlag(*dir))
			return nil
		},
	}
}

// caFlag repeats --ca where it is not the default.
func caFlag(dir string) string {
	if dir == home("ca") {
		return ""
	}
	return " --ca " + dir
}

func caIssueCommand(dir *string) *cobra.Command {
	var role, name, out string
	var valid time.Duration
	c := &cobra.Command{
		Use: "issue HOST…|NAME", Short: "Issue a certificate for a machine or a person", Args: cobra.MinimumNArgs(1),
		Long: `Issue writes a certificate, its key and the authority's certificate to a folder.

A machine's (--role node) names all hosts and addresses under which others reach it;
*.example.com stands for all of a domain. A person's names the person, and says what
they may do: read (see), submit (and start, cancel, fetch jobs), admin (and drain
nodes, rotate keys, back up). Autoglm ca revoke takes it back.`,
		Example: `  autoglm ca issue node1 node1.example.com 10.0.0.1 --out node1-tls
  autoglm ca issue --role submit ada --out ~/.config/autoglm/tls`,
		RunE: func(_ *cobra.Command, args []string) error {
			r, err := cert.ParseRole(role)
			if err != nil {
				return usageError{err}
			}
			if valid <= 0 {
				return usageError{fmt.Errorf("--valid %v: give more than 0", valid)}
			}
			req := cert.Request{Name: name, Role: r, Valid: valid}
			if r == cert.Node {
				req.Hosts = args
			} else if len(args) > 1 || name != "" {
				return usageError{fmt.Errorf("a person's certificate takes one NAME; hosts are for --role node")}
			} else {
				req.Name = args[0]
			}
			ca, err := cert.LoadCA(*dir)
			if err != nil {
				return usageError{err}
			}
			if out == "" {
				out = strings.TrimPrefix(args[0], "*.") + "-tls"
			}
			if err := ca.Issue(req, out); err != nil {
				return usageError{err}
			}
			fmt.Printf("Wrote %s, good until %s.\n", out, time.Now().Add(valid).Format(time.DateOnly))
			if r == cert.Node {
				fmt.Printf("Copy the folder to %s; there: autoglm node --listen %s:7400 --tls %s\n", args[0], strings.TrimPrefix(args[0], "*."), out)
			} else {
				fmt.Printf("%s puts it at %s, or names it by --tls DIR.\n", args[0], home("tls"))
			}
			return nil
		},
	}
	fl := c.Flags()
	fl.StringVar(&role, "role", string(cert.Node), "node, admin, submit or read")
	fl.StringVar(&name, "name", "", "`NAME` of a machine (default its first host)")
	fl.StringVar(&out, "out", "", "`DIR` to write to (default the first argument and -tls)")
	fl.DurationVar(&valid, "valid", cert.DefaultValid, "good for so long, such as 720h")
	return c
}

func caRevokeCommand(dir *string) *cobra.Command {
	var t target
	var asJSON bool
	c := &cobra.Command{
		Use: "revoke [NAME|SERIAL|FILE…]", Short: "Take certificates back", Args: cobra.ArbitraryArgs,
		Long: `Revoke puts certificates on the authority's list of revoked ones: all that were issued
to a name, one by its serial number (hexadecimal), or one in a file. With --attach the
list goes to the nodes, while they run: they close the connections of who is on it,
refuse new ones, and replace the key of gossip, which a revoked node knows. Nodes that
are away get it when they come back. Without names the list goes to the nodes as it is.

Tokens that were not used yet stay good until they expire.`,
		Example: `  autoglm ca revoke node3 --attach 10.0.0.1:7400 --tls admin-tls
  autoglm ca revoke lost/cert.pem`,
		RunE: func(c *cobra.Command, args []string) error {
			given := c.Flags().Changed("attach")
			if len(args) == 0 && !given {
				return usageError{errors.New("name what to revoke, or the nodes that the list goes to: --attach HOST:PORT")}
			}
			ca, err := cert.LoadCA(*dir)
			if err != nil {
				return usageError{err}
			}
			fresh, err := ca.Revoke(args...)
			if err != nil {
				return usageError{err}
			}
			list, err := ca.List()
			if err != nil {
				return err
			}
			out := struct {
				Revoked []cert.Revoked `json:"revoked"`
				*daemon.Spread
			}{Revoked: fresh}
			if given {
				err = t.with(c.Context(), func(ctx context.Context, c *driver.Client) error {
					s, err := c.Revoke(ctx, list)
					out.Spread = &s
					return err
				})
				if err != nil {
					return err
				}
			}
			if asJSON {
				return printJSON(out)
			}
			for _, r := range fresh {
				fmt.Printf("revoked %s %s\n", r.Serial, r.Name)
			}
			if out.Spread == nil {
				fmt.Printf("Nodes that run do not know of it yet: autoglm ca revoke%s --attach HOST:PORT\n", caFlag(*dir))
				return nil
			}
			fmt.Printf("list %d is with %s\n", out.Number, strings.Join(out.Nodes, ", "))
			for _, m := range out.Missing {
				fmt.Println("not with", m)
			}
			return nil
		},
	}
	t.add(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print the answer as JSON")
	return c
}

func caTokenCommand(dir *string) *cobra.Command {
	var valid time.Duration
	c := &cobra.Command{
		Use: "token", Short: "Print a token by which one machine gets its certificate", Args: cobra.NoArgs,
		Long: `Token prints a token alone, good for one machine, once. That machine asks a node
that was started with --ca for a certificate, and knows by the token that it speaks
to the right one:

  autoglm node --listen 10.0.0.4:7400 --join 10.0.0.1:7400 --token-file FILE

Who holds a token can become a node until it is used or expired.`,
		RunE: func(*cobra.Command, []string) error {
			if valid <= 0 {
				return usageError{fmt.Errorf("--valid %v: give more than 0", valid)}
			}
			ca, err := cert.LoadCA(*dir)
			if err != nil {
				return usageError{err}
			}
			token, err := ca.Token(valid)
			if err == nil {
				fmt.Println(token)
			}
			return err
		},
	}
	c.Flags().DurationVar(&valid, "valid", time.Hour, "good for so long")
	return c
}
