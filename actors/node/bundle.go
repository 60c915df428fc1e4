package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"

	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/data"
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
	eval, err := os.ReadFile(s.path("trials", "final", "eval.json"))
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
		Card: s.card(st, rep, e, task), Eval: eval,
	}
	return bundle.Write(s.path("bundle"), b)
}

func (s *site) card(st journal.State, rep *data.Report, e Evaluation, task train.Task) bundle.Card {
	name := s.spec.Name
	if name == "" {
		name = "autoglm model"
	}
	c := bundle.Card{
		Name: name, License: s.spec.Licence, Task: string(rep.Task), Seed: s.spec.Seed,
		Summary:  fmt.Sprintf("A language model of %d parameters, built by autoglm from the data below: its shape and hyper-parameters were found by search.", task.Config.Arch.Params()),
		Search:   bundle.SearchSummary{Strategy: s.spec.SearchStrategy, Trials: len(st.Leaderboard("").Trials), Budget: s.budget(), Objective: s.spec.Objective},
		Training: bundle.TrainingSummary{Optimizer: string(task.Config.Optimizer)},
		Scores: []bundle.Score{
			{Name: "bits per byte", Value: e.BitsPerByte, On: fmt.Sprintf("held-out part, %d bytes", e.Bytes)},
			{Name: "perplexity", Value: e.Perplexity, On: "held-out part, a token"},
		},
	}
	if st.Final != nil {
		c.Training.Steps, c.Training.Tokens = st.Final.State.Step, st.Final.State.Tokens
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
