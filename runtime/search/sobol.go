package search

import (
	_ "embed"
	"math/bits"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// spread proposes the points of a scrambled Sobol sequence over all dimensions.
type spread struct {
	*history
	*design
}

func newSpread(h *history) *spread { return &spread{h, newDesign(h)} }

func (s *spread) Ask(n int) ([]space.Config, error) { return s.ask(n, s.next) }

// design goes through the space evenly: one coordinate of a scrambled Sobol sequence a
// dimension, used where the dimension is active. Models begin with it.
type design struct {
	h    *history
	cube func() []float64
}

func newDesign(h *history) *design {
	return &design{h: h, cube: sobol(len(h.dims), h.opts.Seed)}
}

// begin is a proposal before a model knows anything: every other one near what is
// believed to be good, where something is, the others of the sequence.
func (s *design) begin(rng *rand.Rand) (space.Config, error) {
	if len(s.h.opts.Initial) > 0 && len(s.h.proposed)%2 == 1 {
		return s.h.nearby(rng)
	}
	return s.next(rng)
}

// nearby is one of Options.Initial but for a choice of its architecture and one or two of
// the rest.
func (h *history) nearby(rng *rand.Rand) (space.Config, error) {
	c := h.opts.Initial[rng.IntN(len(h.opts.Initial))]
	for _, part := range []struct {
		most int
		of   func(string) bool
	}{{1, h.opts.Architecture}, {1 + rng.IntN(2), func(n string) bool { return !h.opts.Architecture(n) }}} {
		if !slices.ContainsFunc(h.dims, func(d space.Dimension) bool { return part.of(d.Name) }) {
			continue // the space has none of it
		}
		var err error
		if c, err = h.space.Mutate(c, part.most, part.of, rng); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// next is the sequence's next point that holds the constraints, or a random one where
// few do.
func (s *design) next(rng *rand.Rand) (space.Config, error) {
	for range 256 {
		p := s.cube()
		for i, d := range s.h.dims {
			if !d.Numeric() {
				p[i] *= float64(len(d.Choices))
			}
			p[i] = s.h.inside(d, p[i])
		}
		if c := s.h.config(p, rng); s.h.space.Feasible(c) == nil {
			return c, nil
		}
	}
	return s.h.space.Sample(rng)
}

//go:embed sobol_directions.txt
var joeKuo string

// directions of the table, a number for each of 32 bits.
var directions = sync.OnceValue(func() [][32]uint32 {
	var first [32]uint32
	for i := range first {
		first[i] = 1 << (31 - i)
	}
	out := [][32]uint32{first}
	for line := range strings.Lines(joeKuo) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var nums []uint32
		for _, f := range strings.Fields(line) {
			n, err := strconv.ParseUint(f, 10, 32)
			if err != nil {
				panic(err)
			}
			nums = append(nums, uint32(n))
		}
		polynomial, m := nums[0], nums[1:]
		degree := len(m)
		var v [32]uint32
		for i := range v {
			if i < degree {
				v[i] = m[i] << (31 - i)
				continue
			}
			v[i] = v[i-degree] ^ v[i-degree]>>degree
			for k := 1; k < degree; k++ {
				if polynomial>>(degree-k)&1 == 1 {
					v[i] ^= v[i-k]
				}
			}
		}
		out = append(out, v)
	}
	return out
})

// sobol gives the points of an Owen-scrambled Sobol sequence in [0, 1)^dims, one a
// call. Coordinates past the table's 256 are drawn independently.
func sobol(dims int, seed uint64) func() []float64 {
	raw := grayCode(min(dims, len(directions())))
	rng := rand.New(rand.NewPCG(seed, 0x5b0f1ea7ed50b01))
	seeds := make([]uint32, dims)
	for i := range seeds {
		seeds[i] = rng.Uint32()
	}
	return func() []float64 {
		p := make([]float64, dims)
		for i, x := range raw() {
			p[i] = float64(owen(x, seeds[i])) / (1 << 32)
		}
		for i := len(directions()); i < dims; i++ {
			p[i] = rng.Float64()
		}
		return p
	}
}

// grayCode goes through the unscrambled sequence in the order of Antonov and Saleev,
// one change of a bit a point. What it returns is valid until the next call.
func grayCode(dims int) func() []uint32 {
	v := directions()[:dims]
	x := make([]uint32, dims)
	n := uint32(0)
	return func() []uint32 {
		if n > 0 {
			bit := min(bits.TrailingZeros32(n), 31)
			for i := range x {
				x[i] ^= v[i][bit]
			}
		}
		n++
		return x
	}
}

// owen scrambles a coordinate: each bit is flipped or not as a hash of the bits above
// it says, which keeps the points as even as they were (Laine and Karras 2011, with
// Burley's constants of 2020).
func owen(x, seed uint32) uint32 {
	x = bits.Reverse32(x)
	x ^= x * 0x3d20adea
	x += seed
	x *= seed>>16 | 1
	x ^= x * 0x05526c56
	x ^= x * 0x53a22864
	return bits.Reverse32(x)
}
