package main

import (
	"fmt"
	"os"
	"os/exec"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// together runs f over and over on n goroutines for a while and returns the sum of
// what it returned, per second.
func together(n int, f func(i int) float64) float64 {
	const long = 150 * time.Millisecond
	sums := make([]float64, n)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range n {
		wg.Go(func() {
			for time.Since(begin) < long {
				sums[i] += f(i)
			}
		})
	}
	wg.Wait()
	total := 0.0
	for _, s := range sums {
		total += s
	}
	return total / time.Since(begin).Seconds()
}

// peak is GFLOP/s of multiply-adds on registers alone; 0 where the CPU multiplies
// no bfloat16.
func peak(n int, bf16 bool) float64 {
	if bf16 && !kernel.FastBF16() {
		return 0
	}
	return together(n, func(int) float64 { return kernel.Peak(bf16) }) / 1e9
}

// copyRate is GB/s that a copy of more than the caches hold reads and writes.
func copyRate(n int) float64 {
	const size = 16 << 20 // floats: 64 MiB
	from, to := make([]float32, n*size), make([]float32, n*size)
	for i := range from { // the first touch is not timed
		from[i], to[i] = 1, 1
	}
	return together(n, func(i int) float64 {
		copy(to[i*size:(i+1)*size], from[i*size:(i+1)*size])
		return 2 * 4 * size
	}) / 1e9
}

// busyArg makes this command the neighbour that keeps a core busy.
const busyArg = "busy-neighbour"

// startNeighbour starts it; stop ends it.
func startNeighbour() (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self, busyArg)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("neighbour: %w", err)
	}
	return func() {
		in.Close()
		cmd.Wait() //nolint:errcheck // it has nothing to say
	}, nil
}

// busy computes on one thread until standard input ends, as it does when whoever
// started this dies.
func busy() {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var b [1]byte
		for {
			if _, err := os.Stdin.Read(b[:]); err != nil {
				return
			}
		}
	}()
	for {
		select {
		case <-ended:
			return
		default:
			kernel.Peak(false)
		}
	}
}
