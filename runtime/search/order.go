package search

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// OrderKind is what a user asks of a search that runs.
type OrderKind string

// Kinds of orders.
const (
	Enqueue OrderKind = "enqueue" // Config: the next trial to start is this one
	Narrow  OrderKind = "narrow"  // Ranges: only values of these are proposed from now on
	Extend  OrderKind = "extend"  // Amount of Unit: the budget grows
	Stop    OrderKind = "stop"    // Trial: it ends at its next step and is not promoted
)

// OrderKinds lists them.
func OrderKinds() []OrderKind { return []OrderKind{Enqueue, Narrow, Extend, Stop} }

// StoppedByUser is why a trial ends that a user stopped.
const StoppedByUser = "stopped by the user"

// EnqueuedByUser is the reason of a trial that a user asked for.
const EnqueuedByUser = "enqueued by the user"

// Order is what a user asks of a search. One that the search has taken stands in the
// journal, with its place among the decisions, so that it is repeated there.
type Order struct {
	Kind   OrderKind         `json:"kind"`
	Config space.Config      `json:"config,omitempty"` // of enqueue: what the user gave; once taken, all dimensions
	Ranges map[string]string `json:"ranges,omitempty"` // of narrow: see space.Dimension.Part
	Amount float64           `json:"amount,omitempty"` // of extend
	Unit   string            `json:"unit,omitempty"`   // … one of BudgetUnits
	Trial  string            `json:"trial,omitempty"`  // of stop
	By     string            `json:"by,omitempty"`     // who gave it, as their certificate names them

	// Once taken:
	Seq      int       `json:"seq,omitempty"`      // numbers the orders from 0
	Before   int       `json:"before,omitempty"`   // the first decision that was made under it
	Heard    []int     `json:"heard,omitempty"`    // the decisions whose results were learnt since the decision or order before it
	Brackets []Bracket `json:"brackets,omitempty"` // of extend: what is searched in addition
}

// BudgetUnits are what extend counts, as a job's budget does.
func BudgetUnits() []string { return []string{"seconds", "trials", "tokens"} }

func (o Order) String() string {
	switch o.Kind {
	case Enqueue:
		return "enqueue " + o.Config.Key()
	case Narrow:
		s := string(o.Kind)
		for _, n := range slices.Sorted(maps.Keys(o.Ranges)) {
			s += fmt.Sprintf(" %s=%s", n, o.Ranges[n])
		}
		return s
	case Extend:
		if o.Unit == "seconds" {
			return "extend +" + time.Duration(o.Amount*float64(time.Second)).Round(time.Millisecond).String()
		}
		return fmt.Sprintf("extend +%s %s", strconv.FormatFloat(o.Amount, 'g', -1, 64), o.Unit)
	}
	return strings.TrimSpace(string(o.Kind) + " " + o.Trial)
}

// ParseOrder reads an order as it is typed:
//
//	enqueue lr=3e-3 dim=64       narrow lr=1e-3..1e-2 "dim=[64, 128]"
//	extend +10m                  extend +20 trials         extend +1e6 tokens
//	stop t003
func ParseOrder(words []string) (Order, error) {
	if len(words) == 0 {
		return Order{}, fmt.Errorf("no order; there are %v", OrderKinds())
	}
	o := Order{Kind: OrderKind(words[0])}
	args := words[1:]
	fail := func(format string, a ...any) (Order, error) {
		return Order{}, fmt.Errorf("%s: %s", o.Kind, fmt.Sprintf(format, a...))
	}
	switch o.Kind {
	case Enqueue, Narrow:
		given := map[string]string{}
		for _, w := range args {
			name, value, ok := strings.Cut(w, "=")
			if name, value = strings.TrimSpace(name), strings.TrimSpace(value); !ok || name == "" || value == "" {
				return fail("%q is not NAME=VALUE", w)
			}
			if _, twice := given[name]; twice {
				return fail("%s stands twice", name)
			}
			given[name] = value
		}
		if len(given) == 0 {
			return fail("nothing is given; write for example %s", map[OrderKind]string{Enqueue: "enqueue lr=3e-3", Narrow: "narrow lr=1e-3..1e-2"}[o.Kind])
		}
		if o.Kind == Narrow {
			o.Ranges = given
			return o, nil
		}
		o.Config = space.Config{}
		for name, text := range given {
			v, err := space.ParseValue(text)
			if err != nil {
				return fail("%s: %v", name, err)
			}
			o.Config[name] = v
		}
		return o, nil
	case Extend:
		text := strings.TrimPrefix(strings.Join(args, " "), "+")
		if d, err := time.ParseDuration(text); err == nil {
			o.Amount, o.Unit = d.Seconds(), "seconds"
		} else if amount, unit, _ := strings.Cut(text, " "); slices.Contains(BudgetUnits(), strings.TrimSpace(unit)) {
			if o.Amount, err = strconv.ParseFloat(strings.ReplaceAll(amount, "_", ""), 64); err != nil {
				return fail("%q is not a number", amount)
			}
			o.Unit = strings.TrimSpace(unit)
		} else {
			return fail("%q: write +10m, +20 trials or +1e6 tokens", text)
		}
		return o, o.checkAmount()
	case Stop:
		if o.Trial = strings.TrimSpace(strings.Join(args, " ")); len(strings.Fields(o.Trial)) != 1 {
			return fail("name one trial, for example: stop t003")
		}
		return o, nil
	}
	return Order{}, fmt.Errorf("%q is no order; there are %v", words[0], OrderKinds())
}

// maxAmount bounds what a budget may grow by.
var maxAmount = map[string]float64{"seconds": 366 * 24 * 3600, "trials": 1e5, "tokens": 1e15}

func (o Order) checkAmount() error {
	most, known := maxAmount[o.Unit]
	switch {
	case !known:
		return fmt.Errorf("extend: unit %q is not one of %v", o.Unit, BudgetUnits())
	case !(o.Amount > 0 && o.Amount <= most):
		return fmt.Errorf("extend: amount %g %s is not above 0 and at most %g", o.Amount, o.Unit, most)
	case o.Unit != "seconds" && o.Amount != math.Trunc(o.Amount):
		return fmt.Errorf("extend: amount %g: %s come whole", o.Amount, o.Unit)
	}
	return nil
}

// Steerable is a Strategy that goes by orders.
type Steerable interface {
	// Space is what is proposed from.
	Space() *space.Space
	// Narrow has only values of the parts proposed; see space.Space.Narrow.
	Narrow(parts []space.Dimension)
	// Adopt takes a configuration in as if it had been asked for.
	Adopt(c space.Config)
	// Fill makes a whole, new configuration of a part of one.
	Fill(given space.Config) (space.Config, error)
}

// extendable is a Scheduler that adds brackets to what is to be searched.
type extendable interface{ extend(brackets []Bracket) }

// adjustable is a Scheduler that goes by orders.
type adjustable interface {
	// starts is how many more trials may begin.
	starts() int
	// waits tells whether a trial may yet be promoted, and drop sees to it that it is not.
	waits(trial string) bool
	drop(trial string)
}

// Order checks an order and takes it: it holds from the next decision on. The answer is
// the order with its place; commit it before that decision.
func (s *Search) Order(o Order) (Order, error) {
	switch {
	case s.obeyed < len(s.orders):
		return o, errors.New("the search still repeats what its journal says; try again")
	case s.finished || s.closed && o.Kind != Stop:
		return o, fmt.Errorf("%s: the search is over: nothing more is decided", o.Kind)
	case s.exhausted && o.Kind != Stop:
		return o, fmt.Errorf("%s: every configuration of the space was tried, so that nothing more is started", o.Kind)
	}
	var err error
	switch o.Kind {
	case Enqueue:
		o.Config, err = s.fill(o.Config)
	case Narrow:
		err = s.narrowable(o.Ranges)
	case Extend:
		if _, ok := s.scheduler.(extendable); !ok {
			err = errors.New("the scheduler of this search takes no further trials")
		}
	case Stop:
		err = s.stoppable(o.Trial)
	default:
		return o, fmt.Errorf("%q is no order; there are %v", o.Kind, OrderKinds())
	}
	if err != nil {
		return o, fmt.Errorf("%s: %w", o.Kind, err)
	}
	o.Seq, o.Before, o.Heard = len(s.orders), len(s.decisions), s.heard
	s.orders = append(s.orders, o)
	s.obey(o)
	return o, nil
}

// catchUp carries out what the journal has ordered before decision k; false when
// results that came before it are still missing.
func (s *Search) catchUp(k int) bool {
	for s.obeyed < len(s.orders) && s.orders[s.obeyed].Before <= k {
		o := s.orders[s.obeyed]
		if !s.learnThese(o.Heard) {
			return false
		}
		s.obey(o)
	}
	return true
}

// obey has an order take effect.
func (s *Search) obey(o Order) {
	s.obeyed++
	s.heard = nil
	switch o.Kind {
	case Enqueue:
		s.queue = append(s.queue, o.Config)
	case Narrow:
		st := s.strategy.(Steerable)
		parts, err := partsOf(st.Space(), o.Ranges)
		if err == nil { // it was checked when it was taken
			st.Narrow(parts)
		}
	case Extend:
		s.scheduler.(extendable).extend(o.Brackets)
	case Stop:
		s.stopped[o.Trial] = true
		if a, ok := s.scheduler.(adjustable); ok {
			a.drop(o.Trial)
		}
	}
}

func (s *Search) steerable() (Steerable, error) {
	st, ok := s.strategy.(Steerable)
	if !ok {
		return nil, errors.New("the strategy of this search takes no orders")
	}
	return st, nil
}

func (s *Search) fill(given space.Config) (space.Config, error) {
	st, err := s.steerable()
	if err != nil {
		return nil, err
	}
	if len(given) == 0 {
		return nil, errors.New("config is empty; give the values to try")
	}
	c, err := st.Fill(given)
	if err != nil {
		return nil, err
	}
	for _, id := range s.order {
		if s.trials[id].Config.Key() == c.Key() {
			return nil, fmt.Errorf("config: %s is this one already", id)
		}
	}
	for _, q := range s.queue {
		if q.Key() == c.Key() {
			return nil, errors.New("config: it is enqueued already")
		}
	}
	if a, ok := s.scheduler.(adjustable); ok && a.starts() <= len(s.queue) {
		return nil, errors.New("no further trial is started; extend the search first")
	}
	return c, nil
}

// partsOf reads the ranges of an order.
func partsOf(sp *space.Space, ranges map[string]string) ([]space.Dimension, error) {
	var out []space.Dimension
	for _, n := range slices.Sorted(maps.Keys(ranges)) {
		d, ok := sp.Dimension(n)
		if !ok {
			return nil, unknown(sp, n)
		}
		p, err := d.Part(ranges[n])
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func unknown(sp *space.Space, name string) error {
	var names []string
	for _, d := range sp.Dimensions() {
		names = append(names, d.Name)
	}
	return fmt.Errorf("%s is no dimension of the space; there are %s", name, strings.Join(names, ", "))
}

func (s *Search) narrowable(ranges map[string]string) error {
	st, err := s.steerable()
	if err != nil {
		return err
	}
	if len(ranges) == 0 {
		return errors.New("ranges are missing; give for example lr=1e-3..1e-2")
	}
	parts, err := partsOf(st.Space(), ranges)
	if err != nil {
		return err
	}
	if _, err := st.Space().Narrow(parts...).Sample(rand.New(rand.NewPCG(1, uint64(len(s.orders))))); err != nil {
		return fmt.Errorf("nothing is left to try: %w", err)
	}
	return nil
}

func (s *Search) stoppable(trial string) error {
	if s.trials[trial] == nil {
		if len(s.order) == 0 {
			return fmt.Errorf("trial %q is unknown; none has begun", trial)
		}
		return fmt.Errorf("trial %q is unknown; there are %s … %s", trial, s.order[0], s.order[len(s.order)-1])
	}
	if s.stopped[trial] {
		return fmt.Errorf("trial %s was stopped before", trial)
	}
	if slices.ContainsFunc(s.Running(), func(d Decision) bool { return d.Trial == trial }) {
		return nil
	}
	if s.closed || !s.waits(trial) {
		return fmt.Errorf("trial %s has ended", trial)
	}
	return nil
}

// waits tells whether a trial may yet be promoted.
func (s *Search) waits(trial string) bool {
	a, ok := s.scheduler.(adjustable)
	return ok && a.waits(trial)
}

// Space implements Steerable.
func (h *history) Space() *space.Space { return h.space }

// Narrow implements Steerable.
func (h *history) Narrow(parts []space.Dimension) { h.space = h.space.Narrow(parts...) }

// Adopt implements Steerable.
func (h *history) Adopt(c space.Config) {
	if o := h.known[c.Key()]; o == nil {
		h.propose(c, "")
	}
}

// Fill implements Steerable. What is missing is as in the first configuration that
// was to be tried, or in the middle, or, where no constraint lets that pass, drawn.
func (h *history) Fill(given space.Config) (space.Config, error) {
	base := space.Config{}
	if len(h.opts.Initial) > 0 {
		base = h.opts.Initial[0].Clone()
	}
	var fixed []space.Dimension
	for _, n := range slices.Sorted(maps.Keys(given)) {
		d, ok := h.space.Dimension(n)
		if !ok {
			return nil, unknown(h.space, n)
		}
		if !d.Has(given[n]) {
			return nil, fmt.Errorf("%s is %s, outside %s", n, given[n], d)
		}
		base[n] = given[n]
		fixed = append(fixed, space.Dimension{Name: n, Kind: space.Fixed, Choices: []space.Value{given[n]}})
	}
	sp := h.space.Narrow(fixed...)
	c := sp.Nearest(base)
	for _, p := range fixed {
		if _, there := c[p.Name]; !there {
			d, _ := sp.Dimension(p.Name)
			return nil, fmt.Errorf("%s exists only %s; give that too", p.Name, d.Condition())
		}
	}
	why := sp.Feasible(c)
	if why == nil {
		return c, nil
	}
	rng := rand.New(rand.NewPCG(h.opts.Seed, uint64(len(h.proposed))+0x51ed2701))
	for range 8 {
		m, err := sp.Mutate(c, 1, nil, rng)
		if err != nil {
			break
		}
		if !slices.ContainsFunc(fixed, func(p space.Dimension) bool { _, there := m[p.Name]; return !there }) {
			return m, nil
		}
	}
	return nil, fmt.Errorf("no configuration with these values is allowed: %w", why)
}
