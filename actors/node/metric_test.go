package node

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/metric"
)

func TestLastAnswer(t *testing.T) {
	ex := data.Example{Segments: []data.Segment{
		{Role: data.User, Text: "hi"},
		{Role: data.Assistant, Text: "hello", Scored: true},
		{Role: data.User, Text: "bye"},
		{Role: data.Assistant, Text: "see you", Scored: true},
	}}
	p, want, ok := lastAnswer(ex)
	if !ok || want != "see you" || p != "<|bos|><|user|>hi<|assistant|>hello<|endoftext|><|user|>bye<|assistant|>" {
		t.Errorf("%q %q %v", p, want, ok)
	}
	if _, _, ok := lastAnswer(data.Example{Segments: []data.Segment{{Text: "plain", Scored: true}}}); ok {
		t.Error("a plain text has no answer")
	}
}

// The error of answers is an objective: each trial's is journalled and stands in the
// leaderboard, and that of the final model is on the held-out part.
func TestTaskErrorIsAnObjective(t *testing.T) {
	var b strings.Builder
	for i := range 400 {
		label, text := "calm", "the sea lay still and the sails hung down"
		if i%2 == 1 {
			label, text = "storm", "the wind rose and the masts broke in the dark"
		}
		fmt.Fprintf(&b, "{\"text\": \"%s on day %d\", \"label\": \"%s\"}\n", text, i, label)
	}
	file := filepath.Join(t.TempDir(), "weather.jsonl")
	if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	spec := tinySpec(file)
	spec.TaskType, spec.Objectives, spec.Budget.Tokens = "classification", []string{job.BitsPerByte, job.TaskError}, 60_000
	spec.Metric = "F1-micro"
	dir := filepath.Join(t.TempDir(), "run")
	o := Options{Dir: dir, Spec: spec}
	var st *journal.State
	o.Events.Journal = func(_ journal.Event, s *journal.State) { st = s }
	if err := build(t, o); err != nil {
		t.Fatal(err)
	}
	for _, e := range append(st.Leaderboard("").Trials, *st.Leaderboard("").Final) {
		if c := e.Cost; c == nil || c.Error == nil || c.Answers == 0 || !(*c.Error >= 0 && *c.Error <= 1) {
			t.Errorf("%s has the cost %+v", e.ID, c)
		}
	}
	for seq, r := range st.Outcomes {
		if s := r.Outcome(&st.Spec).Scores; len(s) != 2 || s[1] != *r.Cost.Error {
			t.Errorf("decision %d has the scores %v, cost %+v", seq, s, r.Cost)
		}
	}
	raw, err := os.ReadFile(filepath.Join(dir, "bundle", "eval.json"))
	if err != nil {
		t.Fatal(err)
	}
	var e Evaluation
	if err := json.Unmarshal(raw, &e); err != nil || e.Metric != metric.F1Micro || math.Abs(1-e.Value-*st.Final.Cost.Error) > 1e-9 {
		t.Errorf("the held-out part has %s %v, the final model's error is %v: %v", e.Metric, e.Value, *st.Final.Cost.Error, err)
	}
}

func TestTaskErrorNeedsAnswers(t *testing.T) {
	spec := tinySpec(actorstest.Corpus(t, t.TempDir()))
	spec.Objectives = []string{job.BitsPerByte, job.TaskError}
	err := build(t, Options{Dir: filepath.Join(t.TempDir(), "run"), Spec: spec})
	if err == nil || !strings.Contains(err.Error(), "objectives: task_error is of answers") {
		t.Errorf("of plain text: %v", err)
	}
	spec.Objectives, spec.Metric = nil, "bleu"
	err = build(t, Options{Dir: filepath.Join(t.TempDir(), "run"), Spec: spec})
	if err == nil || !strings.Contains(err.Error(), "metric: bleu is of answers") {
		t.Errorf("a metric of plain text: %v", err)
	}
}
