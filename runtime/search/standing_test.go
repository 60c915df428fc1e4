package search

import (
	"fmt"
	"math"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/space"
)

// What was stopped early stands where trials with its score came to that went on.
func TestStanding(t *testing.T) {
	type report struct {
		at       int // trial
		resource float64
		score    float64
	}
	inf := math.Inf(1)
	for _, tt := range []struct {
		name    string
		reports []report
		want    []float64
	}{
		{"one resource", []report{{0, 1, 3}, {1, 1, 2}}, []float64{3, 2}},
		{"none went on", []report{{0, 1, 3}, {1, 2, 2}}, []float64{3, 2}},
		{"one went on: all gain alike", []report{{0, 1, 3}, {1, 1, 2}, {1, 4, 1.5}}, []float64{2.5, 1.5}},
		{"a slope, half believed", []report{
			{0, 1, 5}, {1, 1, 1}, {1, 4, 1}, {2, 1, 2}, {2, 4, 1}, {3, 1, 3}, {3, 4, 1}, {4, 1, 4}, {4, 4, 1},
		}, []float64{2.25, 1, 1, 1, 1}},
		{"over two steps", []report{{0, 1, 6}, {1, 1, 5}, {1, 2, 4}, {2, 1, 4}, {2, 2, 3}, {2, 8, 2}}, []float64{4, 3, 2}},
		{"what failed stays", []report{{0, 1, inf}, {1, 1, 2}, {1, 4, inf}, {2, 1, 2}}, []float64{inf, inf, 2}},
	} {
		sp, err := space.New(space.MustParse("x", "int(0, 9)"))
		if err != nil {
			t.Fatal(err)
		}
		h := newHistory(sp, Options{})
		for _, r := range tt.reports {
			h.Tell(Result{Trial: fmt.Sprintf("t%03d", r.at), Config: space.Config{"x": space.Number(float64(r.at))}, Resource: r.resource, Score: r.score})
		}
		for i, o := range h.results() {
			if got := o.stands().Score; got != tt.want[i] && !(math.Abs(got-tt.want[i]) < 1e-12) {
				t.Errorf("%s: trial %d stands at %g, want %g", tt.name, i, got, tt.want[i])
			}
		}
	}
}
