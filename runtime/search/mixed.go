package search

import (
	"math/rand/v2"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// mixed is evolution for the architecture and TPE for the rest.
type mixed struct {
	*history
	model *parzen
}

func newMixed(h *history) *mixed {
	return &mixed{h, newParzen(h, func(n string) bool { return !h.opts.Architecture(n) })}
}

func (m *mixed) Ask(n int) ([]space.Config, error) { return m.ask(n, m.propose) }

func (m *mixed) propose(rng *rand.Rand) (space.Config, error) {
	var c space.Config
	var err error
	told := len(m.results())
	switch {
	case told < m.opts.Startup && len(m.opts.Initial) > 0 && rng.Float64() < 0.75:
		return m.nearby(rng) // early on, stay near what is believed to be good
	case told == 0:
		return m.space.Sample(rng)
	}
	if c, err = breed(m.history, m.opts.Architecture, rng); err != nil {
		return nil, err
	}
	if told < m.opts.Startup {
		return c, nil
	}
	results := m.results()
	return m.model.suggest(c, results, bestTenth(results, (*observation).stands), rng)
}
