// Command allreduce times sums over ranks of one host, over each transport, and
// beside OpenMPI, MPICH and Gloo in the same run, alternately.
//
//	go run ./bench/allreduce                                  all transports, two ranks, all peers
//	go run ./bench/allreduce -n 4 -sizes 4KiB,64MiB -transport shm,tcp -peers openmpi
//	go run ./bench/allreduce -peers none -json
//	go run -tags gpu ./bench/allreduce -transport mpi,nccl    through libraries that a tagged build holds
//
// With -json it prints an object a line for each system and size. ratio is how many
// times the speed of the best peer of its kind (shared memory or sockets) it has.
// limit_gbs is the bus bandwidth that the memory of this machine allows, by a
// measurement in the same run: where ranks share memory, each one's data is read
// and written once, at the rate of an in-place add on all cores; over sockets each
// byte is copied into the kernel and out, at the rate of a copy. Where the data
// stays in the cache it can be passed.
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

	"github.com/open-autoglm/autoglm/bench/stat"
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
	System    string  `json:"system"`
	Transport string  `json:"transport,omitempty"` // of ours
	Ranks     int     `json:"ranks"`
	Bytes     int     `json:"bytes"`
	Micros    float64 `json:"us"`              // median over rounds
	BusGBps   float64 `json:"busbw_gbs"`       // 2(n−1)/n · bytes / time
	Limit     float64 `json:"limit_gbs"`       // of BusGBps
	Share     float64 `json:"share"`           // of the limit
	Peer      string  `json:"peer,omitempty"`  // the quickest of its kind
	Ratio     float64 `json:"ratio,omitempty"` // times its speed
	Cores     int     `json:"cores"`
	AddGBps   float64 `json:"add_gbs"`  // memory traffic of an in-place add on all cores: two reads, one write
	CopyGBps  float64 `json:"copy_gbs"` // payload of a copy on all cores
}

type report []row

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
	transports := flag.String("transport", "inproc,registered,shm,unix,tcp", "ours to time, comma-separated; also tls, and mpi, nccl and gloo of builds that hold them; or none")
	peers := flag.String("peers", "openmpi,openmpi-copy,openmpi-ring,openmpi-tcp,mpich,gloo", "peers, comma-separated, or none")
	flag.IntVar(&c.ranks, "n", 2, "ranks")
	flag.IntVar(&c.rounds, "rounds", 3, "alternations of all systems")
	flag.Float64Var(&c.seconds, "seconds", 0.3, "time for each size, in each round")
	flag.BoolVar(&c.json, "json", false, "print JSON, an object a line")
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
	rep := rows(c, systems, times, stat.Median(adds), stat.Median(copies))
	if c.json {
		e := json.NewEncoder(os.Stdout)
		for _, r := range rep {
			if err := e.Encode(r); err != nil {
				return err
			}
		}
		return nil
	}
	return rep.print(c, systems)
}

// rows compares what was timed.
func rows(c config, systems []system, times map[string]map[int][]float64, add, cp float64) (rep report) {
	n := float64(c.ranks)
	bus := func(size int, seconds float64) float64 { return 2 * (n - 1) / n * float64(size) / seconds / 1e9 }
	for _, s := range systems {
		for _, size := range c.sizes {
			t := stat.Median(times[s.name][size])
			r := row{System: s.name, Transport: s.transport, Ranks: c.ranks, Bytes: size, Micros: t * 1e6, BusGBps: bus(size, t), Cores: runtime.NumCPU(), AddGBps: add, CopyGBps: cp}
			least := 2 * n * float64(size) / (add * 1e9)
			if strings.HasSuffix(s.kind, "socket") {
				least = 2 * 2 * (n - 1) * float64(size) / (cp * 1e9)
			}
			r.Limit = bus(size, least)
			r.Share = r.BusGBps / r.Limit
			if s.transport != "" {
				best := 0.0
				for _, p := range systems {
					if pt := stat.Median(times[p.name][size]); p.kind == "peer "+s.kind && (best == 0 || pt < best) {
						best, r.Peer, r.Ratio = pt, p.name, pt/t
					}
				}
			}
			rep = append(rep, r)
		}
	}
	return rep
}

func (rep report) at(system string, bytes int) *row {
	i := slices.IndexFunc(rep, func(r row) bool { return r.System == system && r.Bytes == bytes })
	return &rep[i]
}

// print shows times and bandwidths, then how much quicker each of ours is than
// the best peer of its kind, and what share of the limit it reaches.
func (rep report) print(c config, systems []system) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	line := func(head string, cell func(size int) string) {
		fmt.Fprintf(w, "%s\t", head)
		for _, size := range c.sizes {
			fmt.Fprintf(w, "%s\t", cell(size))
		}
		fmt.Fprintln(w)
	}
	line(fmt.Sprintf("%d ranks, %d cores", c.ranks, runtime.NumCPU()), sizeName)
	for _, s := range systems {
		line(s.name, func(size int) string {
			if r := rep.at(s.name, size); size < 8<<20 {
				return fmt.Sprintf("%.1f µs", r.Micros)
			} else {
				return fmt.Sprintf("%.1f GB/s", r.BusGBps)
			}
		})
	}
	for _, s := range systems {
		if rep.at(s.name, c.sizes[0]).Peer != "" {
			line(s.name+": times the best peer's speed", func(size int) string { return fmt.Sprintf("%.2f", rep.at(s.name, size).Ratio) })
		}
	}
	for _, s := range systems {
		if s.transport != "" {
			line(s.name+": share of the limit", func(size int) string { return fmt.Sprintf("%.2f", rep.at(s.name, size).Share) })
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(rep) > 0 {
		fmt.Printf("limit: each rank's data read and written once at the rate of an in-place add on all cores (%.1f GB/s of traffic); over sockets each byte copied in and out of the kernel (a copy moves %.1f GB/s of payload); it says nothing where the data stays in the cache\n", rep[0].AddGBps, rep[0].CopyGBps)
	}
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
		return stat.Median(times)
	}
	return 12 * n / both(func(d, s []float32) { kernel.Add(d, s) }) / 1e9, 4 * n / both(func(d, s []float32) { copy(d, s) }) / 1e9
}
