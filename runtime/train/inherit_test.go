package train

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/open-autoglm/autoglm/gpu/engine"
)

// TestInherit has a larger model begin from a smaller one's checkpoint: it counts its
// own steps, is better than one that begins from nothing, and where it was cut off it
// goes on without its parent.
func TestInherit(t *testing.T) {
	dir, tok := corpora(t, 1)
	parent := tinyTask(dir, tok)
	if _, err := Execute(t.Context(), parent, env()); err != nil {
		t.Fatal(err)
	}
	child := parent
	child.Config.Arch.Dim, child.Config.Arch.Heads, child.Config.Arch.KVHeads, child.Config.Arch.Layers = 128, 4, 2, 3
	child.Config.Seed = 9
	child.Segment = Segment{Steps: 20, DecayFrom: 15}
	child.Inherit, child.InheritArch = filepath.Join(parent.Dir, "checkpoint"), parent.Config.Arch
	as := func(name string) Task { c := child; c.Dir = filepath.Join(dir, name); return c }

	grown, err := Execute(t.Context(), as("grown"), env())
	if err != nil {
		t.Fatal(err)
	}
	if grown.State.Step != 20 || grown.State.Tokens != 20*256 {
		t.Errorf("the child's own training is %+v", grown.State)
	}
	scratch := as("scratch")
	scratch.Inherit = filepath.Join(dir, "gone", "checkpoint")
	fresh, err := Execute(t.Context(), scratch, env())
	if err != nil {
		t.Fatal(err)
	}
	if grown.Bits > 0.9*fresh.Bits {
		t.Errorf("grown %.3f bits per byte, from the beginning %.3f", grown.Bits, fresh.Bits)
	}

	// Cut off in its seventh step, and its parent gone.
	cut := as("cut")
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	e := env()
	e.NewModel = func(c Config, threads, world int) (engine.Model, error) {
		m, err := newTestModel(c, threads, world)
		return &stopping{Model: m, left: 7, stop: func() { cancel(stop) }}, err
	}
	if _, err := Execute(ctx, cut, e); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	if err := os.RemoveAll(parent.Dir); err != nil {
		t.Fatal(err)
	}
	again, err := Execute(t.Context(), cut, env())
	if err != nil {
		t.Fatal(err)
	}
	if again.Bits != grown.Bits || checkpointBytes(t, cut.checkpoint()) != checkpointBytes(t, as("grown").checkpoint()) {
		t.Errorf("cut off and gone on: %v bits per byte, uninterrupted %v", again.Bits, grown.Bits)
	}
}

// stopping calls stop after so many updates.
type stopping struct {
	engine.Model
	left int
	stop func()
}

func (s *stopping) Update(h engine.Hyper) (float64, error) {
	if s.left--; s.left == 0 {
		s.stop()
	}
	return s.Model.Update(h)
}

func TestInheritDamaged(t *testing.T) {
	dir, tok := corpora(t, 1)
	task := tinyTask(dir, tok)
	task.Segment = Segment{Steps: 2, DecayFrom: 1}
	if _, err := Execute(t.Context(), task, env()); err != nil {
		t.Fatal(err)
	}
	child := task
	child.Dir, child.Inherit, child.InheritArch = filepath.Join(dir, "child"), task.checkpoint(), task.Config.Arch
	child.InheritArch.FFN *= 2 // it is not what the checkpoint holds
	child.Config.Arch.FFN *= 2
	if _, err := Execute(t.Context(), child, env()); !errors.Is(err, ErrCheckpoint) {
		t.Errorf("a checkpoint of another shape: %v", err)
	}
}
