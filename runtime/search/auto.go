package search

import (
	"math/rand/v2"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// auto is the default: of four proposals the Gaussian process makes three and TPE one.
// The process finds good regions in fewer trials; TPE keeps looking around what is good
// where the process believes that nothing is left to gain. Where there are too many
// results for a process, or several objectives, others take its turns.
type auto struct {
	*history
	gp    *gp
	tpe   *tpe
	mixed *mixed
	nsga  *nsga2
}

func newAuto(h *history) *auto {
	return &auto{history: h, gp: newGP(h), tpe: newTPE(h), mixed: newMixed(h), nsga: newNSGA2(h)}
}

func (a *auto) Ask(n int) ([]space.Config, error) { return a.ask(n, a.propose) }

func (a *auto) propose(rng *rand.Rand) (space.Config, error) {
	told := len(a.results())
	switch {
	case told < a.opts.Startup && len(a.opts.Initial) > 0:
		return a.mixed.propose(rng) // stays near what is believed to be good
	case told < min(a.opts.Startup, 8):
		return a.gp.next(rng)
	case len(a.proposed)%4 == 3:
		return a.tpe.propose(rng)
	}
	return a.gp.propose(rng)
}
