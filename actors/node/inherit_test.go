package node

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// inheriting is a job some of whose trials begin from others' weights.
func inheriting(t *testing.T) job.Spec {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	spec.SearchStrategy = "evolutionary"
	spec.Space["layers"], spec.Space["dim"], spec.Space["heads"] = "int(1, 4)", "[64, 128]", "[2, 4]"
	spec.Budget = job.Budget{Tokens: 40000}
	return spec
}

// lineage names the parents of a finished job's trials that began from others' weights.
func lineage(t *testing.T, dir string) map[string]string {
	t.Helper()
	n, err := Open(Options{Dir: dir, Resume: true})
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	out := map[string]string{}
	for _, e := range n.State().Leaderboard("").Trials {
		if e.Parent != "" {
			out[e.ID] = e.Parent
		}
	}
	return out
}

// TestInheritedTrialsRepeat holds that a job whose trials begin from others' weights
// ends the same when it is interrupted again and again.
func TestInheritedTrialsRepeat(t *testing.T) {
	spec := inheriting(t)
	calm := filepath.Join(t.TempDir(), "calm")
	if err := build(t, Options{Dir: calm, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	if c := lineage(t, calm); len(c) == 0 {
		t.Fatal("no trial began from another's weights")
	}
	dir := filepath.Join(t.TempDir(), "run")
	interrupted(t, Options{Dir: dir, Spec: spec}, func() func(journal.Event) bool {
		return func(e journal.Event) bool { return e.Kind == journal.Decided && e.Decision.Inherit != "" }
	})
	if outcome(t, dir) != outcome(t, calm) {
		t.Error("the outcome differs from the undisturbed run's")
	}
}

// A trial whose parent's checkpoint is gone begins from its beginning, and that is said.
func TestInheritedCheckpointGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	var mu sync.Mutex
	var notices []string
	var gone string // parent
	o := Options{Dir: dir, Spec: inheriting(t), Notice: func(text string) {
		mu.Lock()
		defer mu.Unlock()
		notices = append(notices, text)
	}}
	o.Events.Journal = func(e journal.Event, _ *journal.State) {
		if e.Kind == journal.Decided && e.Decision.Inherit != "" && gone == "" {
			gone = e.Decision.Inherit
			if err := os.RemoveAll(filepath.Join(dir, "trials", gone)); err != nil {
				t.Error(err)
			}
		}
	}
	if err := build(t, o); err != nil {
		t.Fatal(err)
	}
	if said := strings.Join(notices, "\n"); gone == "" || !strings.Contains(said, "checkpoint of trial "+gone) {
		t.Errorf("trial %s lost its checkpoint, and it was said: %q", gone, said)
	}

	// Devices of another node have the parent's folder brought there, and look for its
	// checkpoint in their own.
	s := newSite(dir, o.Spec, &crew{threads: 1})
	came := &arrivals{}
	s.guest, s.fed, s.folder = true, true, came
	a := &actors.Assign{Task: train.Task{Trial: "t007", Inherit: "/elsewhere/trials/t003/checkpoint"}}
	a.Task.Config.Arch.Vocab = 320
	if err := s.begin(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(dir, "trials", "t003", "checkpoint"); a.Task.Inherit != want || !slices.Equal(came.from, []string{"t007", "t003"}) {
		t.Errorf("a lent device begins from %s, and has %v brought", a.Task.Inherit, came.from)
	}
}

// arrivals is a Folder that notes what is brought.
type arrivals struct {
	alone
	from []string
}

func (a *arrivals) Begin(_ context.Context, _ string, _ uint64, from []string) error {
	a.from = from
	return nil
}
