package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/compress"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Compression is what is asked of Compress.
type Compression struct {
	Bundle, Out string // folders
	Options     compress.Options
	// Files to measure on and to learn from; "" is the held-out and the training part of
	// the build that left the bundle.
	Data, Train string
	Teacher     string // folder of a bundle, or of an ensemble, that teaches; "" is the bundle itself
}

// Compress compresses a bundle and says on what it was measured.
func Compress(ctx context.Context, c Compression) (rep compress.Report, part string, err error) {
	b, err := bundle.Open(c.Bundle)
	if err != nil {
		return rep, "", err
	}
	tmp, err := os.MkdirTemp("", "autoglm-compress-")
	if err != nil {
		return rep, "", err
	}
	defer os.RemoveAll(tmp)
	e, held, err := c.corpus(ctx, b, c.Data, "test", "--data", tmp)
	if err != nil {
		return rep, "", err
	}
	defer held.Close()
	d := compress.Data{Held: held}
	if c.Options.NeedsText() {
		if _, d.Train, err = c.corpus(ctx, b, c.Train, "train", "--train", filepath.Join(tmp, "train")); err != nil {
			return rep, "", err
		}
		defer d.Train.Close()
	}
	if c.Teacher != "" {
		if d.Teachers, err = teachers(c.Teacher, b.Tokenizer); err != nil {
			return rep, "", err
		}
	}
	rep, err = compress.Run(ctx, onCPU{}, b, c.Out, c.Options, d, func(small *bundle.Bundle, rep compress.Report) error {
		e.scored(rep.After.Score)
		task := data.Task(e.Task)
		if c.Data == "" {
			e.Metric, e.Value, e.Examples, err = taskMetric(ctx, small.Arch, small.Params, small.Tokenizer, c.build(), "test", metricOf(task))
			if err != nil {
				return err
			}
		}
		raw, err := json.MarshalIndent(e, "", "  ")
		if err != nil {
			return err
		}
		small.Eval = append(raw, '\n')
		small.AppendCompression(compressionCard(c, rep, e.Part))
		return nil
	})
	return rep, e.Part, err
}

// teachers are the models of a bundle's or an ensemble's folder, which must have the same
// tokenizer.
func teachers(dir string, tok *token.Tokenizer) ([]compress.Teacher, error) {
	var own *token.Tokenizer
	var out []compress.Teacher
	if IsEnsemble(dir) {
		e, err := openEnsemble(dir)
		if err != nil {
			return nil, err
		}
		own = e.tokenizer
		for _, m := range e.Members {
			out = append(out, compress.Teacher{Arch: m.Arch, Params: m.params, Weight: m.Weight})
		}
	} else {
		b, err := bundle.Open(dir)
		if err != nil {
			return nil, err
		}
		params, err := compress.Floats(b)
		if err != nil {
			return nil, err
		}
		own, out = b.Tokenizer, []compress.Teacher{{Arch: b.Arch, Params: params, Weight: 1}}
	}
	if !token.Equal(tok, own) {
		return nil, fmt.Errorf("%s has another tokenizer than the model: only one with the same tokens can teach it", dir)
	}
	return out, nil
}

// onCPU is the native engine, which compress learns and generates with.
type onCPU struct{}

func (onCPU) Decoder(a glm.Arch, params engine.StateDict, threads, sequences int) (compress.Decoder, error) {
	return native.NewDecoder(a, params, native.DecoderOptions{Threads: threads, MaxSeqs: sequences})
}

func (onCPU) Model(a glm.Arch, threads, sequences int, learns bool) (compress.Model, error) {
	return native.New(a, native.Options{Threads: threads, MaxBatch: sequences, Precision: engine.Auto, Inference: !learns})
}

// compress writes OUT/compressed, of OUT/bundle. A model that loses more than it may is
// the user's to decide about: the job fails, and has its bundle.
func (s *site) compress(ctx context.Context) error {
	c := s.spec.Compress
	if c == nil {
		return actors.Final{Err: errors.New("the job asks for no compression")}
	}
	teacher := ""
	if c.Teacher == "ensemble" {
		switch e, err := ReadEnsemble(s.path(EnsembleDir)); {
		case errors.Is(err, fs.ErrNotExist) || err == nil && len(e.Members) == 0:
			s.notice("no vote was better than the model alone, so it is its own teacher")
		case err != nil:
			return err
		default:
			teacher = s.path(EnsembleDir)
		}
	}
	rep, part, err := Compress(ctx, Compression{
		Teacher: teacher, Bundle: s.path("bundle"), Out: s.path("compressed"),
		Options: compress.Options{
			Weights: glm.Weights(c.Weights), MaxLoss: c.Loss(), Threads: s.cores(),
			Change: compress.Change{Prune: c.Prune, Heads: c.PruneHeads, Sparsity: c.Sparsity, Student: c.Student, Recover: c.Recover.D(), RecoverSteps: c.Steps(), Seed: s.spec.Seed},
		},
	})
	var worse *compress.WorseError
	if errors.As(err, &worse) {
		return actors.Final{Err: err}
	}
	if err != nil {
		return err
	}
	s.notice(fmt.Sprintf("compressed: %.2f MB of %.2f, %.1f times as fast, %s on the %s part", float64(rep.After.Bytes)/1e6, float64(rep.Before.Bytes)/1e6,
		rep.Before.Latency/rep.After.Latency, rep.Said(), part))
	return nil
}

// build is the data folder of the build that the bundle is part of.
func (c Compression) build() string {
	return filepath.Join(filepath.Dir(filepath.Clean(c.Bundle)), "data")
}

// corpus lays a file, or a part of the build, down as tokens in the folder tmp.
func (c Compression) corpus(ctx context.Context, b *bundle.Bundle, file, part, flag, tmp string) (Evaluation, *train.Corpus, error) {
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return Evaluation{}, nil, err
	}
	if file != "" {
		e, corpus, _, err := layFile(ctx, b.Tokenizer, file, tmp)
		return e, corpus, err
	}
	var e Evaluation
	if b.Eval != nil {
		if err := json.Unmarshal(b.Eval, &e); err != nil {
			return e, nil, fmt.Errorf("%s: %w", bundle.EvalFile, err)
		}
	}
	e.Part, e.Calibration = "held-out", nil // that one is of the model as it was
	r, err := data.OpenPart(c.build(), part)
	if errors.Is(err, fs.ErrNotExist) {
		return e, nil, &data.InputError{Msg: fmt.Sprintf("beside %s there is no data of a build, which would hold the %s part", c.Bundle, part), Hint: "name a file with " + flag}
	}
	if err != nil {
		return e, nil, err
	}
	bin := filepath.Join(tmp, part+".bin")
	if err := errors.Join(train.Tokenize(ctx, r, b.Tokenizer, bin, part != "test"), r.Close()); err != nil {
		return e, nil, err
	}
	corpus, err := train.OpenCorpus(bin)
	return e, corpus, err
}

// compressionCard is what a model card says of a compression: nothing of the clock, so
// that the same compression gives the same bytes.
func compressionCard(c Compression, rep compress.Report, part string) string {
	words := c.Options.Words()
	if c.Teacher != "" {
		words = append(words, "taught by "+filepath.Base(c.Teacher))
	}
	var s strings.Builder
	fmt.Fprintf(&s, "## Compression\n\n%s. Measured on %s:\n\n| | before | after |\n| --- | --- | --- |\n", strings.Join(words, "; "), part)
	for _, r := range CompressionRows(rep) {
		if r[0] == timeRow {
			continue
		}
		fmt.Fprintf(&s, "| %s | %s | %s |\n", r[0], r[1], r[2])
	}
	return s.String()
}

const timeRow = "a token takes"

// CompressionRows are a report's figures in words: what, before, after.
func CompressionRows(rep compress.Report) [][3]string {
	b, a := rep.Before, rep.After
	row := func(what, format string, of func(compress.Measure) float64) [3]string {
		return [3]string{what, fmt.Sprintf(format, of(b)), fmt.Sprintf(format, of(a))}
	}
	return [][3]string{
		{"weights", string(b.Weights), string(a.Weights)},
		row("parameters", "%.0f", func(m compress.Measure) float64 { return float64(m.Params) }),
		row("size", "%.2f MB", func(m compress.Measure) float64 { return float64(m.Bytes) / 1e6 }),
		row("memory to generate", "%.1f MB", func(m compress.Measure) float64 { return float64(m.Memory) / 1e6 }),
		row(timeRow, "%.3f ms", func(m compress.Measure) float64 { return m.Latency * 1e3 }),
		row("bits per byte", "%.4f", func(m compress.Measure) float64 { return m.Score.BitsPerByte() }),
		row("perplexity of a token", "%.2f", func(m compress.Measure) float64 { return m.Score.Perplexity() }),
	}
}
