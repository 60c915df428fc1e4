package glm

import (
	"math"

	"github.com/open-autoglm/autoglm/gpu/kernel"
)

// Rates are what a machine costs when it trains: seconds a unit of each kind of
// work, for one thread while as many as will train are busy. FitRates measures
// them; they hold for one precision and one number of threads.
type Rates struct {
	Product   float64 `msgpack:"product"`   // a multiply or an add of a product with a weight
	Attention float64 `msgpack:"attention"` // a multiply or an add of attention's products
	Score     float64 `msgpack:"score"`     // a score of attention: softmax, forward and backward
	Element   float64 `msgpack:"element"`   // an element of an activation: norms, gates, rotations, residual sums
	Call      float64 `msgpack:"call"`      // a function call on one row, whatever its width
	Logit     float64 `msgpack:"logit"`     // a logit: softmax and its gradient
	Parameter float64 `msgpack:"parameter"` // a parameter of a step: packed, summed, updated
}

// kinds is the number of Rates' fields.
const kinds = 7

// Step is one optimiser step: micro-batches of Training's size until Sequences are
// done.
type Step struct {
	Training
	Batch int // sequences of the step; 0 is one micro-batch
}

// work is how much of each kind the busiest thread does in a step.
func (a Arch) work(s Step) [kinds]float64 {
	threads := max(1, s.Threads)
	batch := max(s.Batch, s.Sequences)
	own := 0.0 // sequences of the busiest thread
	for left := batch; left > 0; left -= s.Sequences {
		n := min(left, s.Sequences)
		own += float64((n + threads - 1) / threads)
	}
	T, C, L := float64(s.Tokens), float64(a.Dim), float64(a.Layers)
	tokens := own * T
	matrix, head := float64(a.MatrixParams()), float64(a.Vocab)*C
	again := 0.0 // layers whose forward pass runs twice
	if s.Recompute {
		again = L - 1
	}
	scores := 0 // computed for one head of one sequence
	blocks := (s.Tokens + QueryRows - 1) / QueryRows
	for b := range blocks {
		i0, i1 := s.Tokens*b/blocks, s.Tokens*(b+1)/blocks
		scores += i1 * (i1 - i0)
	}
	// Heads narrower than a panel take as long as the panel where they are columns.
	d := float64(a.HeadDim())
	wide := max(d, kernel.PanelWidth)
	perHead := own * float64(a.Heads) * float64(scores)
	packed := 0.0 // of the head's weight, a token: in float32 each block of logits packs it twice
	if !s.BF16 {
		packed = 2 * head / float64(LogitRows(a.Vocab))
	}
	muon := 0.0
	if s.Muon {
		muon = a.orthogonalizing() / float64(threads)
	}
	return [kinds]float64{
		tokens*(6*(matrix+head)+2*matrix*again/L) + muon,
		perHead * 2 * ((3*d+4*wide)*L + (d+wide)*again), // backward: scores again and four more
		perHead * (L + again/3),
		tokens * ((8*C+3*float64(a.FFN))*(L+again/3) + packed),
		tokens * (8 + 9*float64(a.Heads)) * (L + again/3),
		tokens * float64(a.Vocab),
		float64(a.Params()) * float64(2+threads) / float64(3*threads), // a gradient of each thread is read once
	}
}

func (r *Rates) fields() [kinds]*float64 {
	return [kinds]*float64{&r.Product, &r.Attention, &r.Score, &r.Element, &r.Call, &r.Logit, &r.Parameter}
}

// NewtonSteps is the number of Newton-Schulz iterations by which Muon
// orthogonalises a matrix.
const NewtonSteps = 5

// orthogonalizing is the arithmetic of that for all matrices: three products of an
// iteration.
func (a Arch) orthogonalizing() float64 {
	sum := 0.0
	layout, _ := a.Layout()
	for i := range layout {
		if p := &layout[i]; p.Role == Matrix || p.Role == Residual {
			k, n := float64(min(p.Shape[0], p.Shape[1])), float64(max(p.Shape[0], p.Shape[1]))
			sum += NewtonSteps * 2 * k * k * (2*n + k)
		}
	}
	return sum
}

// StepSeconds is how long a step takes on a machine of those rates.
func (a Arch) StepSeconds(s Step, r Rates) float64 {
	total := 0.0
	for i, w := range a.work(s) {
		total += w * *r.fields()[i]
	}
	return total
}

// Probe is a shape by which a machine is timed.
type Probe struct {
	Arch
	Step
}

// Probes are shapes, the first of the size that a short search tries, the others
// small and each heavy in one kind of work, that together tell a machine's Rates.
// Weights and logits are as large as in practice, so that they come from the caches
// that they come from there. A step of all of them is up to a fifth of a second's
// work.
func Probes(threads int, bf16 bool) []Probe {
	var ps []Probe
	for _, p := range [][7]int{ // C, L, H, F, V, T, sequences a thread
		{128, 4, 4, 384, 512, 128, 8},
		{512, 1, 8, 1344, 64, 64, 8},
		{256, 2, 4, 704, 512, 8, 1},
		{32, 2, 2, 32, 64, 512, 2},
		{128, 1, 1, 32, 64, 1024, 1},
		{32, 1, 1, 32, 8192, 64, 8},
		{32, 4, 1, 256, 64, 16, 16},
		{32, 4, 2, 32, 64, 16, 16},
	} {
		ps = append(ps, Probe{
			Arch{Vocab: p[4], Dim: p[0], Layers: p[1], Heads: p[2], KVHeads: p[2], FFN: p[3], Context: p[5], Tied: true}.WithDefaults(),
			Step{Training: Training{Sequences: p[6] * max(1, threads), Tokens: p[5], Threads: threads, BF16: bf16}},
		})
	}
	return ps
}

// typical are the rates of one core with AVX-512 at 3.6 GHz, of float32 and of
// bfloat16 products: what they are to each other is much the same elsewhere.
var typical = [2]Rates{
	{Product: 1.04e-11, Attention: 8.7e-12, Score: 1.5e-9, Element: 2.2e-10, Call: 1.0e-8, Logit: 6.7e-10, Parameter: 9.0e-10},
	{Product: 5.2e-12, Attention: 4.9e-12, Score: 2.5e-9, Element: 3.3e-10, Call: 1.7e-8, Logit: 6.4e-10, Parameter: 1.12e-9},
}

// doubt is how much less a rate's typical value counts than a measured time.
const doubt = 0.2

// FitRates are the rates that explain best, by relative error, how long a step of
// each probe took: non-negative least squares by coordinate descent. What the
// probes leave open, and noise would fill in, is decided by the typical rates, as
// fast as the first probe was.
func FitRates(probes []Probe, seconds []float64) Rates {
	prior := typical[0]
	if probes[0].BF16 {
		prior = typical[1]
	}
	scale := seconds[0] / probes[0].StepSeconds(probes[0].Step, prior)
	x := make([][kinds]float64, len(probes)+kinds) // work over the measured time
	rest := make([]float64, len(x))                // of 1, less what the rates explain
	for i, p := range probes {
		x[i] = p.work(p.Step)
		for k := range kinds {
			x[i][k] /= seconds[i]
		}
		rest[i] = 1
	}
	for k, f := range prior.fields() {
		x[len(probes)+k][k] = doubt / (scale * *f)
		rest[len(probes)+k] = doubt
	}
	var squares, w [kinds]float64
	for _, row := range x {
		for k := range kinds {
			squares[k] += row[k] * row[k]
		}
	}
	for range 5000 {
		moved := 0.0
		for k := range kinds {
			dot := 0.0
			for i := range x {
				dot += x[i][k] * rest[i]
			}
			next := max(0, w[k]+dot/squares[k])
			for i := range x {
				rest[i] -= x[i][k] * (next - w[k])
			}
			moved = max(moved, math.Abs(next-w[k])*math.Sqrt(squares[k]))
			w[k] = next
		}
		if moved < 1e-9 {
			break
		}
	}
	var r Rates
	for k, f := range r.fields() {
		*f = w[k]
	}
	return r
}

// OneRate are the rates of an engine whose costs are not those of Rates: its
// products take all the time that a step of the probe took.
func OneRate(p Probe, seconds float64) Rates {
	r := Rates{Product: 1, Attention: 1}
	scale := seconds / p.StepSeconds(p.Step, r)
	return Rates{Product: scale, Attention: scale}
}
