package journal

import (
	"testing"

	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// A decision's span lasts from when it was made to its end; who began from another's
// weights has that one as parent.
func TestSpansAndParents(t *testing.T) {
	s := NewState()
	config := space.Config{space.Heads: space.Number(2), space.Dim: space.Number(64), space.FFNRatio: space.Number(2)}
	for _, e := range []Event{
		{Kind: Decided, Active: 1, Decision: &search.Decision{Seq: 0, Action: search.Start, Trial: "t001", Config: config}},
		{Kind: TrialEnded, Active: 3, Trial: &TrialReport{Trial: "t001", Seq: 0, Bits: 2}},
		{Kind: TrialEnded, Active: 4, Trial: &TrialReport{Trial: "t001", Seq: 0, Bits: 2}}, // sent again
		{Kind: Decided, Active: 5, Decision: &search.Decision{Seq: 1, Action: search.Start, Trial: "t002", Config: config, Inherit: "t001"}},
		{Kind: FinalStarted, Active: 7, Trial: &TrialReport{Trial: "t001", Seq: -1}},
		{Kind: FinalEnded, Active: 9, Trial: &TrialReport{Trial: "final", Seq: -1}},
	} {
		s.Apply(e)
	}
	c := s.Clone()
	s.Spans[1] = Span{}
	for seq, want := range map[int]Span{0: {1, 3}, 1: {5, 0}, -1: {7, 9}} {
		if c.Spans[seq] != want {
			t.Errorf("decision %d spans %v, want %v", seq, c.Spans[seq], want)
		}
	}
	for _, e := range c.Leaderboard("").Trials {
		if want := map[string]string{"t001": "", "t002": "t001"}[e.ID]; e.Parent != want {
			t.Errorf("%s has parent %q, want %q", e.ID, e.Parent, want)
		}
	}
}
