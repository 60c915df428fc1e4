package compress

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Options says what is done. Zero values do nothing.
type Options struct {
	Weights glm.Weights // glm.Int8 or glm.Int4; "" keeps float32
	Change              // of the model itself, before its weights are rounded
	MaxLoss float64     // how much worse the held-out score may get, a share of it
	Threads int         // that score and learn; 0 is 1
}

// Data is what a model is measured on, and what it learns from.
type Data struct {
	Held  *train.Corpus
	Train *train.Corpus // needed for a Change
	// Teachers vote, and the vote is learnt from in place of the whole model's own logits;
	// none where it alone teaches. Its hidden states teach in any case.
	Teachers []Teacher
}

// Measure is what a model costs and how well it does.
type Measure struct {
	Bytes   int64       `json:"bytes"`   // of its weights' file
	Params  int64       `json:"params"`  // parameters
	Memory  int64       `json:"memory"`  // to generate with one thread, bytes
	Latency float64     `json:"latency"` // of a token, seconds
	Weights glm.Weights `json:"weights"`
	Score   train.Score `json:"score"`
}

// Report is a compression, before and after.
type Report struct {
	Before Measure `json:"before"`
	After  Measure `json:"after"`
	Steps  int     `json:"steps,omitempty"` // of recovery
}

// Loss is how much worse the score has become, a share of it.
func (r Report) Loss() float64 { return r.After.Score.BitsPerByte()/r.Before.Score.BitsPerByte() - 1 }

// Said is Loss in words, as "0.40 % worse".
func (r Report) Said() string {
	if l := r.Loss(); l < 0 {
		return fmt.Sprintf("%.2f %% better", -100*l)
	}
	return fmt.Sprintf("%.2f %% worse", 100*r.Loss())
}

// WorseError is a model that lost more than it may.
type WorseError struct {
	Report Report
	Max    float64
}

func (e *WorseError) Error() string {
	return fmt.Sprintf("the compressed model scores %.4f bits per byte, %.2f %% worse than %.4f; at most %.2f %% are allowed, so nothing was written: allow more with --max-loss, or take away less",
		e.Report.After.Score.BitsPerByte(), 100*e.Report.Loss(), e.Report.Before.Score.BitsPerByte(), 100*e.Max)
}

// Validate reports the first option that cannot be used.
func (o Options) Validate() error {
	switch {
	case o.Weights != "" && o.Weights != glm.Int8 && o.Weights != glm.Int4:
		return fmt.Errorf("compress: weights are %q, must be %q or %q", o.Weights, glm.Int8, glm.Int4)
	case math.IsNaN(o.MaxLoss) || o.MaxLoss < 0:
		return fmt.Errorf("compress: max loss is %g, must not be negative", o.MaxLoss)
	case o.Threads < 0:
		return fmt.Errorf("compress: threads is %d, must not be negative", o.Threads)
	case o.Weights == "" && !o.changes():
		return fmt.Errorf("compress: nothing to do; ask for %s or %s weights, pruning or a student", glm.Int8, glm.Int4)
	}
	return o.Change.validate()
}

// changes tells whether the model itself is changed.
func (c Change) changes() bool {
	return c.Prune != 0 || c.Heads != 0 || c.Sparsity != 0 || c.Student != ""
}

// NeedsText tells whether something is learnt.
func (o Options) NeedsText() bool { return o.changes() }

// Run compresses a bundle to the folder out, which it writes whole or, where that is
// worse than allowed, not at all. Describe, which may be nil, completes the bundle that
// is written (its card and eval.json) by what was measured.
func Run(ctx context.Context, e Engine, b *bundle.Bundle, out string, o Options, d Data, describe func(*bundle.Bundle, Report) error) (Report, error) {
	var rep Report
	if err := o.Validate(); err != nil {
		return rep, err
	}
	o.Threads = max(1, o.Threads)
	// Both are measured as folders, beside the one that may come of it.
	parent := filepath.Dir(filepath.Clean(out))
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return rep, err
	}
	tmp, err := os.MkdirTemp(parent, "."+filepath.Base(filepath.Clean(out))+".tmp-")
	if err != nil {
		return rep, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if rep.Before, err = measure(ctx, e, filepath.Join(tmp, "before"), b, o.Threads, d.Held); err != nil {
		return rep, fmt.Errorf("measure the model as it is: %w", err)
	}
	small := *b
	if o.changes() {
		if rep.Steps, err = o.Change.apply(ctx, e, &small, d, o.Threads); err != nil {
			return rep, err
		}
	}
	if o.Weights != "" {
		if small.Params, err = engine.Round(small.Arch, small.Params, o.Weights); err != nil {
			return rep, fmt.Errorf("compress: %w", err)
		}
	}
	if rep.After, err = measure(ctx, e, filepath.Join(tmp, "after"), &small, o.Threads, d.Held); err != nil {
		return rep, fmt.Errorf("measure the compressed model: %w", err)
	}
	if !(rep.Loss() <= o.MaxLoss) {
		return rep, &WorseError{rep, o.MaxLoss}
	}
	if describe != nil {
		if err := describe(&small, rep); err != nil {
			return rep, err
		}
	}
	return rep, bundle.Write(out, &small)
}

// windows are scored at once.
const windows = 8

// timeBound is how long tokens are timed; only tests change it.
var timeBound = time.Second

// measure writes a bundle to a folder, opens it and measures what that generates with.
func measure(ctx context.Context, e Engine, dir string, b *bundle.Bundle, threads int, held *train.Corpus) (Measure, error) {
	var m Measure
	if err := bundle.Write(dir, b); err != nil {
		return m, err
	}
	b, err := bundle.Open(dir)
	if err != nil {
		return m, err
	}
	info, err := os.Stat(filepath.Join(dir, bundle.WeightsFile))
	if err != nil {
		return m, err
	}
	one, err := e.Decoder(b.Arch, b.Params, 1, 1)
	if err != nil {
		return m, err
	}
	defer one.Close()
	m = Measure{Bytes: info.Size(), Params: b.Arch.Params(), Weights: one.Weights()}
	m.Memory = b.Arch.DecodingBytes(m.Weights, 1, 1)
	if m.Latency, err = serve.Latency(ctx, one, b.Arch, timeBound); err != nil {
		return m, err
	}
	many, err := e.Decoder(b.Arch, b.Params, threads, windows)
	if err != nil {
		return m, err
	}
	defer many.Close()
	m.Score, err = train.Sliding(ctx, many, held, b.Arch.Context, windows, train.Share{})
	return m, err
}
