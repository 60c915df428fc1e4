package node

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/compress"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/token/tokentest"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Where a trial has come as far as the final model the two vote: the vote is better on the
// text that chose, is said to be what it is on the held-out part, and can be scored from
// its folder alone. Trials that are far behind are not tried.
func TestEnsemble(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log.txt")
	if err := os.WriteFile(file, []byte(actorstest.Text(4000)), 0o644); err != nil { // the guard is a fiftieth
		t.Fatal(err)
	}
	spec := tinySpec(file)
	spec.Budget.Tokens = 60_000
	spec.Space["vocab"], spec.Space["layers"] = "320", "2"
	dir := filepath.Join(t.TempDir(), "run")
	o := Options{Dir: dir, Spec: spec}
	var st *journal.State
	o.Events.Journal = func(_ journal.Event, s *journal.State) { st = s }
	if err := build(t, o); err != nil {
		t.Fatal(err)
	}
	votes := filepath.Join(dir, EnsembleDir)
	if IsEnsemble(votes) {
		t.Error("trials of a few steps were let vote")
	}

	// A trial that was trained to where the final model is, from another beginning.
	loser := st.Decisions[0].Trial
	if loser == st.Winner {
		loser = st.Decisions[1].Trial
	}
	path := filepath.Join(dir, "trials", loser)
	b, err := os.ReadFile(filepath.Join(path, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := ReadConfig("config.json", b, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	cfg.Seed, cfg.LR = 99, 3e-3
	single := Single{Data: dir, Dir: path, Config: cfg, Until: 2 * st.Final.State.Step, Decay: 0.01, EvalTokens: SingleEvalTokens, CPUs: 1}
	rep, err := single.Train(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for seq, out := range st.Outcomes {
		if out.Trial == loser {
			out.Bits = 1.05 * st.Final.Bits // near enough to be tried
			st.Outcomes[seq] = out
		}
	}
	s := newSite(dir, spec, &crew{threads: 1, devices: make([]device.Device, 1)})
	var task train.Task
	if err := s.final(*st, *st.Plan, &task); err != nil {
		t.Fatal(err)
	}
	params, _, err := train.LoadCheckpoint(train.BestDir(task.Dir))
	if err != nil {
		t.Fatal(err)
	}
	vote := func() Ensemble {
		t.Helper()
		if err := s.ensemble(t.Context(), *st, task, params); err != nil {
			t.Fatal(err)
		}
		e, err := ReadEnsemble(votes)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	e := vote()
	if len(e.Members) != 2 || math.Abs(e.Members[0].Weight+e.Members[1].Weight-1) > 1e-9 || !e.Valid.Taken || e.Valid.Bits >= e.Valid.Against || e.HeldOut == nil {
		t.Fatalf("final %.3f, trial %.3f: %+v", st.Final.Bits, rep.Bits, e)
	}
	if again := vote(); again.Valid != e.Valid || *again.HeldOut != *e.HeldOut {
		t.Errorf("again %+v, first %+v", again, e)
	}

	// The vote teaches a student.
	pupil := Compression{
		Bundle: filepath.Join(dir, "bundle"), Out: filepath.Join(t.TempDir(), "pupil"), Teacher: votes,
		Options: compress.Options{MaxLoss: 10, Change: compress.Change{Student: compress.Auto, RecoverSteps: 2}},
	}
	if rep, _, err := Compress(t.Context(), pupil); err != nil || rep.Steps != 2 {
		t.Errorf("taught by the vote: %+v, %v", rep, err)
	}
	small, err := bundle.Open(pupil.Out)
	if err != nil || !strings.Contains(small.Card.Compression, "; taught by ensemble. Measured") {
		t.Errorf("the card is %+v, %v", small.Card, err)
	}
	stranger := filepath.Join(t.TempDir(), "stranger")
	other := *small
	other.Tokenizer = tokentest.Tiny(t, 320)
	if err := bundle.Write(stranger, &other); err != nil {
		t.Fatal(err)
	}
	pupil.Teacher = stranger
	if _, _, err := Compress(t.Context(), pupil); err == nil || !strings.Contains(err.Error(), "another tokenizer") {
		t.Errorf("taught by a stranger: %v", err)
	}

	// Where a trial's best is kept it is that which votes; one that a user stopped does not.
	best, at, err := train.LoadCheckpoint(filepath.Join(path, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	best = train.Parameters(best)
	best[0].Data[0] = 42
	if err := train.SaveCheckpoint(train.BestDir(path), best, at); err != nil {
		t.Fatal(err)
	}
	candidates := func(st journal.State) []Member {
		t.Helper()
		c, err := s.candidates(st, task, params, 1)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := candidates(*st); len(c) != 2 || c[1].Model != loser || c[1].params[0].Data[0] != 42 {
		t.Errorf("%d candidates, want the final model and %s with what gave its score", len(c), loser)
	}
	halted := st.Clone()
	halted.Orders = append(halted.Orders, search.Order{Kind: search.Stop, Trial: loser})
	if c := candidates(halted); len(c) != 1 {
		t.Errorf("%d candidates with %s stopped by a user, want the final model alone", len(c), loser)
	}

	moved := filepath.Join(t.TempDir(), "vote")
	if err := os.Rename(votes, moved); err != nil {
		t.Fatal(err)
	}
	score, err := EvaluateEnsemble(t.Context(), moved, file)
	if err != nil || !(score.BitsPerByte > 0) || score.Bytes == 0 {
		t.Errorf("%+v, %v", score, err)
	}
	for _, m := range e.Members {
		alone := Ensemble{Members: []Member{m}}
		alone.Members[0].Weight = 1
		b, err := json.Marshal(alone)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(moved, EnsembleFile), b, 0o644); err != nil {
			t.Fatal(err)
		}
		one, err := EvaluateEnsemble(t.Context(), moved, file)
		if err != nil || one.BitsPerByte <= score.BitsPerByte || one.Tokens != score.Tokens {
			t.Errorf("%s alone has %+v, the vote %+v: %v", m.Model, one, score, err)
		}
	}
}

func TestReadEnsemble(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{`{"members": [{"model": "final"}]}`, "members[0].arch"},
		{`{`, EnsembleFile},
		{`{"members": []}`, "no vote was better"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, EnsembleFile), []byte(tc.text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := EvaluateEnsemble(t.Context(), dir, "x"); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", tc.text, err)
		}
	}
}
