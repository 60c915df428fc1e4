package native

import (
	"fmt"
	"math/rand/v2"
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
