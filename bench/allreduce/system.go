package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/bench/peer"
	"github.com/open-autoglm/autoglm/bench/stat"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// system is something to time. run gives the seconds of one sum by its size.
type system struct {
	name      string
	kind      string // memory, socket, library; "peer memory", "peer socket"
	transport string // of ours; "" is a peer
	run       func(c config) (map[int]float64, error)
}

const (
	childEnv = "AUTOGLM_BENCH_ALLREDUCE"
	pemEnv   = "AUTOGLM_BENCH_PEM"
	limit    = 5 * time.Minute // for one system's round
)

func ours(transport string) (system, error) {
	s := system{name: "autoglm " + transport, kind: "socket", transport: transport}
	switch transport {
	case "inproc":
		s.kind = "memory"
		s.run = inproc
		return s, nil
	case "registered", "shm":
		s.kind = "memory"
	case "unix", "tcp", "tls":
	case ring.MPI, ring.NCCL, ring.Gloo:
		s.kind = "library"
		// MPI is there only in processes of mpirun.
		if err := ring.Available(transport); err != nil && (transport != ring.MPI || !strings.Contains(err.Error(), "mpirun")) {
			return s, fmt.Errorf("-transport: %w", err)
		}
	default:
		return s, fmt.Errorf("-transport: %q; there are inproc, registered, shm, unix, tcp, tls, mpi, nccl and gloo", transport)
	}
	self, err := os.Executable()
	if err != nil {
		return s, err
	}
	env := []string{childEnv + "=" + transport}
	if transport == "tls" {
		cert, err := certificate()
		if err != nil {
			return s, err
		}
		env = append(env, pemEnv+"="+cert)
	}
	s.run = func(c config) (map[int]float64, error) {
		if transport == ring.MPI {
			port, err := freePort()
			if err != nil {
				return nil, err
			}
			return mpi("openmpi", self, c, append(env, "MASTER_PORT="+strconv.Itoa(port))...)
		}
		return ranks(c, env, func(int) []string { return append([]string{self}, arguments(c)...) })
	}
	return s, nil
}

func arguments(c config) []string {
	out := []string{fmt.Sprint(c.seconds)}
	for _, s := range c.sizes {
		out = append(out, strconv.Itoa(s))
	}
	return out
}

// inproc times ranks that are goroutines.
func inproc(c config) (map[int]float64, error) {
	g := ring.NewGroup(c.ranks, 1)
	out := map[int]float64{}
	errs := make([]error, c.ranks)
	var wg sync.WaitGroup
	for r := range c.ranks {
		wg.Go(func() {
			comm := g.Rank(r)
			errs[r] = timed(comm, c.seconds, c.sizes, func(n int) ([]float32, error) { return make([]float32, n), nil }, func(size int, t float64) { out[size] = t })
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

// child is one rank of ours.
func child(transport string, args []string) error {
	seconds, err := strconv.ParseFloat(args[0], 64)
	if err != nil {
		return err
	}
	var sizes []int
	for _, a := range args[1:] {
		n, err := strconv.Atoi(a)
		if err != nil {
			return err
		}
		sizes = append(sizes, n)
	}
	cfg, err := ring.FromEnv(os.Getenv)
	if err != nil {
		return err
	}
	cfg.Epoch = 1
	switch cfg.Backend = transport; transport {
	case "registered":
		cfg.Backend = ring.SHM
	case ring.NCCL:
		cfg.GPU = &ring.GPU{Ordinal: cfg.Rank}
	case "tls":
		cfg.Backend = ring.TCP
		if cfg.Endpoint, err = secured(os.Getenv(pemEnv)); err != nil {
			return err
		}
		defer cfg.Endpoint.Close()
	}
	comm, err := ring.Form(context.Background(), cfg)
	if err != nil {
		return err
	}
	alloc := func(n int) ([]float32, error) { return make([]float32, n), nil }
	if transport == "registered" {
		alloc = comm.Alloc
	}
	err = timed(comm, seconds, sizes, alloc, func(size int, t float64) { fmt.Println(size, t) })
	return errors.Join(err, comm.Close())
}

// timed runs the same protocol as the peers' programs: warm up for a fifth of the
// time, then blocks of a fifteenth, of which the median counts.
func timed(comm *ring.Comm, seconds float64, sizes []int, alloc func(n int) ([]float32, error), tell func(int, float64)) error {
	agreed := func(v float64) (float64, error) {
		b := []float32{float32(v)}
		err := comm.Broadcast(ring.Buffer{Data: b}, 0)
		return float64(b[0]), err
	}
	for _, size := range sizes {
		buf, err := alloc(size / 4)
		if err != nil {
			return err
		}
		// In parts: one long clear holds up a collection of garbage, and that the
		// signs of life.
		for part := range slices.Chunk(buf, 1<<18) {
			clear(part)
		}
		b := ring.Buffer{Data: buf}
		warm, spent := 0, 0.0
		for begin := time.Now(); warm < 3 || spent < seconds/5; warm++ {
			if err := comm.AllReduce(b); err != nil {
				return err
			}
			if spent, err = agreed(time.Since(begin).Seconds()); err != nil {
				return err
			}
		}
		block, err := agreed(max(1, float64(int(seconds/15/(spent/float64(warm))))))
		if err != nil {
			return err
		}
		var times []float64
		for begin := time.Now(); len(times) < 15; {
			if err := comm.Barrier(); err != nil {
				return err
			}
			t := time.Now()
			for range int(block) {
				if err := comm.AllReduce(b); err != nil {
					return err
				}
			}
			times = append(times, time.Since(t).Seconds()/block)
			over := 0.0
			if len(times) >= 5 && time.Since(begin).Seconds() > 2*seconds {
				over = 1
			}
			if over, err = agreed(over); err != nil {
				return err
			}
			if over > 0 {
				break
			}
		}
		if comm.Rank() == 0 {
			tell(size, stat.Median(times))
		}
	}
	return nil
}

// ranks starts one process a rank and reads rank 0's lines.
func ranks(c config, env []string, command func(rank int) []string) (map[int]float64, error) {
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	outs, logs := make([]bytes.Buffer, c.ranks), make([]bytes.Buffer, c.ranks)
	errs := make([]error, c.ranks)
	var wg sync.WaitGroup
	for r := range c.ranks {
		argv := command(r)
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Env = append(os.Environ(), append(env, "RANK="+strconv.Itoa(r), "WORLD_SIZE="+strconv.Itoa(c.ranks),
			"MASTER_ADDR=127.0.0.1", "MASTER_PORT="+strconv.Itoa(port), "GLOO_SOCKET_IFNAME=lo")...)
		cmd.Stdout, cmd.Stderr = &outs[r], &logs[r]
		wg.Go(func() {
			if err := cmd.Run(); err != nil {
				errs[r] = fmt.Errorf("rank %d: %w: %s", r, err, strings.TrimSpace(logs[r].String()))
				cancel()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return lines(&outs[0])
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func lines(b *bytes.Buffer) (map[int]float64, error) {
	out := map[int]float64{}
	for s := bufio.NewScanner(b); s.Scan(); {
		var size int
		var t float64
		if _, err := fmt.Sscan(s.Text(), &size, &t); err != nil {
			return nil, fmt.Errorf("line %q: %w", s.Text(), err)
		}
		out[size] = t
	}
	return out, nil
}

// findPeers readies the peers; done removes what was built.
func findPeers(names []string) (out []system, done func(), err error) {
	dir, err := os.MkdirTemp("", "allreduce")
	if err != nil {
		return nil, nil, err
	}
	done = func() { os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			done()
		}
	}()
	source, err := peer.Script("allreduce_mpi.c")
	if err != nil {
		return nil, done, err
	}
	built := map[string]string{}
	for _, name := range names {
		s := system{name: name, kind: "peer memory"}
		if strings.HasSuffix(name, "-tcp") || name == "gloo" {
			s.kind = "peer socket"
		}
		switch name {
		case "openmpi", "openmpi-copy", "openmpi-ring", "openmpi-tcp", "mpich", "mpich-tcp":
			family, _, _ := strings.Cut(name, "-")
			if built[family] == "" {
				if built[family], err = compile(family, source, dir); err != nil {
					return nil, done, fmt.Errorf("%s: %w", name, err)
				}
			}
			s.run = func(c config) (map[int]float64, error) { return mpi(name, built[family], c) }
		case "gloo":
			script, err := peer.Script("allreduce_gloo.py")
			if err != nil {
				return nil, done, err
			}
			python := os.Getenv("AUTOGLM_PYTHON")
			if python == "" {
				return nil, done, errors.New("gloo: set AUTOGLM_PYTHON to a Python that has torch (.ci/peers installs one), or leave it out of -peers")
			}
			s.run = func(c config) (map[int]float64, error) {
				return ranks(c, nil, func(int) []string { return append([]string{python, script}, arguments(c)...) })
			}
		default:
			return nil, done, fmt.Errorf("-peers: %q; there are openmpi, openmpi-copy, openmpi-ring, openmpi-tcp, mpich, mpich-tcp and gloo", name)
		}
		out = append(out, s)
	}
	return out, done, nil
}

// compilers of each family, by preference.
var compilers = map[string][]string{"openmpi": {"mpicc.openmpi", "mpicc"}, "mpich": {"mpicc.mpich"}}

func compile(family, source, dir string) (string, error) {
	install := map[string]string{"openmpi": "openmpi-bin libopenmpi-dev", "mpich": "mpich libmpich-dev"}[family]
	for _, cc := range compilers[family] {
		if _, err := exec.LookPath(cc); err != nil {
			continue
		}
		out := filepath.Join(dir, family)
		if b, err := exec.Command(cc, "-O2", "-o", out, source).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w (apt-get install %s): %s", cc, err, install, b)
		}
		return out, nil
	}
	return "", fmt.Errorf("%s is not installed (apt-get install %s); install it or leave it out of -peers", family, install)
}

func mpi(name, binary string, c config, more ...string) (map[int]float64, error) {
	family, _, _ := strings.Cut(name, "-")
	launcher := "mpirun"
	if p, err := exec.LookPath("mpirun." + family); err == nil {
		launcher = p
	}
	argv := []string{"-n", strconv.Itoa(c.ranks)}
	env := append(os.Environ(), more...)
	if family == "openmpi" {
		argv = append(argv, "--allow-run-as-root", "--bind-to", "none")
		if c.ranks > runtime.NumCPU() {
			argv = append(argv, "--oversubscribe") // its ranks then yield while they wait
		}
		switch name {
		case "openmpi":
			argv = append(argv, "--mca", "btl", "vader,self")
		case "openmpi-copy":
			argv = append(argv, "--mca", "btl", "vader,self", "--mca", "btl_vader_single_copy_mechanism", "none")
		case "openmpi-ring":
			argv = append(argv, "--mca", "btl", "vader,self", "--mca", "coll_tuned_use_dynamic_rules", "1",
				"--mca", "coll_tuned_allreduce_algorithm", "5", "--mca", "coll_tuned_allreduce_algorithm_segmentsize", "131072")
		case "openmpi-tcp":
			argv = append(argv, "--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo")
		}
	} else if name == "mpich-tcp" {
		env = append(env, "MPIR_CVAR_NOLOCAL=1", "UCX_TLS=tcp,self", "FI_PROVIDER=tcp")
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, launcher, slices.Concat(argv, []string{binary}, arguments(c))...)
	cmd.Env = env
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(log.String()))
	}
	return lines(&out)
}

// certificate makes one for both sides of TLS, as PEM.
func certificate() (string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"ring"}, NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return "", err
	}
	k, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: k})), nil
}

// secured is an endpoint that speaks mutual TLS.
func secured(text string) (*ring.Endpoint, error) {
	cert, err := tls.X509KeyPair([]byte(text), []byte(text))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert.Leaf)
	return ring.NewEndpoint(ring.EndpointConfig{NoLocal: true, TLS: &tls.Config{
		Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, RootCAs: pool, ServerName: "ring",
	}})
}
