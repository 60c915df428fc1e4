package node

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// forTest foretells on a machine that reads a thousand parameters in a microsecond.
func forTest(spec job.Spec) serving {
	var times []glm.TokenTime
	for _, a := range glm.TokenProbes(1e7) {
		times = append(times, glm.TokenTime{Work: a.TokenWork(), Seconds: 1e-9 * a.TokenWork()})
	}
	return serving{spec: spec, times: times, tokenizer: func(vocab int) int64 { return typicalEntry * int64(vocab) }}
}

// What a space under bounds gives holds them, but for latency by no more than its margin;
// a space that gives nothing says which constraints clash.
func TestBoundsHold(t *testing.T) {
	plan := search.Plan{Params: 1e6, MinParams: 6e5, MaxParams: 1.8e6, FinalSeconds: 60}
	rapid.Check(t, func(t *rapid.T) {
		spec := job.Default()
		if rapid.Bool().Draw(t, "several") {
			spec.Objectives = []string{job.BitsPerByte, job.Latency}
		}
		c := &spec.Constraints
		if rapid.Bool().Draw(t, "latency") {
			c.MaxLatency = job.Duration(rapid.Int64Range(int64(200*time.Microsecond), int64(3*time.Millisecond)).Draw(t, "max_latency"))
		}
		if rapid.Bool().Draw(t, "size") {
			c.MaxSizeMB = rapid.Float64Range(0.8, 10).Draw(t, "max_size_mb")
		}
		if rapid.Bool().Draw(t, "memory") {
			c.MaxServingMemoryMB = rapid.Float64Range(2, 30).Draw(t, "max_serving_memory_mb")
		}
		v := forTest(spec)
		sp, first, err := Space(space.Limits{MinMatrix: plan.MinParams, MaxMatrix: plan.MaxParams, MaxVocab: 2048, MaxContext: 512, Threads: 1}, spec, plan, 1e6, v)
		if err != nil {
			t.Fatalf("%+v: %v", *c, err)
		}
		if len(first) == 0 {
			t.Fatalf("%+v: nothing to begin with", *c)
		}
		rng := rand.New(rand.NewPCG(1, 2))
		for range 5 {
			config, err := sp.Sample(rng)
			if err != nil {
				t.Fatal(err)
			}
			cost := v.foretold(space.Arch(config))
			for _, b := range spec.Bounds() {
				allowed := 0.0
				if b.Objective == job.Latency {
					allowed = foretoldMargin - 1
				}
				if b.Over(cost) > allowed {
					t.Fatalf("%v: %s", config, b.Miss(cost))
				}
			}
		}
	})
	spec := job.Default()
	spec.Constraints.MaxLatency = job.Duration(time.Microsecond)
	_, _, err := Space(space.Limits{MaxMatrix: plan.MaxParams, MaxVocab: 2048, MaxContext: 512, Threads: 1}, spec, plan, 1e6, forTest(spec))
	if err == nil || !strings.Contains(err.Error(), "constraints: ") || !strings.Contains(err.Error(), "max_latency allows 1 µs") {
		t.Errorf("a microsecond for a token: %v", err)
	}
}

// A job of three objectives measures each shape once, whatever becomes of its process,
// keeps the models of its trials, and trains the knee of their front.
func TestObjectivesOfABuild(t *testing.T) {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	spec.Objectives = []string{job.BitsPerByte, job.Latency, job.Size}
	spec.Constraints.MaxLatency, spec.Constraints.MaxSizeMB = job.Duration(time.Second), 50
	dir := filepath.Join(t.TempDir(), "run")
	// Stopped after the first rung's sixth trial: what was measured is in the journal alone.
	ended := 0
	o := Options{Dir: dir, Spec: spec}
	n, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n.opts.Events.Journal = func(e journal.Event, _ *journal.State) {
		if e.Kind == journal.TrialEnded {
			if ended++; ended == 6 {
				cancel()
			}
		}
	}
	if err := n.Run(ctx); err == nil {
		t.Fatal("the build was not interrupted")
	}
	if err := build(t, Options{Dir: dir, Resume: true}); err != nil {
		t.Fatal(err)
	}
	log, err := journal.OpenFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	st, err := journal.Replayed(log)
	if err = errors.Join(err, log.Close()); err != nil {
		t.Fatal(err)
	}
	first, again := map[glm.Arch]float64{}, 0
	for _, d := range st.Decisions {
		r := st.Outcomes[d.Seq]
		if r.Cost == nil || r.Cost.Latency <= 0 || r.Cost.Energy <= 0 || r.Cost.EnergyBy == "" || r.Cost.Memory <= 0 {
			t.Fatalf("decision %d: cost %+v", d.Seq, r.Cost)
		}
		a := space.Arch(d.Config)
		if was, ok := first[a]; ok {
			again++
			if was != r.Cost.Latency {
				t.Errorf("decision %d: %s takes %g s a token, was %g: it was measured anew", d.Seq, a, r.Cost.Latency, was)
			}
		}
		first[a] = r.Cost.Latency
	}
	if again == 0 {
		t.Error("no shape was met twice")
	}
	lb := st.Leaderboard("")
	knee := lb.Choice()
	if knee == nil || !knee.Knee || !knee.Front || knee.ID != st.Winner || lb.Final.Cost == nil || len(lb.Final.Misses) > 0 {
		t.Fatalf("%s was trained to the end, the knee is %+v, the final model %+v", st.Winner, knee, lb.Final)
	}
	// Any trial's bundle is what its cost says, and scores as a model does.
	last := lb.Trials[len(lb.Trials)-1]
	out := filepath.Join(t.TempDir(), "bundle")
	e, err := BundleTrial(t.Context(), dir, st, last.ID, out)
	if err != nil {
		t.Fatal(err)
	}
	if e.BitsPerByte <= 0 || e.BitsPerByte > 9 {
		t.Errorf("trial %s scores %g bits per byte", last.ID, e.BitsPerByte)
	}
	size := int64(0)
	for _, f := range []string{bundle.WeightsFile, bundle.TokenizerFile} {
		info, err := os.Stat(filepath.Join(out, f))
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if size != last.Cost.Size {
		t.Errorf("weights and tokenizer take %d bytes, the trial's cost says %d", size, last.Cost.Size)
	}
	if b, err := bundle.Open(out); err != nil || b.Arch != space.Arch(last.Config) {
		t.Errorf("%v", err)
	}
	if _, err := BundleTrial(t.Context(), dir, st, "t099", out); err == nil {
		t.Error("a bundle of no trial")
	}
	// The journal's events say all of this again after a restart.
	b, err := json.Marshal(lb)
	if err != nil {
		t.Fatal(err)
	}
	board, err := os.ReadFile(filepath.Join(dir, "leaderboard.json"))
	if err != nil {
		t.Fatal(err)
	}
	var kept journal.Leaderboard
	if err := json.Unmarshal(board, &kept); err != nil {
		t.Fatal(err)
	}
	kept.Job = ""
	if k, err := json.Marshal(kept); err != nil || string(k) != string(b) {
		t.Errorf("leaderboard.json is not what the journal says:\n%s\n%s", k, b)
	}
}
