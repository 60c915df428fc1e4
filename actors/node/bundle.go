package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sort"
	"strings"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// bundle writes OUT/bundle. It holds nothing that depends on the clock, so that
// a build with a budget in trials gives the same bytes each time.
func (s *site) bundle(_ context.Context, st journal.State) error {
	var task train.Task
	if err := s.final(st, *st.Plan, &task); err != nil {
		return err
	}
	eval, err := os.ReadFile(s.path("trials", "final", "eval.json"))
	if err != nil {
		return err
	}
	return s.pack(s.path("bundle"), st, task, eval, st.Final)
}

// pack writes a bundle of what a task has trained, which ended as the report says.
func (s *site) pack(dir string, st journal.State, task train.Task, eval []byte, ended *journal.TrialReport) error {
	tensors, _, err := train.LoadCheckpoint(train.BestDir(task.Dir))
	if err != nil {
		return err
	}
	tok, err := s.tokenizer(task.Config.Arch.Vocab)
	if err != nil {
		return err
	}
	rep, err := s.report()
	if err != nil {
		return err
	}
	var e Evaluation
	if err := json.Unmarshal(eval, &e); err != nil {
		return err
	}
	g := bundle.DefaultGeneration()
	g.Sample, g.Temperature, g.TopP, g.MaxNewTokens = true, 0.8, 0.95, min(256, task.Config.Arch.Context)
	b := &bundle.Bundle{
		Arch: task.Config.Arch, Params: tensors, Tokenizer: tok, Generation: g, ChatTemplate: data.ChatTemplate(),
		Card: s.card(st, rep, e, task, ended), Eval: eval,
	}
	return bundle.Write(dir, b)
}

// BundleTrial makes a bundle of a trial in the folder of a job that nobody carries out
// now, from the parameters that gave its score, and scores it on the held-out part. Only
// jobs that ask for the cost of generating keep those.
func BundleTrial(ctx context.Context, dir string, st *journal.State, trial, out string) (Evaluation, error) {
	var ended *journal.TrialReport
	start := begun(*st, trial)
	for _, d := range st.Decisions { // the last one has left the parameters
		if r, ok := st.Outcomes[d.Seq]; ok && d.Trial == trial && !r.Failed {
			ended = &r
		}
	}
	switch {
	case start == nil:
		return Evaluation{}, fmt.Errorf("%s %w %q: it had no such trial; autoglm leaderboard %s lists them", dir, ErrNoTrial, trial, dir)
	case ended == nil:
		return Evaluation{}, fmt.Errorf("%s %w %s: it has no score", dir, ErrNoTrial, trial)
	case !st.Spec.Costed():
		return Evaluation{}, fmt.Errorf("%s %w %s: jobs do that have several objectives, or constraints on what generating costs", dir, ErrNoTrial, trial)
	}
	s := newSite(dir, st.Spec, &crew{threads: 1})
	task := train.Task{Trial: trial, Dir: s.path("trials", trial), Config: trialConfig(st.Spec, *st.Plan, start)}
	tensors, _, err := train.LoadCheckpoint(train.BestDir(task.Dir))
	if err != nil {
		return Evaluation{}, err
	}
	e, _, _, err := s.heldOut(ctx, task, tensors)
	if err != nil {
		return e, err
	}
	eval, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return e, err
	}
	return e, s.pack(out, *st, task, append(eval, '\n'), ended)
}

func (s *site) card(st journal.State, rep *data.Report, e Evaluation, task train.Task, ended *journal.TrialReport) bundle.Card {
	name := s.spec.Name
	if name == "" {
		name = "autoglm model"
	}
	trial := task.Trial
	if task.Final {
		trial = st.Winner
	}
	c := bundle.Card{
		Name: name, License: s.spec.Licence, Task: string(rep.Task), Seed: s.spec.Seed, Job: jobHash(s.spec), Trial: trial, Versions: versions(),
		Summary:  fmt.Sprintf("A language model of %d parameters, built by autoglm from the data below: its shape and hyper-parameters were found by search.", task.Config.Arch.Params()),
		Search:   bundle.SearchSummary{Strategy: s.spec.SearchStrategy, Trials: len(st.Leaderboard("").Trials), Budget: s.budget(), Objective: strings.Join(s.spec.Goals(), ", ")},
		Training: bundle.TrainingSummary{Optimizer: string(task.Config.Optimizer)},
		Scores: []bundle.Score{
			{Name: "bits per byte", Value: e.BitsPerByte, On: fmt.Sprintf("held-out part, %d bytes", e.Bytes)},
			{Name: "perplexity", Value: e.Perplexity, On: "held-out part, a token"},
		},
	}
	if ended != nil {
		c.Training.Steps, c.Training.Tokens = ended.State.Step, ended.State.Tokens
	}
	if e.Metric != "" {
		c.Scores = append(c.Scores, bundle.Score{Name: e.Metric, Value: e.Value, On: fmt.Sprintf("%d held-out examples", e.Examples)})
	}
	var cleaning []bundle.CleaningCount
	for r, n := range rep.Rules {
		if n.Dropped+n.Repaired > 0 {
			cleaning = append(cleaning, bundle.CleaningCount{Rule: string(r), Count: n.Dropped + n.Repaired})
		}
	}
	sort.Slice(cleaning, func(i, j int) bool { return cleaning[i].Rule < cleaning[j].Rule })
	src := bundle.DataSource{Name: "training data", Files: len(rep.Files), Bytes: rep.Parts["train"].Bytes, SHA256: rep.Parts["train"].SHA256, Cleaning: cleaning}
	if len(rep.Files) == 1 {
		src.Name = filepath.Base(rep.Files[0].File)
	}
	c.Data = []bundle.DataSource{src}
	return c
}

// jobHash tells jobs apart by what they ask for: neither by the folders that their files
// lie in, nor by where and how they are carried out, which changes no byte of the model.
func jobHash(spec job.Spec) string {
	base := func(paths []string) []string {
		out := make([]string, len(paths))
		for i, p := range paths {
			out[i] = filepath.Base(p)
		}
		return out
	}
	spec.Data.Files, spec.Data.Valid, spec.WarmStart = base(spec.Data.Files), base(spec.Data.Valid), base(spec.WarmStart)
	spec.HardwareConstraint, spec.Backend, spec.Isolation, spec.Pinning, spec.PlaintextCollectives = "", "", "", "", false
	spec.Placement, spec.Priority, spec.Retries, spec.Stages = job.Placement{}, 0, 0, nil
	b, err := json.Marshal(spec)
	if err != nil {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

// versions are those of this program, as its build knows them.
func versions() []bundle.Version {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return nil
	}
	v := []bundle.Version{{Name: "autoglm", Version: cmp.Or(info.Main.Version, "(devel)")}, {Name: "go", Version: info.GoVersion}}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v = append(v, bundle.Version{Name: "revision", Version: s.Value})
		}
	}
	return v
}

func (s *site) budget() string {
	b := s.spec.Budget
	switch {
	case b.Trials > 0:
		return fmt.Sprintf("%d trials", b.Trials)
	case b.Tokens > 0:
		return fmt.Sprintf("%d tokens", b.Tokens)
	}
	return b.WallClock.String()
}
