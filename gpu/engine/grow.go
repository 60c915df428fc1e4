package engine

import (
	"fmt"

	"github.com/open-autoglm/autoglm/gpu/glm"
)

// Grow turns the state of a model of shape src into one of dst that computes the same
// (see glm.Growth). Where s holds the averages that o keeps, they go along: those of
// parameters that were scaled are scaled, those of new ones are zero, and the number of
// updates stays, which bounds the first updates of the new ones. Otherwise the state
// has none, and Model.Load begins them anew. The error wraps glm.ErrNotGrowable, or is
// of a state that is not src's.
func (s StateDict) Grow(dst, src glm.Arch, o Optimizer, seed uint64) (StateDict, error) {
	g, err := glm.NewGrowth(dst, src)
	if err != nil {
		return nil, err
	}
	layout, size := src.Layout()
	params, m, v, step := make([]float32, size), make([]float32, size), make([]float32, size), make([]float32, 1)
	want := States(layout, o, params, m, v, step)
	moments := true
	for _, t := range want[len(layout):] {
		_, has := s.Get(t.Name)
		moments = moments && has
	}
	if !moments {
		want = want[:len(layout)]
	}
	if _, err := s.CopyTo(want, len(layout)); err != nil {
		return nil, fmt.Errorf("grow: %w", err)
	}
	layout, _ = dst.Layout()
	params = g.Params(params, seed)
	if !moments {
		return Parameters(layout, params), nil
	}
	return States(layout, o, params, g.Moments(m, 1), g.Moments(v, 2), step), nil
}
