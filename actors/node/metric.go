package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// metricExamples bounds what the task's own metric is taken on: each example is
// an answer to generate.
const metricExamples = 100

func (s *site) metric(ctx context.Context, a glm.Arch, params engine.StateDict, task data.Task) (string, float64, int, error) {
	tok, err := s.tokenizer(a.Vocab)
	if err != nil {
		return "", 0, 0, err
	}
	return taskMetric(ctx, a, params, tok, s.path("data"), "test", task)
}

// metricOf is the name of a task's metric, and how it compares two answers; "" where the
// task has none.
func metricOf(task data.Task) (name string, compare func(got, want string) float64) {
	switch task {
	case data.TaskClassification:
		return "accuracy", exact
	case data.TaskQA, data.TaskDialogue:
		return "token_f1", tokenF1
	case data.TaskSummary:
		return "rouge_l", rougeL
	}
	return "", nil
}

// checkMetric refuses task_error as an objective where the data's task has no metric.
func (s *site) checkMetric(task data.Task) error {
	if name, _ := metricOf(task); s.spec.Answered() && name == "" {
		return s.input(&job.FieldError{Path: "objectives", Msg: fmt.Sprintf("%s is of answers, and data of task %s has none to compare with; leave it out, or say task_type", job.TaskError, task)})
	}
	return nil
}

// taskError is 1 − the metric of what a task has trained: a trial's on the validation
// part, the final model's on the held-out one.
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
	_, value, n, err := taskMetric(ctx, t.Config.Arch, params, tok, s.path("data"), part, rep.Task)
	if err == nil && n == 0 {
		err = fmt.Errorf("the %s part holds no answer to compare with", part)
	}
	value = 1 - value
	return &value, n, err
}

// taskMetric answers up to metricExamples of a part of the folder greedily and
// compares: exact match for classification (accuracy), token F1 for questions and
// dialogue (Rajpurkar et al. 2016), ROUGE-L F for summaries (Lin 2004). Plain
// text has no metric but bits per byte.
func taskMetric(ctx context.Context, a glm.Arch, params engine.StateDict, tok *token.Tokenizer, dir, part string, task data.Task) (string, float64, int, error) {
	name, compare := metricOf(task)
	if name == "" {
		return "", 0, 0, nil
	}
	r, err := data.OpenPart(dir, part)
	if err != nil {
		return "", 0, 0, err
	}
	defer r.Close()
	dec, err := native.NewDecoder(a, params, native.DecoderOptions{Threads: 1, MaxSeqs: 1})
	if err != nil {
		return "", 0, 0, err
	}
	defer dec.Close()
	eos, _ := tok.SpecialID(data.EOS)
	sum, n := 0.0, 0
	for n < metricExamples {
		ex, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", 0, 0, err
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
			return "", 0, 0, err
		}
		sum += compare(res.Text, want)
		n++
	}
	if n == 0 {
		return "", 0, 0, nil
	}
	return name, sum / float64(n), n, nil
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

// words folds a text to its words; Chinese and other unspaced characters are
// words of their own.
func words(s string) []string {
	var out []string
	var cur strings.Builder
	flush := func() {
		if cur.Len() > 0 {
			out = append(out, cur.String())
			cur.Reset()
		}
	}
	for _, r := range strings.ToLower(s) {
		switch {
		case unicode.In(r, unicode.Han, unicode.Hiragana, unicode.Katakana, unicode.Thai):
			flush()
			out = append(out, string(r))
		case unicode.IsLetter(r) || unicode.IsDigit(r):
			cur.WriteRune(r)
		default:
			flush()
		}
	}
	flush()
	return out
}

func exact(got, want string) float64 {
	if strings.Join(words(got), " ") == strings.Join(words(want), " ") {
		return 1
	}
	return 0
}

func tokenF1(got, want string) float64 {
	g, w := words(got), words(want)
	if len(g) == 0 || len(w) == 0 {
		return exact(got, want)
	}
	count := map[string]int{}
	for _, x := range w {
		count[x]++
	}
	same := 0
	for _, x := range g {
		if count[x] > 0 {
			count[x]--
			same++
		}
	}
	return fMeasure(same, len(g), len(w))
}

// rougeL is the F measure of the longest common subsequence of words.
func rougeL(got, want string) float64 {
	g, w := words(got), words(want)
	if len(g) == 0 || len(w) == 0 {
		return exact(got, want)
	}
	row := make([]int, len(w)+1)
	for _, x := range g {
		prev := 0
		for j, y := range w {
			cur := row[j+1]
			if x == y {
				row[j+1] = prev + 1
			} else {
				row[j+1] = max(row[j+1], row[j])
			}
			prev = cur
		}
	}
	return fMeasure(row[len(w)], len(g), len(w))
}

func fMeasure(same, got, want int) float64 {
	if same == 0 {
		return 0
	}
	p, r := float64(same)/float64(got), float64(same)/float64(want)
	return 2 * p * r / (p + r)
}
