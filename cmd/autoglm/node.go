package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/daemon"
	"github.com/open-autoglm/autoglm/actors/driver"
	"github.com/open-autoglm/autoglm/cluster"
	"github.com/open-autoglm/autoglm/cluster/bucket"
	"github.com/open-autoglm/autoglm/cluster/cert"
	"github.com/open-autoglm/autoglm/cluster/replica"
	"github.com/open-autoglm/autoglm/runtime/job"
)

// nodeFlags are those of autoglm node; its configuration file has the same names.
type nodeFlags struct {
	listen, advertise, name string
	join, labels            []string
	data, tls, ca           string
	token, tokenFile        string
	insecure, steps         bool
	copies                  int
	quota, reserve          byteSize
	store                   storeFlags
	config                  string
	json                    bool
}

func (f *nodeFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.listen, "listen", "127.0.0.1:7400", "`HOST:PORT` to listen at, TCP and UDP; the port after it is the node's too")
	fl.StringVar(&f.advertise, "advertise", "", "`HOST:PORT` under which others reach this node (default --listen)")
	fl.StringVar(&f.name, "name", "", "`NAME` of the node, one in the cluster (default the host's)")
	fl.StringSliceVar(&f.join, "join", nil, "`HOST:PORT,…` of nodes to join, srv:NAME or file:PATH; without it the node begins a cluster")
	fl.StringVar(&f.data, "data", dataDir(), "`DIR` that the node keeps")
	fl.StringArrayVar(&f.labels, "label", nil, "`KEY=VALUE` that nodes shows, such as rack=7 (may be repeated)")
	fl.StringVar(&f.tls, "tls", "", "`DIR` of the node's certificate (default DATA/tls where it is there)")
	fl.StringVar(&f.ca, "ca", "", "`DIR` of the authority: this node then gives certificates to machines with a token")
	fl.StringVar(&f.token, "token", "", "`TOKEN` of autoglm ca token, by which a node without a certificate gets one")
	fl.StringVar(&f.tokenFile, "token-file", "", "`FILE` that holds the token, which other users' process lists then don't show")
	fl.BoolVar(&f.insecure, "insecure", false, "listen beyond this machine without certificates: whoever reaches the port may run jobs")
	fl.BoolVar(&f.steps, "allow-steps", false, "run the programs that jobs name as their steps: whoever may submit then does here whatever this node's user may")
	fl.IntVar(&f.copies, "copies", 2, "nodes that hold what a job must not lose")
	fl.Var(&f.reserve, "reserve-memory", "`SIZE` of the machine's memory that jobs leave to others, such as 2GB: one that is known to need more than is free then waits, or goes elsewhere")
	fl.Var(&f.quota, "quota", "`SIZE` that the store of files may take, such as 50GB (default no bound)")
	f.store.add(c)
	fl.StringVar(&f.config, "config", "", "`FILE` in YAML with these flags by name; flags on the command line win")
	fl.BoolVar(&f.json, "json", false, "print log lines as JSON on standard output")
}

func dataDir() string {
	base := os.Getenv("XDG_STATE_HOME")
	if base == "" {
		h, err := os.UserHomeDir()
		if err != nil {
			return "autoglm-node"
		}
		base = filepath.Join(h, ".local", "state")
	}
	return filepath.Join(base, "autoglm")
}

func nodeCommand() *cobra.Command {
	var f nodeFlags
	c := &cobra.Command{
		Use: "node", Short: "Run a node of a cluster, which carries jobs out", Args: cobra.NoArgs,
		Long: `Node joins this machine to others, or begins a cluster. It runs until Ctrl-C or
SIGTERM: its jobs then go on on other nodes, from what they have kept.

The same --join may be given to all machines: the one that is itself the first of it
begins the cluster, unless another one there knows of a cluster.

Without certificates a node listens on its own machine alone (or says --insecure).
See autoglm ca for certificates, autoglm deploy for units and manifests.`,
		Example: `  autoglm node                                        a cluster of one, at 127.0.0.1:7400
  autoglm node --listen 10.0.0.1:7400 --tls node1-tls
  autoglm node --listen 10.0.0.2:7400 --tls node2-tls --join 10.0.0.1:7400
  autoglm node --listen 10.0.0.4:7400 --join 10.0.0.1:7400 --token-file token
  autoglm node --config /etc/autoglm/node.yaml`,
		RunE: func(c *cobra.Command, _ []string) error {
			if f.config != "" {
				if err := loadNodeConfig(c, f.config); err != nil {
					return usageError{err}
				}
			}
			return f.run(c.Context())
		},
	}
	f.add(c)
	return c
}

func (f *nodeFlags) run(ctx context.Context) error {
	say := nodeLog(f.json)
	cfg := daemon.Config{
		Dir: f.data, Listen: f.listen, Advertise: f.advertise, Name: f.name, TLS: f.tls, CA: f.ca, Insecure: f.insecure,
		AllowSteps: f.steps, Copies: f.copies, Quota: int64(f.quota), Reserve: int64(f.reserve), Bucket: bucket.Config(f.store), Software: version(), Log: func(text string) { say("log", text, nil) },
		ActorLog: os.Stderr, Labels: map[string]string{},
	}
	if f.copies < 1 {
		return usageError{fmt.Errorf("--copies %d: give at least 1", f.copies)}
	}
	for _, l := range f.labels {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return usageError{fmt.Errorf("--label %q: give KEY=VALUE", l)}
		}
		cfg.Labels[k] = v
	}
	if err := f.certificate(ctx, &cfg, say); err != nil {
		return err
	}
	cfg.Join = f.seeds(ctx, cfg.TLS, say)
	d, err := daemon.Start(ctx, cfg)
	switch {
	case err == nil:
	case errors.Is(err, replica.ErrLost), actors.DiskError(err):
		return err
	default:
		return usageError{err}
	}
	told := make(chan struct{})
	go func() {
		defer close(told)
		if d.Ready(ctx) != nil {
			return
		}
		say("ready", f.ready(d.Addr(), cfg), map[string]string{"addr": d.Addr(), "id": d.ID(), "cluster": d.Cluster()})
	}()
	if d.Cluster() == "" {
		say("log", "looking for "+strings.Join(cfg.Join, ", "), nil)
	}
	err = d.Wait(ctx) // ends Ready too
	<-told
	return err
}

// ready says what may be typed next.
func (f *nodeFlags) ready(addr string, cfg daemon.Config) string {
	add := fmt.Sprintf("autoglm node --listen HOST:PORT --join %s", addr)
	switch {
	case cfg.CA != "":
		add += " --token TOKEN (of: autoglm ca token" + caFlag(cfg.CA) + ")"
	case cfg.TLS != "":
		add += " --tls DIR (of: autoglm ca issue HOST)"
	case cfg.Insecure:
		add += " --insecure"
	default:
		add += " --data DIR --name NAME on this machine; other machines need certificates (autoglm ca)"
	}
	tls := ""
	if cfg.TLS != "" {
		tls = " --tls DIR (of: autoglm ca issue --role submit NAME)"
	}
	return fmt.Sprintf("ready at %s\n  submit a job:   autoglm submit FILE --attach %s%s\n  add a machine:  %s", addr, addr, tls, add)
}

// certificate finds the node's, and asks for one where it has a token and none.
func (f *nodeFlags) certificate(ctx context.Context, cfg *daemon.Config, say logger) error {
	own := filepath.Join(f.data, "tls")
	if cfg.TLS != "" {
		return nil
	}
	if _, err := os.Stat(own); err == nil {
		cfg.TLS = own
		return nil
	}
	token := f.token
	if f.tokenFile != "" {
		if token != "" {
			return usageError{errors.New("--token and --token-file: give one")}
		}
		b, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return usageError{err}
		}
		token = string(b)
	}
	if token == "" {
		return nil
	}
	if len(f.join) == 0 {
		return usageError{errors.New("--token needs --join HOST:PORT of a node that was started with --ca")}
	}
	var hosts []string
	for _, addr := range []string{f.advertise, f.listen} {
		host, _, err := net.SplitHostPort(addr)
		if ip := net.ParseIP(host); err == nil && host != "" && (ip == nil || !ip.IsUnspecified()) && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	if len(hosts) == 0 {
		return usageError{errors.New("--token: others need to know an address of this node, which its certificate names: give --advertise HOST:PORT")}
	}
	var unreached *net.OpError
	switch err := cluster.Ask(ctx, f.join, token, hosts, own); {
	case errors.As(err, &unreached):
		return fmt.Errorf("--token: %w", err)
	case err != nil:
		return usageError{fmt.Errorf("--token: %w", err)}
	}
	say("log", fmt.Sprintf("got a certificate for %s, kept in %s", strings.Join(hosts, ", "), own), nil)
	cfg.TLS = own
	return nil
}

// seeds are the nodes to join. Where this node is itself the first of --join it joins
// the others if one of them belongs to a cluster, and else has none: it begins one.
func (f *nodeFlags) seeds(ctx context.Context, tls string, say logger) []string {
	own := f.advertise
	if own == "" {
		own = f.listen
	}
	if len(f.join) == 0 || f.join[0] != own {
		return f.join
	}
	others := f.join[1:]
	if len(others) == 0 {
		return nil
	}
	var id *cert.Identity
	if tls != "" {
		var err error
		if id, err = cert.Load(tls); err != nil {
			return nil // Start says why
		}
	}
	knows := make([]bool, len(others))
	var wg sync.WaitGroup
	for i, addr := range others {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			c := driver.NewClient(addr, id)
			defer c.Close()
			n, err := c.Nodes(ctx)
			knows[i] = err == nil && n.Cluster != ""
		})
	}
	wg.Wait()
	if slices.Contains(knows, true) {
		return others
	}
	say("log", "this node is the first of --join, and none of the others belongs to a cluster: it begins one, or goes on with its own", nil)
	return nil
}

// logger tells what a node does.
type logger func(event, text string, fields map[string]string)

// nodeLog writes lines with the time, or JSON.
func nodeLog(asJSON bool) logger {
	var mu sync.Mutex
	return func(event, text string, fields map[string]string) {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if !asJSON {
			fmt.Fprintf(os.Stderr, "%s %s\n", now.Format("2006-01-02 15:04:05"), text)
			return
		}
		line := map[string]string{"event": event, "time": now.UTC().Format(time.RFC3339Nano), "text": text}
		for k, v := range fields {
			line[k] = v
		}
		if b, err := json.Marshal(line); err == nil {
			fmt.Printf("%s\n", b)
		}
	}
}

// byteSize is a flag such as 50GB.
type byteSize job.Bytes

func (s *byteSize) String() string {
	if *s == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*s), 10)
}

func (s *byteSize) Type() string { return "size" }

func (s *byteSize) Set(text string) error { return (*job.Bytes)(s).UnmarshalText([]byte(text)) }
