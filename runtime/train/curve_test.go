package train

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/search"
)

// A trial whose rule says so ends inside its rung, at the same place after an
// interruption too; one whose rule has nothing to compare with is only measured.
func TestRuleStopsATrial(t *testing.T) {
	dir, tok := corpora(t, 2)
	ruled := func(name string, stop *search.Rule) Task {
		task := tinyTask(dir, tok)
		task.Dir = filepath.Join(dir, name)
		task.Segment, task.Stop, task.Resource, task.CurvePoints, task.SampleTokens = Segment{Steps: 40, DecayFrom: 30}, stop, 400, 6, 500
		return task
	}
	rule := func(others float64) *search.Rule {
		r := &search.Rule{Kind: search.MedianRule, Horizon: 300}
		if others > 0 {
			for i := range 6 {
				r.Others = append(r.Others, search.Point{Resource: 50 * float64(i+1), Score: others})
			}
		}
		return r
	}
	whole, err := Execute(t.Context(), ruled("whole", rule(0)), env())
	if err != nil {
		t.Fatal(err)
	}
	curve := whole.State.Curve
	if whole.Stopped != "" || whole.State.Step != 40 || len(curve) != 6 || curve[5].Resource != 300 || curve[5].Score >= curve[0].Score {
		t.Fatalf("measured only: %+v", whole)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "whole", "metrics.jsonl"))
	if err != nil || strings.Count(string(raw), "bits_per_byte") != 7 {
		t.Fatalf("the curve is not in metrics.jsonl: %v\n%s", err, raw)
	}
	// The measuring leaves the training as it is.
	plain, err := Execute(t.Context(), ruled("plain", nil), env())
	if err != nil || plain.Bits != whole.Bits {
		t.Fatalf("%v bits without a rule (%v), %v with one", plain.Bits, err, whole.Bits)
	}

	bound := curve[5].Score // others were there long before
	got, err := Execute(t.Context(), ruled("stopped", rule(bound)), env())
	if err != nil {
		t.Fatal(err)
	}
	if got.Stopped == "" || got.State.Step >= 30 || !reflect.DeepEqual(got.State.Curve, curve[:len(got.State.Curve)]) ||
		got.Bits != curve[len(got.State.Curve)-1].Score || got.Params != plain.Params {
		t.Fatalf("%+v", got)
	}
	if at, err := CheckpointState(filepath.Join(dir, "stopped", "checkpoint")); err != nil || at.Step != got.State.Step {
		t.Errorf("a stopped trial left its state at step %d, %v; want %d", at.Step, err, got.State.Step)
	}
	// Told once more to train, it knows that it was stopped.
	again, err := Execute(t.Context(), ruled("stopped", rule(bound)), env())
	if err != nil || again.Stopped != got.Stopped || again.State.Step != got.State.Step || again.Bits != got.Bits {
		t.Errorf("again: %+v, %v", again, err)
	}

	for _, at := range []int{3, 7, 9} {
		task := ruled(fmt.Sprint("cut", at), rule(bound))
		task.CheckpointEvery = time.Nanosecond
		ctx, cancel := context.WithCancelCause(t.Context())
		cut := errors.New("cut")
		e := env()
		e.Metrics = func(m StepMetrics) {
			if m.Step >= at {
				cancel(cut)
			}
		}
		if _, err := Execute(ctx, task, e); !errors.Is(err, cut) {
			t.Fatalf("cut at %d: %v", at, err)
		}
		again, err := Execute(t.Context(), task, env())
		if err != nil || again.Stopped != got.Stopped || !reflect.DeepEqual(again.State.Curve, got.State.Curve) || again.State.Step != got.State.Step {
			t.Errorf("cut at %d: %+v, %v; want %+v", at, again, err, got)
		}
	}

	// The next rung goes on with the curve; what trains the winner to the end drops it.
	next := ruled("whole", &search.Rule{Kind: search.MedianRule, From: 300, Horizon: 600})
	next.Segment, next.Resource = Segment{Steps: 80, DecayFrom: 60}, 800
	rep, err := Execute(t.Context(), next, env())
	if err != nil || len(rep.State.Curve) != 12 || rep.State.Curve[6].Resource != 350 || !reflect.DeepEqual(rep.State.Curve[:6], curve) {
		t.Fatalf("%+v, %v", rep, err)
	}
	final := tinyTask(dir, tok)
	final.Dir, final.From, final.Final, final.Segment, final.EvalEvery = filepath.Join(dir, "final"), filepath.Join(dir, "whole", "checkpoint"), true, Segment{Steps: 80, DecayFrom: 70}, 10
	if rep, err = Execute(t.Context(), final, env()); err != nil || rep.State.Curve != nil {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// Scores of rounded weights are others, and the training goes on as it was: also where
// the optimiser is divided among ranks.
func TestRoundedScores(t *testing.T) {
	dir, tok := corpora(t, 2)
	for _, world := range []int{1, 2} {
		run := func(name string, w glm.Weights) (Report, string) {
			t.Helper()
			task := tinyTask(dir, tok)
			task.Dir, task.Weights, task.Zero = filepath.Join(dir, name), w, world-1
			task.Segment, task.Stop, task.Resource, task.CurvePoints, task.SampleTokens = Segment{Steps: 40, DecayFrom: 30}, &search.Rule{Kind: search.MedianRule, Horizon: 300}, 400, 3, 500
			reps, errs := ranks(t, task, world)
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			return reps[0], checkpointBytes(t, filepath.Join(task.Dir, "checkpoint"))
		}
		plain, want := run(fmt.Sprintf("plain%d", world), "")
		for _, w := range []glm.Weights{glm.Int8, glm.Int4} {
			got, model := run(fmt.Sprintf("%s%d", w, world), w)
			if got.Bits == plain.Bits || math.Abs(got.Bits-plain.Bits) > 0.2 || got.State.Curve[0].Score == plain.State.Curve[0].Score {
				t.Errorf("%d ranks, %s: %v bits, %v as it is", world, w, got.Bits, plain.Bits)
			}
			if model != want {
				t.Errorf("%d ranks, %s: another checkpoint", world, w)
			}
		}
	}
}
