package search

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// Law is how the score of a model falls with its parameters N, of matrices alone, and the
// text D that it was trained on, in bytes, so that vocabularies compare:
// E + A·(N/N₀)^−α + B·(D/D₀)^−β (Hoffmann et al. 2022), where N₀ and D₀ are in the middle
// of what it was fitted to.
type Law struct {
	E     float64 `json:"e"`
	A     float64 `json:"a"`
	B     float64 `json:"b"`
	Alpha float64 `json:"alpha"`
	Beta  float64 `json:"beta"`
	N0    float64 `json:"n0"`
	D0    float64 `json:"d0"`
	// Warm is the factor of a score that was taken before the rate had fallen.
	Warm float64 `json:"warm"`
}

// Score of a model of so many parameters after so much text, once its rate has fallen.
func (l Law) Score(params, text float64) float64 {
	return l.E + l.A*math.Pow(params/l.N0, -l.Alpha) + l.B*math.Pow(text/l.D0, -l.Beta)
}

// TextFor is after how much text a model of so many parameters has a score; +Inf where it
// never has.
func (l Law) TextFor(params, score float64) float64 {
	rest := score - l.E - l.A*math.Pow(params/l.N0, -l.Alpha)
	if rest <= 0 {
		return math.Inf(1)
	}
	return l.D0 * math.Pow(rest/l.B, -1/l.Beta)
}

// repeats is R* of Muennighoff et al. (2023), equation 5: how many more passes over a text
// are worth as much as new text at most.
const repeats = 15.4

// Effective is how much new text is worth as much as a text of unique bytes that is passed
// over until so much was read: four passes are worth nearly as much as new text.
func Effective(read, unique float64) float64 {
	if read <= unique {
		return read
	}
	return unique * (1 + repeats*(1-math.Exp(-(read/unique-1)/repeats)))
}

// LawPoint is a score of a trial.
type LawPoint struct {
	Trial  string  `json:"trial"`
	Params float64 `json:"params"`
	Text   float64 `json:"text"` // see Effective
	Score  float64 `json:"score"`
	Warm   bool    `json:"warm,omitempty"` // taken before the rate had fallen
}

// valid tells whether a fit can use the point: diverged trials have none.
func (p LawPoint) valid() bool {
	for _, x := range []float64{p.Params, p.Text, p.Score} {
		if !(x > 0) || math.IsInf(x, 1) {
			return false
		}
	}
	return true
}

// Laws are a fit and its uncertainty.
type Laws struct {
	Law    Law
	Draws  []Law   // of the bootstrap
	Noise  float64 // between trials of one size, as a share of the score
	Points []LawPoint
}

// The parameters of a fit are logarithms; warm is that of Law.Warm.
const (
	lawE = iota
	lawA
	lawB
	lawAlpha
	lawBeta
	lawWarm
	lawSize
)

type lawVector [lawSize]float64

// lawPrior is where a fit begins from: what the points leave open stays there. Exponents
// are those of Hoffmann et al. (2022) and of Besiroglu et al. (2024), who fitted the same
// trainings again: 0.34 and 0.35 for α, 0.28 and 0.37 for β. E and B are shares of the
// median score, at small sizes. A has no prior of its own but balance: a budget of
// arithmetic is spent best where α times the share of size is β times that of text, and
// that is at about balanced bytes a parameter.
var lawPrior = struct{ mean, spread lawVector }{
	lawVector{math.Log(0.45), 0, math.Log(0.35), math.Log(0.345), math.Log(0.32), 0.02},
	lawVector{0.7, 0.7, 1, 0.3, 0.3, 0.02},
}

// balanced is between 40 bytes a parameter, about 20 tokens, which Hoffmann et al. found
// for large models, and the seven that small models on small texts did best with (see
// size).
const balanced = 16

const (
	lawDraws      = 200   // of the bootstrap
	lawTau        = 0.25  // share of the points that lie below the law
	leastNoise    = 0.005 // between trials that differ in their seed alone
	firstNoise    = 0.03
	sizelessPrior = 0.05 // that size is worth nothing, before any trial was seen
)

// FitLaw fits a law: the Huber loss of the logarithm of the score, by Gauss and Newton's
// method with damping, from several starts, under a prior on all parameters, so that few
// points, or points of one size, give the prior's answer with the prior's uncertainty. A
// draw of the bootstrap weighs the trials anew (Rubin 1981), moves each one's scores by
// the noise between trials, and draws the prior's means; as often as the trials leave it
// in doubt that size matters, it is taken not to. So draws disagree where the points say
// nothing. The same points give the same law. False without any usable point.
//
// Settings other than the size spoil a score and seldom help it: the law is that of the
// better trials, a quantile.
func FitLaw(points []LawPoint, seed uint64) (Laws, bool) {
	var f lawFit
	for _, p := range points {
		if p.valid() {
			f.points = append(f.points, p)
		}
	}
	if len(f.points) == 0 {
		return Laws{}, false
	}
	slices.SortStableFunc(f.points, func(a, b LawPoint) int {
		return cmp.Or(cmp.Compare(a.Trial, b.Trial), cmp.Compare(a.Text, b.Text), cmp.Compare(a.Score, b.Score))
	})
	f.prepare()
	f.noise = firstNoise
	best := f.fromStarts()
	for range 3 {
		f.noise = f.spread(best)
		best = f.descend(best)
	}
	f.doubt = f.sizeless(best)
	out := Laws{Law: f.law(best), Noise: f.noise, Points: f.points}
	r := rand.New(rand.NewPCG(seed, 0x1a3))
	for range lawDraws {
		out.Draws = append(out.Draws, f.draw(r).redo(best))
	}
	return out, true
}

// lawFit is one minimisation.
type lawFit struct {
	points []LawPoint
	trial  []int // of each point
	trials int
	x, y   []float64 // logarithms of the size and the text, from the middle
	z      []float64 // of the score
	w      []float64 // weight of each point
	n0, d0 float64   // logarithms
	prior  lawVector // mean
	wide   lawVector // and spread
	noise  float64
	flat   bool    // size is taken to be worth nothing
	doubt  float64 // probability that it is, see sizeless
}

func (f *lawFit) prepare() {
	var n, d, z []float64
	id := map[string]int{}
	warm := map[string]float64{}
	for _, p := range f.points {
		n, d, z = append(n, math.Log(p.Params)), append(d, math.Log(p.Text)), append(z, math.Log(p.Score))
		if _, ok := id[p.Trial]; !ok {
			id[p.Trial] = len(id)
		}
		f.trial = append(f.trial, id[p.Trial])
		if p.Warm {
			warm[p.Trial]++
		}
	}
	f.trials, f.z = len(id), z
	f.n0, f.d0 = middle(n), middle(d)
	f.prior, f.wide = lawPrior.mean, lawPrior.spread
	for _, k := range []int{lawE, lawB} {
		f.prior[k] += middle(z)
	}
	for i, p := range f.points {
		f.x, f.y = append(f.x, n[i]-f.n0), append(f.y, d[i]-f.d0)
		w := 1.0
		if p.Warm {
			w = 1 / warm[p.Trial] // all of a trial's curve counts as one more score
		}
		f.w = append(f.w, w)
	}
}

// middle is the median, of an even number the lower of the two.
func middle(x []float64) float64 {
	s := slices.Sorted(slices.Values(x))
	return s[(len(s)-1)/2]
}

// predict is the logarithm of a point's score and its derivatives.
func (f *lawFit) predict(v *lawVector, i int) (float64, lawVector) {
	alpha, beta := math.Exp(v[lawAlpha]), math.Exp(v[lawBeta])
	e, a, b := math.Exp(v[lawE]), math.Exp(v[lawA]-alpha*f.x[i]), math.Exp(v[lawB]-beta*f.y[i])
	sum := e + a + b
	g := lawVector{e / sum, a / sum, b / sum, -a / sum * alpha * f.x[i], -b / sum * beta * f.y[i], 0}
	out := math.Log(sum)
	if f.points[i].Warm {
		out += v[lawWarm]
		g[lawWarm] = 1
	}
	return out, g
}

// pull is what one residual, in units of the noise, counts and how much it pulls: squared
// inside the noise, linearly beyond it.
func pull(r float64) (loss, weight float64) {
	side := 2 * lawTau // the law is below the score
	if r > 0 {
		side = 2 * (1 - lawTau)
	}
	if a := math.Abs(r); a > 1 {
		return side * (a - 0.5), side / a
	}
	return side * r * r / 2, side
}

func (f *lawFit) loss(v *lawVector) float64 {
	sum := 0.0
	for i := range f.points {
		p, _ := f.predict(v, i)
		l, _ := pull((p - f.z[i]) / f.noise)
		sum += f.w[i] * l
	}
	for k := range v {
		r, _ := f.strays(v, k)
		sum += r * r / 2
	}
	return sum
}

// strays is how far the k-th parameter is from its prior, in its spreads, and the
// derivatives. A's is what balance asks for: α·A = β·B·(D/D₀)^−β at D = balanced·N₀.
func (f *lawFit) strays(v *lawVector, k int) (r float64, d lawVector) {
	r = v[k] - f.prior[k]
	d[k] = 1
	if k == lawA && !f.flat {
		beta := math.Exp(v[lawBeta])
		off := math.Log(balanced) + f.n0 - f.d0
		r += v[lawAlpha] - v[lawB] - v[lawBeta] + beta*off
		d[lawAlpha], d[lawB], d[lawBeta] = 1, -1, beta*off-1
	}
	for j := range d {
		d[j] /= f.wide[k]
	}
	return r / f.wide[k], d
}

// descend goes down from a start.
func (f *lawFit) descend(v lawVector) lawVector {
	damping := 1e-3
	now := f.loss(&v)
	for range 60 {
		var h [lawSize]lawVector
		var g lawVector
		for i := range f.points {
			p, d := f.predict(&v, i)
			r := (p - f.z[i]) / f.noise
			_, w := pull(r)
			w *= f.w[i] / f.noise
			for j := range g {
				g[j] += w * r * d[j]
				for k := range j + 1 {
					h[j][k] += w / f.noise * d[j] * d[k]
				}
			}
		}
		for k := range g {
			r, d := f.strays(&v, k)
			for j := range g {
				g[j] += r * d[j]
				for m := range j + 1 {
					h[j][m] += d[j] * d[m]
				}
			}
		}
		for ; damping < 1e9; damping *= 8 {
			next := v
			step := solveDamped(h, g, damping)
			for k := range next {
				next[k] -= step[k]
			}
			if l := f.loss(&next); l < now {
				gained := now - l
				v, now = next, l
				damping = max(damping/8, 1e-9)
				if gained < 1e-9*(1+now) {
					return v
				}
				break
			}
		}
		if damping >= 1e9 {
			return v
		}
	}
	return v
}

// solveDamped is (H + damping·diag H)⁻¹·g by Cholesky; H's lower triangle is given.
func solveDamped(h [lawSize]lawVector, g lawVector, damping float64) lawVector {
	for j := range h {
		h[j][j] *= 1 + damping
		for k := range j + 1 {
			s := h[j][k]
			for m := range k {
				s -= h[j][m] * h[k][m]
			}
			if j == k {
				h[j][j] = math.Sqrt(max(s, 1e-300))
			} else {
				h[j][k] = s / h[k][k]
			}
		}
	}
	for j := range g {
		for m := range j {
			g[j] -= h[j][m] * g[m]
		}
		g[j] /= h[j][j]
	}
	for j := lawSize - 1; j >= 0; j-- {
		for m := j + 1; m < lawSize; m++ {
			g[j] -= h[m][j] * g[m]
		}
		g[j] /= h[j][j]
	}
	return g
}

// fromStarts is the best of descents from the prior's mean and from around it.
func (f *lawFit) fromStarts() lawVector {
	from := f.prior
	from[lawA] = from[lawB]
	best := f.descend(from)
	low := f.loss(&best)
	for _, alpha := range []float64{-1, 1} {
		for _, beta := range []float64{-1, 1} {
			for _, e := range []float64{-1.5, 0, 1} {
				v := from
				v[lawAlpha] += alpha * lawPrior.spread[lawAlpha]
				v[lawBeta] += beta * lawPrior.spread[lawBeta]
				v[lawE] += e * lawPrior.spread[lawE]
				v = f.descend(v)
				if l := f.loss(&v); l < low {
					best, low = v, l
				}
			}
		}
	}
	return best
}

// spread is the noise: the median distance of the scores from the law, as a standard
// deviation.
func (f *lawFit) spread(v lawVector) float64 {
	var r []float64
	for i := range f.points {
		p, _ := f.predict(&v, i)
		if !f.points[i].Warm {
			r = append(r, math.Abs(p-f.z[i]))
		}
	}
	if len(r) == 0 {
		return firstNoise
	}
	return max(1.48*middle(r), leastNoise)
}

// noSize makes the prior sure that size is worth nothing.
func (f *lawFit) noSize() {
	f.flat = true
	f.prior[lawA], f.wide[lawA] = middle(f.z)-8, 0.1
}

// sizeless is the probability that size is worth nothing to these trials: by how much
// worse they are explained so. A trial's scores, which are spoilt alike, count as one.
func (f *lawFit) sizeless(best lawVector) float64 {
	flat := *f
	flat.noSize()
	v := best
	v[lawA] = flat.prior[lawA]
	v = flat.descend(v)
	return 1 / (1 + (1/sizelessPrior-1)*math.Exp((flat.loss(&v)-f.loss(&best))*float64(f.trials)/float64(len(f.points))))
}

// draw is the problem of one draw of the bootstrap.
func (f *lawFit) draw(r *rand.Rand) *lawFit {
	g := *f
	g.z, g.w = slices.Clone(f.z), slices.Clone(f.w)
	weight, move := make([]float64, f.trials), make([]float64, f.trials)
	for i := range weight {
		weight[i], move[i] = r.ExpFloat64(), f.noise*r.NormFloat64()
	}
	for i, t := range f.trial {
		g.z[i] += move[t]
		g.w[i] *= weight[t]
	}
	for k := range g.prior {
		g.prior[k] += f.wide[k] * r.NormFloat64()
	}
	if r.Float64() < f.doubt {
		g.noSize()
	}
	return &g
}

func (f *lawFit) redo(from lawVector) Law { return f.law(f.descend(from)) }

func (f *lawFit) law(v lawVector) Law {
	return Law{
		E: math.Exp(v[lawE]), A: math.Exp(v[lawA]), B: math.Exp(v[lawB]), Alpha: math.Exp(v[lawAlpha]), Beta: math.Exp(v[lawBeta]),
		N0: math.Exp(f.n0), D0: math.Exp(f.d0), Warm: math.Exp(v[lawWarm]),
	}
}
