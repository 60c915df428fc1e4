package node

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"

	"github.com/open-autoglm/autoglm/actors/worker"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/metric"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Evaluation is eval.json.
type Evaluation struct {
	Part        string  `json:"part"`   // what was scored: "held-out", or a file's name
	SHA256      string  `json:"sha256"` // of the held-out part
	Task        string  `json:"task"`
	Bytes       int64   `json:"bytes"`
	Tokens      int64   `json:"tokens"`
	NLL         float64 `json:"nll"` // nats, summed
	BitsPerByte float64 `json:"bits_per_byte"`
	Perplexity  float64 `json:"perplexity"` // of a token
	Metric      string  `json:"metric"`     // the task's own
	Value       float64 `json:"value"`
	Examples    int     `json:"examples,omitempty"` // that the metrics of answers were taken on

	Metrics     map[string]float64  `json:"metrics,omitempty"`     // those that were asked for, by name
	Calibration *metric.Calibration `json:"calibration,omitempty"` // that autoglm calibrate fitted
}

// evalSequences is the number of windows of one Eval.
const evalSequences = 8

// Evaluate implements actors.Work: the finished model on the held-out part.
func (s *site) Evaluate(ctx context.Context, st journal.State) (score train.Score, on *journal.Placed, err error) {
	if err := s.folder.Pull(ctx); err != nil {
		return score, on, err
	}
	if score, on, err = s.evaluate(ctx, st); err == nil {
		err = s.folder.Keep(ctx)
	}
	return score, on, err
}

func (s *site) evaluate(ctx context.Context, st journal.State) (score train.Score, on *journal.Placed, err error) {
	var task train.Task
	if err := s.final(st, *st.Plan, &task); err != nil {
		return score, on, err
	}
	tensors, _, err := train.LoadCheckpoint(train.BestDir(task.Dir))
	if err != nil {
		return score, on, err
	}
	e, score, on, err := s.heldOut(ctx, task, tensors)
	if err != nil {
		return score, on, err
	}
	b, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return score, on, err
	}
	if err := durable.WriteFile(s.path("trials", "final", "eval.json"), append(b, '\n')); err != nil {
		return score, on, err
	}
	if s.spec.Ensemble == "auto" && !s.crew.on.CUDA { // the vote is scored on processors, which a GPU's models are too large for
		if err := s.ensemble(ctx, st, task, tensors); err != nil {
			if context.Cause(ctx) != nil {
				return score, on, err
			}
			s.notice(fmt.Sprintf("no ensemble was made: %v", err))
		}
	}
	return score, on, nil
}

// heldOut scores what a task has trained on the held-out part.
func (s *site) heldOut(ctx context.Context, task train.Task, tensors engine.StateDict) (e Evaluation, score train.Score, on *journal.Placed, err error) {
	rep, err := s.report()
	if err != nil {
		return e, score, on, err
	}
	a := task.Config.Arch
	if err := s.ensure(ctx, a.Vocab, false); err != nil {
		return e, score, on, err
	}
	if score, on, err = s.score(ctx, task, tensors, s.corpus(a.Vocab, "test")); err != nil {
		return e, score, on, err
	}
	if bits := score.BitsPerByte(); math.IsNaN(bits) || math.IsInf(bits, 0) {
		return e, score, on, fmt.Errorf("the held-out loss is not a number")
	}
	e = Evaluation{
		Part: "held-out", SHA256: rep.HeldOut.SHA256, Task: string(rep.Task), Bytes: score.Bytes, Tokens: score.Tokens, NLL: score.NLL,
		BitsPerByte: score.BitsPerByte(), Perplexity: score.Perplexity(),
	}
	e.Metric, e.Value, e.Examples, err = s.metric(ctx, a, tensors, rep.Task)
	return e, score, on, err
}

// score scores a finished model: on one of the job's GPUs where place lets it,
// otherwise, and where that fails, on the processors. It says where it did.
func (s *site) score(ctx context.Context, task train.Task, tensors engine.StateDict, corpus string) (train.Score, *journal.Placed, error) {
	if !s.crew.on.CUDA {
		score, err := s.scoreHere(ctx, task.Config.Arch, tensors, corpus)
		return score, nil, err
	}
	gpus, cpu := s.place(ctx)
	for _, c := range gpus {
		score, err := s.crew.hosts[c.gpu].Score(ctx, worker.Scoring{
			On: s.crew.on, Threads: s.crew.threads, Config: task.Config, Params: train.BestDir(task.Dir), Corpus: corpus, Windows: evalSequences,
		})
		if err == nil || context.Cause(ctx) != nil {
			return score, &c.Placed, err
		}
		why := firstLines(err.Error(), 6)
		s.notice(fmt.Sprintf("%s does not score the model: %s", c.Device, why))
		cpu.Reason = fmt.Sprintf("%s does not score: %s", c.Device, why)
	}
	score, err := s.scoreHere(ctx, task.Config.Arch, tensors, corpus)
	return score, &cpu, err
}

// scoreHere scores on the processors.
func (s *site) scoreHere(ctx context.Context, a glm.Arch, tensors engine.StateDict, corpus string) (train.Score, error) {
	m, err := native.New(a, native.Options{Threads: s.cores(), MaxBatch: evalSequences, MaxSeq: a.Context, Inference: true})
	if err != nil {
		return train.Score{}, err
	}
	defer m.Close()
	if err := m.Load(tensors); err != nil {
		return train.Score{}, err
	}
	c, err := train.OpenCorpus(corpus)
	if err != nil {
		return train.Score{}, err
	}
	defer c.Close()
	return train.Sliding(ctx, m, c, a.Context, evalSequences, train.Share{})
}

// EvaluateFile scores a bundle on a user's file: a plain text as one document,
// divided by the bytes of the file; a file of examples on what the model has to
// say in each, and by the task's own metric. Of more metrics it takes those that are asked
// for.
func EvaluateFile(ctx context.Context, b *bundle.Bundle, path string, more []metric.Metric) (Evaluation, error) {
	dir, err := os.MkdirTemp("", "autoglm-eval-")
	if err != nil {
		return Evaluation{}, err
	}
	defer os.RemoveAll(dir)
	e, c, p, err := layFile(ctx, b.Tokenizer, path, dir)
	if err != nil {
		return e, err
	}
	defer c.Close()
	m, err := native.New(b.Arch, native.Options{Threads: evalThreads(), MaxBatch: evalSequences, MaxSeq: b.Arch.Context, Inference: true})
	if err != nil {
		return e, err
	}
	defer m.Close()
	if err := m.Load(b.Params); err != nil {
		return e, err
	}
	score, err := train.Sliding(ctx, m, c, b.Arch.Context, evalSequences, train.Share{})
	if err != nil {
		return e, err
	}
	e.scored(score)
	sample := metric.Sample{NLL: e.NLL, Bytes: e.Bytes}
	own := metricOf(p.Task)
	if p.Files[0].Format != "text" && (own != nil || len(more) > 0) {
		if sample.Answers, err = answersOf(ctx, b.Arch, b.Params, b.Tokenizer, dir, "test"); err != nil {
			return e, err
		}
	}
	if own != nil && len(sample.Answers) > 0 {
		e.Metric, e.Examples = own.Name, len(sample.Answers)
		if e.Value, err = own.Of(sample); err != nil {
			return e, err
		}
	}
	return e, e.measure(sample, more)
}

// measure takes metrics of a sample.
func (e *Evaluation) measure(s metric.Sample, ms []metric.Metric) error {
	for _, m := range ms {
		v, err := m.Of(s)
		if errors.Is(err, metric.ErrNoAnswers) {
			return &data.InputError{Msg: fmt.Sprintf("%s holds no answers, of which %s is", e.Part, m.Name), Hint: "give a file of prompts with their answers, such as JSONL with the fields prompt and response"}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		if e.Metrics == nil {
			e.Metrics = map[string]float64{}
		}
		e.Metrics[m.Name], e.Examples = v, len(s.Answers)
	}
	return nil
}

// evalThreads are those of a score that no job is part of.
func evalThreads() int { return min(runtime.NumCPU(), evalSequences) }

func (e *Evaluation) scored(s train.Score) {
	e.Bytes, e.Tokens, e.NLL, e.BitsPerByte, e.Perplexity = s.Bytes, s.Tokens, s.NLL, s.BitsPerByte(), s.Perplexity()
}

// layFile lays a user's file down as tokens, in a folder of the caller's.
func layFile(ctx context.Context, tok *token.Tokenizer, path, dir string) (Evaluation, *train.Corpus, *data.ProbeResult, error) {
	e := Evaluation{Part: path}
	cfg := data.DefaultConfig()
	cfg.Files, cfg.Exact, cfg.Near, cfg.MinLength = []string{path}, false, false, 0
	p, err := data.Probe(ctx, cfg)
	if err != nil {
		return e, nil, nil, err
	}
	e.Task = string(p.Task)
	bin := filepath.Join(dir, "test.bin")
	if p.Files[0].Format == "text" {
		text, err := os.ReadFile(path)
		if err != nil {
			return e, nil, nil, err
		}
		sum := sha256.Sum256(text)
		e.SHA256 = hex.EncodeToString(sum[:])
		src := &document{text: string(text)}
		if err := train.Tokenize(ctx, src, tok, bin, false); err != nil {
			return e, nil, nil, err
		}
	} else {
		cfg.Valid = []string{path}
		if _, err := data.Prepare(ctx, cfg, dir, data.Events{}); err != nil {
			return e, nil, nil, err
		}
		r, err := data.OpenPart(dir, "test")
		if err != nil {
			return e, nil, nil, err
		}
		err = train.Tokenize(ctx, r, tok, bin, false)
		if err = errors.Join(err, r.Close()); err != nil {
			return e, nil, nil, err
		}
	}
	c, err := train.OpenCorpus(bin)
	return e, c, p, err
}

// document is one plain text.
type document struct {
	text string
	done bool
}

// Next implements train.Examples.
func (d *document) Next() (data.Example, error) {
	if d.done {
		return data.Example{}, io.EOF
	}
	d.done = true
	return data.Example{Segments: []data.Segment{{Text: d.text, Scored: true}}}, nil
}
