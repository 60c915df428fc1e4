package search

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// tpe is the tree-structured Parzen estimator (Bergstra et al. 2011) with the rules of
// Optuna 5: one mixture l over the best min(⌈0.1n⌉, 25) of n results and one, g, over the
// rest and over what is pending; of 24 candidates drawn from l the one with the largest
// log l − log g is proposed. Dimensions that exist together are drawn together.
//
// With rungs it is the model of BOHB (Falkner et al. 2018): of the largest resource that
// has at least 2(d+1) results, beside a share of random proposals.
type tpe struct {
	*history
	*design
	model *parzen
	apart *parzen // of several objectives: every dimension apart
	rungs bool
}

func newTPE(h *history) *tpe {
	t := &tpe{history: h, design: newDesign(h), model: newParzen(h, everything), apart: newParzen(h, everything)}
	t.apart.divide()
	return t
}

func everything(string) bool { return true }

func newBOHB(h *history) *tpe {
	t := newTPE(h)
	t.rungs = true
	if t.opts.Random == 0 {
		t.opts.Random = 1.0 / 3
	}
	return t
}

func (t *tpe) Ask(n int) ([]space.Config, error) { return t.ask(n, t.propose) }

func (t *tpe) propose(rng *rand.Rand) (space.Config, error) {
	if len(t.results()) < t.opts.Startup {
		return t.design.begin(rng)
	}
	if t.opts.Random > 0 && rng.Float64() < t.opts.Random {
		return t.space.Sample(rng)
	}
	results, report := t.results(), (*observation).stands
	if t.rungs {
		rung, ok := t.rung()
		if !ok {
			return t.design.next(rng)
		}
		report = func(o *observation) Result { r, _ := o.at(rung); return r }
		results = slices.DeleteFunc(slices.Clone(results), func(o *observation) bool { _, ok := o.at(rung); return !ok })
	}
	if objectives(results) > 1 {
		return t.apart.suggest(nil, results, bestFronts(results, report), rng)
	}
	return t.model.suggest(nil, results, bestTenth(results, report), rng)
}

// rung is the largest resource that has results enough for a model.
func (h *history) rung() (largest float64, ok bool) {
	count := map[float64]int{}
	for _, o := range h.results() {
		for _, r := range o.reports {
			count[r.Resource]++
		}
	}
	for resource, n := range count {
		if n >= 2*(len(h.dims)+1) && (!ok || resource > largest) {
			largest, ok = resource, true
		}
	}
	return largest, ok
}

// bestTenth tells for each result whether l is built on it: the best tenth, rounded up and at
// most 25, of those that didn't fail.
func bestTenth(results []*observation, report func(*observation) Result) []bool {
	const most = 25
	type place struct {
		Result
		at int
	}
	top := make([]place, 0, most+1) // best first
	n := 0
	for i, o := range results {
		r := report(o)
		if failed(r) {
			continue
		}
		n++
		if len(top) == most {
			// Most results are worse than the worst of these, and quickly seen to be.
			if w := &top[most-1].Result; r.Score > w.Score && r.Resource <= w.Resource && w.class() == 0 {
				continue
			}
		}
		at := len(top)
		for at > 0 && better(r, top[at-1].Result) < 0 {
			at--
		}
		if at < most {
			top = slices.Insert(top, at, place{r, i})
			top = top[:min(len(top), most)]
		}
	}
	top = top[:min((n+9)/10, len(top))]
	good := make([]bool, len(results))
	for _, p := range top {
		good[p.at] = true
	}
	return good
}

// bestFronts is bestTenth of several objectives, without a most: whole fronts, and of the
// last one the points that add most to the hypervolume.
func bestFronts(results []*observation, report func(*observation) Result) []bool {
	var reports []Result
	var at []int
	for i, o := range results {
		if r := report(o); !failed(r) {
			reports, at = append(reports, r), append(at, i)
		}
	}
	good := make([]bool, len(results))
	for _, r := range choose(reports, (len(reports)+9)/10, spreadOut) {
		good[at[r.at]] = true
	}
	return good
}

// parzen is the model over the dimensions that it was made for.
type parzen struct {
	h      *history
	free   func(string) bool
	groups []*group
	held   []int          // the other dimensions, in history.dims
	rows   []*observation // Invariant: what the groups hold
	role   []role         // of rows
	l, g   []mixture      // by group
	built  []bool
	even   bool // what is good counts the same, however old
}

type role uint8

const (
	unused role = iota
	below       // in l
	above       // in g
)

func newParzen(h *history, free func(string) bool) *parzen {
	p := &parzen{h: h, free: free, groups: groups(h.space, h.dims, free)}
	for i, d := range h.dims {
		if !free(d.Name) {
			p.held = append(p.held, i)
		}
	}
	p.l, p.g, p.built = make([]mixture, len(p.groups)), make([]mixture, len(p.groups)), make([]bool, len(p.groups))
	return p
}

// divide makes every dimension a group of its own, as Optuna does for several objectives.
func (p *parzen) divide() {
	var out []*group
	for _, g := range p.groups {
		for _, d := range g.dims {
			one := &group{dims: []parzenDim{d}, order: make([][]placed, 1), conditional: g.conditional}
			if d.continuous() {
				one.real = 1
			}
			out = append(out, one)
		}
	}
	slices.SortFunc(out, func(a, b *group) int { return cmp.Compare(a.dims[0].at, b.dims[0].at) })
	p.groups, p.even = out, true
	p.l, p.g, p.built = make([]mixture, len(out)), make([]mixture, len(out)), make([]bool, len(out))
}

// learn takes in what became known and divides it; what is pending counts as bad, so
// that proposals side by side keep apart.
func (p *parzen) learn(results []*observation, good []bool) {
	all := p.h.all()
	if len(p.rows) > len(all) || !slices.Equal(p.rows, all[:len(p.rows)]) {
		p.rows = p.rows[:0]
		for _, g := range p.groups {
			g.clear()
		}
	}
	for row := len(p.rows); row < len(all); row++ {
		for _, g := range p.groups {
			g.add(row, all[row].point)
		}
	}
	p.rows = all
	p.role = resized(p.role, len(all))
	next := 0
	for row, o := range all {
		switch {
		case next < len(results) && results[next] == o:
			p.role[row] = above
			if good[next] {
				p.role[row] = below
			}
			next++
		case len(o.reports) == 0:
			p.role[row] = above
		default:
			p.role[row] = unused
		}
	}
	clear(p.built)
}

const candidates = 24

// candidates of a group by falling acquisition.
func (p *parzen) candidates(group int, rng *rand.Rand) [][]float64 {
	l, g := &p.l[group], &p.g[group]
	if !p.built[group] {
		l.build(p.groups[group], func(row int) bool { return p.role[row] == below }, !p.even)
		g.build(p.groups[group], func(row int) bool { return p.role[row] == above }, true)
		p.built[group] = true
	}
	type candidate struct {
		x   []float64
		acq float64
	}
	drawn := make([]candidate, candidates)
	for i := range drawn {
		x := make([]float64, len(p.groups[group].dims))
		l.sample(x, rng)
		p.narrow(p.groups[group], x, rng)
		drawn[i] = candidate{x, l.logDensity(x) - g.logDensity(x)}
	}
	slices.SortStableFunc(drawn, func(a, b candidate) int { return -cmp.Compare(a.acq, b.acq) })
	out := make([][]float64, candidates)
	for i, c := range drawn {
		out[i] = c.x
	}
	return out
}

// narrow draws anew what lies outside of the parts that the dimensions are narrowed to.
func (p *parzen) narrow(g *group, x []float64, rng *rand.Rand) {
	if !p.h.space.Narrowed() {
		return
	}
	for j, d := range g.dims {
		part := p.h.space.Part(d.Dimension)
		v := d.Value(x[j])
		if !d.Numeric() {
			v = d.Choices[int(x[j])]
		}
		if !part.Has(v) {
			x[j] = d.Coordinate(space.Config{d.Name: part.Sample(rng)})
		}
	}
}

// suggest draws the model's dimensions and takes the others from base. Of the candidates
// of the last group the first is taken that holds the constraints and is new; one that is
// not new where there is none.
func (p *parzen) suggest(base space.Config, results []*observation, good []bool, rng *rand.Rand) (space.Config, error) {
	if base != nil && len(p.groups) == 0 {
		return base, nil
	}
	p.learn(results, good)
	h := p.h
	start := make([]float64, len(h.dims))
	for i := range start {
		start[i] = math.NaN()
	}
	if base != nil {
		held := h.point(base)
		for _, i := range p.held {
			start[i] = held[i]
		}
	}
	var known space.Config
	for range 4 {
		x := slices.Clone(start)
		var tail *group
		var choice [][]float64
		for i, g := range p.groups {
			if g.conditional && !h.space.Active(g.dims[0].Dimension, h.config(x, rng)) {
				continue
			}
			tail, choice = g, p.candidates(i, rng)
			g.put(x, choice[0])
		}
		for _, values := range choice {
			tail.put(x, values)
			c := h.config(x, rng)
			switch {
			case h.space.Feasible(c) != nil:
			case !h.seen(c):
				return c, nil
			case known == nil:
				known = c
			}
		}
	}
	switch {
	case known != nil:
		return known, nil
	case base != nil:
		return h.space.Mutate(h.space.Repair(base, rng), 1, p.free, rng)
	}
	return h.space.Sample(rng)
}
