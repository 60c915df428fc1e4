package kernel

import (
	"testing"
	"time"
)

// TestPeak: no product is faster than the loop that is its limit.
func TestPeak(t *testing.T) {
	levels(t, func(t *testing.T) {
		for _, bf16 := range []bool{false, true} {
			begin := time.Now()
			flops := 0.0
			for time.Since(begin) < 20*time.Millisecond {
				flops += Peak(bf16)
			}
			rate := flops / time.Since(begin).Seconds() / 1e9
			if rate < 0.01 || rate > 1e4 {
				t.Errorf("bf16 %v: %g GFLOP/s", bf16, rate)
			}
			t.Logf("bf16 %v: %.1f GFLOP/s", bf16, rate)
		}
	})
}
