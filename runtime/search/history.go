package search

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// history is what every strategy keeps: what was asked for and what came back.
type history struct {
	space *space.Space
	dims  []space.Dimension // those that are not fixed, in the space's order
	opts  Options
	known map[string]*observation // by the configuration's key
	// Invariant: proposed and foreign are what is known.
	proposed []*observation // by seq
	foreign  []*observation // told and never asked for; by trial unless unsorted
	unsorted bool
	joined   []*observation // cached by all
	told     []*observation // cached by results; nil when it must be made anew
	bred     string         // whose weights what was proposed last can take over, "" where none
	past     *transfer      // nil where nothing earlier is known
	ownFirst bool           // the first proposal is the strategy's: it breeds from one result on
	informed bool           // what was proposed last minds the past already
	revision int            // counts reports of what had reported before
	explored int            // counts calls of Explore
}

// observation is one configuration and what is known of it.
type observation struct {
	config   space.Config
	key      string
	seq      int       // place in the order of asking; -1 when it was never asked for
	point    []float64 // by history.point
	reports  []Result  // by rising resource; none while it is pending
	parent   string    // whose weights it can begin from; "" where none
	standing Result    // the last report as it would be at the most resource that any has; see place. Set by results.
}

// last is the report with the most resource.
func (o *observation) last() Result { return o.reports[len(o.reports)-1] }

// stands is where it stands.
func (o *observation) stands() Result { return o.standing }

// at is the report at a resource.
func (o *observation) at(resource float64) (Result, bool) {
	i, found := slices.BinarySearchFunc(o.reports, resource, func(a Result, resource float64) int {
		return cmp.Compare(a.Resource, resource)
	})
	if !found {
		return Result{}, false
	}
	return o.reports[i], true
}

func newHistory(sp *space.Space, o Options) *history {
	h := &history{space: sp, opts: o, known: map[string]*observation{}}
	for _, d := range sp.Dimensions() {
		if d.Kind != space.Fixed {
			h.dims = append(h.dims, d)
		}
	}
	h.past = newTransfer(h, o.Past)
	return h
}

// Parent implements Lineage.
func (h *history) Parent(c space.Config) string {
	if o := h.known[c.Key()]; o != nil {
		return o.parent
	}
	return ""
}

// population is how many a population has that usually has so many.
func (h *history) population(usual int) int { return cmp.Or(h.opts.Population, usual) }

// point gives a configuration one coordinate for each of h.dims.
func (h *history) point(c space.Config) []float64 {
	p := make([]float64, len(h.dims))
	for i, d := range h.dims {
		p[i] = d.Coordinate(c)
	}
	return p
}

// config is the configuration at a point: coordinates of what is not active there are
// passed over, a missing one is drawn.
func (h *history) config(p []float64, rng *rand.Rand) space.Config {
	c := space.Config{}
	for i, d := range h.dims {
		switch {
		case math.IsNaN(p[i]):
		case d.Numeric():
			c[d.Name] = d.Value(p[i])
		default:
			c[d.Name] = d.Choices[min(max(int(p[i]), 0), len(d.Choices)-1)]
		}
	}
	return h.space.Repair(c, rng)
}

// inside spreads coordinates of a whole dimension evenly over what it is narrowed to.
func (h *history) inside(d space.Dimension, u float64) float64 {
	part := h.space.Part(d)
	var v space.Value
	switch {
	case !h.space.Narrowed():
		return u
	case part.Numeric() && d.Numeric():
		v = part.Value(u)
	default:
		if !d.Numeric() {
			u /= float64(len(d.Choices))
		}
		if part.Numeric() {
			v = part.Value(u)
		} else {
			v = part.Choices[min(int(u*float64(len(part.Choices))), len(part.Choices)-1)]
		}
	}
	return d.Coordinate(space.Config{d.Name: v})
}

func (h *history) seen(c space.Config) bool { return h.known[c.Key()] != nil }

// Tell implements Strategy.
func (h *history) Tell(r Result) {
	key := r.Config.Key()
	o := h.known[key]
	if o == nil {
		if !h.holds(r.Config) {
			return
		}
		o = &observation{config: r.Config, key: key, seq: -1, point: h.point(r.Config)}
		h.known[key] = o
		h.foreign = append(h.foreign, o)
	}
	if len(r.Scores) == 1 {
		r.Score = r.Scores[0]
	}
	if math.IsNaN(r.Score) || slices.ContainsFunc(r.Scores, func(s float64) bool { return math.IsNaN(s) || math.IsInf(s, 1) }) {
		r.Score = math.Inf(1)
	}
	if slices.ContainsFunc(r.Violations, math.IsNaN) {
		r.Violations = []float64{math.Inf(1)}
	}
	h.told = nil
	if len(o.reports) > 0 {
		h.revision++
	}
	h.unsorted = h.unsorted || o.seq < 0
	at, found := slices.BinarySearchFunc(o.reports, r.Resource, func(a Result, resource float64) int {
		return cmp.Compare(a.Resource, resource)
	})
	if !found {
		o.reports = slices.Insert(o.reports, at, r)
	} else if cmp.Or(cmp.Compare(r.Trial, o.reports[at].Trial), cmp.Compare(r.Score, o.reports[at].Score)) < 0 {
		o.reports[at] = r // of two for the same, one that doesn't depend on their order
	}
}

// holds tells whether a configuration is made of the space's values.
func (h *history) holds(c space.Config) bool {
	n := 0
	for _, d := range h.space.Dimensions() {
		v, ok := c[d.Name]
		if ok != h.space.Active(d, c) || ok && !d.Has(v) {
			return false
		}
		if ok {
			n++
		}
	}
	return n == len(c)
}

// all lists what is known, foreign ones first, then in the order of asking.
func (h *history) all() []*observation {
	if h.unsorted {
		slices.SortFunc(h.foreign, func(a, b *observation) int {
			return cmp.Or(cmp.Compare(a.reports[0].Trial, b.reports[0].Trial), cmp.Compare(a.key, b.key))
		})
		h.unsorted, h.joined = false, nil
	}
	if h.joined == nil {
		h.joined = slices.Clone(h.foreign)
	}
	h.joined = append(h.joined, h.proposed[len(h.joined)-len(h.foreign):]...)
	return h.joined
}

// results lists what has reported, in the order of all.
func (h *history) results() []*observation {
	if h.told == nil {
		h.told = make([]*observation, 0, len(h.known))
		for _, o := range h.all() {
			if len(o.reports) > 0 {
				h.told = append(h.told, o)
			}
		}
		h.place(h.told)
	}
	return h.told
}

// pending lists what was asked for and has not reported, in the order of asking.
func (h *history) pending() []*observation {
	var out []*observation
	for _, o := range h.proposed {
		if len(o.reports) == 0 {
			out = append(out, o)
		}
	}
	return out
}

// better orders results: those that hold the constraints first and failures last; then
// more resource (a trial gets there by being better), the lower score, ties by trial.
func better(a, b Result) int {
	if c := cmp.Compare(a.class(), b.class()); c != 0 {
		return c
	}
	if c := cmp.Compare(a.violation(), b.violation()); c != 0 {
		return c
	}
	if c := cmp.Compare(b.Resource, a.Resource); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Score, b.Score); c != 0 {
		return c
	}
	return strings.Compare(a.Trial, b.Trial)
}

// class is 0 for a good result, 1 where a constraint is missed, 2 for a failure.
func (r Result) class() int {
	switch {
	case failed(r):
		return 2
	case r.violation() > 0:
		return 1
	}
	return 0
}

// violation is by how much the constraints are missed in all.
func (r Result) violation() float64 {
	sum := 0.0
	for _, v := range r.Violations {
		sum += max(v, 0)
	}
	return sum
}

// sorted lists the latest results, best first.
func (h *history) sorted() []*observation {
	out := slices.Clone(h.results())
	slices.SortStableFunc(out, func(a, b *observation) int { return better(a.standing, b.standing) })
	return out
}

func failed(r Result) bool { return r.Score > 1e300 }

// ask draws n configurations through propose, the initial ones first, and never
// one that was proposed before.
func (h *history) ask(n int, propose func(rng *rand.Rand) (space.Config, error)) ([]space.Config, error) {
	var out []space.Config
	for range n {
		c, err := h.one(propose)
		if err != nil {
			return out, err
		}
		h.propose(c, h.bred)
		out = append(out, c)
	}
	return out, nil
}

// propose notes a configuration as asked for.
func (h *history) propose(c space.Config, parent string) {
	o := &observation{config: c, key: c.Key(), seq: len(h.proposed), point: h.point(c), parent: parent}
	h.known[o.key] = o
	h.proposed = append(h.proposed, o)
}

func (h *history) one(propose func(rng *rand.Rand) (space.Config, error)) (space.Config, error) {
	rng := rand.New(rand.NewPCG(h.opts.Seed, uint64(len(h.proposed))+0x9e3779b97f4a7c15))
	h.bred = ""
	for _, c := range h.opts.Initial {
		if !h.seen(c) && h.space.Check(c) == nil {
			return c, nil
		}
	}
	if c := h.past.try(); c != nil {
		return c, nil
	}
	for range 8 {
		c, err := h.screened(rng, propose)
		for range 8 { // what is near, where it was seen
			if err != nil {
				return nil, err
			}
			if !h.seen(c) {
				return c, nil
			}
			h.bred = ""
			c, err = h.space.Mutate(c, 1, nil, rng)
		}
	}
	h.bred = ""
	for range 4096 {
		c, err := h.space.Sample(rng)
		if err != nil {
			return nil, err
		}
		if !h.seen(c) {
			return c, nil
		}
	}
	if c := h.left(); c != nil {
		return c, nil
	}
	return nil, ErrExhausted
}

// screened is the proposal of several from which the past expects the most; just one
// where there is no past, or none that is believed in.
func (h *history) screened(rng *rand.Rand, propose func(rng *rand.Rand) (space.Config, error)) (space.Config, error) {
	var best space.Config
	value, bred := math.Inf(1), ""
	n := h.past.screens()
	for i := range n {
		h.bred, h.informed = "", false
		c, err := propose(rng)
		if err != nil || n == 1 || h.informed {
			return c, err
		}
		v := h.past.expects(h.point(c))
		if h.seen(c) {
			v = math.MaxFloat64
		}
		if i == 0 || v < value {
			best, value, bred = c, v, h.bred
		}
	}
	h.bred = bred
	return best, nil
}

// few is the most configurations of a space that are gone through one by one.
const few = 1 << 18

// left finds a configuration that was not tried in a space of few.
func (h *history) left() (found space.Config) {
	dims := h.space.Dimensions()
	visited := 0
	var walk func(i int, c space.Config) bool
	walk = func(i int, c space.Config) bool {
		if i == len(dims) {
			visited++
			if h.space.Feasible(c) == nil && !h.seen(c) {
				found = c.Clone()
			}
			return found == nil && visited < few
		}
		d := dims[i]
		if !h.space.Active(d, c) {
			return walk(i+1, c)
		}
		for _, v := range values(h.space.Part(d)) {
			c[d.Name] = v
			on := walk(i+1, c)
			delete(c, d.Name)
			if !on {
				return false
			}
		}
		return true
	}
	walk(0, space.Config{})
	return found
}

// values of a dimension, in order: of a real one as many as are worth telling apart.
func values(d space.Dimension) []space.Value {
	if !d.Numeric() {
		return d.Choices
	}
	const cells = 1024
	var out []space.Value
	for i := range cells {
		if v := d.Value((float64(i) + 0.5) / cells); len(out) == 0 || out[len(out)-1] != v {
			out = append(out, v)
		}
	}
	return out
}

// random draws every dimension apart.
type random struct{ *history }

func (r *random) Ask(n int) ([]space.Config, error) {
	return r.ask(n, func(rng *rand.Rand) (space.Config, error) { return r.space.Sample(rng) })
}
