package native

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

type workload struct {
	name string
	a    glm.Arch
	B, T int
}

// BenchmarkStep times whole steps in both precisions, to be profiled.
func BenchmarkStep(b *testing.B) {
	for _, threads := range []int{1, 2} {
		for _, s := range steps {
			for _, p := range []engine.Precision{engine.F32, engine.BF16} {
				b.Run(fmt.Sprintf("%s/%s/threads=%d", s.name, p, threads), func(b *testing.B) {
					m := build(b, s.a, Options{Threads: threads, MaxBatch: s.B, MaxSeq: s.T, Precision: p})
					begin := 0.0
					batch := randomBatch(rand.New(rand.NewPCG(1, 1)), s.B, s.T, s.a.Vocab, false)
					for b.Loop() {
						if begin == 0 { // the first call touches the memory
							begin = cpuSeconds(b)
						}
						if _, err := m.Backward(batch, nil); err != nil {
							b.Fatal(err)
						}
						if _, err := m.Update(engine.DefaultHyper()); err != nil {
							b.Fatal(err)
						}
					}
					b.ReportMetric(float64(s.B*s.T*b.N)/(cpuSeconds(b)-begin), "tokens/cpu-s")
					b.ReportMetric(float64(s.B*s.T*b.N)/b.Elapsed().Seconds(), "tokens/s")
				})
			}
		}
	}
}

// BenchmarkSaturated times the same step twice: of fresh weights, and where attention has
// saturated, as it does where a rate is too high, so that most of its probabilities are
// next to nothing.
func BenchmarkSaturated(b *testing.B) {
	for _, by := range []float32{1, 30} {
		b.Run(fmt.Sprintf("queries and keys times %g", by), func(b *testing.B) {
			s := steps[0]
			m := build(b, s.a, Options{Threads: 1, MaxBatch: s.B, MaxSeq: s.T, Precision: engine.F32})
			for _, p := range m.layout {
				if strings.Contains(p.Name, "q_proj") || strings.Contains(p.Name, "k_proj") {
					for i := range p.Elems {
						m.params[p.Offset+i] *= by
					}
				}
			}
			batch := randomBatch(rand.New(rand.NewPCG(1, 1)), s.B, s.T, s.a.Vocab, false)
			if _, err := m.Backward(batch, nil); err != nil { // touches the memory
				b.Fatal(err)
			}
			begin := cpuSeconds(b)
			for b.Loop() {
				if _, err := m.Backward(batch, nil); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(s.B*s.T*b.N)/(cpuSeconds(b)-begin), "tokens/cpu-s")
		})
	}
}

// cpuSeconds is the processor time that this process has used: what neighbours
// take does not count.
func cpuSeconds(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// steps are the shapes that speed is stated for.
var steps = []workload{
	{"W1", arch(128, 4, 4, 4, 352, 512, true), 16, 128},
	{"W2", arch(256, 4, 4, 4, 704, 4096, true), 8, 256},
	{"W3", arch(384, 6, 6, 6, 1024, 8192, true), 8, 256},
}

// timed is the shortest time of a step: what the machine's neighbours leave alone.
func timed(b *testing.B, a glm.Arch, s glm.Step, atLeast time.Duration) float64 {
	o := Options{Threads: s.Threads, MaxBatch: s.Sequences, MaxSeq: s.Tokens, Recompute: s.Recompute}
	if s.BF16 {
		o.Precision = engine.BF16
	}
	m := build(b, a, o)
	defer m.Close()
	batch := randomBatch(rand.New(rand.NewPCG(1, 1)), s.Sequences, s.Tokens, a.Vocab, false)
	step := func() time.Duration {
		begin := time.Now()
		if _, err := m.Backward(batch, nil); err != nil {
			b.Fatal(err)
		}
		if _, err := m.Update(engine.DefaultHyper()); err != nil {
			b.Fatal(err)
		}
		return time.Since(begin)
	}
	step() // touches the memory
	shortest, begin := time.Hour, time.Now()
	for n := 0; n < 3 || time.Since(begin) < atLeast; n++ {
		shortest = min(shortest, step())
	}
	return shortest.Seconds()
}

// BenchmarkEstimate measures the machine's rates by the probes and prints, for
// other shapes, the estimated time of a step over the measured one; the last metric
// is the worst error of going by the first probe's FLOP/s alone.
func BenchmarkEstimate(b *testing.B) {
	shapes := append([]workload{
		{"narrow", arch(64, 6, 4, 4, 256, 1024, true), 8, 256},
		{"deep", arch(320, 8, 5, 5, 832, 2048, true), 16, 64},
		{"long", arch(256, 2, 8, 8, 1024, 512, true), 2, 1024},
		{"few heads", arch(128, 8, 2, 2, 256, 2048, true), 4, 512},
		{"wide", arch(512, 4, 8, 8, 1344, 4096, true), 8, 128},
		{"small batch", arch(128, 4, 4, 4, 384, 512, true), 4, 32},
		{"vocabulary", arch(96, 3, 3, 3, 256, 8192, true), 16, 128},
	}, steps...)
	for _, threads := range []int{1, 2} {
		for _, half := range []bool{false, true} {
			b.Run(fmt.Sprintf("threads=%d/bf16=%v", threads, half), func(b *testing.B) {
				for b.Loop() {
					probes := glm.Probes(threads, half)
					seconds, actual := make([]float64, len(probes)), make([]float64, len(shapes))
					step := func(w workload) glm.Step {
						return glm.Step{Training: glm.Training{Sequences: w.B, Tokens: w.T, Threads: threads, BF16: half}}
					}
					for round := range 3 { // a neighbour may come or go
						keep := func(to *float64, a glm.Arch, s glm.Step, atLeast time.Duration) {
							if t := timed(b, a, s, atLeast); round == 0 || t < *to {
								*to = t
							}
						}
						for i, p := range probes {
							keep(&seconds[i], p.Arch, p.Step, 100*time.Millisecond)
						}
						for i, w := range shapes {
							keep(&actual[i], w.a, step(w), 300*time.Millisecond)
						}
					}
					rates := glm.FitRates(probes, seconds)
					worst, single, table := 0.0, 0.0, fmt.Sprintf("%+v\nms, and the estimate over it:", rates)
					for i, w := range shapes {
						ratio := w.a.StepSeconds(step(w), rates) / actual[i]
						table += fmt.Sprintf(" %s %.1f %.2f;", w.name, actual[i]*1e3, ratio)
						worst = max(worst, math.Abs(ratio-1))
						flops := func(a glm.Arch, s glm.Step) float64 { return a.StepFLOPs(s.Sequences*s.Tokens, s.Tokens) }
						one := flops(w.a, step(w)) * seconds[0] / flops(probes[0].Arch, probes[0].Step)
						single = max(single, math.Abs(one/actual[i]-1))
					}
					b.Log(table)
					b.ReportMetric(worst, "worst-error")
					b.ReportMetric(single, "worst-error-of-one-rate")
				}
			})
		}
	}
}

// BenchmarkTeam is what it costs to wake the threads for a task and to meet them
// again: a step has five tasks.
func BenchmarkTeam(b *testing.B) {
	for _, n := range []int{1, 2, 4} {
		b.Run(fmt.Sprintf("threads=%d", n), func(b *testing.B) {
			tm := newTeam(n, nil, func(task, int) {})
			defer tm.close()
			for b.Loop() {
				if err := tm.run(0); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
