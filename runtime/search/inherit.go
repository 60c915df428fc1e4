package search

import "github.com/open-autoglm/autoglm/runtime/space"

// Lineage is a Strategy that knows what its proposals descend from.
type Lineage interface {
	// Parent names the trial that an asked configuration is a child of, "" where it is
	// no one's.
	Parent(c space.Config) string
}

// Inherit lets trials begin from the weights of those that they descend from, where
// grows says that the child's model can take the parent's over: their decisions name
// the parent. Call it before Next.
func (s *Search) Inherit(grows func(child, parent space.Config) bool) { s.grows = grows }

// parent is the trial whose last checkpoint a new one of that configuration begins from.
func (s *Search) parent(c space.Config) string {
	l, ok := s.strategy.(Lineage)
	if !ok || s.grows == nil {
		return ""
	}
	p := s.trials[l.Parent(c)]
	if p == nil || !s.grows(c, p.Config) {
		return ""
	}
	for _, d := range s.decisions[s.told:] {
		if d.Trial == p.Trial {
			return "" // it trains now, and its checkpoint changes
		}
	}
	return p.Trial
}
