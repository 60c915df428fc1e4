package node

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// searched is a job that was cut off when its search was over.
func searched(t *testing.T, spec job.Spec) (dir string, st *journal.State) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "searched")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := Options{Dir: dir, Spec: spec}
	o.Events.Journal = func(e journal.Event, s *journal.State) {
		if e.Kind == journal.StageStarted && e.Stage == job.StageTrain {
			st = s
			cancel()
		}
	}
	n, err := Open(o)
	if err == nil {
		err = n.Run(ctx)
	}
	if !errors.Is(err, ErrInterrupted) || st.Winner != "" {
		t.Fatalf("%v, winner %q", err, st.Winner)
	}
	return dir, st
}

// A final training of a larger model than the winner ends the same when it is interrupted
// at once after that was decided and while it trains.
func TestGrownFinalRepeats(t *testing.T) {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	dir, st := searched(t, spec)
	board := st.Leaderboard("")
	winner := board.Choice()
	grown := winner.Config.Clone()
	grown[space.Layers] = space.Number(3)
	grown[space.Dim], grown[space.Heads], grown[space.KVHeads] = space.Number(128), space.Number(2*winner.Config.Float(space.Heads)), space.Number(2*winner.Config.Float(space.KVHeads))
	rec, err := journal.Event{
		Kind: journal.FinalStarted, Active: st.Active, Trial: &journal.TrialReport{Trial: winner.ID, Seq: -1, Bits: *winner.Bits},
		Sizing: &search.Sizing{Heirs: []search.Heir{{Config: winner.Config, Params: 1}, {Config: grown, Params: 2}}, Taken: 1, Why: "grown by a test"},
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	log, err := journal.OpenFile(filepath.Join(dir, "journal"))
	if err == nil {
		err = errors.Join(log.Append(rec, true), log.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	run := filepath.Join(t.TempDir(), "run")
	if err := os.CopyFS(run, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}

	o := Options{Dir: dir, Resume: true}
	o.Events.Journal = func(_ journal.Event, s *journal.State) { st = s }
	if err := build(t, o); err != nil {
		t.Fatal(err)
	}
	final := st.Leaderboard("").Final
	if !maps.Equal(final.Config, grown) || final.Params != space.Arch(grown).Params() || !strings.Contains(final.Reason, "grown by a test") {
		t.Errorf("the final model is %+v", final)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "bundle", "config.json")); err != nil || !strings.Contains(string(b), `"hidden_size": 128`) {
		t.Errorf("the bundle's config.json: %s %v", b, err)
	}

	at := []journal.Kind{journal.Resumed, journal.StageStarted, journal.Tick}
	n := interrupted(t, Options{Dir: run, Resume: true}, func() func(journal.Event) bool {
		var stop journal.Kind
		if len(at) > 0 {
			stop, at = at[0], at[1:]
		}
		return func(e journal.Event) bool { return e.Kind == stop }
	})
	if n < 2 {
		t.Errorf("interrupted %d times", n)
	}
	if outcome(t, run) != outcome(t, dir) {
		t.Error("the outcome differs from the undisturbed run's")
	}
}

// What the final training may be of is within all that the job says.
func TestHeirs(t *testing.T) {
	free := tinySpec(actorstest.Corpus(t, t.TempDir()))
	free.Space["dim"], free.Space["layers"] = "[64, 128]", "int(1, 4)"
	free.Space["vocab"] = "320"
	dir, st := searched(t, free)
	winner := st.Decisions[0].Config.Clone()
	for n, v := range map[string]float64{space.Dim: 64, space.Layers: 1, space.Heads: 2, space.KVHeads: 2} {
		winner[n] = space.Number(v)
	}
	size := space.Arch(winner).MatrixParams()
	for _, c := range []struct {
		name    string
		change  func(*job.Spec, *search.Plan)
		largest int64 // trial
		most    int64 // of matrices; the largest heir is as large, or the winner where that is 0
		none    bool
	}{
		{name: "clock", change: func(_ *job.Spec, p *search.Plan) { p.Unit = search.Seconds }, most: growMost * size},
		{name: "clock, after larger trials", change: func(_ *job.Spec, p *search.Plan) { p.Unit = search.Seconds }, largest: 5 * size, most: 5 * size},
		{name: "tokens", change: func(_ *job.Spec, p *search.Plan) { p.MaxParams = 2 * size }, most: 2 * size},
		{name: "tokens for the winner alone", change: func(_ *job.Spec, p *search.Plan) { p.MaxParams = size }, none: true},
		{name: "fixed by the space", change: func(s *job.Spec, p *search.Plan) {
			s.Space["dim"], s.Space["layers"], p.Unit = "64", "1", search.Seconds
		}, none: true},
		{name: "layers fixed", change: func(s *job.Spec, p *search.Plan) { s.Space["layers"], p.Unit = "1", search.Seconds }, most: growMost * size},
		{name: "max_params", change: func(s *job.Spec, p *search.Plan) {
			s.Constraints.MaxParams, p.Unit = space.Arch(winner).Params()+1000, search.Seconds
		}, none: true},
		{name: "max_size_mb", change: func(s *job.Spec, p *search.Plan) { s.Constraints.MaxSizeMB, p.Unit = 0.5, search.Seconds }, none: true},
		{name: "memory", change: func(s *job.Spec, p *search.Plan) { s.Constraints.MaxMemoryMB, p.Unit = 2, search.Seconds }, none: true},
	} {
		spec, p := free, *st.Plan
		spec.Space = maps.Clone(free.Space)
		c.change(&spec, &p)
		got, err := newSite(dir, spec, &crew{threads: 1}).heirs(p, winner, c.largest)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !maps.Equal(got[0], winner) || c.none != (len(got) == 1) {
			t.Errorf("%s: %d models, the first is %v", c.name, len(got), got[0])
		}
		for _, h := range got[1:] {
			a := space.Arch(h)
			if a.MatrixParams() > c.most || a.HeadDim() != space.Arch(winner).HeadDim() {
				t.Errorf("%s: %s has %d parameters in matrices, at most %d", c.name, a, a.MatrixParams(), c.most)
			}
			if _, err := glm.NewGrowth(a, space.Arch(winner)); err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if spec.Space["layers"] == "1" && a.Layers != 1 {
				t.Errorf("%s: %s", c.name, a)
			}
		}
	}
}

// What a trial had read that another's weights came from counts for that one's scores.
func TestLawPoints(t *testing.T) {
	conf := space.Config{space.Vocab: space.Number(320), space.Dim: space.Number(64), space.Layers: space.Number(2), space.Heads: space.Number(2), space.KVHeads: space.Number(2), space.FFNRatio: space.Number(3), space.Context: space.Number(32), space.Tied: space.Word("true")}
	report := func(tokens int64, bits float64, curve ...search.Point) journal.TrialReport {
		return journal.TrialReport{Bits: bits, State: train.State{Tokens: tokens, Curve: curve}}
	}
	st := journal.State{Plan: &search.Plan{Cool: 0.25}, Outcomes: map[int]journal.TrialReport{
		0: report(100, 3, search.Point{Resource: 5, Score: 3.5}),
		1: report(300, 2.5, search.Point{Resource: 5, Score: 3.5}, search.Point{Resource: 20, Score: 2.8}),
		2: report(100, 2.2),
		4: {Failed: true},
		5: {Bits: 3.1, Stopped: "its rule", State: train.State{Tokens: 60, Curve: []search.Point{{Resource: 6, Score: 3.1}}}},
		6: {Stopped: "a user", State: train.State{Tokens: 60}},
	}}
	for i, d := range []search.Decision{
		{Action: search.Start, Trial: "a", Resource: 10},
		{Action: search.Promote, Trial: "a", From: 10, Resource: 30},
		{Action: search.Start, Trial: "b", Resource: 10, Inherit: "a"},
		{Action: search.Start, Trial: "c", Resource: 10}, // which runs
		{Action: search.Start, Trial: "d", Resource: 10},
		{Action: search.Start, Trial: "e", Resource: 10},
		{Action: search.Start, Trial: "f", Resource: 10},
	} {
		d.Seq, d.Config = i, conf
		st.Decisions = append(st.Decisions, d)
	}
	points, head := lawPoints(st, map[int]float64{320: 2}, 1e9)
	want := []search.LawPoint{
		{Trial: "a", Text: 100, Score: 3.5, Warm: true},
		{Trial: "a", Text: 200, Score: 3},
		{Trial: "a", Text: 400, Score: 2.8, Warm: true},
		{Trial: "a", Text: 600, Score: 2.5},
		{Trial: "b", Text: 650, Score: 2.2},
		{Trial: "e", Text: 120, Score: 3.1, Warm: true},
	}
	if head["b"] != 450 {
		t.Errorf("b began after %g bytes", head["b"])
	}
	if len(points) != len(want) {
		t.Fatalf("%+v", points)
	}
	for i, p := range points {
		want[i].Params = float64(space.Arch(conf).MatrixParams())
		if p != want[i] {
			t.Errorf("%+v, want %+v", p, want[i])
		}
	}
}
