package main

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"

	"github.com/open-autoglm/autoglm/bench/stat"
)

// point of a curve: from a time on, seconds from the start, a side has these bits per
// byte.
type point struct {
	T    float64 `json:"t"`
	Bits float64 `json:"bits_per_byte"`
}

// result is a run of one side with one seed.
type result struct {
	Side       string  `json:"side"`    // build or optuna
	Setting    string  `json:"setting"` // of the text, the clock, the processors
	Share      float64 `json:"share"`   // of Optuna's clock, the wall clock of this run
	Seed       int     `json:"seed"`
	Trials     int     `json:"trials"`
	Refused    int     `json:"refused,omitempty"`        // configurations outside the space
	Asking     float64 `json:"asking_seconds,omitempty"` // of the optimiser
	Validation []point `json:"validation"`               // best of the trials so far
	HeldOut    []point `json:"held_out"`                 // of the model that could be handed back
	Final      float64 `json:"bits_per_byte"`            // held-out, at the end
}

// at is what a curve has at a time: a side hands back what it took for its best last, so
// that a later point may be worse. +Inf before the first.
func at(curve []point, t float64) float64 {
	bits := math.Inf(1)
	for _, p := range curve {
		if p.T <= t {
			bits = p.Bits
		}
	}
	return bits
}

// reach is the first time at which a curve has so few bits or fewer, +Inf when it never
// has.
func reach(curve []point, bits float64) float64 {
	for _, p := range curve {
		if p.Bits <= bits {
			return p.T
		}
	}
	return math.Inf(1)
}

// number is a float in JSON: null when it is infinite.
type number float64

// MarshalJSON writes what JSON has no number for as null.
func (n number) MarshalJSON() ([]byte, error) {
	if math.IsInf(float64(n), 0) || math.IsNaN(float64(n)) {
		return []byte("null"), nil
	}
	return fmt.Appendf(nil, "%g", float64(n)), nil
}

// comparison of the builds of one share with Optuna, seed by seed.
type comparison struct {
	Share    float64   `json:"share"`
	Reached  []number  `json:"reached"` // when the build had what Optuna ended with, as a share of Optuna's clock; null is never
	Median   number    `json:"median"`
	Interval [2]number `json:"interval"` // of the median: 95 %, by bootstrap
	Half     [2]number `json:"half"`     // bits per byte after half of the clock, build and Optuna, medians
	End      [2]number `json:"end"`      // when each is over
}

// compare the builds of a share with Optuna.
func compare(ours, theirs []result, share, clock float64) comparison {
	c := comparison{Share: share}
	var reached []float64
	var half, end [2][]float64
	for _, t := range theirs {
		i := slices.IndexFunc(ours, func(r result) bool { return r.Share == share && r.Seed == t.Seed })
		if i < 0 {
			continue
		}
		reached = append(reached, reach(ours[i].HeldOut, t.Final)/clock)
		for k, r := range []result{ours[i], t} {
			half[k] = append(half[k], at(r.HeldOut, clock/2*overrun))
			end[k] = append(end[k], r.Final)
		}
	}
	for _, x := range reached {
		c.Reached = append(c.Reached, number(x))
	}
	c.Median = number(stat.Median(reached))
	rng := rand.New(rand.NewPCG(1, 2))
	lo, hi := stat.Interval(func() float64 { return stat.Median(stat.Resample(rng, reached)) })
	c.Interval = [2]number{number(lo), number(hi)}
	for k := range 2 {
		c.Half[k], c.End[k] = number(stat.Median(half[k])), number(stat.Median(end[k]))
	}
	return c
}

// overrun is by how much a build of half the clock may end late and still count as what
// there is at half time.
const overrun = 1.02

// write the comparison as text.
func write(w io.Writer, ours, theirs []result, shares []float64, clock float64) {
	fmt.Fprintf(w, "%-8s %6s %5s %7s %9s %9s %9s\n", "side", "share", "seed", "trials", "at half", "at end", "end, s")
	for _, r := range append(slices.Clone(ours), theirs...) {
		fmt.Fprintf(w, "%-8s %6g %5d %7d %9s %9.4f %9.1f\n", r.Side, r.Share, r.Seed, r.Trials, text(at(r.HeldOut, clock/2*overrun)), r.Final, r.HeldOut[len(r.HeldOut)-1].T)
	}
	fmt.Fprintln(w)
	for _, share := range shares {
		c := compare(ours, theirs, share, clock)
		fmt.Fprintf(w, "build on %g of Optuna's %g s: has what Optuna ends with after %s of them (median of %d seeds, 95 %%: %s to %s)\n",
			share, clock, text(float64(c.Median)), len(c.Reached), text(float64(c.Interval[0])), text(float64(c.Interval[1])))
		fmt.Fprintf(w, "  bits per byte, build and Optuna: at half %s and %s, at the end %s and %s\n",
			text(float64(c.Half[0])), text(float64(c.Half[1])), text(float64(c.End[0])), text(float64(c.End[1])))
	}
}

func text(x float64) string {
	if math.IsInf(x, 1) || math.IsNaN(x) {
		return "never"
	}
	return fmt.Sprintf("%.4g", x)
}
