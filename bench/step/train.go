package main

import (
	"errors"
	"math"
	"syscall"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// timing is what one run of steps gave.
type timing struct {
	rate        float64 // tokens/s over all ranks
	perCPU      float64 // tokens per second of processor time
	first, last float64 // loss
	steps       int
}

// train times steps of a number of ranks for c.seconds, after one to warm up.
func (c *config) train(ranks int) (timing, error) {
	ring := newSummer(ranks)
	type result struct {
		timing
		err error
	}
	results := make(chan result, ranks)
	for rank := range ranks {
		go func() {
			t, err := c.rank(ring, rank)
			if err != nil {
				ring.abort()
			}
			results <- result{t, err}
		}()
	}
	var total timing
	var failed error
	for range ranks {
		r := <-results
		failed = errors.Join(failed, r.err)
		total.rate += r.rate
		total.steps = r.steps
		total.first += r.first
		total.last += r.last
		// Each rank saw the whole process's time.
		total.perCPU += r.perCPU
	}
	return total, failed
}

// rank trains one replica until the ring says that time is up.
func (c *config) rank(ring *summer, rank int) (t timing, err error) {
	build, err := c.maker()
	if err != nil {
		return t, err
	}
	m, err := build(c)
	if err != nil {
		return t, err
	}
	defer m.Close()
	h := engine.DefaultHyper()
	h.Optimizer = c.optimizer
	tokens := c.batch * c.arch.Context
	b := c.newBatch(ring.ranks)
	source := sequence{state: uint64(rank + 1), vocab: c.arch.Vocab}
	var sync engine.GradientSync
	if ring.ranks > 1 {
		sync = ring.rank(rank)
	}
	step := func() (float64, error) {
		source.fill(b)
		return takeStep(m, b, sync, h)
	}
	if t.first, err = step(); err != nil {
		return t, err
	}
	start, cpu := time.Now(), cpuSeconds()
	for {
		if t.last, err = step(); err != nil {
			return t, err
		}
		t.steps++
		elapsed := time.Since(start).Seconds()
		if ring.agree(rank, elapsed >= c.seconds) {
			t.rate = float64(tokens*t.steps) / elapsed
			t.perCPU = float64(tokens*t.steps) / (cpuSeconds() - cpu)
			return t, nil
		}
	}
}

// takeStep is one whole step.
func takeStep(m engine.Model, b engine.Batch, sync engine.GradientSync, h engine.Hyper) (float64, error) {
	loss, err := m.Backward(b, sync)
	if err != nil {
		return 0, err
	}
	if sync != nil {
		if err := sync.Wait(); err != nil {
			return 0, err
		}
	}
	_, err = m.Update(h)
	return loss, err
}

// loss is the mean of the last ten losses of one rank's first lossSteps steps.
func (c *config) loss() (float64, error) {
	build, err := c.maker()
	if err != nil {
		return 0, err
	}
	m, err := build(c)
	if err != nil {
		return 0, err
	}
	defer m.Close()
	h := engine.DefaultHyper()
	h.Optimizer = c.optimizer
	b := c.newBatch(1)
	source := sequence{state: 1, vocab: c.arch.Vocab}
	var sum float64
	for i := range c.lossSteps {
		source.fill(b)
		loss, err := takeStep(m, b, nil, h)
		if err != nil {
			return 0, err
		}
		if i >= c.lossSteps-10 {
			sum += loss
		}
	}
	return sum / float64(min(10, c.lossSteps)), nil
}

// newBatch is a step's batch of one of some ranks, to be filled.
func (c *config) newBatch(ranks int) engine.Batch {
	n := c.batch * c.arch.Context
	return engine.Batch{B: c.batch, T: c.arch.Context, Inputs: make([]int32, n), Targets: make([]int32, n), Norm: float64(n * ranks)}
}

// cpuSeconds is the processor time that this process has used.
func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return math.NaN()
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// sequence makes learnable batches: sequences that count up from a random start
// by a random stride of 1 to 4 (modulo the vocabulary).
type sequence struct {
	state uint64
	vocab int
}

func (s *sequence) fill(b engine.Batch) {
	for i := range b.B {
		s.state = s.state*6364136223846793005 + 1442695040888963407
		id, stride := int(s.state>>33%uint64(s.vocab)), int(1+s.state>>20%4)
		for t := range b.T {
			b.Inputs[i*b.T+t] = int32(id)
			id = (id + stride) % s.vocab
			b.Targets[i*b.T+t] = int32(id)
		}
	}
}
