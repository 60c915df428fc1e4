package main

import (
	"errors"
	"math/bits"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// summer sums the gradients of ranks in one process: each rank reports its
// buckets, meets the others, sums its share of every bucket in rank order, and
// meets them again. A meeting parks on a condition.
type summer struct {
	ranks int
	mu    struct {
		sync.Mutex
		waiting, round int
		stop, aborted  bool
	}
	cond    *sync.Cond
	buckets [][]ring.Buffer // of each rank; read between meetings
}

func newSummer(ranks int) *summer {
	s := &summer{ranks: ranks, buckets: make([][]ring.Buffer, ranks)}
	s.cond = sync.NewCond(&s.mu)
	return s
}

var errAborted = errors.New("another rank stopped")

// meet waits for all ranks.
func (s *summer) meet() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.waiting++
	if s.mu.waiting == s.ranks {
		s.mu.waiting = 0
		s.mu.round++
		s.cond.Broadcast()
	}
	for round := s.mu.round; s.mu.waiting > 0 && round == s.mu.round && !s.mu.aborted; {
		s.cond.Wait()
	}
	if s.mu.aborted {
		return errAborted
	}
	return nil
}

func (s *summer) abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.aborted = true
	s.cond.Broadcast()
}

// agree is rank 0's verdict, the same for all ranks.
func (s *summer) agree(rank int, stop bool) bool {
	if s.ranks == 1 {
		return stop
	}
	if rank == 0 {
		s.mu.Lock()
		s.mu.stop = stop
		s.mu.Unlock()
	}
	if s.meet() != nil {
		return true
	}
	s.mu.Lock()
	stop = s.mu.stop
	s.mu.Unlock()
	return s.meet() != nil || stop
}

// rankSync is one rank's engine.GradientSync.
type rankSync struct {
	*summer
	id int
}

func (s *summer) rank(id int) *rankSync { return &rankSync{s, id} }

func (r *rankSync) Reduce(_ int, grad ring.Buffer) {
	r.buckets[r.id] = append(r.buckets[r.id], grad)
}

func (r *rankSync) Wait() error {
	if err := r.meet(); err != nil {
		return err
	}
	for b := range r.buckets[0] {
		n := len(r.buckets[0][b].Data)
		from, to := n*r.id/r.ranks, n*(r.id+1)/r.ranks
		sum := r.buckets[0][b].Data[from:to]
		for other := 1; other < r.ranks; other++ {
			kernel.Add(sum, r.buckets[other][b].Data[from:to])
		}
		for other := 1; other < r.ranks; other++ {
			copy(r.buckets[other][b].Data[from:to], sum)
		}
	}
	if err := r.meet(); err != nil {
		return err
	}
	r.buckets[r.id] = r.buckets[r.id][:0]
	return r.meet()
}

// loopGain is how much faster n goroutines are than one at a loop that touches
// no memory: what the machine's other cores are worth right now.
func loopGain(n int, seconds float64) float64 {
	one := loops(1, seconds/2)
	return loops(n, seconds/2) / one
}

// loops is the rate of n goroutines together.
func loops(n int, seconds float64) float64 {
	counts := make(chan uint64, n)
	start := time.Now()
	for range n {
		go func() {
			x, count := uint64(1), uint64(0)
			for time.Since(start).Seconds() < seconds {
				for range 1 << 18 {
					x = bits.RotateLeft64(x*0x9e3779b97f4a7c15, 31) + 1
				}
				count += 1 + x&1>>1
			}
			counts <- count
		}()
	}
	var total uint64
	for range n {
		total += <-counts
	}
	return float64(total) / time.Since(start).Seconds()
}
