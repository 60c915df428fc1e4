package ddp

import (
	"math"
	"time"

	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// bucket is one piece of the gradient, with what its level needs to remember.
type bucket struct {
	number  int
	from, n int // in the arena
	level   Level
	world   int
	scatter bool

	residual []float32 // what rounding has lost so far, [n]; nil at None and BF16
	half     []uint16  // encoded
	other    []float32 // decoded of another rank
	low      *lowRank

	// Of the last sum.
	handed time.Time
	hidden time.Duration // from there to Wait
	comm   time.Duration // of the ring
	code   time.Duration // to encode and decode
	err    float64       // relative, of the encoding
	norm   float64       // of this rank's gradient, at PowerSGD, which falls when it shifts

	measured measures
	choice   choice // rank 0's
}

func newBucket(d *Reducer, number, from, n int) *bucket {
	k := &bucket{number: number, from: from, n: n, world: d.ring.World(), scatter: d.cfg.Scatter}
	k.low = newLowRank(d.cfg.Layout, from, n)
	for l := range levels {
		if levelNames[l] == d.cfg.Mode {
			k.set(l)
		}
	}
	return k
}

// set changes the level. The residual of a level that keeps none is dropped with
// the last sum that it was part of.
func (k *bucket) set(l Level) {
	k.level, k.measured = l, measures{}
	k.half, k.other = nil, nil
	if l < Int8 {
		k.residual = nil
	} else if k.residual == nil {
		k.residual = make([]float32, k.n)
	}
	if l != PowerSGD {
		k.low.forget()
	}
}

// bytes is what a rank sends of the bucket at a level, over what a plain sum
// would: all-reduce moves 2(w−1)/w times its buffer, a gather w−1 times.
func (k *bucket) bytes(l Level) int {
	if k.scatter && l <= BF16 {
		return (4 - 2*int(l)) * k.n / 2
	}
	switch l {
	case BF16:
		return 2 * k.n
	case Int8:
		return int8Bytes(k.n) * k.world / 2
	case PowerSGD:
		return 4 * k.low.floats()
	}
	return 4 * k.n
}

// sum replaces g by the sum over the ranks.
func (k *bucket) sum(r Ring, g []float32) error {
	begin := time.Now()
	k.comm, k.err = 0, 0
	var err error
	switch k.level {
	case None:
		err = k.plain(r, ring.Buffer{Data: g})
	case BF16:
		err = k.sumBF16(r, g)
	case Int8:
		err = k.sumInt8(r, g)
	case PowerSGD:
		err = k.sumLowRank(r, g)
	}
	k.code = time.Since(begin) - k.comm
	return err
}

// plain lets the ring add.
func (k *bucket) plain(r Ring, b ring.Buffer) error {
	return k.timed(func() error {
		if k.scatter {
			return r.ReduceScatter(b)
		}
		r.Reduce(k.number, b)
		return r.Wait()
	})
}

func (k *bucket) timed(f func() error) error {
	begin := time.Now()
	err := f()
	k.comm += time.Since(begin)
	return err
}

func (k *bucket) sumBF16(r Ring, g []float32) error {
	if k.half == nil {
		k.half = make([]uint16, k.n)
	}
	kernel.EncodeBF16(k.half, g)
	k.err = 1.0 / 512 // half a unit in the last of 8 bits, at most
	if err := k.plain(r, ring.Buffer{Half: k.half, DType: ring.BF16}); err != nil {
		return err
	}
	kernel.DecodeBF16(g, k.half)
	return nil
}

// lost notes the relative error of the encoding of x, of which norm is the norm.
func (k *bucket) lost(norm float64) {
	if norm > 0 {
		k.err = math.Sqrt(kernel.SumSquares(k.residual)) / norm
	}
}

// block is how many elements share a scale.
const block = 128

// int8Bytes is the length of n encoded elements: a float32 scale before each
// block.
func int8Bytes(n int) int { return n + 4*((n+block-1)/block) }

func (k *bucket) sumInt8(r Ring, g []float32) error {
	// Each rank's part must be its Share of the gathered buffer.
	part := ((int8Bytes(k.n)+1)/2 + 31) &^ 31
	if k.half == nil {
		k.half, k.other = make([]uint16, part*r.World()), make([]float32, k.n)
	}
	kernel.Add(g, k.residual) // what was lost before
	norm := math.Sqrt(kernel.SumSquares(g))
	mine := k.half[part*r.Rank():][:part]
	encodeInt8(mine, g, k.residual)
	k.lost(norm)
	if err := k.timed(func() error { return r.AllGather(ring.Buffer{Half: k.half, DType: ring.BF16}) }); err != nil {
		return err
	}
	for rank := range r.World() {
		if rank == 0 {
			decodeInt8(g, k.half[:part])
			continue
		}
		decodeInt8(k.other, k.half[part*rank:][:part])
		kernel.Add(g, k.other)
	}
	return nil
}

// encodeInt8 writes x as blocks of a scale and up to 128 signed bytes, each
// x ≈ scale·q, |q| ≤ 127, and what that loses to rest. A block with a NaN or an
// infinity has a NaN scale, so that it comes out as one.
func encodeInt8(to []uint16, x, rest []float32) {
	out := bytesOf(to)
	for len(x) > 0 {
		m := min(block, len(x))
		var top float32
		bad := false
		for _, v := range x[:m] {
			if v < 0 {
				v = -v
			}
			bad = bad || v-v != 0
			top = max(top, v)
		}
		scale := top / 127
		if y := scale * 127; y-y != 0 { // the largest numbers round up to infinity
			scale = math.Nextafter32(scale, 0)
		}
		if bad {
			scale = float32(math.NaN())
		}
		bits := math.Float32bits(scale)
		out[0], out[1], out[2], out[3] = byte(bits), byte(bits>>8), byte(bits>>16), byte(bits>>24)
		inv := float32(0)
		if scale >= math.SmallestNonzeroFloat32*(1<<24) { // a normal number
			inv = 1 / scale
		}
		for i, v := range x[:m] {
			f := v * inv
			// To nearest: adding 1.5·2²³ leaves the integer in the low bits.
			q := int32(math.Float32bits(f+12582912)) - 0x4B400000
			if bad || inv == 0 {
				q = 0
			}
			out[4+i] = byte(int8(q))
			rest[i] = v - scale*float32(q)
		}
		if bad {
			clear(rest[:m])
		}
		out, x, rest = out[4+m:], x[m:], rest[m:]
	}
}

func decodeInt8(to []float32, from []uint16) {
	in := bytesOf(from)
	for len(to) > 0 {
		m := min(block, len(to))
		scale := math.Float32frombits(uint32(in[0]) | uint32(in[1])<<8 | uint32(in[2])<<16 | uint32(in[3])<<24)
		for i, q := range in[4 : 4+m] {
			to[i] = scale * float32(int8(q))
		}
		in, to = in[4+m:], to[m:]
	}
}
