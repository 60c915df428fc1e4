package train

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// A fork begins with its parent's exact state, and with its parent's parameters trains on
// as its parent does, whatever becomes of the parent meanwhile. With batches of its own it
// stands at the same place of the data.
func TestFork(t *testing.T) {
	dir, tok := corpora(t, 1)
	rung := func(task Task, i int) Task {
		task.Segment = Segment{Steps: 20 * (i + 1), DecayFrom: float64(20*(i+1) - 5)}
		task.Rung, task.Rungs = i, 2
		return task
	}
	parent := tinyTask(dir, tok)
	var bits []float64
	for i := range 4 {
		rep, err := Execute(t.Context(), rung(parent, i), env())
		if err != nil {
			t.Fatal(err)
		}
		bits = append(bits, rep.Bits)
		if i == 1 { // what it is at the fork, before it trains on
			fork := rung(parent, 2)
			fork.Dir, fork.From, fork.FromSequences = filepath.Join(dir, "early"), RungDir(parent.Dir, 1), parent.Config.Sequences()
			rep, err := Execute(t.Context(), fork, env())
			if err != nil {
				t.Fatal(err)
			}
			bits = append(bits, rep.Bits)
		}
	}
	if bits[2] != bits[3] {
		t.Errorf("the fork scores %v, its parent %v", bits[2], bits[3])
	}
	for i, want := range []bool{false, false, true, true} {
		if _, err := os.Stat(RungDir(parent.Dir, i)); (err == nil) != want {
			t.Errorf("rung %d is kept: %v", i, err == nil)
		}
	}

	// From rung 2, with its parent at rung 3.
	fork := rung(parent, 3)
	fork.Dir, fork.From, fork.FromSequences = filepath.Join(dir, "late"), RungDir(parent.Dir, 2), parent.Config.Sequences()
	rep, err := Execute(t.Context(), fork, env())
	if err != nil {
		t.Fatal(err)
	}
	if rep.Bits != bits[4] || checkpointBytes(t, fork.checkpoint()) != checkpointBytes(t, parent.checkpoint()) {
		t.Errorf("the fork scores %v, its parent %v", rep.Bits, bits[4])
	}

	wide := fork
	wide.Dir, wide.Config.BatchTokens = filepath.Join(dir, "wide"), 2*parent.Config.BatchTokens
	wide.Segment = Segment{Steps: 40, DecayFrom: 37}
	if rep, err = Execute(t.Context(), wide, env()); err != nil {
		t.Fatal(err)
	}
	at := 55 * parent.Config.BatchTokens // where the parent stood
	if first := 28; rep.State.Step != 40 || rep.State.Tokens != int64(at+(40-first)*wide.Config.BatchTokens) {
		t.Errorf("with twice the batch the fork ends at %+v", rep.State)
	}

	if err := os.RemoveAll(parent.Dir); err != nil {
		t.Fatal(err)
	}
	orphan := fork
	orphan.Dir = filepath.Join(dir, "orphan")
	if _, err := Execute(t.Context(), orphan, env()); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("a fork of what is gone: %v", err)
	}
	if rep, err := Execute(t.Context(), fork, env()); err != nil || rep.Bits != bits[4] {
		t.Errorf("a fork that has begun, without its parent: %v, %v", rep.Bits, err)
	}
}
