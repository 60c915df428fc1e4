// Command allreduce times sums over ranks of one host, over each transport, and
// beside OpenMPI, MPICH and Gloo in the same run, alternately.
//
//	go run ./bench/allreduce                                  all transports, two ranks, OpenMPI and Gloo
//	go run ./bench/allreduce -n 4 -sizes 4KiB,64MiB -transport shm,tcp -peers openmpi
//	go run ./bench/allreduce -peers none -json
//
// Peers: openmpi (its default), openmpi-copy (through its own shared memory rather
// than CMA), openmpi-ring (its segmented ring), openmpi-tcp, mpich, mpich-tcp,
// gloo (through the torch of AUTOGLM_PYTHON). A peer that is named and can't run
// is an error.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

type config struct {
	ranks      int
	sizes      []int
	transports []string
	peers      []string
	rounds     int
	seconds    float64
	json       bool
}

// row is one system and size.
type row struct {
	System  string  `json:"system"`
	Ranks   int     `json:"ranks"`
	Bytes   int     `json:"bytes"`
	Seconds float64 `json:"seconds"`  // median over rounds
	BusGBps float64 `json:"bus_gb_s"` // 2(n−1)/n · bytes / seconds
	Bound   float64 `json:"bound_seconds,omitempty"`
}

type report struct {
	Ranks     int     `json:"ranks"`
	Cores     int     `json:"cores"`
	AddGBps   float64 `json:"add_gb_s"`  // memory traffic of an in-place add on all cores: two reads, one write
	CopyGBps  float64 `json:"copy_gb_s"` // payload of a copy on all cores
	Rows      []row   `json:"rows"`
	Rounds    int     `json:"rounds"`
	BoundText string  `json:"bound"`
}

func main() {
	if transport := os.Getenv(childEnv); transport != "" {
		if err := child(transport, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "allreduce:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "allreduce:", err)
		os.Exit(1)
	}
}

func parse() (config, error) {
	var c config
	sizes := flag.String("sizes", "4KiB,64KiB,1MiB,16MiB,64MiB,256MiB", "sizes, comma-separated (B, KiB, MiB)")
	transports := flag.String("transport", "inproc,registered,shm,unix,tcp", "ours to time, comma-separated; also tls")
	peers := flag.String("peers", "openmpi,openmpi-copy,openmpi-ring,openmpi-tcp,gloo", "peers, comma-separated, or none")
	flag.IntVar(&c.ranks, "n", 2, "ranks")
	flag.IntVar(&c.rounds, "rounds", 3, "alternations of all systems")
	flag.Float64Var(&c.seconds, "seconds", 0.3, "time for each size, in each round")
	flag.BoolVar(&c.json, "json", false, "print JSON")
	flag.Parse()
	for _, s := range strings.Split(*sizes, ",") {
		n, err := parseSize(s)
		if err != nil {
			return c, err
		}
		c.sizes = append(c.sizes, n)
	}
	if *transports != "none" {
		c.transports = strings.Split(*transports, ",")
	}
	if *peers != "none" {
		c.peers = strings.Split(*peers, ",")
	}
	if c.ranks < 2 {
		return c, errors.New("-n: at least two ranks")
	}
	return c, nil
}

func parseSize(s string) (int, error) {
	unit := 1
	for suffix, u := range map[string]int{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if rest, ok := strings.CutSuffix(s, suffix); ok {
			s, unit = rest, u
		}
	}
	n, err := strconv.Atoi(strings.TrimSuffix(s, "B"))
	if err != nil || n < 1 || n*unit%4 != 0 {
		return 0, fmt.Errorf("-sizes: %q is no size like 4KiB or 64MiB", s)
	}
	return n * unit, nil
}

func run() error {
	c, err := parse()
	if err != nil {
		return err
	}
	var systems []system
	for _, t := range c.transports {
		s, err := ours(t)
		if err != nil {
			return err
		}
		systems = append(systems, s)
	}
	cleanup := func() {}
	if len(c.peers) > 0 {
		peers, done, err := findPeers(c.peers)
		if err != nil {
			return err
		}
		cleanup = done
		systems = append(systems, peers...)
	}
	defer cleanup()
	rep := report{Ranks: c.ranks, Cores: runtime.NumCPU(), Rounds: c.rounds, BoundText: "registered buffers: each rank's data is read and written once, at the rate of an in-place add on all cores"}
	times := map[string]map[int][]float64{}
	var adds, copies []float64
	for range c.rounds {
		add, cp := limits()
		adds, copies = append(adds, add), append(copies, cp)
		for _, s := range systems {
			got, err := s.run(c)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			if times[s.name] == nil {
				times[s.name] = map[int][]float64{}
			}
			for _, size := range c.sizes {
				t, ok := got[size]
				if !ok {
					return fmt.Errorf("%s gave no time for %d bytes", s.name, size)
				}
				times[s.name][size] = append(times[s.name][size], t)
			}
		}
	}
	rep.AddGBps, rep.CopyGBps = median(adds), median(copies)
	for _, s := range systems {
		for _, size := range c.sizes {
			t := median(times[s.name][size])
			r := row{System: s.name, Ranks: c.ranks, Bytes: size, Seconds: t}
			r.BusGBps = 2 * float64(c.ranks-1) / float64(c.ranks) * float64(size) / t / 1e9
			if s.name == "autoglm registered" {
				r.Bound = 2 * float64(c.ranks) * float64(size) / (rep.AddGBps * 1e9)
			}
			rep.Rows = append(rep.Rows, r)
		}
	}
	if c.json {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(rep)
	}
	return rep.print(c, systems)
}

func (rep *report) at(system string, bytes int) *row {
	i := slices.IndexFunc(rep.Rows, func(r row) bool { return r.System == system && r.Bytes == bytes })
	return &rep.Rows[i]
}

// print shows times and bandwidths, then how much quicker each of ours is than
// the best peer of its kind.
func (rep *report) print(c config, systems []system) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "%d ranks, %d cores\t", rep.Ranks, rep.Cores)
	for _, size := range c.sizes {
		fmt.Fprintf(w, "%s\t", sizeName(size))
	}
	fmt.Fprintln(w)
	for _, s := range systems {
		fmt.Fprintf(w, "%s\t", s.name)
		for _, size := range c.sizes {
			if r := rep.at(s.name, size); size < 8<<20 {
				fmt.Fprintf(w, "%.1f µs\t", r.Seconds*1e6)
			} else {
				fmt.Fprintf(w, "%.1f GB/s\t", r.BusGBps)
			}
		}
		fmt.Fprintln(w)
	}
	for _, s := range systems {
		best := func(size int) (t float64) {
			for _, p := range systems {
				if p.kind == "peer "+s.kind {
					if r := rep.at(p.name, size); t == 0 || r.Seconds < t {
						t = r.Seconds
					}
				}
			}
			return t
		}
		if strings.HasPrefix(s.kind, "peer") || best(c.sizes[0]) == 0 {
			continue
		}
		fmt.Fprintf(w, "%s: times the best peer's speed\t", s.name)
		for _, size := range c.sizes {
			fmt.Fprintf(w, "%.2f\t", best(size)/rep.at(s.name, size).Seconds)
		}
		fmt.Fprintln(w)
	}
	if slices.Contains(c.transports, "registered") {
		fmt.Fprintf(w, "registered: share of the bound\t")
		for _, size := range c.sizes {
			r := rep.at("autoglm registered", size)
			fmt.Fprintf(w, "%.2f\t", r.Bound/r.Seconds)
		}
		fmt.Fprintln(w)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Printf("bound: %s (%.1f GB/s of traffic; a copy moves %.1f GB/s of payload); it says nothing where the data stays in the cache\n", rep.BoundText, rep.AddGBps, rep.CopyGBps)
	return nil
}

func sizeName(n int) string {
	switch {
	case n >= 1<<20 && n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n >= 1<<10 && n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}

func median(x []float64) float64 {
	s := slices.Sorted(slices.Values(x))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}

// limits are the memory traffic of an in-place add and the payload of a copy, all
// cores together, GB/s, far beyond the caches.
func limits() (add, cp float64) {
	cores := runtime.NumCPU()
	const n = 32 << 20 // elements
	d, s := make([]float32, n), make([]float32, n)
	for i := 0; i < n; i += 1024 {
		d[i], s[i] = 1, 1
	}
	both := func(f func(d, s []float32)) float64 {
		var times []float64
		for range 5 {
			begin := time.Now()
			var wg sync.WaitGroup
			for k := range cores {
				wg.Go(func() { f(d[k*n/cores:(k+1)*n/cores], s[k*n/cores:(k+1)*n/cores]) })
			}
			wg.Wait()
			times = append(times, time.Since(begin).Seconds())
		}
		return median(times)
	}
	return 12 * n / both(func(d, s []float32) { kernel.Add(d, s) }) / 1e9, 4 * n / both(func(d, s []float32) { copy(d, s) }) / 1e9
}
