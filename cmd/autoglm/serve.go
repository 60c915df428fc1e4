package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/credentials"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/serve/keys"
	"github.com/open-autoglm/autoglm/runtime/serve/metrics"
	"github.com/open-autoglm/autoglm/runtime/serve/oip"
	"github.com/open-autoglm/autoglm/runtime/serve/policy"
	"github.com/open-autoglm/autoglm/runtime/serve/rest"
)

// serveFlags are those of autoglm serve.
type serveFlags struct {
	listen, grpc   string
	keys           string
	cert, key      string
	insecure       bool
	canary         []string
	policy         string
	threads        int
	slots, queue   int
	kv, prefix     byteSize
	device         string // auto, cpu, gpu
	gpuLoad        float64
	gpuHysteresis  float64
	maxBody        byteSize
	grace, timeout time.Duration
	origins        []string
	ready          func(web, rpc string) // told once requests are taken
}

func (f *serveFlags) add(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.listen, "listen", "127.0.0.1:8080", "`HOST:PORT` of HTTP")
	fl.StringVar(&f.grpc, "grpc", "127.0.0.1:8081", "`HOST:PORT` of gRPC; empty is none")
	fl.StringVar(&f.keys, "keys", "", "`FILE` of API keys, which autoglm apikey makes: others are refused")
	fl.BoolVar(&f.insecure, "insecure", false, "listen beyond this machine without --keys: whoever reaches the port may ask")
	fl.StringVar(&f.cert, "tls-cert", "", "`FILE` of the certificate in PEM; with it, and --tls-key, all is TLS")
	fl.StringVar(&f.key, "tls-key", "", "`FILE` of the certificate's key in PEM")
	fl.StringArrayVar(&f.canary, "canary", nil, "`NAME=DIR:PERCENT`: give another bundle that share of a model's requests (may be repeated)")
	fl.StringVar(&f.policy, "policy", "", "`FILE` of rules, gates and votes, see autoglm policy")
	fl.IntVar(&f.threads, "threads", 0, "threads that compute for each model (default one less than the processors that this process may use)")
	cfg := serve.DefaultSchedulerConfig()
	load := device.DefaultLoadPolicy()
	fl.StringVar(&f.device, "device", string(device.Auto), "cpu, gpu, or auto: texts begin on the GPU, where this build and machine have one, while its load is low")
	fl.Float64Var(&f.gpuLoad, "gpu-load", load.Threshold, "with --device auto: `LOAD` of the GPU, 0 to 1, from which on texts begin on the CPU")
	fl.Float64Var(&f.gpuHysteresis, "gpu-hysteresis", load.Hysteresis, "with --device auto: so far below it the load must fall before they come back")
	fl.IntVar(&f.slots, "slots", cfg.Slots, "texts that a model generates together, on each device")
	fl.IntVar(&f.queue, "queue", cfg.Queue, "requests that may wait for each model; more are refused with 429")
	f.prefix, f.maxBody = byteSize(cfg.Prefix), 4<<20
	fl.Var(&f.kv, "kv-cache", "most memory of each model's keys and values, a `SIZE`; requests wait for theirs (default what full contexts in all slots take)")
	fl.Var(&f.prefix, "prefix-cache", "`SIZE` of those to keep of earlier prompts, while nothing needs it; 0 is none")
	fl.Var(&f.maxBody, "max-body", "largest `SIZE` of a request")
	fl.DurationVar(&f.timeout, "timeout", 10*time.Minute, "how long a request may take, waiting included")
	fl.DurationVar(&f.grace, "grace", 30*time.Second, "how long texts may go on after SIGTERM")
	fl.StringSliceVar(&f.origins, "cors-origin", nil, "`ORIGIN,…` of sites whose pages may ask, such as https://example.com, or *")
}

func serveCommand() *cobra.Command {
	var f serveFlags
	c := &cobra.Command{
		Use:   "serve [NAME=]BUNDLE…",
		Short: "Answer over HTTP and gRPC with models",
		Long: `Serve answers with one or several bundles, over OpenAI's API: whatever speaks to that
speaks to this, with http://HOST:PORT/v1 as its base URL.

  /v1/chat/completions, /v1/completions   texts, streamed or whole
  /v1/models                              what is served
  /v2/…, and gRPC at --grpc               the Open Inference Protocol (KServe's, Triton's)
  /healthz, /readyz, /metrics             for probes and Prometheus
  /openapi.json                           all of it, described

A model's name is NAME, or that of its folder (of the folder above, where it is called
bundle). Several requests are computed together; the same request with the same seed
gets the same text whatever runs beside it.

Beyond this machine serve listens only with --keys (or says --insecure). Keys are made
by autoglm apikey. SIGHUP reads the bundles, the policy, the keys and the certificate anew
without dropping a request. On SIGTERM /readyz fails at once, and texts may go on for --grace.`,
		Example: `  autoglm serve run1/bundle
  autoglm serve small=run1/bundle large=run2/bundle --slots 4
  autoglm serve chat=run1/bundle --canary chat=run2/bundle:10
  autoglm serve a=run1/bundle b=run2/bundle --policy policy.yaml
  autoglm apikey ada --rate 60 --file keys
  autoglm serve run1/bundle --listen 0.0.0.0:8080 --keys keys --tls-cert cert.pem --tls-key key.pem`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error { return f.run(c.Context(), args) },
	}
	f.add(c)
	return c
}

// servedBundle is a bundle and the name it is served under.
type servedBundle struct{ name, dir string }

func parseNamed(args []string) ([]servedBundle, error) {
	var out []servedBundle
	for _, arg := range args {
		name, dir, ok := strings.Cut(arg, "=")
		if !ok {
			dir = arg
			full, err := filepath.Abs(arg)
			if err != nil {
				return nil, err
			}
			if name = filepath.Base(full); name == "bundle" {
				name = filepath.Base(filepath.Dir(full))
			}
		}
		switch {
		case dir == "" || name == "" || strings.ContainsAny(name, "@/ "):
			return nil, fmt.Errorf("%q: give BUNDLE or NAME=BUNDLE, with a name without @, / and spaces", arg)
		case slices.ContainsFunc(out, func(n servedBundle) bool { return n.name == name }):
			return nil, fmt.Errorf("two bundles are called %s; give them names: NAME=%s", name, dir)
		}
		out = append(out, servedBundle{name, dir})
	}
	return out, nil
}

// parseCanary reads NAME=DIR:PERCENT.
func parseCanary(s string) (servedBundle, float64, error) {
	name, rest, ok := strings.Cut(s, "=")
	i := strings.LastIndexByte(rest, ':')
	if !ok || i < 1 || name == "" {
		return servedBundle{}, 0, fmt.Errorf("--canary %q: give NAME=DIR:PERCENT", s)
	}
	percent, err := strconv.ParseFloat(strings.TrimSuffix(rest[i+1:], "%"), 64)
	if err != nil || !(percent > 0 && percent <= 100) {
		return servedBundle{}, 0, fmt.Errorf("--canary %q: %q is no percentage above 0", s, rest[i+1:])
	}
	return servedBundle{name, rest[:i]}, percent, nil
}

// usableCPUs is how many processors this process may use, by its affinity and its cgroup.
func usableCPUs() int {
	m, err := device.NewProcFS(os.DirFS("/")).Scan()
	if err != nil {
		return 1
	}
	return len(m.Devices)
}

func (f *serveFlags) run(ctx context.Context, args []string) error {
	bundles, err := parseNamed(args)
	if err != nil {
		return usageError{err}
	}
	for flag, addr := range map[string]string{"listen": f.listen, "grpc": f.grpc} {
		if flag == "grpc" && addr == "" {
			continue
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			return usageError{fmt.Errorf("--%s %s: %w", flag, addr, err)}
		}
		if !rest.Local(addr) && f.keys == "" && !f.insecure {
			return usageError{fmt.Errorf("--%s %s: that is beyond this machine, where serve wants --keys FILE (autoglm apikey makes one), or --insecure", flag, addr)}
		}
	}
	if (f.cert == "") != (f.key == "") {
		return usageError{errors.New("--tls-cert and --tls-key go together")}
	}
	if f.threads < 0 || f.grace < 0 || f.timeout <= 0 || f.maxBody < 1 {
		return usageError{errors.New("--threads and --grace can't be negative; --timeout and --max-body must be positive")}
	}
	sched := serve.DefaultSchedulerConfig()
	sched.Slots, sched.Queue, sched.Prefix = f.slots, f.queue, int64(f.prefix)
	if err := sched.Validate(); err != nil {
		return usageError{err}
	}
	var ring *keys.Ring
	if f.keys != "" {
		if ring, err = keys.Load(f.keys); err != nil {
			return usageError{err}
		}
	}
	var secure *tls.Config
	var pair atomic.Pointer[tls.Certificate]
	if f.cert != "" {
		if err := f.loadCertificate(&pair); err != nil {
			return usageError{err}
		}
		secure = &tls.Config{
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.Load(), nil },
			MinVersion:     tls.VersionTLS12,
		}
	}
	devices, err := f.devices(gpuDecoders)
	if err != nil {
		return usageError{err}
	}
	defer devices.load.close()
	threads := f.threads
	if threads == 0 {
		threads = max(1, usableCPUs()-1)
	}

	folders := map[string]string{}
	for _, b := range bundles {
		folders[b.name] = b.dir
	}
	keeper := policy.NewKeeper(f.policy, folders)
	if err := keeper.Check(); err != nil { // before models are read, which takes longer
		return usageError{err}
	}

	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGHUP)
	defer signal.Stop(again)
	counts := metrics.New()
	hub := serve.NewHub(keeper.Opener(func(dir string, seqs int) (*bundle.Bundle, engine.Decoder, error) {
		var dec engine.Decoder
		b, err := bundle.Use(dir, func(b *bundle.Bundle) (err error) {
			if page := b.Arch.PageBytes(); f.kv > 0 && int64(f.kv) < page {
				return fmt.Errorf("--kv-cache %d: a page of %d tokens takes %d bytes, give one or more", f.kv, glm.PageTokens, page)
			}
			dec, err = devices.decoder(b.Arch, b.Params, seqs, func() (engine.Decoder, error) {
				return native.NewDecoder(b.Arch, b.Params, native.DecoderOptions{Threads: threads, MaxSeqs: seqs, KVBytes: int64(f.kv)})
			})
			return err
		})
		if err != nil && dec != nil {
			err = errors.Join(err, dec.Close())
		}
		return b, dec, err
	}), sched, counts.Events)
	counts.Watch(hub)
	cfg := rest.DefaultConfig(hub, counts)
	cfg.Keys, cfg.MaxBody, cfg.Timeout, cfg.Origins, cfg.Version = ring, int64(f.maxBody), f.timeout, f.origins, version()
	cfg.Policy = keeper.Policy
	cfg.Local = rest.Local(f.listen) && ring == nil
	handler, err := rest.New(cfg)
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", f.listen)
	if err != nil {
		return usageError{fmt.Errorf("--listen: %w", err)}
	}
	scheme := "http"
	if secure != nil {
		scheme, ln = "https", tls.NewListener(ln, secure)
	}
	web := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10}
	failed := make(chan error, 2)
	var rpc *oip.Server
	var rpcListener net.Listener
	if f.grpc != "" {
		o := oip.Config{Rest: handler, Hub: hub, MaxMessage: int(f.maxBody), Version: version()}
		if secure != nil {
			o.TLS = credentials.NewTLS(secure)
		}
		if rpcListener, err = net.Listen("tcp", f.grpc); err != nil {
			return usageError{errors.Join(fmt.Errorf("--grpc: %w", err), ln.Close())}
		}
		rpc = oip.New(o)
		go func() { failed <- rpc.Serve(rpcListener) }()
	}
	go func() { failed <- web.Serve(ln) }()
	defer func() {
		hub.Refuse()
		if rpc != nil {
			rpc.Refuse()
		}
		grace, cancel := context.WithTimeout(context.Background(), f.grace)
		defer cancel()
		hub.Drain(grace)
		// What the texts' ends still have to say.
		end, stop := context.WithTimeout(context.Background(), 5*time.Second)
		defer stop()
		if rpc != nil {
			rpc.Stop(end)
		}
		if web.Shutdown(end) != nil {
			_ = web.Close()
		}
	}()

	for _, b := range bundles {
		if err := hub.Load(b.name, b.dir); err != nil {
			return usageError{err}
		}
	}
	for _, s := range f.canary {
		b, percent, err := parseCanary(s)
		if err == nil {
			err = hub.Canary(b.name, b.dir, percent)
		}
		if err != nil {
			return usageError{err}
		}
	}
	if err := keeper.Load(hub); err != nil {
		return usageError{err}
	}
	warn(keeper, hub)
	rpcAddr := ""
	if rpc != nil {
		rpcAddr = rpcListener.Addr().String()
	}
	f.greet(scheme, ln.Addr().String(), rpcAddr, hub, keeper.Policy().Names(), threads, devices)
	if f.ready != nil {
		f.ready(ln.Addr().String(), rpcAddr)
	}
	debug.FreeOSMemory() // what converting weights took
	for {
		select {
		case <-ctx.Done():
			fmt.Fprintf(os.Stderr, "shutting down: texts may go on for %s\n", f.grace)
			return nil
		case err := <-failed:
			return err
		case <-again:
			f.reload(hub, keeper, ring, &pair)
		}
	}
}

func (f *serveFlags) loadCertificate(to *atomic.Pointer[tls.Certificate]) error {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return fmt.Errorf("--tls-cert %s, --tls-key %s: %w", f.cert, f.key, err)
	}
	to.Store(&pair)
	return nil
}

// warn says which gates look at confidences that nothing has calibrated.
func warn(keeper *policy.Keeper, hub *serve.Hub) {
	for _, w := range keeper.Policy().Warnings(hub) {
		fmt.Fprintln(os.Stderr, "warning:", w)
	}
}

// reload reads models, the policy, keys and the certificate anew; what can't be read stays
// as it was.
func (f *serveFlags) reload(hub *serve.Hub, keeper *policy.Keeper, ring *keys.Ring, pair *atomic.Pointer[tls.Certificate]) {
	for _, name := range hub.Names() {
		if err := hub.Reload(name); err != nil {
			fmt.Fprintf(os.Stderr, "reload %s: %v; the old one goes on\n", name, err)
			continue
		}
		fmt.Fprintf(os.Stderr, "reloaded %s\n", name)
	}
	if f.policy != "" {
		if err := keeper.Load(hub); err != nil {
			fmt.Fprintf(os.Stderr, "reload policy: %v; the old one goes on\n", err)
		} else {
			fmt.Fprintf(os.Stderr, "reloaded policy %s\n", f.policy)
			warn(keeper, hub)
		}
	}
	if ring != nil {
		if err := ring.Reload(); err != nil {
			fmt.Fprintf(os.Stderr, "reload keys: %v; the old ones count\n", err)
		}
	}
	if f.cert != "" {
		if err := f.loadCertificate(pair); err != nil {
			fmt.Fprintf(os.Stderr, "reload %v; the old one goes on\n", err)
		}
	}
}

// greet says what is served and what may be typed to try it.
func (f *serveFlags) greet(scheme, addr, rpc string, hub *serve.Hub, policied []string, threads int, on *serveDevices) {
	for _, m := range hub.Models() {
		fmt.Fprintf(os.Stderr, "%s version %s: context %d, %d texts at once, %d thread(s), on %s\n", m.Name, m.Version, m.Bundle.Arch.Context, f.slots, threads, on)
	}
	if f.policy != "" {
		fmt.Fprintf(os.Stderr, "policy %s: of %s\n", f.policy, strings.Join(policied, ", "))
	}
	fmt.Fprintf(os.Stderr, "ready at %s://%s\n", scheme, addr)
	if rpc != "" {
		fmt.Fprintf(os.Stderr, "gRPC at %s (Open Inference Protocol)\n", rpc)
	}
	m := hub.Models()[0]
	auth, path, ask := "", "completions", `"prompt":"Call me"`
	if f.keys != "" {
		auth = " -H 'Authorization: Bearer KEY'"
	}
	if serve.Chats(m.Bundle) {
		path, ask = "chat/completions", `"messages":[{"role":"user","content":"Hello"}]`
	}
	fmt.Fprintf(os.Stderr, "  curl %s://%s/v1/%s%s -H 'Content-Type: application/json' -d '{\"model\":\"%s\",%s}'\n", scheme, addr, path, auth, m.Name, ask)
}

func apikeyCommand() *cobra.Command {
	var file string
	var rate int
	c := &cobra.Command{
		Use:   "apikey NAME",
		Short: "Make an API key for autoglm serve",
		Long: `Apikey makes a key, prints it once, and adds its hash to the file that serve --keys
reads (a running serve reads it anew on SIGHUP). A key is taken back by deleting its line.`,
		Example: `  autoglm apikey ada --rate 60
  curl -H "Authorization: Bearer KEY" http://127.0.0.1:8080/v1/models`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if rate < 0 {
				return usageError{errors.New("--rate can't be negative")}
			}
			key, line, err := keys.New(args[0], rate)
			if err != nil {
				return usageError{err}
			}
			if err := addKey(file, line); err != nil {
				return usageError{err}
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), key)
			return err
		},
	}
	c.Flags().StringVar(&file, "file", "keys", "`FILE` to add the key's hash to")
	c.Flags().IntVar(&rate, "rate", 0, "requests that the key may make in a minute; 0 is no bound")
	return c
}

// addKey appends a line to a file of keys, which stays one.
func addKey(file, line string) error {
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if n := len(old); n > 0 && old[n-1] != '\n' {
		old = append(old, '\n')
	}
	tmp := file + ".new"
	if err := os.WriteFile(tmp, append(old, line...), 0o600); err != nil {
		return err
	}
	if _, err := keys.Load(tmp); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, file)
}
