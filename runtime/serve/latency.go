package serve

import (
	"context"
	"slices"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// Latency is how long a decoder takes for a token of one sequence, seconds: the median
// over the positions of full contexts, as many as fit into the bound, and one token at
// the least.
func Latency(ctx context.Context, dec engine.Decoder, a glm.Arch, bound time.Duration) (float64, error) {
	const warm = 2 // tokens that touch what the others use
	var times []float64
	begin := time.Now()
	defer dec.Drop(0)
	for n := 0; ; n++ {
		if err := context.Cause(ctx); err != nil {
			return 0, err
		}
		if pos := n % a.Context; pos == 0 {
			dec.Drop(0)
			if _, err := dec.Prefill(0, []int32{0}); err != nil {
				return 0, err
			}
			continue
		}
		at := time.Now()
		if _, err := dec.Decode([]int{0}, []int32{int32(n % a.Vocab)}); err != nil {
			return 0, err
		}
		if n <= warm {
			continue
		}
		times = append(times, time.Since(at).Seconds())
		if time.Since(begin) >= bound {
			break
		}
	}
	slices.Sort(times)
	return times[len(times)/2], nil
}
