package kernel

import (
	"slices"
	"sync"
	"time"
)

// FastBF16 tells whether GemmBF16 is faster than Gemm. In AMX tiles it is, ten times.
// AVX512_BF16 alone doubles the rate of float32 on some CPUs (AMD's) and halves it on
// others (Intel's), so that there it is measured, once, which takes half a
// millisecond. Where the CPU has neither GemmBF16 is a slow reference.
func FastBF16() bool {
	switch {
	case level == amx:
		return true
	case hasPairs():
		return fastPairs()
	}
	return false
}

var fastPairs = sync.OnceValue(func() bool {
	const rounds = 1 << 9 // a few microseconds
	elapsed := func(loop func(int)) time.Duration {
		begin := time.Now()
		loop(rounds)
		return time.Since(begin)
	}
	var single, pairs []time.Duration
	for range 32 {
		single, pairs = append(single, elapsed(peak)), append(pairs, elapsed(peakPairs))
	}
	return pairsPay(single, pairs)
})

// pairsPay decides by the times of loops of as many multiply-adds of float32 and of
// pairs, of which one does two. The shortest times are those that nothing disturbed;
// less than a third more arithmetic would be spent on rounding.
func pairsPay(single, pairs []time.Duration) bool {
	return 2*slices.Min(single).Seconds() > 4./3*slices.Min(pairs).Seconds()
}
