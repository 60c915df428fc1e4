package node

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// A population whose members fork from each other ends the same when it is interrupted at
// some forks and goes on. Forks have their parent's model and stand where it stood.
func TestForksRepeat(t *testing.T) {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	spec.Scheduler, spec.Budget.Tokens = "pbt", 50_000
	spec.Space["batch_tokens"] = "categorical([32, 64, 128])"
	calm := filepath.Join(t.TempDir(), "calm")
	o := Options{Dir: calm, Spec: spec}
	var last *journal.State
	o.Events.Journal = func(_ journal.Event, st *journal.State) { last = st }
	if err := build(t, o); err != nil {
		t.Fatal(err)
	}
	forks, batches := 0, 0
	for _, d := range last.Decisions {
		if d.Action != search.Fork {
			continue
		}
		forks++
		parent := begun(*last, d.Inherit)
		for n, v := range parent.Config {
			if space.IsArchitecture(n) && d.Config[n] != v {
				t.Errorf("%s has %s %v, its parent %v", d.Trial, n, d.Config[n], v)
			}
		}
		if d.Config.Int(space.Batch) != parent.Config.Int(space.Batch) {
			batches++
		}
		// Steps are of the own batch, tokens and data go on.
		rep := last.Outcomes[d.Seq]
		steps := d.Resource / float64(d.Config.Int(space.Batch))
		if math.Abs(float64(rep.State.Step)-steps) > 4 {
			t.Errorf("%s ends at step %d, about %.1f were asked for", d.Trial, rep.State.Step, steps)
		}
		if math.Abs(float64(rep.State.Tokens)-d.Resource) > 4*128 {
			t.Errorf("%s has seen %d tokens of %g", d.Trial, rep.State.Tokens, d.Resource)
		}
	}
	if forks < 3 || batches == 0 {
		t.Errorf("%d forks, %d of them with batches of their own", forks, batches)
	}
	kept, err := filepath.Glob(filepath.Join(calm, "trials", "*", "rung-*"))
	if err != nil || len(kept) > 0 {
		t.Errorf("checkpoints for forks are left: %v %v", kept, err)
	}
	var entry journal.Entry
	for _, e := range last.Leaderboard("").Trials {
		if e.ForkedAt > 0 {
			entry = e
		}
	}
	if entry.Parent == "" {
		t.Error("the leaderboard knows of no fork")
	}

	dir := filepath.Join(t.TempDir(), "run")
	interrupted(t, Options{Dir: dir, Spec: spec}, func() func(journal.Event) bool {
		return func(e journal.Event) bool {
			return e.Kind == journal.Decided && e.Decision.Action == search.Fork && e.Decision.Seq%4 == 0
		}
	})
	if outcome(t, dir) != outcome(t, calm) {
		t.Error("the outcome differs from the undisturbed run's")
	}
}
