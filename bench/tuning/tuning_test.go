package main

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/train"
)

func TestReach(t *testing.T) {
	curve := []point{{10, 3}, {20, 2.5}, {30, 2.6}, {40, 2.2}}
	for _, tt := range []struct{ bits, want float64 }{
		{3.5, 10}, {3, 10}, {2.9, 20}, {2.2, 40}, {2.1, math.Inf(1)},
	} {
		if got := reach(curve, tt.bits); got != tt.want {
			t.Errorf("%g bits are reached at %g, want %g", tt.bits, got, tt.want)
		}
	}
	for _, tt := range []struct{ t, want float64 }{{9, math.Inf(1)}, {10, 3}, {19, 3}, {35, 2.6}, {99, 2.2}} {
		if got := at(curve, tt.t); got != tt.want {
			t.Errorf("at %g there are %g bits, want %g", tt.t, got, tt.want)
		}
	}
}

func TestCompare(t *testing.T) {
	var ours, theirs []result
	for seed, ends := range []float64{20, 30, 40, 50, 200} { // the last never comes there
		bits := 2.0
		if ends > 100 {
			bits = 2.4
		}
		ours = append(ours, result{Side: "build", Share: 1, Seed: seed, HeldOut: []point{{10, 3}, {ends, bits}}, Final: bits})
		theirs = append(theirs, result{Side: "optuna", Share: 1, Seed: seed, HeldOut: []point{{30, 2.6}, {90, 2.1}}, Final: 2.1})
	}
	c := compare(ours, theirs, 1, 100)
	if c.Median != 0.4 || c.Interval[0] != 0.2 || !math.IsInf(float64(c.Interval[1]), 1) {
		t.Errorf("reached after %v (%v), want 0.4 (0.2 to never)", c.Median, c.Interval)
	}
	if c.Half != [2]number{2, 2.6} || c.End != [2]number{2, 2.1} {
		t.Errorf("at half %v, at the end %v", c.Half, c.End)
	}
	b, err := json.Marshal(c)
	if want := `{"share":1,"reached":[0.2,0.3,0.4,0.5,null],"median":0.4,"interval":[0.2,null],"half":[2,2.6],"end":[2,2.1]}`; err != nil || string(b) != want {
		t.Errorf("%s, %v; want %s", b, err, want)
	}
	if again := compare(ours, theirs, 1, 100); again.Interval != c.Interval {
		t.Error("the interval is another one the second time")
	}
}

func TestWatcher(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "final")
	w := watcher{folder: folder, to: filepath.Join(dir, "kept"), begin: time.Now().Add(-time.Minute)}
	w.look() // nothing is there
	for step := range 3 {
		value := engine.Tensor{Name: "w", Shape: []int{1}, Data: []float32{float32(step)}}
		if err := train.SaveCheckpoint(train.BestDir(folder), engine.StateDict{value}, train.State{Step: step}); err != nil {
			t.Fatal(err)
		}
		at := w.begin.Add(time.Duration(step+1) * time.Second)
		if err := os.Chtimes(filepath.Join(train.BestDir(folder), "checkpoint.json"), at, at); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "config.json"), []byte(`{"batch_tokens": 7}`), 0o644); err != nil {
			t.Fatal(err)
		}
		w.look()
		w.look() // is not new
	}
	if len(w.snaps) != 3 {
		t.Fatalf("%d were kept, want 3", len(w.snaps))
	}
	for i, s := range w.snaps {
		_, st, err := train.LoadCheckpoint(s.dir)
		if err != nil || st.Step != i || s.t != float64(i+1) || s.config.BatchTokens != 7 {
			t.Errorf("kept %d: step %d at %g s, %v", i, st.Step, s.t, err)
		}
	}
}
