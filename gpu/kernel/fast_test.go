package kernel

import (
	"testing"
	"time"
)

func TestPairsPay(t *testing.T) {
	us := func(ts ...int) (ds []time.Duration) {
		for _, t := range ts {
			ds = append(ds, time.Duration(t)*time.Microsecond)
		}
		return ds
	}
	for _, c := range []struct {
		name          string
		single, pairs []time.Duration
		want          bool
	}{
		{"as many multiply-adds a cycle", us(10, 10), us(10, 10), true},
		{"half as many", us(10, 10), us(20, 20), false},
		{"a quarter", us(10, 10), us(40, 40), false},
		{"disturbed", us(10, 90, 80), us(700, 11, 500), true},
		{"disturbed, half as many", us(95, 10, 80), us(21, 300, 20), false},
	} {
		if got := pairsPay(c.single, c.pairs); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// TestFastBF16 holds the decision of each level against products.
func TestFastBF16(t *testing.T) {
	levels(t, func(t *testing.T) {
		if level == amx && !FastBF16() || !hasPairs() && FastBF16() {
			t.Fatalf("FastBF16 is %v", FastBF16())
		}
		if !hasPairs() {
			return
		}
		const n = 256
		a, c, work := make([]float32, n*n), make([]float32, n*n), make([]float32, WorkLen)
		packed, left, right := make([]float32, PackedLen(n, n)), make([]float32, LeftLen(n, n)), make([]float32, PairsLen(n, n))
		Pack(packed, NN, n, n, a, n)
		PackPairs(right, NN, n, n, a, n, work)
		RoundLeft(left, false, n, n, a, n)
		shortest := func(f func()) float64 {
			best := time.Hour
			for range 30 {
				begin := time.Now()
				f()
				best = min(best, time.Since(begin))
			}
			return best.Seconds()
		}
		single := shortest(func() { GemmPacked(false, n, n, n, a, n, packed, n, c, n, false) })
		pairs := shortest(func() { GemmPairs(false, n, n, n, left, right, n, c, n, false) })
		t.Logf("bf16 %.2f times as fast as f32, FastBF16 %v", single/pairs, FastBF16())
		if fast := single > pairs; fast != FastBF16() && (single/pairs < 0.8 || single/pairs > 1.5) {
			t.Errorf("FastBF16 is %v where bf16 is %.2f times as fast as f32", FastBF16(), single/pairs)
		}
	})
}
