package search

import (
	"math/rand/v2"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// auto is the default: a Gaussian process makes three of five proposals, a random forest
// and TPE one each, all from all results. The process finds good regions in the fewest
// trials where scores are smooth; the forest does where they are not; TPE keeps looking
// around what is good when the others believe that nothing is left to gain there. After
// many results, of which a process sees but a part, forest and TPE take its turns. Where
// constraints are measured the process has the forest's turns too: it has a model of each
// and can leave a trap, which a forest of what holds them all can't.
//
// A search of few trials that knows where to begin is left to evolution near there:
// before a model knows as much the trials are spent, and children begin from their
// parents' weights. Beside these other proposals would stand at a disadvantage, so that
// nothing inherits in a longer search.
type auto struct {
	*history
	brief  bool
	gp     *gp
	forest *forest
	tpe    *tpe
	mixed  *mixed
}

func newAuto(h *history) *auto {
	brief := h.opts.Trials > 0 && h.opts.Trials <= briefTrials && len(h.opts.Initial) > 0
	if !brief {
		h.opts.Grows = nil
	}
	return &auto{history: h, brief: brief, gp: newGP(h), forest: newForest(h), tpe: newTPE(h), mixed: newMixed(h)}
}

func (a *auto) Ask(n int) ([]space.Config, error) { return a.ask(n, a.propose) }

// gpTurns is the number of results up to which the process has its turns.
const gpTurns = 500

// briefTrials is the most trials of a search that is left to evolution.
const briefTrials = 40

func (a *auto) propose(rng *rand.Rand) (space.Config, error) {
	told := len(a.results())
	switch {
	case a.brief, told < a.opts.Startup && len(a.opts.Initial) > 0:
		return a.mixed.propose(rng) // stays near what is believed to be good
	case told < min(a.opts.Startup, 8):
		return a.gp.next(rng)
	}
	limited := told > 0 && len(a.results()[told-1].standing.Violations) > 0
	switch turn := len(a.proposed) % 5; {
	case limited && told <= gpTurns && turn != 4:
		return a.gp.propose(rng)
	case turn == 2, told > gpTurns && turn == 0:
		return a.forest.propose(rng)
	case turn == 4, told > gpTurns:
		return a.tpe.propose(rng)
	}
	return a.gp.propose(rng)
}
