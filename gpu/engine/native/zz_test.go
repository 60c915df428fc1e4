package native

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/glm"
)

func cpuNow() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func BenchmarkZZ(b *testing.B) {
	a := arch(384, 6, 6, 6, 1024, 4096, true)
	a.Context = 1024
	m := build(b, a, Options{Inference: true})
	for _, w := range []glm.Weights{glm.F32Weights, glm.BF16Weights, glm.Int8} {
		d, err := NewDecoder(a, m.State(), DecoderOptions{Weights: w, MaxSeqs: 8})
		if err != nil {
			b.Fatal(err)
		}
		ids := make([]int32, 256)
		for i := range ids {
			ids[i] = int32(i * 13 % 4096)
		}
		b.Run(fmt.Sprint("prefill/", w), func(b *testing.B) {
			c := cpuNow()
			for b.Loop() {
				d.Drop(0)
				if _, err := d.Prefill(0, ids); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpuNow()-c)*1000/float64(b.N), "cpu-ms/op")
		})
		for _, n := range []int{1, 8} {
			b.Run(fmt.Sprint("decode/", w, "/", n), func(b *testing.B) {
				var seqs []int
				for i := range n {
					d.Drop(i)
					d.Prefill(i, ids)
					seqs = append(seqs, i)
				}
				c := cpuNow()
				for b.Loop() {
					if d.Len(0) > 1000 {
						for _, s := range seqs {
							d.Trim(s, 256)
						}
					}
					if _, err := d.Decode(seqs, ids[:n]); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(n*b.N)/(cpuNow()-c), "tok/cpu-s")
			})
			for i := range n {
				d.Drop(i)
			}
		}
		d.Close()
	}
}
