package search

import (
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/open-autoglm/autoglm/gpu/glm"
)

// Unit is what a plan's resources count.
type Unit string

// Units.
const (
	Seconds Unit = "seconds" // of training time on one device
	Tokens  Unit = "tokens"
	GFLOP   Unit = "gflop" // 10⁹ operations by Arch.FLOPsPerToken
)

// Needs is what a plan is made from.
type Needs struct {
	WallClock float64 // seconds of the whole job; 0 when another budget is given
	Trials    int     // or this many trials
	MaxTokens int64   // or this many training tokens
	Spent     float64 // seconds already gone
	Slots     int     // trials that run side by side
	Corpus    int64   // training text, bytes
	HeldOut   int64   // held-out text, bytes
	Scheduler string  // one of Schedulers; "" is auto
	// Pace of a model of so many parameters, by glm.Arch.MatrixParams, that so many
	// devices train together. Asked for a WallClock alone: other budgets give the
	// same plan on every machine.
	Pace func(params int64, devices int) Pace
}

// Pace is how fast a model trains.
type Pace struct {
	Tokens float64 `json:"tokens_per_second"` // of all of its devices
	FLOPs  float64 `json:"flops_per_token"`   // by glm.Arch.FLOPsPerToken
}

// Rate is the arithmetic of a second.
func (p Pace) Rate() float64 { return p.Tokens * p.FLOPs }

// Plan says how a budget is spent. It is made once and kept in the journal.
type Plan struct {
	Unit          Unit      `json:"unit"`
	Slots         int       `json:"slots"`
	Brackets      []Bracket `json:"brackets"`
	Cool          float64   `json:"cool"`           // share of a rung in which the rate falls to zero before the score
	SearchSeconds float64   `json:"search_seconds"` // wall clock, 0 when the unit is another
	FinalSeconds  float64   `json:"final_seconds"`
	Reserve       float64   `json:"reserve_seconds"`      // for evaluation and bundle
	FinalResource float64   `json:"final_resource"`       // in units other than seconds
	FinalDecay    float64   `json:"final_decay"`          // share of the final training in which the rate falls
	MinParams     int64     `json:"min_params"`           // models that the search may try
	MaxParams     int64     `json:"max_params"`           //
	Params        int64     `json:"params"`               // where the search starts: glm.Arch.MatrixParams
	Epochs        float64   `json:"epochs"`               // passes of the final training over the data, for that size
	BaseWidth     int       `json:"base_width,omitempty"` // at which rates are meant, see glm.Width: that of the first trial; 0 is at each trial's own
	Rate          float64   `json:"flops_per_second"`     // of one device at that size
	SearchTrials  int       `json:"trials"`
	Scheduler     string    `json:"scheduler,omitempty"` // one of Schedulers
	// TokenTimes foretell how long a finished model takes for a token; none where nobody asks.
	TokenTimes []glm.TokenTime `json:"token_times,omitempty"`
}

// SchedulerFor is the scheduler for so many objectives: auto has a rule that knows the
// main score alone, and goes without it where there are others.
func (p *Plan) SchedulerFor(objectives int) string {
	if p.Scheduler == "auto" && objectives > 1 {
		return "hyperband"
	}
	return p.Scheduler
}

// eta is Hyperband's reduction factor, and ashaEta that of asynchronous halving, which
// promotes the more on chance the sooner it promotes; both are their papers'.
const eta, ashaEta = 3, 4

// searchShare is the part of the clock that goes to the search: more finds better
// settings and leaves less time to use them.
const searchShare = 0.27

// tokenShare is the same of a budget in tokens.
const tokenShare = 0.4

// minRung is the shortest useful rung, seconds.
const minRung = 0.4

// MakePlan turns a budget into brackets and a final training. It returns an
// error when the budget leaves nothing to train with.
func MakePlan(n Needs) (Plan, error) {
	p := Plan{Slots: max(n.Slots, 1), Cool: 0.25, FinalDecay: 0.6, Scheduler: n.Scheduler}
	switch {
	case n.Trials > 0:
		p.Unit = GFLOP
		// The first rung is a few passes over a small text and a small part of a large one.
		first := min(max(float64(n.Corpus)*1e-4, 20), 200)
		p.Brackets = []Bracket{ladder(n.Trials, first, rungs(n.Trials))}
		p.FinalResource = 40 * first
		p.about(size(p.FinalResource * 1e9))
	case n.MaxTokens > 0:
		p.Unit = Tokens
		count := 12
		b := ladder(count, 1, rungs(count))
		r := tokenShare * float64(n.MaxTokens) / b.Cost()
		p.Brackets = []Bracket{ladder(count, math.Floor(r), rungs(count))}
		p.FinalResource = (1 - tokenShare) * float64(n.MaxTokens)
		// A model of N parameters takes 6·N operations a token; 20 tokens feed one parameter.
		p.about(size(6 * p.FinalResource * p.FinalResource / 4))
	default:
		p.Unit = Seconds
		left := n.WallClock - n.Spent
		// Scoring the held-out part slides a window with a stride of half of it: each of
		// its tokens, about two bytes, passes forward twice, at a third of a training's work.
		p.Reserve = 1 + 0.01*n.WallClock + float64(n.HeldOut)/3/n.Pace(n.sized(left), p.Slots).Tokens
		left -= p.Reserve
		if left < 3 {
			return p, fmt.Errorf("a budget of %.0f s leaves %.1f s for training after reading the data and writing the model; give at least %.0f s",
				n.WallClock, max(left, 0), math.Ceil(n.Spent+p.Reserve+5))
		}
		p.SearchSeconds = searchShare * left
		p.bracketsFor(p.SearchSeconds)
		p.FinalSeconds = left - p.SearchSeconds
		p.about(n.sized(p.FinalSeconds))
		p.Rate = n.Pace(p.Params, 1).Rate()
	}
	p.schedule(n)
	if p.Params > 0 && n.Corpus > 0 {
		tokens := p.FinalResource
		switch p.Unit {
		case Seconds:
			tokens = n.Pace(p.Params, p.Slots).Tokens * p.FinalSeconds
		case GFLOP:
			tokens = p.FinalResource * 1e9 / (6 * float64(p.Params))
		}
		// About two bytes a token.
		p.Epochs = tokens * 2 / float64(n.Corpus)
	}
	for _, b := range p.Brackets {
		p.SearchTrials += b.Trials
	}
	return p, nil
}

// size is the best model for so many operations. Hoffmann et al. (2022) put it at
// N ≈ √(C/120) for C operations; small texts are passed over several times, where
// two to three times that size did best. All sizes are those of the matrices.
func size(flops float64) int64 {
	return int64(min(max(2.5*math.Sqrt(flops/120), 120e3), 2e9))
}

// sized is the best model for a final training of so many seconds: larger ones
// compute faster, so that the size and what it reaches are found together.
func (n Needs) sized(seconds float64) int64 {
	params := size(0)
	for range 20 { // the rate grows more slowly than the size: each round halves the error, or better
		next := size(n.Pace(params, max(n.Slots, 1)).Rate() * max(seconds, 0))
		if next == params {
			break
		}
		params = next
	}
	return params
}

// about sets where the search starts and how far it strays. Rungs are too short to
// tell a model that is quick to learn from one that ends better, so the search
// keeps within a factor of 1.8.
func (p *Plan) about(params int64) {
	p.Params, p.MinParams, p.MaxParams = params, params*3/5, params*9/5
}

// bracketsFor fills a search of so many seconds on all slots.
func (p *Plan) bracketsFor(seconds float64) {
	total := seconds * float64(p.Slots)
	count := 8
	switch {
	case seconds < 6:
		count = 4
	case seconds > 1200:
		count = 36
	case seconds > 300:
		count = 24
	case seconds > 100:
		count = 12
	}
	count = max(p.Slots, (count+p.Slots-1)/p.Slots*p.Slots)
	r := total / ladder(count, 1, rungs(count)).Cost()
	if r < minRung && count > p.Slots {
		count = p.Slots
		r = total / ladder(count, 1, rungs(count)).Cost()
	}
	if seconds > 3600 {
		// Long searches run Hyperband's brackets, each with its own trade of width for depth.
		third := total / 3
		for _, k := range []int{count * 3, count, count / 3} {
			rs := rungs(k)
			p.Brackets = append(p.Brackets, ladder(k, third/ladder(k, 1, rs).Cost(), rs))
		}
		return
	}
	p.Brackets = []Bracket{ladder(count, r, rungs(count))}
}

// rungs of a bracket of n trials: at least two survivors reach the top.
func rungs(n int) int { return rungsBy(eta, n) }

func rungsBy(eta, n int) int {
	r := 1
	for n/eta >= 2 {
		n /= eta
		r++
	}
	return r
}

// ladder is one bracket: n trials at resource first, a third of them at three
// times that, and so on.
func ladder(n int, first float64, levels int) Bracket { return halving(n, first, levels, eta) }

// halving is a ladder on which one of eta goes on.
func halving(n int, first float64, levels, eta int) Bracket {
	b := Bracket{Trials: n}
	keep, r := n, first
	for range levels {
		b.Keep = append(b.Keep, max(1, keep))
		b.Resources = append(b.Resources, r)
		keep /= eta
		r *= float64(eta)
	}
	return b
}

// schedule lays the same budget out for the scheduler that was asked for. A budget in
// trials keeps their number and what the first rung takes, any other what all take
// together.
func (p *Plan) schedule(n Needs) {
	trials, cost, first, top := 0, 0.0, math.Inf(1), 0.0
	for _, b := range p.Brackets {
		trials += b.Trials
		cost += b.Cost()
		first, top = min(first, b.Resources[0]), max(top, b.Resources[len(b.Resources)-1])
	}
	idles := slices.ContainsFunc(p.Brackets, func(b Bracket) bool { return b.Keep[len(b.Keep)-1] < p.Slots })
	if auto := p.Scheduler == "" || p.Scheduler == "auto"; auto && p.Unit == Seconds && idles {
		p.Scheduler = "asha" // the last rungs would leave slots with nothing to do
	}
	switch p.Scheduler {
	case "", "auto":
		return
	case "hyperband":
		p.Brackets = cycle(Brackets(first, top, eta), trials)
	case "sha":
		p.Brackets = []Bracket{ladder(trials, first, rungs(trials))}
	case "asha", "pasha":
		p.Brackets = []Bracket{halving(trials, first, rungsBy(ashaEta, trials), ashaEta)}
	case "pbt":
		p.population(n, trials, cost, top)
		return
	default: // every trial to the top
		if n.Trials == 0 {
			trials = max(1, int(cost/top)/p.Slots) * p.Slots
		}
		p.Brackets = []Bracket{ladder(trials, top, 1)}
	}
	if n.Trials > 0 {
		return
	}
	total := 0.0
	for _, b := range p.Brackets {
		total += b.Cost()
	}
	for _, b := range p.Brackets {
		for i := range b.Resources {
			b.Resources[i] *= cost / total
		}
	}
}

// Members of a population that is not asked for in trials, and its intervals.
const (
	leastMembers = 5 // of which a fifth is one
	mostMembers  = 20
	intervals    = 8
	minInterval  = 1 // seconds, beside which scoring and starting are little
)

// population lays the budget out for pbt: all members train to the top, in equal
// intervals. The cool part of each is trained anew in the next one, without its rate
// falling. A budget in trials is the members, and forks take their places.
func (p *Plan) population(n Needs, trials int, cost, top float64) {
	k := intervals
	if n.Trials == 0 {
		trials = min(max(trials, leastMembers), mostMembers)
		share := func() float64 { return float64(trials) * (float64(k)*(1+p.Cool) - p.Cool) }
		for p.Unit == Seconds && cost/share() < minInterval && (k > 2 || trials > leastMembers) {
			if k > 4 || trials == leastMembers {
				k--
			} else {
				trials--
			}
		}
		top = cost / share() * float64(k)
	}
	b := Bracket{Trials: trials}
	for i := range k {
		b.Keep, b.Resources = append(b.Keep, trials), append(b.Resources, top*float64(i+1)/float64(k))
	}
	p.Brackets = []Bracket{b}
}

// CoolOf is the share of what a decision has trained to in which the rate falls: under pbt
// a share of the interval alone, so that intervals cost the same.
func (p Plan) CoolOf(d Decision) float64 {
	if p.Scheduler == "pbt" {
		return p.Cool * (d.Resource - d.From) / d.Resource
	}
	return p.Cool
}

// cycle repeats brackets until they have so many trials together; the last one is cut
// down.
func cycle(brackets []Bracket, trials int) []Bracket {
	var out []Bracket
	for i := 0; trials > 0; i++ {
		b := brackets[i%len(brackets)]
		if b.Trials > trials {
			b = ladder(trials, b.Resources[0], min(len(b.Resources), rungs(trials)))
		}
		b.Resources = slices.Clone(b.Resources)
		out = append(out, b)
		trials -= b.Trials
	}
	return out
}

// Extend is the order that the budget of a job in such units grows as it asks, with what
// the search does in addition: further trials on the same rungs, so that they compare.
func (p Plan) Extend(o Order) (Order, error) {
	if err := o.checkAmount(); err != nil {
		return o, err
	}
	if unit := map[Unit]string{Seconds: "seconds", Tokens: "tokens", GFLOP: "trials"}[p.Unit]; unit != o.Unit {
		return o, fmt.Errorf("extend: the budget of this job is in %s, and %s are given", unit, o.Unit)
	}
	if p.Scheduler == "pbt" {
		return o, errors.New("extend: the population of scheduler pbt does not grow while it trains; begin another job, with --warm-start of this one")
	}
	trials, cost := 0, 0.0
	for _, b := range p.Brackets {
		trials += b.Trials
		cost += b.Cost()
	}
	more := int(o.Amount)
	switch p.Unit {
	case Seconds:
		more = int(float64(trials) * searchShare * o.Amount * float64(p.Slots) / cost)
	case Tokens:
		more = int(float64(trials) * tokenShare * o.Amount / cost)
	}
	o.Brackets = nil
	larger := 1 + more/(maxRounds*max(trials, 1))
	for i := 0; more > 0; i++ {
		b := p.Brackets[i%len(p.Brackets)]
		switch n := b.Trials * larger; {
		case p.Scheduler == "asha" || p.Scheduler == "pasha" || more < n:
			b = b.of(more)
		case larger > 1:
			b = b.of(n)
		}
		o.Brackets = append(o.Brackets, b)
		more -= b.Trials
	}
	return o, nil
}

// maxRounds is how often an extension repeats a plan's brackets; a longer one makes them
// larger.
const maxRounds = 32

// of is a bracket of so many trials on the same rungs.
func (b Bracket) of(trials int) Bracket {
	out := Bracket{Trials: trials, Resources: b.Resources}
	for _, keep := range b.Keep {
		out.Keep = append(out.Keep, max(1, trials*keep/b.Trials))
	}
	return out
}

// Extended is the plan once it was extended so.
func (p Plan) Extended(o Order) Plan {
	p.Brackets = slices.Clone(p.Brackets)
	for _, b := range o.Brackets {
		p.SearchTrials += b.Trials
		if p.Scheduler == "asha" || p.Scheduler == "pasha" { // which have one
			all := p.Brackets[0]
			all.Trials += b.Trials
			all.Keep = slices.Clone(all.Keep)
			for i := range all.Keep {
				all.Keep[i] += b.Keep[i]
			}
			p.Brackets[0] = all
			continue
		}
		p.Brackets = append(p.Brackets, b)
	}
	switch p.Unit {
	case Seconds:
		p.SearchSeconds += searchShare * o.Amount
		p.FinalSeconds += (1 - searchShare) * o.Amount
	case Tokens:
		p.FinalResource += (1 - tokenShare) * o.Amount
	}
	return p
}
