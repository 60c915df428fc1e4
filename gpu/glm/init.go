package glm

import (
	"math"
	"math/rand/v2"
)

// initGain scales the standard deviation gain/√in of the initial weights. 0.55
// is GPT-2's 0.02 at its own width, 768; a fixed 0.02 starts narrow models too
// small.
const initGain = 0.55

// Init fills dst, an arena of Layout's size, with initial parameters: matrices
// and embeddings normal with standard deviation 0.55/√in (in is the number of
// columns), those that write into the residual stream divided by √(2·Layers) so
// that its variance does not grow with depth (GPT-2), norms 1, padding 0. Each
// parameter draws from its own stream of seed, so that its values do not depend
// on what stands before it. A base width other than 0 parametrises by it, see Width.
func (a Arch) Init(dst []float32, seed uint64, base int) {
	params, size := a.Layout()
	clear(dst[:size])
	width := Width{a, base}
	for i, p := range params {
		w := dst[p.Offset : p.Offset+p.Elems]
		spread := width.Spread(p)
		if p.Role == Norm {
			for j := range w {
				w[j] = float32(spread)
			}
			continue
		}
		std := initGain / math.Sqrt(float64(p.Shape[1])) * spread
		if p.Role == Residual {
			std /= math.Sqrt(2 * float64(a.Layers))
		}
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		for j := range w {
			w[j] = float32(std * r.NormFloat64())
		}
	}
}
