package search

import (
	"errors"
	"fmt"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// Strategy proposes configurations. What it asks for depends on its seed, on what it
// asked for before and on the results told till then, not on their order. It is not
// safe for concurrent use.
type Strategy interface {
	// Ask proposes n configurations, none proposed or told before while another is
	// left; ErrExhausted when there is none. What was asked for and not yet told is
	// pending: strategies keep away from it.
	Ask(n int) ([]space.Config, error)
	// Tell reports a result, partial fidelities included: late, twice, or of a trial
	// that was never asked for. One whose configuration isn't of the space is passed over.
	Tell(r Result)
}

// Result is what a strategy learns of a trial: its score at a resource. A trial that
// is promoted reports again, higher up.
type Result struct {
	Trial    string
	Config   space.Config
	Resource float64
	Score    float64 // lower is better; +Inf when it failed
	// Scores of several objectives, lower is better each; nil for one objective.
	Scores []float64
	// Violations of constraints that are measured: by how much each is missed, at most
	// 0 where it holds. Constraints known beforehand are the space's.
	Violations []float64
}

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
	Past       []Past  // of earlier searches: see transfer
	Trials     int     // that the search will have; 0 is unknown
	Startup    int     // configurations before a model is trusted; 0 means 10
	Population int     // of evolution, de and dehb, 0 means 20; of nsga2, 0 means 50
	Random     float64 // share of proposals that "tpe" and "bohb" draw at random; 0 means a third under "bohb"
}

// makers of the strategies, in the order in which they are listed.
var makers = []struct {
	name string
	make func(*history) Strategy
}{
	{"auto", func(h *history) Strategy { return newAuto(h) }},
	{"random", func(h *history) Strategy { return &random{h} }},
	{"sobol", func(h *history) Strategy { return newSpread(h) }},
	{"evolutionary", func(h *history) Strategy { h.ownFirst = true; return newMixed(h) }},
	{"evolution", func(h *history) Strategy { return &evolution{h} }},
	{"de", func(h *history) Strategy { return newDE(h) }},
	{"dehb", func(h *history) Strategy { return newDEHB(h) }},
	{"nsga2", func(h *history) Strategy { return newNSGA2(h) }},
	{"tpe", func(h *history) Strategy { return newTPE(h) }},
	{"forest", func(h *history) Strategy { return newForest(h) }},
	{"cma-es", func(h *history) Strategy { return newCMAES(h) }},
	{"bohb", func(h *history) Strategy { return newBOHB(h) }},
	{"gp", func(h *history) Strategy { return newGP(h) }},
	{"bayesian", func(h *history) Strategy { return newGP(h) }},
}

// AboutStrategy says in a few words what a strategy does in a search of so many trials
// that knows where to begin; "" of one that is not known.
func AboutStrategy(name string, trials int) string {
	if name == "auto" && trials <= briefTrials {
		return fmt.Sprintf("evolution near the first trial, since at most %d trials are too few for models of the space", briefTrials)
	}
	return map[string]string{
		"auto":         "a Gaussian process makes three of five proposals, a random forest and TPE one each",
		"random":       "every dimension at random",
		"sobol":        "a scrambled Sobol sequence, whose points lie more evenly than random ones",
		"evolutionary": "the architecture evolves, TPE proposes the rest",
		"evolution":    "children of the best, the oldest die",
		"de":           "differential evolution",
		"dehb":         "differential evolution with a population of each rung",
		"nsga2":        "NSGA-II",
		"tpe":          "TPE: where good trials are dense and bad ones are not",
		"forest":       "a random forest foretells scores; expected improvement",
		"cma-es":       "CMA-ES: a normal distribution that moves to where it is good",
		"bohb":         "TPE on the highest rung that has enough results",
		"gp":           "a Gaussian process foretells scores; expected improvement",
		"bayesian":     "a Gaussian process foretells scores; expected improvement",
	}[name]
}

// Names lists the strategies that NewStrategy makes.
func Names() []string {
	var out []string
	for _, m := range makers {
		out = append(out, m.name)
	}
	return out
}

// NewStrategy makes a strategy by name:
//
//	random        every dimension apart
//	sobol         a scrambled Sobol sequence, whose points lie more evenly
//	evolution     regularised evolution over all dimensions
//	de            differential evolution
//	dehb          differential evolution with a population of each rung, for schedulers
//	              with rungs
//	nsga2         NSGA-II, for several objectives
//	tpe           multivariate TPE over all dimensions, for one objective or several
//	forest        a random forest and expected improvement, as SMAC; for one objective or
//	              several
//	cma-es        CMA-ES with margin, for many trials over numbers
//	bohb          TPE on the results of the highest rung that has enough, for schedulers
//	              with rungs
//	gp            Bayesian optimisation with a Gaussian process, for one objective or several
//	bayesian      the same
//	evolutionary  evolution and TPE, see the package comment
//	auto          gp, forest and tpe by turns; evolutionary where Options.Trials are few and
//	              Options.Initial says where to begin
func NewStrategy(name string, sp *space.Space, o Options) (Strategy, error) {
	if o.Startup == 0 {
		o.Startup = 10
	}
	if o.Architecture == nil {
		o.Architecture = func(string) bool { return true }
	}
	for _, m := range makers {
		if m.name == name {
			return m.make(newHistory(sp, o)), nil
		}
	}
	return nil, fmt.Errorf("unknown search strategy %q; there are %s", name, strings.Join(Names(), ", "))
}

// Several tells whether a strategy takes several objectives into account.
func Several(name string) bool {
	switch name {
	case "de", "cma-es":
		return false
	}
	return true
}
