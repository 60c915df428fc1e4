package search

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// PBT is population-based training (Jaderberg et al. 2017). Members train side by side,
// an interval after the other. A member that is among the worst fifth of its rung when
// its next interval would begin gives its place to a fork: a new trial that goes on from
// the checkpoint, optimiser and all, which one of the best fifth left at that rung, with
// other training parameters (see Explorer).
//
// Members are compared at equal training, and nobody waits for all: an interval begins
// once half of the members have ended the one before, the least trained member first. No
// member is more than two intervals ahead of another, so that what a fork may begin from
// is among the last PBTCheckpoints that each trial has left.
type PBT struct {
	planned int // members to start
	rungs   []pbtRung
	members []*place
	forks   int
	waiting *place // whose next interval next has let out; nil for a start
}

// PBTCheckpoints is how many rungs' checkpoints of a trial a fork may begin from: when a
// trial ends interval r+1, all have ended r−1, and what was decided before may begin from
// there.
const PBTCheckpoints = 3

// pbtRung is a resource and how the trials stood that reached it.
type pbtRung struct {
	resource float64
	entries  []entry // in order, see ahead
}

// place is a member of the population: one trial after the other.
type place struct {
	trial   string
	rung    int // the last that was reported; −1 before
	running bool
	dead    bool // it failed where nothing better was
}

// NewPBT trains so many members through the resources, which rise by equal intervals.
func NewPBT(members int, resources []float64) *PBT {
	p := &PBT{planned: members}
	for _, r := range resources {
		p.rungs = append(p.rungs, pbtRung{resource: r})
	}
	return p
}

// behind counts the members that have yet to reach a rung.
func (p *PBT) behind(rung int) int {
	n := p.planned - len(p.members)
	for _, m := range p.members {
		if !m.dead && m.rung < rung {
			n++
		}
	}
	return n
}

// at is a member's place in its rung.
func (p *PBT) at(m *place) int {
	return slices.IndexFunc(p.rungs[m.rung].entries, func(e entry) bool { return e.trial == m.trial })
}

// ready is the member whose next interval may begin: of the least trained the best, so
// that the worst are compared with the most.
func (p *PBT) ready() *place {
	var least *place
	for _, m := range p.members {
		if m.running || m.dead || m.rung+1 == len(p.rungs) {
			continue
		}
		if least == nil || m.rung < least.rung || m.rung == least.rung && p.at(m) < p.at(least) {
			least = m
		}
	}
	if least == nil || 2*p.behind(least.rung) > p.planned || p.behind(least.rung-1) > 0 {
		return nil
	}
	return least
}

func (p *PBT) next() (Decision, bool) {
	if len(p.members) < p.planned {
		p.waiting = nil
		return Decision{Action: Start, Resource: p.rungs[0].resource, Reason: fmt.Sprintf("member %d of %d", len(p.members)+1, p.planned)}, true
	}
	for {
		m := p.ready()
		if m == nil {
			return Decision{}, false
		}
		g := p.rungs[m.rung]
		at := p.at(m)
		d := Decision{Action: Promote, Trial: m.trial, Rung: m.rung + 1, From: g.resource, Resource: p.rungs[m.rung+1].resource}
		d.Reason = fmt.Sprintf("place %d of %d at rung %d with %.4f", at+1, len(g.entries), m.rung, g.entries[at].score)
		parent, better := p.parent(g, at)
		switch {
		case better:
			d.Action, d.Trial, d.Inherit, d.Replaces = Fork, "", parent.trial, m.trial
			d.Reason = fmt.Sprintf("%s was %s; goes on from %s with %.4f", m.trial, d.Reason, parent.trial, parent.score)
			if g.entries[at].failed() {
				d.Reason = fmt.Sprintf("%s failed at rung %d; goes on from %s with %.4f", m.trial, m.rung, parent.trial, parent.score)
			}
			p.forks++
			p.waiting = m
			return d, true
		case g.entries[at].failed():
			m.dead = true
			continue
		}
		m.running = true
		return d, true
	}
}

// parent is the trial of a rung that the one at that place should go on from, if any: the
// best fifth take turns. While some have yet to come a fifth is rounded down.
func (p *PBT) parent(g pbtRung, at int) (entry, bool) {
	n := len(g.entries)
	fifth := n / 5
	if n == p.planned {
		fifth = (n + 2) / 5
	}
	if g.entries[at].failed() {
		fifth = max(fifth, 1)
	} else if at < n-fifth {
		return entry{}, false
	}
	good := 0
	for good < min(fifth, at) && g.entries[good].beats(g.entries[at]) {
		good++
	}
	if good == 0 {
		return entry{}, false
	}
	return g.entries[p.forks%good], true
}

func (p *PBT) started(d Decision) {
	if p.waiting != nil {
		p.waiting.trial, p.waiting.running = d.Trial, true
		p.waiting = nil
		return
	}
	p.members = append(p.members, &place{trial: d.Trial, rung: -1, running: true})
}

func (p *PBT) stopStarting() { p.planned = len(p.members) }

func (p *PBT) report(d Decision, o Outcome) {
	i := slices.IndexFunc(p.members, func(m *place) bool { return m.trial == d.Trial })
	p.members[i].running, p.members[i].rung = false, d.Rung
	g := &p.rungs[d.Rung]
	g.entries = inserted(g.entries, entryOf(d, o))
}

func (p *PBT) done() bool {
	if len(p.members) < p.planned {
		return false
	}
	for _, m := range p.members {
		if m.running || !m.dead && m.rung+1 < len(p.rungs) {
			return false
		}
	}
	return true
}

// starts is how many more members may begin.
func (p *PBT) starts() int { return p.planned - len(p.members) }

// waits tells whether a trial may yet train another interval.
func (p *PBT) waits(trial string) bool {
	return slices.ContainsFunc(p.members, func(m *place) bool {
		return m.trial == trial && !m.dead && m.rung+1 < len(p.rungs)
	})
}

// drop has a trial's place taken by a fork, as if the trial had failed.
func (p *PBT) drop(trial string) {
	for _, m := range p.members {
		if m.trial == trial && !m.running {
			g := &p.rungs[m.rung]
			at := p.at(m)
			g.entries = inserted(slices.Delete(g.entries, at, at+1), entry{trial: trial, score: math.Inf(1)})
		}
	}
}

// Explorer is a Strategy that changes the training of a trial which goes on from
// another's checkpoint. Without it a fork trains as its parent does.
type Explorer interface {
	// Explore gives a parent's configuration other training parameters; the model stays.
	Explore(parent space.Config) space.Config
}

// resample is the chance that a parameter is drawn anew rather than moved.
const resample = 0.1

// Explore implements Explorer: each number that is not Options.Architecture's is
// multiplied by 0.8 or 1.2, a choice among numbers moves to a neighbour or stays, and
// either may be drawn anew. Words stay: the optimiser's state is taken over.
func (h *history) Explore(parent space.Config) space.Config {
	h.explored++
	rng := rand.New(rand.NewPCG(h.opts.Seed, uint64(h.explored)+0xd1342543de82ef95))
	for range 16 {
		c := parent.Clone()
		for _, d := range h.dims {
			v, ok := c[d.Name]
			switch {
			case !ok || v.IsWord() || h.opts.Architecture(d.Name):
			case rng.Float64() < resample:
				if v := d.Sample(rng); !v.IsWord() {
					c[d.Name] = v
				}
			case d.Kind != space.Categorical:
				c[d.Name] = space.Number(v.Num * (0.8 + 0.4*float64(rng.IntN(2))))
			default:
				i := max(d.Index(v), 0)
				if to := i + []int{-1, 0, 0, 1}[rng.IntN(4)]; to >= 0 && to < len(d.Choices) && !d.Choices[to].IsWord() {
					c[d.Name] = d.Choices[to]
				}
			}
		}
		if c = h.space.Nearest(c); h.space.Check(c) == nil {
			return c
		}
	}
	return parent
}

// explore is the configuration of a fork.
func (s *Search) explore(parent string) space.Config {
	c := s.trials[parent].Config
	if e, ok := s.strategy.(Explorer); ok {
		return e.Explore(c)
	}
	return c
}
