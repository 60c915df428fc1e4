package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/metric"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// metricExamples bounds what the task's own metric is taken on: each example is
// an answer to generate.
const metricExamples = 100

// metric measures a model by the job's metric on the held-out part: its name, "" where
// the task has none, its value, and on how many answers.
func (s *site) metric(ctx context.Context, a glm.Arch, params engine.StateDict, task data.Task) (string, float64, int, error) {
	tok, err := s.tokenizer(a.Vocab)
	if err != nil {
		return "", 0, 0, err
	}
	return taskMetric(ctx, a, params, tok, s.path("data"), "test", s.metricOf(task))
}

// metricOf is the metric of a task's answers: the one that the job names, or the task's
// own; nil where the task has no answers.
func (s *site) metricOf(task data.Task) *metric.Metric {
	own := metricOf(task)
	if m, named := metric.Lookup(s.spec.Metric); named && own != nil {
		return &m
	}
	return own
}

// metricOf is a task's own metric; nil where it has no answers.
func metricOf(task data.Task) *metric.Metric {
	name := ""
	switch task {
	case data.TaskClassification:
		name = metric.Accuracy
	case data.TaskQA, data.TaskDialogue:
		name = metric.TokenF1
	case data.TaskSummary:
		name = metric.RougeL
	}
	if m, ok := metric.Lookup(name); ok {
		return &m
	}
	return nil
}

// checkMetric refuses task_error as an objective, and a metric of answers, where the
// data's task has none.
func (s *site) checkMetric(task data.Task) error {
	if metricOf(task) != nil {
		return nil
	}
	if s.spec.Answered() {
		return s.input(&job.FieldError{Path: "objectives", Msg: fmt.Sprintf("%s is of answers, and data of task %s has none to compare with; leave it out, or say task_type", job.TaskError, task)})
	}
	if s.spec.NamesMetric() {
		return s.input(&job.FieldError{Path: "metric", Msg: fmt.Sprintf("%s is of answers, and data of task %s has none to compare with; leave it out, or say task_type", s.spec.Metric, task)})
	}
	return nil
}

// taskError is how far from the best the metric of what a task has trained is: a trial's
// on the validation part, the final model's on the held-out one.
func (s *site) taskError(ctx context.Context, t train.Task) (*float64, int, error) {
	rep, err := s.report()
	if err != nil {
		return nil, 0, err
	}
	tok, err := s.tokenizer(t.Config.Arch.Vocab)
	if err != nil {
		return nil, 0, err
	}
	params, _, err := train.LoadCheckpoint(train.BestDir(t.Dir))
	if err != nil {
		return nil, 0, err
	}
	part := "valid"
	if t.Final {
		part = "test"
	}
	m := s.metricOf(rep.Task)
	_, value, n, err := taskMetric(ctx, t.Config.Arch, params, tok, s.path("data"), part, m)
	if err == nil && n == 0 {
		err = fmt.Errorf("the %s part holds no answer to compare with", part)
	}
	if err != nil {
		return nil, n, err
	}
	value = m.Error(value)
	return &value, n, nil
}

// taskMetric is a metric of the answers that a model gives to a part of the folder, and on
// how many; of nil, and where there are none, it is "".
func taskMetric(ctx context.Context, a glm.Arch, params engine.StateDict, tok *token.Tokenizer, dir, part string, m *metric.Metric) (string, float64, int, error) {
	if m == nil {
		return "", 0, 0, nil
	}
	answers, err := answersOf(ctx, a, params, tok, dir, part)
	if err != nil || len(answers) == 0 {
		return "", 0, 0, err
	}
	v, err := m.Of(metric.Sample{Answers: answers})
	return m.Name, v, len(answers), err
}

// answersOf answers up to metricExamples of a part of the folder greedily.
func answersOf(ctx context.Context, a glm.Arch, params engine.StateDict, tok *token.Tokenizer, dir, part string) ([]metric.Answer, error) {
	r, err := data.OpenPart(dir, part)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	dec, err := native.NewDecoder(a, params, native.DecoderOptions{Threads: 1, MaxSeqs: 1})
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	eos, _ := tok.SpecialID(data.EOS)
	var out []metric.Answer
	for len(out) < metricExamples {
		ex, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		prompt, want, ok := lastAnswer(ex)
		if !ok {
			continue
		}
		ids := tok.EncodeSpecial(nil, prompt)
		budget := min(64, a.Context/2)
		if room := a.Context - budget; len(ids) > room {
			ids = ids[len(ids)-room:] // what the model can see of it
		}
		res, err := serve.Generate(ctx, dec, tok, serve.Request{IDs: ids, Context: a.Context, MaxTokens: budget, EOS: []int32{eos}}, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, metric.Answer{Got: res.Text, Want: want})
	}
	return out, nil
}

// lastAnswer splits an example before its last scored answer.
func lastAnswer(ex data.Example) (prompt, want string, ok bool) {
	at := -1
	for i, s := range ex.Segments {
		if s.Role == data.Assistant && s.Scored {
			at = i
		}
	}
	if at < 0 {
		return "", "", false
	}
	var b strings.Builder
	b.WriteString(data.BOS)
	for _, s := range ex.Segments[:at] {
		b.WriteString(s.Role + s.Text)
		if s.Role == data.Assistant {
			b.WriteString(data.EOS)
		}
	}
	return b.String() + data.Assistant, ex.Segments[at].Text, true
}
