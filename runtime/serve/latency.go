package serve

import (
	"context"
	"math"
	"slices"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
)

// stretches is in how many parts a decoder is timed.
const stretches = 5

// Latency is how long a decoder takes for a token of one sequence, seconds: the median
// over the positions of full contexts, as many as fit into the bound, in the stretch of
// that time in which others disturbed it least.
func Latency(ctx context.Context, dec engine.Decoder, a glm.Arch, bound time.Duration) (float64, error) {
	const warm = 2 // tokens that touch what the others use
	defer dec.Drop(0)
	best := math.Inf(1)
	var times []float64
	begin := time.Now()
	for n, left := 0, stretches; left > 0; n++ {
		if err := context.Cause(ctx); err != nil {
			return 0, err
		}
		if n%a.Context == 0 {
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
		if time.Since(begin) >= bound/stretches {
			slices.Sort(times)
			best = min(best, times[len(times)/2])
			times, begin, left = times[:0], time.Now(), left-1
		}
	}
	return best, nil
}
