package search

import "github.com/open-autoglm/autoglm/runtime/space"

// Lineage is a Strategy that knows from whose weights its proposals can begin. Their
// decisions name the trial (Decision.Inherit); what they are told to spend is their own
// training alone.
type Lineage interface {
	// Parent names the trial whose weights an asked configuration can take over, ""
	// where there is none.
	Parent(c space.Config) string
}

// parent is the trial whose last checkpoint a new one of that configuration begins from.
func (s *Search) parent(c space.Config) string {
	l, ok := s.strategy.(Lineage)
	if !ok {
		return ""
	}
	p := l.Parent(c)
	for seq, d := range s.decisions {
		if d.Trial == p && !s.learnt[seq] {
			return "" // it trains now, and its checkpoint changes
		}
	}
	return p
}

// Reasoned is a Strategy that can say why it asked for a configuration.
type Reasoned interface {
	// Reason is "" where there is nothing to say.
	Reason(c space.Config) string
}
