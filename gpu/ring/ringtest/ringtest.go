// Package ringtest holds every backend of gpu/ring to the definition of its
// collectives, one rank at a time: each rank knows what all of them bring and so
// what it has to end with. It works across processes, where all ranks take the
// same Cases.
package ringtest

import (
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"unsafe"

	"github.com/open-autoglm/autoglm/gpu/kernel"
	"github.com/open-autoglm/autoglm/gpu/ring"
)

// Case is one collective.
type Case struct {
	Kind  ring.Kind
	DType ring.DType
	N     int // elements
	Root  int // of a broadcast, taken modulo the world
	Seed  uint64
}

func (c Case) String() string { return fmt.Sprintf("%s of %d %s", c.Kind, c.N, c.DType) }

// Cases are count of them, the same for the same seed: all kinds and types, from
// nothing to most elements.
func Cases(seed uint64, count, most int) []Case {
	rng := rand.New(rand.NewPCG(seed, 1))
	out := make([]Case, count)
	for i := range out {
		c := Case{Kind: ring.Kind(1 + i%5), DType: ring.DType(i / 5 % 3), Root: rng.IntN(1 << 20), Seed: rng.Uint64()}
		switch i % 4 {
		case 0:
			c.N = rng.IntN(300)
		case 1, 2:
			c.N = rng.IntN(min(most, 40_000))
		case 3:
			c.N = rng.IntN(most)
		}
		if c.Kind == ring.Barrier {
			c.N = 0
		}
		out[i] = c
	}
	return out
}

// How a backend differs.
type How struct {
	// Loose allows sums that a library takes in an order and a rounding of its own.
	// They still have to be the same bits on all ranks.
	Loose bool
	// Alloc gives a buffer of so many float32; nil is Go's memory.
	Alloc func(n int) ([]float32, error)
	// Device passes host memory as a GPU's: for libraries that take one for the other.
	Device bool
}

// Run carries out a case as rank c.Rank() and compares what it ends with.
func Run(c *ring.Comm, k Case, how How) error {
	root := k.Root % c.World()
	all := make([]ring.Buffer, c.World())
	for r := range all {
		all[r] = fill(k, r)
	}
	want := define(k, all, root)
	mine := all[c.Rank()]
	if how.Alloc != nil && k.DType == ring.F32 {
		mem, err := how.Alloc(k.N + 7)
		if err != nil {
			return err
		}
		copy(mem[7:], mine.Data) // an offset, and no alignment to a cache line
		mine.Data = mem[7:]
	}
	b := mine
	if how.Device && k.N > 0 {
		b = ring.Buffer{DType: k.DType, N: k.N}
		if k.DType == ring.F32 {
			b.Device = uintptr(unsafe.Pointer(&mine.Data[0]))
		} else {
			b.Device = uintptr(unsafe.Pointer(&mine.Half[0]))
		}
	}
	var err error
	switch k.Kind {
	case ring.AllReduce:
		err = c.AllReduce(b)
	case ring.ReduceScatter:
		err = c.ReduceScatter(b)
	case ring.AllGather:
		err = c.AllGather(b)
	case ring.Broadcast:
		err = c.Broadcast(b, root)
	case ring.Barrier:
		err = c.Barrier()
	}
	if err != nil {
		return err
	}
	lo, hi := 0, k.N
	if k.Kind == ring.ReduceScatter {
		lo, hi = ring.Share(k.N, c.Rank(), c.World())
	}
	loose := how.Loose && k.Kind.Sums()
	for i := lo; i < hi; i++ {
		if bits(mine, i) != bits(want, i) && (!loose || !near(k.DType, value(mine, i), value(want, i), all, i)) {
			return fmt.Errorf("%s over %d ranks: rank %d element %d is %g (%#x), want %g (%#x)", k, c.World(), c.Rank(), i, value(mine, i), bits(mine, i), value(want, i), bits(want, i))
		}
	}
	if loose && k.Kind == ring.AllReduce {
		return same(c, mine)
	}
	return nil
}

// same compares all ranks' results, bit for bit.
func same(c *ring.Comm, b ring.Buffer) error {
	sum := crc32.NewIEEE()
	var word [4]byte
	for i := range b.Len() {
		u := bits(b, i)
		word = [4]byte{byte(u), byte(u >> 8), byte(u >> 16), byte(u >> 24)}
		sum.Write(word[:])
	}
	mine := [2]float32{float32(sum.Sum32() >> 16), float32(sum.Sum32() & 0xffff)}
	theirs := mine
	if err := c.Broadcast(ring.Buffer{Data: theirs[:]}, 0); err != nil {
		return err
	}
	if mine != theirs {
		return fmt.Errorf("rank %d ends with other bits than rank 0", c.Rank())
	}
	return nil
}

func near(dt ring.DType, x, want float32, all []ring.Buffer, i int) bool {
	sum := float64(0)
	for _, b := range all {
		sum += math.Abs(float64(value(b, i)))
	}
	tolerance := map[ring.DType]float64{ring.F32: 1e-6, ring.F16: 1.0 / (1 << 10), ring.BF16: 1.0 / (1 << 7)}[dt]
	return math.Abs(float64(x)-float64(want)) <= sum*tolerance*float64(len(all))
}

func fill(k Case, rank int) ring.Buffer {
	x := k.Seed ^ uint64(rank+1)*0x9e3779b97f4a7c15
	data := make([]float32, k.N)
	for i := range data {
		x = x*6364136223846793005 + 1442695040888963407 // Knuth's MMIX: quick, and even enough
		data[i] = float32(int32(x>>32)) / (1 << 30)
	}
	return narrow(k.DType, data)
}

// narrow rounds to an element type.
func narrow(dt ring.DType, data []float32) ring.Buffer {
	b := ring.Buffer{DType: dt}
	switch dt {
	case ring.F32:
		b.Data = data
	case ring.BF16:
		b.Half = make([]uint16, len(data))
		kernel.EncodeBF16(b.Half, data)
	case ring.F16:
		b.Half = make([]uint16, len(data))
		kernel.EncodeF16(b.Half, data)
	}
	return b
}

func widen(b ring.Buffer) []float32 {
	out := make([]float32, b.Len())
	switch b.DType {
	case ring.F32:
		copy(out, b.Data)
	case ring.BF16:
		kernel.DecodeBF16(out, b.Half)
	case ring.F16:
		kernel.DecodeF16(out, b.Half)
	}
	return out
}

func value(b ring.Buffer, i int) float32 {
	if b.DType == ring.F32 {
		return b.Data[i]
	}
	return widen(ring.Buffer{DType: b.DType, Half: b.Half[i : i+1]})[0]
}

func bits(b ring.Buffer, i int) uint32 {
	if b.DType == ring.F32 {
		return math.Float32bits(b.Data[i])
	}
	return uint32(b.Half[i])
}

// define is the definition of each collective, written out. Sums are taken in rank
// order, in float32, and rounded once.
func define(k Case, all []ring.Buffer, root int) ring.Buffer {
	switch k.Kind {
	case ring.AllReduce, ring.ReduceScatter:
		sum := widen(all[0])
		for _, b := range all[1:] {
			for i, x := range widen(b) {
				sum[i] += x
			}
		}
		return narrow(k.DType, sum)
	case ring.AllGather:
		out := narrow(k.DType, make([]float32, k.N))
		for r, b := range all {
			lo, hi := ring.Share(k.N, r, len(all))
			if k.DType == ring.F32 {
				copy(out.Data[lo:hi], b.Data[lo:hi])
			} else {
				copy(out.Half[lo:hi], b.Half[lo:hi])
			}
		}
		return out
	}
	return clone(all[root])
}

func clone(b ring.Buffer) ring.Buffer {
	b.Data, b.Half = append([]float32{}, b.Data...), append([]uint16{}, b.Half...)
	return b
}
