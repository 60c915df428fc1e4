package journal

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Trials by rung, bits per byte and milliseconds of a token.
func TestChoice(t *testing.T) {
	for _, tc := range []struct {
		name   string
		goals  []string
		limit  time.Duration
		trials [][3]float64
		order  []string
		front  []string
		choice string
		why    string
	}{
		{"one objective", nil, 0, [][3]float64{{0, 3, 9}, {1, 2, 9}, {1, 1.5, 9}}, []string{"t3", "t2", "t1"}, nil, "t3", "the best of the search"},
		{"one and a constraint", nil, 10 * time.Millisecond, [][3]float64{{0, 3, 9}, {1, 2, 11}, {1, 1.5, 30}}, []string{"t1", "t2", "t3"}, nil, "t1", "the best of the search"},
		{"two", []string{job.BitsPerByte, job.Latency}, 0, [][3]float64{{0, 3, 1}, {1, 2, 3}, {1, 1.9, 20}, {0, 3.5, 2}}, []string{"t3", "t2", "t1", "t4"}, []string{"t3", "t2", "t1"}, "t2", "the knee"},
		{"two and a constraint", []string{job.BitsPerByte, job.Latency}, 2 * time.Millisecond, [][3]float64{{0, 3, 1}, {1, 2, 3}, {1, 1.9, 20}, {0, 3.5, 2}}, []string{"t1", "t4", "t2", "t3"}, []string{"t1"}, "t1", "the knee"},
		{"nothing holds", []string{job.BitsPerByte, job.Latency}, time.Millisecond / 2, [][3]float64{{0, 3, 1}, {1, 2, 3}}, []string{"t1", "t2"}, nil, "t1", "no trial holds the constraints; the one that misses them least, trained to the end: latency 1 ms is over max_latency 500 µs"},
	} {
		s := NewState()
		spec := job.Default()
		spec.Objectives, spec.Constraints.MaxLatency = tc.goals, job.Duration(tc.limit)
		s.Apply(Event{Kind: Created, Spec: &spec})
		for i, x := range tc.trials {
			id := "t" + string(rune('1'+i))
			s.Apply(Event{Kind: Decided, Decision: &search.Decision{Seq: i, Action: search.Start, Trial: id, Config: shape(), Rung: int(x[0])}})
			s.Apply(Event{Kind: TrialEnded, Trial: &TrialReport{Trial: id, Seq: i, Bits: x[1], Cost: &train.Cost{Latency: x[2] / 1e3}}})
		}
		// One that has no score yet is last.
		s.Apply(Event{Kind: Decided, Decision: &search.Decision{Seq: len(tc.trials), Action: search.Start, Trial: "t9", Config: shape()}})
		lb := s.Leaderboard("")
		var order, front []string
		for _, e := range lb.Trials {
			order = append(order, e.ID)
			if e.Front {
				front = append(front, e.ID)
			}
		}
		if !slices.Equal(order, append(tc.order, "t9")) || !slices.Equal(front, tc.front) {
			t.Errorf("%s: %v with the front %v, want %v with %v", tc.name, order, front, tc.order, tc.front)
		}
		if c := lb.Choice(); c == nil || c.ID != tc.choice {
			t.Errorf("%s: %+v is chosen, want %s", tc.name, c, tc.choice)
		}
		s.Apply(Event{Kind: FinalStarted, Trial: &TrialReport{Trial: tc.choice, Seq: -1}})
		if got := s.Leaderboard("").Final.Reason; !strings.HasPrefix(got, tc.why) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.why)
		}
	}
	empty := NewState().Leaderboard("")
	if c := empty.Choice(); c != nil {
		t.Errorf("%+v of nothing", c)
	}
}

func TestOutcomeOfAReport(t *testing.T) {
	spec := job.Default()
	r := TrialReport{Bits: 2, Cost: &train.Cost{Latency: 0.03, Size: 5e6}}
	if o := r.Outcome(&spec); o.Scores != nil || o.Violations != nil || o.Score != 2 {
		t.Errorf("of one objective: %+v", o)
	}
	spec.Objectives = []string{job.BitsPerByte, job.Size, job.Latency}
	spec.Constraints = job.Constraints{MaxLatency: job.Duration(20 * time.Millisecond), MaxSizeMB: 10}
	if o := r.Outcome(&spec); !slices.Equal(o.Scores, []float64{2, 5e6, 0.03}) || len(o.Violations) != 2 || o.Violations[0] < 0.499 || o.Violations[0] > 0.501 || o.Violations[1] != -0.5 {
		t.Errorf("%+v", o)
	}
	r.Failed = true
	if o := r.Outcome(&spec); o.Scores != nil || !o.Failed {
		t.Errorf("of a failure: %+v", o)
	}
}
