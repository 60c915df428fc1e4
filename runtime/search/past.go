package search

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// Past is a trial of an earlier search, from which a new one starts warm.
type Past struct {
	Source string       `json:"source"` // which search: trials of one are compared
	Trial  string       `json:"trial,omitempty"`
	Config space.Config `json:"config"`
	Rung   int          `json:"rung,omitempty"` // those of a higher one stand before those of a lower
	Score  float64      `json:"score"`          // lower is better
}

// MaxPast is the most trials of earlier searches that a new one takes in.
const MaxPast = 2000

// Used says what of earlier trials a search can use.
type Used struct {
	Given, Used int
	Foreign     int // had dimensions that this space lacks
	Filled      int // lacked some of this space, which were filled in
	Moved       int // had numbers outside their range, which were moved inside
	Dropped     int // had words that are no choices here, or no score
}

func (u Used) String() string {
	s := fmt.Sprintf("%d of %d earlier trials are used", u.Used, u.Given)
	for _, part := range []struct {
		n    int
		what string
	}{
		{u.Foreign, "with dimensions left out that this space lacks"},
		{u.Filled, "with missing dimensions filled in"},
		{u.Moved, "with numbers moved into their ranges"},
		{u.Dropped, "not, for words that are no choices here or for want of a score"},
	} {
		if part.n > 0 {
			s += fmt.Sprintf("; %d %s", part.n, part.what)
		}
	}
	return s
}

// FitPast makes earlier trials configurations of a space: what they lack is as in base,
// or in the middle. Their order stays.
func FitPast(sp *space.Space, base space.Config, past []Past) ([]Past, Used) {
	u := Used{Given: len(past)}
	var out []Past
	for _, p := range past {
		c := base.Clone()
		known, moved, sound := 0, false, !math.IsNaN(p.Score) && !math.IsInf(p.Score, 0)
		for n, v := range p.Config {
			d, ok := sp.Dimension(n)
			if !ok {
				continue
			}
			known++
			c[n] = v
			if !d.Has(v) {
				moved = true
				number := !v.IsWord() && (d.Numeric() || !slices.ContainsFunc(d.Choices, space.Value.IsWord))
				sound = sound && number
			}
		}
		if !sound || known == 0 {
			u.Dropped++
			continue
		}
		fitted := sp.Nearest(c)
		for _, count := range []struct {
			on bool
			n  *int
		}{{known < len(p.Config), &u.Foreign}, {known < len(fitted), &u.Filled}, {moved, &u.Moved}} {
			if count.on {
				*count.n++
			}
		}
		u.Used++
		p.Config = fitted
		out = append(out, p)
	}
	return out, u
}

// transfer is what earlier searches know, and how far the new results bear it out.
//
// Each earlier search is a random forest over the ranks of its trials, so that searches
// of other scores and scales compare. Its weight is the rank correlation between what it
// expects of the new search's trials and what came of them, shrunk towards a half as
// long as there are few: a search that misleads, or tells of something else, soon weighs
// nothing, and then all is as it is without.
type transfer struct {
	h       *history
	sources []*earlier
	tries   []space.Config // the best of them, the very best first
	tried   int
	begun   map[string]bool // by key, those of tries that were proposed
	weight  float64         // the largest
	at      int             // results that the weights were made from
	version int             // history.revision then
}

// earlier is one earlier search.
type earlier struct {
	ranked []Past // best first
	model  *trees // of the rank's normal quantile; nil where there are too few
	weight float64
}

const (
	pastTries   = 5   // configurations of earlier searches that are tried first, at most
	pastShare   = 4   // … and at most one of so many trials
	pastLeast   = 5   // trials that a model needs
	pastBelief  = 0.5 // correlation that is believed in before there are results
	pastPrior   = 4   // … as much as so many results would show it
	pastDoubt   = 0.1 // weights below count for nothing
	pastScreens = 8   // proposals of which the past picks one, where it is believed in wholly
)

// newTransfer is nil where there is nothing to transfer.
func newTransfer(h *history, past []Past) *transfer {
	base := space.Config{}
	if len(h.opts.Initial) > 0 {
		base = h.opts.Initial[0]
	}
	past, _ = FitPast(h.space, base, past)
	if len(past) == 0 {
		return nil
	}
	t := &transfer{h: h, at: -1, begun: map[string]bool{}}
	bySource := map[string]*earlier{}
	for _, p := range past {
		e := bySource[p.Source]
		if e == nil {
			e = &earlier{}
			bySource[p.Source] = e
			t.sources = append(t.sources, e)
		}
		e.ranked = append(e.ranked, p)
	}
	for i, e := range t.sources {
		slices.SortStableFunc(e.ranked, func(a, b Past) int {
			return cmp.Or(cmp.Compare(b.Rung, a.Rung), cmp.Compare(a.Score, b.Score), cmp.Compare(a.Trial, b.Trial))
		})
		if n := len(e.ranked); n >= pastLeast {
			x, y := make([][]float64, n), make([]float64, n)
			for k, p := range e.ranked {
				x[k], y[k] = h.point(p.Config), distuv.UnitNormal.Quantile((float64(k)+0.5)/float64(n))
			}
			e.model = grow(h.dims, x, y, h.opts.Seed+uint64(i))
		}
	}
	t.pick()
	return t
}

// pick chooses what to try first: of each source in turn the best that is allowed and
// not much like one that is chosen already.
func (t *transfer) pick() {
	most := pastTries
	if n := t.h.opts.Trials; n > 0 {
		most = min(most, max(1, n/pastShare))
	}
	var points [][]float64
	next := make([]int, len(t.sources))
	for idle := 0; len(t.tries) < most && idle < len(t.sources); {
		for i, e := range t.sources {
			idle++
			for next[i] < len(e.ranked) && len(t.tries) < most {
				c := e.ranked[next[i]].Config
				next[i]++
				p := t.h.point(c)
				if t.h.space.Check(c) == nil && !slices.ContainsFunc(points, func(q []float64) bool { return t.h.alike(p, q) }) {
					t.tries, points = append(t.tries, c), append(points, p)
					idle = 0
					break
				}
			}
		}
	}
}

// alike tells whether two points are close: by a twentieth of the range in the mean.
func (h *history) alike(p, q []float64) bool {
	sum := 0.0
	for i, d := range h.dims {
		switch {
		case math.IsNaN(p[i]) && math.IsNaN(q[i]):
		case math.IsNaN(p[i]) || math.IsNaN(q[i]) || !d.Numeric() && p[i] != q[i]:
			sum++
		case d.Numeric():
			sum += math.Abs(p[i] - q[i])
		}
	}
	return sum < 0.05*float64(len(h.dims))
}

// learn weighs the sources by the results so far.
func (t *transfer) learn() {
	results := t.h.results()
	if t.at == len(results) && t.version == t.h.revision {
		return
	}
	t.at, t.version, t.weight = len(results), t.h.revision, 0
	sorted := slices.DeleteFunc(t.h.sorted(), func(o *observation) bool { return failed(o.standing) })
	several := objectives(sorted) > 1
	for _, e := range t.sources {
		e.weight = 0
		if e.model == nil || several {
			continue
		}
		expected := make([]float64, len(sorted))
		for i, o := range sorted {
			expected[i], _ = e.model.predict(o.point)
		}
		n := float64(len(sorted))
		w := (n*rankCorrelation(expected) + pastPrior*pastBelief) / (n + pastPrior)
		if w >= pastDoubt {
			e.weight = min(w, 1)
		}
		t.weight = max(t.weight, e.weight)
	}
}

// rankCorrelation is Spearman's between numbers and their order.
func rankCorrelation(x []float64) float64 {
	n := len(x)
	if n < 2 {
		return 0
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(x[a], x[b]) })
	rank := make([]float64, n)
	for i := 0; i < n; {
		end := i
		for end < n && x[order[end]] == x[order[i]] {
			end++
		}
		for k := i; k < end; k++ {
			rank[order[k]] = float64(i+end-1) / 2 // ties share their places
		}
		i = end
	}
	mean := float64(n-1) / 2
	var xy, xx, yy float64
	for i, r := range rank {
		xy += (r - mean) * (float64(i) - mean)
		xx += (r - mean) * (r - mean)
		yy += (float64(i) - mean) * (float64(i) - mean)
	}
	if xx == 0 {
		return 0
	}
	return xy / math.Sqrt(xx*yy)
}

// expects is what the past expects of a point, in deviations from the mean of all:
// the weighted mean of the sources, as far as the best of them is believed in.
func (t *transfer) expects(point []float64) float64 {
	if t == nil || t.weight == 0 {
		return 0
	}
	var sum, weights float64
	for _, e := range t.sources {
		if e.weight > 0 {
			m, _ := e.model.predict(point)
			sum += e.weight * m
			weights += e.weight
		}
	}
	return t.weight * sum / weights
}

// try is a configuration of the past that is to be tried now, nil where none is: every
// other proposal, for as long as the past is believed in.
func (t *transfer) try() space.Config {
	if t == nil || t.tried == len(t.tries) {
		return nil
	}
	if n := len(t.h.proposed); n == 0 && t.h.ownFirst || n%2 == 1 && t.tried > 0 {
		return nil
	}
	t.learn()
	believed := t.weight > 0 || !slices.ContainsFunc(t.sources, func(e *earlier) bool { return e.model != nil })
	for believed && t.tried < len(t.tries) {
		c := t.tries[t.tried]
		t.tried++
		if !t.h.seen(c) && t.h.space.Check(c) == nil {
			t.begun[c.Key()] = true
			return c
		}
	}
	return nil
}

// screens is how many proposals are made, of which the past picks one.
func (t *transfer) screens() int {
	if t == nil {
		return 1
	}
	if t.learn(); t.at < pastPrior+2 {
		return 1 // proposals that the past has no part in show what it is worth
	}
	return 1 + int(math.Round((pastScreens-1)*t.weight))
}

// FromPast is the reason of a trial that an earlier search found good.
const FromPast = "among the best of an earlier search"

// Reason implements Reasoned.
func (h *history) Reason(c space.Config) string {
	if h.past != nil && h.past.begun[c.Key()] {
		return FromPast
	}
	return ""
}
