package search

import (
	"fmt"
	"math"
	"slices"
)

// Bracket is one run of successive halving: Trials start at Resources[0]; at
// each rung the best 1/Eta go on to the next resource.
type Bracket struct {
	Trials    int       `json:"trials"`
	Keep      []int     `json:"keep"`      // trials of each rung; Keep[0] is Trials
	Resources []float64 `json:"resources"` // cumulative resource of each rung
}

// Cost is the resource a bracket spends when nothing fails.
func (b Bracket) Cost() float64 {
	c, prev := 0.0, 0.0
	for i, r := range b.Resources {
		c += float64(b.Keep[i]) * (r - prev)
		prev = r
	}
	return c
}

// Brackets gives Hyperband's brackets for a largest resource R, a smallest one r
// and a reduction factor eta (Li et al., JMLR 2018, algorithm 1, with the
// paper's ceiling): s from ⌊log_eta(R/r)⌋ down to 0, n = ⌈(s_max+1)·eta^s/(s+1)⌉
// trials, r_i = R·eta^(i−s), n_i = ⌊n·eta^(−i)⌋.
func Brackets(r, R, eta float64) []Bracket {
	smax := int(math.Floor(math.Log(R/r)/math.Log(eta) + 1e-9))
	var out []Bracket
	for s := smax; s >= 0; s-- {
		n := math.Ceil(float64(smax+1)*math.Pow(eta, float64(s))/float64(s+1) - 1e-9)
		b := Bracket{Trials: int(n)}
		for i := 0; i <= s; i++ {
			b.Keep = append(b.Keep, max(1, int(math.Floor(n*math.Pow(eta, float64(-i))+1e-9))))
			b.Resources = append(b.Resources, R*math.Pow(eta, float64(i-s)))
		}
		out = append(out, b)
	}
	return out
}

// Hyperband schedules brackets one after the other, synchronously at each rung:
// a rung's survivors are chosen when all of its trials have reported.
type Hyperband struct {
	brackets []Bracket
	at       int // bracket
	rung     int
	issued   int     // decisions let out at this rung
	reported []entry // of this rung
	queue    []entry // survivors to promote at this rung; rung 0 starts fresh trials instead
	passed   []entry // those of the rung below that are not among them, best first
	capacity int     // trials this rung will have
}

// NewHyperband runs the brackets in order.
func NewHyperband(brackets []Bracket) *Hyperband {
	h := &Hyperband{brackets: brackets}
	if len(brackets) > 0 {
		h.capacity = brackets[0].Trials
	}
	return h
}

func (h *Hyperband) done() bool { return h.at >= len(h.brackets) }

// next returns a decision without trial and configuration for a start; false
// when reports must come first or all is done.
func (h *Hyperband) next() (Decision, bool) {
	if h.done() || h.issued >= h.capacity {
		return Decision{}, false
	}
	b := h.brackets[h.at]
	d := Decision{Bracket: h.at, Rung: h.rung, Resource: b.Resources[h.rung]}
	if h.rung == 0 {
		d.Action, d.Reason = Start, fmt.Sprintf("trial %d of %d in bracket %d", h.issued+1, h.capacity, h.at)
	} else {
		e := h.queue[h.issued]
		d.Action, d.Trial, d.From = Promote, e.trial, b.Resources[h.rung-1]
		d.Reason = fmt.Sprintf("place %d at rung %d with %.4f", h.issued+1, h.rung-1, e.score)
		h.issued++
	}
	return d, true
}

// started tells that the start decision was given a trial.
func (h *Hyperband) started(Decision) { h.issued++ }

// stopStarting closes a first rung that can't be filled.
func (h *Hyperband) stopStarting() {
	h.capacity = h.issued
	h.brackets = h.brackets[:h.at+1]
	h.advance()
}

func (h *Hyperband) report(d Decision, o Outcome) {
	h.reported = append(h.reported, entryOf(d, o))
	h.advance()
}

// advance closes the rung once everything is in.
func (h *Hyperband) advance() {
	if h.done() || h.issued < h.capacity || len(h.reported) < h.capacity {
		return
	}
	b := h.brackets[h.at]
	order(h.reported)
	h.queue, h.passed = nil, nil
	if h.rung+1 < len(b.Resources) {
		for _, e := range h.reported {
			switch {
			case e.failed():
			case len(h.queue) < b.Keep[h.rung+1]:
				h.queue = append(h.queue, e)
			default:
				h.passed = append(h.passed, e)
			}
		}
	}
	h.reported, h.issued = nil, 0
	if len(h.queue) > 0 {
		h.rung++
		h.capacity = len(h.queue)
		return
	}
	h.at++
	h.rung = 0
	if !h.done() {
		h.capacity = h.brackets[h.at].Trials
	}
}

func (h *Hyperband) extend(brackets []Bracket) {
	over := h.done()
	h.brackets = append(slices.Clip(h.brackets), brackets...)
	if over && !h.done() {
		h.capacity = h.brackets[h.at].Trials
	}
}

// waits tells whether a trial may yet be promoted.
func (h *Hyperband) waits(trial string) bool {
	if h.done() {
		return false
	}
	is := func(e entry) bool { return e.trial == trial && !e.failed() }
	closes := h.rung+1 < len(h.brackets[h.at].Resources) && slices.ContainsFunc(h.reported, is)
	return closes || slices.ContainsFunc(h.queue[min(h.issued, len(h.queue)):], is)
}

// drop takes a trial out of its rung: the next best takes its place.
func (h *Hyperband) drop(trial string) {
	is := func(e entry) bool { return e.trial == trial }
	if i := slices.IndexFunc(h.reported, is); i >= 0 {
		h.reported[i].score = math.Inf(1)
		return
	}
	at := min(h.issued, len(h.queue))
	i := slices.IndexFunc(h.queue[at:], is)
	if i < 0 {
		h.passed = slices.DeleteFunc(h.passed, is)
		return
	}
	h.queue = slices.Delete(h.queue, at+i, at+i+1)
	if len(h.passed) > 0 {
		h.queue, h.passed = append(h.queue, h.passed[0]), h.passed[1:]
		return
	}
	h.capacity--
	h.advance()
}

func (h *Hyperband) starts() int {
	if h.done() {
		return 0
	}
	n := 0
	if h.rung == 0 {
		n = h.capacity - h.issued
	}
	for _, b := range h.brackets[h.at+1:] {
		n += b.Trials
	}
	return n
}
