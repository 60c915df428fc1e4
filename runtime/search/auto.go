package search

import (
	"math/rand/v2"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// auto is the default: a Gaussian process makes three of five proposals, a random forest
// and TPE one each, all from all results. The process finds good regions in the fewest
// trials where scores are smooth; the forest does where they are not; TPE keeps looking
// around what is good when the others believe that nothing is left to gain there. After
// many results, of which a process sees but a part, forest and TPE take its turns.
type auto struct {
	*history
	gp     *gp
	forest *forest
	tpe    *tpe
	mixed  *mixed
}

func newAuto(h *history) *auto {
	return &auto{history: h, gp: newGP(h), forest: newForest(h), tpe: newTPE(h), mixed: newMixed(h)}
}

func (a *auto) Ask(n int) ([]space.Config, error) { return a.ask(n, a.propose) }

// gpTurns is the number of results up to which the process has its turns.
const gpTurns = 500

func (a *auto) propose(rng *rand.Rand) (space.Config, error) {
	told := len(a.results())
	switch {
	case told < a.opts.Startup && len(a.opts.Initial) > 0:
		return a.mixed.propose(rng) // stays near what is believed to be good
	case told < min(a.opts.Startup, 8):
		return a.gp.next(rng)
	}
	switch turn := len(a.proposed) % 5; {
	case turn == 2, told > gpTurns && turn == 0:
		return a.forest.propose(rng)
	case turn == 4, told > gpTurns:
		return a.tpe.propose(rng)
	}
	return a.gp.propose(rng)
}
