package search

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// ErrExhausted means that the space holds no configuration that was not tried.
var ErrExhausted = errors.New("every configuration of the space was tried")

// Options of a strategy.
type Options struct {
	Seed    uint64
	Initial []space.Config // proposed first, in order: defaults, or what the user believes
	// Architecture tells which dimensions evolution owns under "evolutionary";
	// TPE owns the rest.
	Architecture func(name string) bool
	// Grows tells whether a child's model can take the parent's weights over; nil is
	// never. Evolution then prefers such children, see Lineage.
	Grows      func(child, parent space.Config) bool
	Startup    int // configurations before a model is trusted; 0 means 10
	Population int // of evolution; 0 means 20
}

// Names lists the strategies that NewStrategy makes.
func Names() []string { return []string{"auto", "random", "evolutionary", "evolution", "tpe"} }

// NewStrategy makes a strategy by name: "random"; "evolution" (regularised
// evolution over all dimensions); "tpe" (multivariate TPE over all);
// "evolutionary" and "auto" (see the package comment).
func NewStrategy(name string, sp *space.Space, o Options) (Strategy, error) {
	if o.Startup == 0 {
		o.Startup = 10
	}
	if o.Population == 0 {
		o.Population = 20
	}
	if o.Architecture == nil {
		o.Architecture = func(string) bool { return true }
	}
	h := &history{space: sp, opts: o, seen: map[string]bool{}, latest: map[string]Result{}, parent: map[string]string{}}
	switch name {
	case "random":
		return &random{h}, nil
	case "evolution":
		return &evolution{history: h}, nil
	case "tpe":
		return &tpe{h}, nil
	case "evolutionary", "auto":
		return &mixed{h}, nil
	}
	return nil, fmt.Errorf("unknown search strategy %q; there are %s", name, strings.Join(Names(), ", "))
}

// history is what every strategy keeps: what was asked and what came back.
type history struct {
	space  *space.Space
	opts   Options
	asked  int
	seen   map[string]bool
	order  []string          // trials by first report, oldest first
	latest map[string]Result // the highest report of each
	bred   string            // whose weights what was proposed last can take over, "" where none
	parent map[string]string // … by the key of what was asked
}

func (h *history) Tell(r Result) {
	h.seen[r.Config.Key()] = true
	old, ok := h.latest[r.Trial]
	if !ok {
		h.order = append(h.order, r.Trial)
	}
	if !ok || r.Resource >= old.Resource {
		h.latest[r.Trial] = r
	}
}

// Parent implements Lineage.
func (h *history) Parent(c space.Config) string { return h.parent[c.Key()] }

// better orders results: more resource first (a trial gets there by being
// better), then the lower score, ties by trial.
func better(a, b Result) int {
	return cmp.Or(-cmp.Compare(a.Resource, b.Resource), cmp.Compare(a.Score, b.Score), cmp.Compare(a.Trial, b.Trial))
}

// sorted lists the latest results, best first. Failed trials come last.
func (h *history) sorted() []Result {
	out := make([]Result, 0, len(h.order))
	for _, id := range h.order {
		out = append(out, h.latest[id])
	}
	slices.SortStableFunc(out, func(a, b Result) int {
		fa, fb := failed(a), failed(b)
		if fa != fb {
			if fa {
				return 1
			}
			return -1
		}
		return better(a, b)
	})
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
		h.seen[c.Key()] = true
		if h.bred != "" {
			h.parent[c.Key()] = h.bred
		}
		h.asked++
		out = append(out, c)
	}
	return out, nil
}

func (h *history) one(propose func(rng *rand.Rand) (space.Config, error)) (space.Config, error) {
	rng := rand.New(rand.NewPCG(h.opts.Seed, uint64(h.asked)+0x9e3779b97f4a7c15))
	h.bred = ""
	for _, c := range h.opts.Initial {
		if !h.seen[c.Key()] && h.space.Check(c) == nil {
			return c, nil
		}
	}
	for range 64 {
		h.bred = ""
		c, err := propose(rng)
		if err != nil {
			return nil, err
		}
		if !h.seen[c.Key()] {
			return c, nil
		}
		h.bred = ""
		if c, err = h.space.Mutate(c, 1, nil, rng); err != nil {
			return nil, err
		}
		if !h.seen[c.Key()] {
			return c, nil
		}
	}
	h.bred = ""
	for range 4096 {
		c, err := h.space.Sample(rng)
		if err != nil {
			return nil, err
		}
		if !h.seen[c.Key()] {
			return c, nil
		}
	}
	return nil, ErrExhausted
}

// random draws every dimension apart.
type random struct{ *history }

func (r *random) Ask(n int) ([]space.Config, error) {
	return r.ask(n, func(rng *rand.Rand) (space.Config, error) { return r.space.Sample(rng) })
}

// mixed is evolution for the architecture and TPE for the rest.
type mixed struct{ *history }

func (m *mixed) Ask(n int) ([]space.Config, error) {
	return m.ask(n, func(rng *rand.Rand) (space.Config, error) {
		var c space.Config
		var err error
		switch {
		case len(m.order) < m.opts.Startup && len(m.opts.Initial) > 0 && rng.Float64() < 0.75:
			// Early on, stay near what is believed to be good.
			base := m.opts.Initial[rng.IntN(len(m.opts.Initial))]
			if c, err = m.space.Mutate(base, 1, m.opts.Architecture, rng); err != nil {
				return nil, err
			}
			return m.space.Mutate(c, 1+rng.IntN(2), func(n string) bool { return !m.opts.Architecture(n) }, rng)
		case len(m.order) == 0:
			return m.space.Sample(rng)
		}
		if c, err = breed(m.history, m.opts.Architecture, rng); err != nil {
			return nil, err
		}
		if len(m.order) < m.opts.Startup {
			return c, nil
		}
		return suggest(m.history, c, m.opts.Architecture, rng)
	})
}
