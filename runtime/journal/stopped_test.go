package journal

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

func shape() space.Config {
	return space.Config{
		space.Dim: space.Number(64), space.Layers: space.Number(1), space.Heads: space.Number(2), space.KVHeads: space.Number(2), space.FFNRatio: space.Number(2),
		space.Vocab: space.Number(320), space.Context: space.Number(32), space.Tied: space.Word("true"),
	}
}

// A trial that its rule ended is stopped, not paused, and says why; it stands below
// those that reached the end of its rung.
func TestLeaderboardOfStoppedTrials(t *testing.T) {
	s := NewState()
	apply := func(e Event) {
		b, err := e.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if e, err = Decode(b); err != nil {
			t.Fatal(err)
		}
		s.Apply(e)
	}
	decide := func(seq int, a search.Action, trial string, rung int) {
		apply(Event{Kind: Decided, Decision: &search.Decision{Seq: seq, Action: a, Trial: trial, Config: shape(), Rung: rung, Resource: float64(10 * (rung + 1)), Stop: &search.Rule{Kind: search.CurveRule, Horizon: 7.5}}})
	}
	ended := func(seq int, trial string, bits float64, why string) {
		apply(Event{Kind: TrialEnded, Trial: &TrialReport{Trial: trial, Seq: seq, Bits: bits, Stopped: why, State: train.State{Step: 3, Curve: []search.Point{{Resource: 2.5, Score: bits}}}}})
	}
	apply(Event{Kind: Planned, Plan: &search.Plan{Brackets: []search.Bracket{{Trials: 3, Keep: []int{3, 2}, Resources: []float64{10, 20}}}}})
	decide(0, search.Start, "t001", 0)
	ended(0, "t001", 3, "")
	decide(1, search.Start, "t002", 0)
	ended(1, "t002", 2.5, "its curve ends too high")
	decide(2, search.Start, "t003", 0)
	ended(2, "t003", 4, "")
	want := func(what string, rows ...[3]string) {
		t.Helper()
		lb := s.Leaderboard("job")
		for i, w := range rows {
			if e := lb.Trials[i]; e.ID != w[0] || e.Status != w[1] || w[2] != "" && e.Reason != w[2] || e.Score == nil {
				t.Errorf("%s: place %d is %s %s %q, want %v", what, i, e.ID, e.Status, e.Reason, w)
			}
		}
	}
	want("one rung", [3]string{"t001", "paused", ""}, [3]string{"t003", "paused", ""}, [3]string{"t002", "stopped", "its curve ends too high"})
	decide(3, search.Promote, "t001", 1)
	ended(3, "t001", 2, "")
	decide(4, search.Promote, "t003", 1)
	ended(4, "t003", 3.5, "hopeless")
	want("two rungs", [3]string{"t001", "finished", ""}, [3]string{"t003", "stopped", "hopeless"}, [3]string{"t002", "stopped", "its curve ends too high"})
	if got := *s.Leaderboard("job").Trials[1].Score; got != 4 {
		t.Errorf("the trial stopped in its second rung has score %g, want that of its first", got)
	}
	o := s.Outcomes[4].Outcome(&s.Spec)
	if !o.Stopped || o.Why != "hopeless" || !reflect.DeepEqual(o.Curve, []search.Point{{Resource: 2.5, Score: 3.5}}) {
		t.Errorf("the search is told %+v", o)
	}
	if b, err := json.Marshal(s.Decisions[0]); err != nil || string(b) == "" || s.Decisions[0].Stop.Horizon != 7.5 {
		t.Errorf("%s, %v", b, err)
	}
}
