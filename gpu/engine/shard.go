package engine

import "github.com/open-autoglm/autoglm/gpu/ring"

// Range is a piece of an arena, From ≤ i < To.
type Range struct{ From, To int }

// Sharded is a Model whose optimiser's state can be divided over the ranks of a
// ring (ZeRO-1, Rajbhandari et al. 2020). A step is then: sum the gradient so that
// each rank holds its own elements of the sum, UpdateShard by the norm that all
// ranks' Squares add up to, and gather the parameters.
type Sharded interface {
	Model
	// Shard keeps moments for these elements alone: sorted, not overlapping. What it
	// holds of them stays. The error says why this model's optimiser is not divided.
	// From then on State is the parameters, and Load keeps of moments what is its own.
	Shard(own []Range) error
	// Squares is the sum of squares of the gradient's own elements.
	Squares() (float64, error)
	// UpdateShard is Update for the own elements, by the norm of the whole gradient.
	UpdateShard(h Hyper, norm float64) error
	// Moments are the own elements' exp_avg and exp_avg_sq, one range after the other.
	// They alias the model's memory.
	Moments() (m, v []float32)
	// Params is the arena of parameters, which the caller completes after UpdateShard.
	Params() []float32
	// WholeState is State as of a model that is not divided, made of the parameters
	// and of everybody's moments, each of the arena's size.
	WholeState(m, v []float32) StateDict
}

// Cut is how a gradient of size elements travels: its buckets by number.
func Cut(size int) []Range {
	var out []Range
	for end := size; end > 0; {
		from := cut(len(out), end)
		out = append(out, Range{from, end})
		end = from
	}
	return out
}

// Own are a rank's elements of an arena that travels in buckets: its Share of
// each, in the arena's order.
func Own(size, rank, world int) []Range {
	var out []Range
	buckets := Cut(size)
	for i := len(buckets) - 1; i >= 0; i-- {
		b := buckets[i]
		if lo, hi := ring.Share(b.To-b.From, rank, world); lo < hi {
			out = append(out, Range{b.From + lo, b.From + hi})
		}
	}
	return out
}
