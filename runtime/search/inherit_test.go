package search

import (
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// TestInherit holds what a decision's Inherit promises: the parent is a trial that has
// ended well, rests, and can be grown from.
func TestInherit(t *testing.T) {
	grows := func(child, parent space.Config) bool { return child.Float("x") >= parent.Float("x") }
	brackets := []Bracket{
		{Trials: 15, Keep: []int{15, 5}, Resources: []float64{1, 3}},
		{Trials: 6, Keep: []int{6, 2}, Resources: []float64{3, 9}},
	}
	for _, tt := range []struct {
		name  string
		grows func(child, parent space.Config) bool
		least int
	}{{"evolution", grows, 8}, {"evolutionary", grows, 6}, {"evolution", nil, 0}, {"tpe", grows, 0}, {"random", grows, 0}} {
		for _, slots := range []int{1, 3} {
			st, err := NewStrategy(tt.name, bowl(t), Options{Seed: 5, Startup: 4, Grows: tt.grows})
			if err != nil {
				t.Fatal(err)
			}
			s := New(st, NewHyperband(brackets), slots)
			drive(t, s, 1, func(d Decision) float64 { return bowlScore(d.Config) })
			inherited := 0
			for _, d := range s.decisions {
				switch p := s.trials[d.Inherit]; {
				case d.Inherit == "":
				case d.Action != Start || p == nil || p.Rung < 0:
					t.Errorf("%s: decision %d inherits %q", tt.name, d.Seq, d.Inherit)
				case !grows(d.Config, p.Config):
					t.Errorf("%s: %s can't be grown from %s", tt.name, d.Trial, d.Inherit)
				case !strings.Contains(d.Reason, d.Inherit):
					t.Errorf("%s: the reason of %s is %q", tt.name, d.Trial, d.Reason)
				default:
					inherited++
				}
			}
			if inherited < tt.least || tt.least == 0 && inherited > 0 {
				t.Errorf("%s, %d slots: %d trials inherit", tt.name, slots, inherited)
			}
		}
	}
}

// A parent that trains again changes its checkpoint: its child begins from its own
// beginning.
func TestInheritFromNoneThatTrains(t *testing.T) {
	c := space.Config{"x": space.Number(1)}
	s := New(&random{&history{known: map[string]*observation{c.Key(): {parent: "t001"}}}}, NewHyperband(nil), 2)
	s.decisions, s.learnt = []Decision{{Seq: 0, Action: Start, Trial: "t001"}}, []bool{true}
	if got := s.parent(c); got != "t001" {
		t.Errorf("parent %q", got)
	}
	s.decisions, s.learnt = append(s.decisions, Decision{Seq: 1, Action: Promote, Trial: "t001"}), append(s.learnt, false)
	if got := s.parent(c); got != "" {
		t.Errorf("parent %q trains again", got)
	}
}
