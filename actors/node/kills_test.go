package node

import (
	"math/rand/v2"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/actors/actorstest"
)

// Worker processes die at random moments, a dozen a build, each by its own signal:
// while they start, train alone, form a ring, train in one. The build ends as if
// none had.
func TestRandomKillsChangeNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("-short starts no processes")
	}
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	spec.Budget.Tokens = 60_000
	spec.Retries = 3 // a child that dies before it can answer counts as the trial's failure
	calm := filepath.Join(t.TempDir(), "calm")
	if err := build(t, Options{Dir: calm, Spec: spec}); err != nil {
		t.Fatal(err)
	}
	want := outcome(t, calm)
	spec.Isolation = "process"
	signals := []syscall.Signal{syscall.SIGKILL, syscall.SIGABRT, syscall.SIGSEGV}
	for seed := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, 1))
		var mu sync.Mutex
		kills := 0
		o := Options{Dir: filepath.Join(t.TempDir(), "run"), Spec: spec, Worker: processOf("cpu")}
		o.Hooks.Receive = func(who string, message any) {
			mu.Lock()
			defer mu.Unlock()
			if _, ok := message.(*actors.Progress); !ok || who != "trial" || r.IntN(3) > 0 || kills == 12 {
				return
			}
			if c := children(t); len(c) > 0 && syscall.Kill(c[r.IntN(len(c))], signals[r.IntN(len(signals))]) == nil {
				kills++
			}
		}
		if err := build(t, o); err != nil {
			t.Errorf("seed %d, after %d kills: %v", seed, kills, err)
			continue
		}
		if kills == 0 {
			t.Errorf("seed %d: nothing was killed", seed)
		}
		if outcome(t, o.Dir) != want {
			t.Errorf("seed %d, after %d kills: the outcome differs from the undisturbed run's", seed, kills)
		}
	}
}
