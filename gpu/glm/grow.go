package glm

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
)

// ErrNotGrowable means that no parameters of the larger shape compute what the
// smaller model computes; the error that wraps it says why.
var ErrNotGrowable = errors.New("cannot be grown")

// Growth turns parameters of one shape into parameters of a larger one that compute
// the same function (Chen et al. 2016, Net2Net; Wang et al. 2024, LEMON): logits
// agree to rounding, over the ids that the smaller vocabulary has.
//
// Every dimension may stay or grow: width, layers, heads, key and value heads, FFN,
// vocabulary, and the size of a head by a whole factor; a tied output projection may
// become one of its own. The context is no parameter: it may be any.
//
//   - Width. The old columns of the residual stream are kept, the new ones are zero:
//     nothing writes there yet. RMSNorm then divides the same sum of squares by C′
//     columns instead of C. With the stream scaled by s = √(C′/C) the mean square is
//     that of before, so that epsilon weighs as it did and the norms' output is s
//     times the old one; their gains are divided by s. So embedding, o_proj and
//     down_proj are multiplied by s, gains divided by it, and the last gain twice
//     where the tied embedding is the output projection too.
//   - Heads and FFN. New units read with random weights and write with zero ones
//     (fan-in random, fan-out zero): their output moves at the first step, what they
//     read by at the second.
//   - Size of a head, D to m·D. Rotary pair i of D turns as pair m·i of m·D does, and
//     goes there. Queries are multiplied by √m, since scores are divided by √(m·D).
//     New pairs have random queries and zero keys.
//   - Key and value heads. Query heads go with the key head that they read. Where the
//     new groups are smaller, key heads are repeated.
//   - Layers. A new layer is a copy of the one below it whose o_proj and down_proj are
//     zero: the stream passes it unchanged, and what it reads by is of use at once.
//   - Vocabulary. Ids keep their meaning, as those of a tokenizer do that is cut from
//     a larger one. New rows are the mean of the old ones and a little noise.
//
// It is read-only after NewGrowth.
type Growth struct {
	src, dst []Param
	size     int // of the larger arena
	parts    []part
}

// part is one parameter of the larger model.
type part struct {
	from       int   // of the smaller layout
	rows, cols []int // places there, or one of the marks
	scale      float64
	copied     bool // of a new layer
}

// Marks of new rows and columns.
const (
	random = -1 - iota
	zero
	mean // of the old rows
)

// NewGrowth plans to grow src into dst. The error wraps ErrNotGrowable.
func NewGrowth(dst, src Arch) (*Growth, error) {
	if err := src.Validate(); err != nil {
		return nil, err
	}
	if err := dst.Validate(); err != nil {
		return nil, err
	}
	not := func(format string, args ...any) (*Growth, error) {
		return nil, fmt.Errorf("%s %w into %s: %s", src, ErrNotGrowable, dst, fmt.Sprintf(format, args...))
	}
	for _, d := range []struct {
		name     string
		dst, src int
	}{{"dim", dst.Dim, src.Dim}, {"layers", dst.Layers, src.Layers}, {"heads", dst.Heads, src.Heads}, {"kv_heads", dst.KVHeads, src.KVHeads}, {"ffn", dst.FFN, src.FFN}, {"vocab", dst.Vocab, src.Vocab}} {
		if d.dst < d.src {
			return not("%s would shrink from %d to %d", d.name, d.src, d.dst)
		}
	}
	switch {
	case dst.HeadDim()%src.HeadDim() != 0:
		return not("heads of %d are no whole multiple of heads of %d: rotary pairs would turn at other speeds", dst.HeadDim(), src.HeadDim())
	case dst.Tied && !src.Tied:
		return not("the output projection has weights of its own, and would be tied to the embedding")
	case dst.RopeTheta != src.RopeTheta:
		return not("rope_theta would change from %g to %g", src.RopeTheta, dst.RopeTheta)
	case dst.NormEps != src.NormEps:
		return not("norm_eps would change from %g to %g", src.NormEps, dst.NormEps)
	}
	queries, keys := headsFrom(dst, src)
	if queries == nil {
		return not("%d key heads of groups of %d do not hold %d groups of %d", dst.KVHeads, dst.Heads/dst.KVHeads, src.KVHeads, src.Heads/src.KVHeads)
	}
	g := &Growth{}
	g.src, _ = src.Layout()
	g.dst, g.size = dst.Layout()

	stream := math.Sqrt(float64(dst.Dim) / float64(src.Dim))
	one := []int{0}
	read := upTo(dst.Dim, src.Dim, random) // columns of what reads the stream
	wide := upTo(dst.Dim, src.Dim, zero)   // of the stream itself
	ids := upTo(dst.Vocab, src.Vocab, mean)
	q := rowsOf(queries, dst.HeadDim(), src.HeadDim(), random)
	k := rowsOf(keys, dst.HeadDim(), src.HeadDim(), zero)
	v := rowsOf(keys, dst.HeadDim(), src.HeadDim(), random)
	o := rowsOf(queries, dst.HeadDim(), src.HeadDim(), zero)
	for i, r := range o {
		if r == random { // of a new head
			o[i] = zero
		}
	}
	add := func(from int, rows, cols []int, scale float64) {
		g.parts = append(g.parts, part{from: from, rows: rows, cols: cols, scale: scale})
	}
	add(0, ids, wide, stream)
	const perLayer = 9
	for l, below := 0, -1; l < dst.Layers; l++ {
		old := l * src.Layers / dst.Layers
		write := wide // rows of o_proj and down_proj
		if old == below {
			write = make([]int, dst.Dim)
			for i := range write {
				write[i] = zero
			}
		}
		at := 1 + perLayer*old
		add(at, one, read, 1/stream)
		add(at+1, q, read, math.Sqrt(float64(dst.HeadDim()/src.HeadDim())))
		add(at+2, k, read, 1)
		add(at+3, v, read, 1)
		add(at+4, write, o, stream)
		add(at+5, one, read, 1/stream)
		units := upTo(dst.FFN, src.FFN, random)
		add(at+6, units, read, 1)
		add(at+7, units, read, 1)
		add(at+8, write, upTo(dst.FFN, src.FFN, zero), stream)
		if old == below {
			for i := range g.parts[len(g.parts)-perLayer:] {
				g.parts[len(g.parts)-perLayer+i].copied = true
			}
		}
		below = old
	}
	last := 1 + perLayer*src.Layers
	if dst.Tied {
		add(last, one, read, 1/stream/stream)
	} else {
		add(last, one, read, 1/stream)
		head := last + 1
		if src.Tied {
			head = 0
		}
		add(head, ids, read, 1)
	}
	return g, nil
}

// upTo keeps the first old of n places; the others are new.
func upTo(n, old, mark int) []int {
	out := make([]int, n)
	for i := range out {
		if out[i] = i; i >= old {
			out[i] = mark
		}
	}
	return out
}

// headsFrom places the query and the key heads: for each of dst the one of src, or
// random for a new one; nil where they find no room.
func headsFrom(dst, src Arch) (queries, keys []int) {
	group, old := dst.Heads/dst.KVHeads, src.Heads/src.KVHeads
	queries, keys = upTo(dst.Heads, 0, random), upTo(dst.KVHeads, 0, random)
	at := 0
	for k := range src.KVHeads {
		for done := 0; done < old; done += group {
			if at == dst.KVHeads {
				return nil, nil
			}
			keys[at] = k
			for j := range min(group, old-done) {
				queries[at*group+j] = k*old + done + j
			}
			at++
		}
	}
	return queries, keys
}

// rowsOf are the places of heads' dimensions: of an old head of size d in one of n
// the old ones, spread so that rotary pairs turn as before; pad marks the others.
func rowsOf(heads []int, n, d, pad int) []int {
	out := make([]int, 0, len(heads)*n)
	by := n / d
	for _, h := range heads {
		for i := range n {
			half, pair := i/(n/2), i%(n/2)
			switch {
			case h < 0:
				out = append(out, random)
			case pair%by != 0:
				out = append(out, pad)
			default:
				out = append(out, h*d+half*(d/2)+pair/by)
			}
		}
	}
	return out
}

// Params grows an arena of parameters. What is new and random is drawn from seed.
func (g *Growth) Params(from []float32, seed uint64) []float32 {
	to := make([]float32, g.size)
	for i := range g.parts {
		p, d, s := &g.parts[i], &g.dst[i], &g.src[g.parts[i].from]
		cols := s.Shape[len(s.Shape)-1]
		old := from[s.Offset : s.Offset+s.Elems]
		w := to[d.Offset : d.Offset+d.Elems]
		std := initGain / math.Sqrt(float64(len(p.cols)))
		noise := func(*rand.Rand) float64 { return p.scale } // gains
		if d.Role != Norm {
			noise = func(r *rand.Rand) float64 { return std * r.NormFloat64() }
		}
		var average []float64
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		for y, row := range p.rows {
			for x, col := range p.cols {
				at := y*len(p.cols) + x
				switch {
				case row == zero || col == zero:
				case row == random || col == random:
					w[at] = float32(noise(r))
				case row == mean:
					if average == nil {
						average = meanRow(old, cols)
					}
					w[at] = float32(p.scale*average[col] + 0.1*noise(r))
				default:
					w[at] = float32(p.scale * float64(old[row*cols+col]))
				}
			}
		}
	}
	return to
}

func meanRow(w []float32, cols int) []float64 {
	m := make([]float64, cols)
	for i, x := range w {
		m[i%cols] += float64(x)
	}
	for i := range m {
		m[i] *= float64(cols) / float64(len(w))
	}
	return m
}

// Moments grows an arena of an optimiser's averages of the gradient (power 1) or of
// its square (power 2): those of a parameter that was multiplied by s are divided by
// s to that power, those of new ones are zero.
func (g *Growth) Moments(from []float32, power int) []float32 {
	to := make([]float32, g.size)
	for i := range g.parts {
		p, d, s := &g.parts[i], &g.dst[i], &g.src[g.parts[i].from]
		if p.copied {
			continue
		}
		cols := s.Shape[len(s.Shape)-1]
		scale := math.Pow(p.scale, float64(-power))
		for y, row := range p.rows {
			for x, col := range p.cols {
				if row >= 0 && col >= 0 {
					to[d.Offset+y*len(p.cols)+x] = float32(scale * float64(from[s.Offset+row*cols+col]))
				}
			}
		}
	}
	return to
}

// Grow grows an arena of src's parameters into one of dst's: see Growth.
func Grow(dst, src Arch, from []float32, seed uint64) ([]float32, error) {
	g, err := NewGrowth(dst, src)
	if err != nil {
		return nil, err
	}
	if _, size := src.Layout(); len(from) != size {
		return nil, fmt.Errorf("grow: %d values are given, an arena of %s has %d", len(from), src, size)
	}
	return g.Params(from, seed), nil
}
