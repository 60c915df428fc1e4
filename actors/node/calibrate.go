package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/metric"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Bounds of what a calibration looks at: one number needs no more.
const (
	calibrationTokens = 16384
	calibrationBytes  = 256 << 20 // of logits that are kept
	calibrationLeast  = 100       // tokens of each half
)

// Calibrate fits a temperature to half of what a bundle has to say in a file, or for "" in
// the held-out part of the build that left it, and measures on the other half what that
// changes; where that is no gain the temperature is 1. It stands in the bundle's eval.json from then on, beside what is there; nothing
// else of the bundle changes.
func Calibrate(ctx context.Context, dir, file string) (metric.Calibration, error) {
	var none metric.Calibration
	b, err := bundle.Open(dir)
	if err != nil {
		return none, err
	}
	tmp, err := os.MkdirTemp("", "autoglm-calibrate-")
	if err != nil {
		return none, err
	}
	defer os.RemoveAll(tmp)
	e, corpus, err := Compression{Bundle: dir}.corpus(ctx, b, file, "test", "--data", tmp)
	if err != nil {
		return none, err
	}
	defer corpus.Close()
	m, err := native.New(b.Arch, native.Options{Threads: evalThreads(), MaxBatch: 1, MaxSeq: b.Arch.Context, Inference: true})
	if err != nil {
		return none, err
	}
	defer m.Close()
	if err := m.Load(b.Params); err != nil {
		return none, err
	}
	g := gathered{m: m, ctx: ctx, wide: b.Arch.Vocab, vocab: b.Tokenizer.VocabSize()}
	limit := min(calibrationTokens, calibrationBytes/(4*g.vocab))
	if _, err := train.Sample(&g, corpus, b.Arch.Context, 1, int64(limit), nil, train.Share{}); err != nil {
		return none, err
	}
	c := metric.Calibration{Fitted: len(g.targets[0]), Judged: len(g.targets[1]), Part: e.Part, SHA256: e.SHA256}
	if min(c.Fitted, c.Judged) < calibrationLeast {
		return none, fmt.Errorf("%s has %d tokens to fit a temperature to and %d to judge it by; give at least %d, in more windows of the model's context than one", e.Part, c.Fitted, c.Judged, calibrationLeast)
	}
	if c.Temperature, err = metric.Temperature(g.logits[0], g.vocab, g.targets[0]); err != nil {
		return none, err
	}
	if c.Before, err = metric.Believe(g.logits[1], g.vocab, g.targets[1], 1); err != nil {
		return none, err
	}
	if c.After, err = metric.Believe(g.logits[1], g.vocab, g.targets[1], c.Temperature); err != nil {
		return none, err
	}
	if c.After.NLL >= c.Before.NLL { // too little text, or nothing to mend
		c.Temperature, c.After = 1, c.Before
	}
	return c, keepCalibration(dir, b, c)
}

// keepCalibration writes a calibration into a bundle's eval.json, beside all that is there.
func keepCalibration(dir string, b *bundle.Bundle, c metric.Calibration) error {
	path := filepath.Join(dir, bundle.EvalFile)
	fields := map[string]json.RawMessage{}
	if b.Eval != nil {
		if err := json.Unmarshal(b.Eval, &fields); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	raw, err := json.Marshal(c)
	if err != nil {
		return err
	}
	fields["calibration"] = raw
	if raw, err = json.MarshalIndent(fields, "", "  "); err != nil {
		return err
	}
	return durable.WriteFile(path, append(raw, '\n'))
}

// gathered keeps the logits of scored tokens: window by window for the fit and for the
// judgement, by turns.
type gathered struct {
	m       *native.Model
	ctx     context.Context
	wide    int // logits of a token
	vocab   int // of them those of the tokenizer's ids
	windows int
	logits  [2][]float32 // [n, vocab]
	targets [2][]int32
}

// Eval implements train.Evaluator.
func (g *gathered) Eval(b engine.Batch) (float64, int, error) {
	if g.ctx.Err() != nil {
		return 0, 0, context.Cause(g.ctx)
	}
	logits, err := g.m.Logits(b)
	if err != nil {
		return 0, 0, err
	}
	half := g.windows % 2
	g.windows++
	n := 0
	for i, t := range b.Targets {
		if t == engine.Ignore {
			continue
		}
		if int(t) >= g.vocab {
			return 0, 0, errors.New("a token of the text is none of the tokenizer's")
		}
		g.logits[half] = append(g.logits[half], logits[i*g.wide:i*g.wide+g.vocab]...)
		g.targets[half] = append(g.targets[half], t)
		n++
	}
	return 0, n, nil
}
