package telemetry

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// evaluation is the part of eval.json that the report shows.
type evaluation struct {
	Part        string  `json:"part"`
	SHA256      string  `json:"sha256"`
	Bytes       int64   `json:"bytes"`
	Tokens      int64   `json:"tokens"`
	BitsPerByte float64 `json:"bits_per_byte"`
	Perplexity  float64 `json:"perplexity"`
	Metric      string  `json:"metric"`
	Value       float64 `json:"value"`
	Examples    int     `json:"examples"`
}

// ensemble is the part of ensemble.json that the report shows.
type ensemble struct {
	Members []struct {
		Model  string  `json:"model"`
		Weight float64 `json:"weight"`
	} `json:"members"`
	Candidates int               `json:"candidates"`
	Valid      train.Comparison  `json:"validation"`
	HeldOut    *train.Comparison `json:"held_out"`
}

// Sample is a completion that the finished model wrote.
type Sample struct {
	Prompt     string `json:"prompt"`
	Completion string `json:"completion"`
}

// samplesFile holds the completions that the report shows, inside the build's
// folder.
var samplesFile = filepath.Join("trials", "final", "samples.json")

// HasSamples tells whether WriteSamples was called on the folder.
func HasSamples(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, samplesFile))
	return err == nil
}

// WriteSamples keeps completions of the finished model in the build's folder,
// for the next WriteReport.
func WriteSamples(dir string, samples []Sample) error {
	b, err := json.MarshalIndent(samples, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, samplesFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := durable.WriteFile(path, append(b, '\n')); err != nil {
		return fmt.Errorf("samples: %w", err)
	}
	return nil
}

// folder is what the files of a build say.
type folder struct {
	dir      string
	name     string
	state    *journal.State // never nil
	spec     job.Spec
	board    journal.Leaderboard
	data     *data.Report // nil: not there
	eval     *evaluation  // nil: not there
	ensemble *ensemble    // nil: none was tried
	samples  []Sample
	warnings []string // files that can't be read
}

// readFolder never fails: what can't be read becomes a warning.
func readFolder(dir string, st *journal.State) *folder {
	f := &folder{dir: dir, state: st}
	abs, err := filepath.Abs(dir)
	if err != nil {
		abs = dir
	}
	f.name = filepath.Base(abs)
	if f.state == nil {
		f.state = journal.NewState()
	}
	f.spec = f.state.Spec
	if f.state.Events == 0 {
		f.json(&f.spec, "job.json")
	}
	if len(f.state.Decisions) > 0 {
		f.board = f.state.Leaderboard(f.name)
	} else {
		f.json(&f.board, "leaderboard.json")
	}
	var rep data.Report
	if f.json(&rep, "data", "report.json") {
		f.data = &rep
	}
	var e evaluation
	if f.json(&e, "bundle", "eval.json") || f.json(&e, "trials", "final", "eval.json") {
		f.eval = &e
	}
	var vote ensemble
	if f.json(&vote, "ensemble", "ensemble.json") {
		f.ensemble = &vote
	}
	f.json(&f.samples, samplesFile)
	return f
}

// json reads a file; false when it isn't there or not to be read.
func (f *folder) json(v any, parts ...string) bool {
	path := filepath.Join(parts...)
	b, err := os.ReadFile(filepath.Join(f.dir, path))
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		f.warnings = append(f.warnings, fmt.Sprintf("%s cannot be read and is left out: %v", path, err))
		return false
	}
	return true
}

// curve reads a trial's metrics.
func (f *folder) curve(id string) curve {
	if !filepath.IsLocal(id) || filepath.Base(id) != id {
		return curve{}
	}
	path := filepath.Join("trials", id, "metrics.jsonl")
	c, err := readCurve(filepath.Join(f.dir, path))
	if err != nil {
		f.warnings = append(f.warnings, fmt.Sprintf("%s cannot be read to its end: %v", path, err))
	}
	if c.Bad > 0 {
		f.warnings = append(f.warnings, fmt.Sprintf("%s: %s and left out", path, count(c.Bad, "line is no record", "lines are no records")))
	}
	return c
}

// bytesPerToken is of the training text's scored tokens in a vocabulary; 0 when it is not
// known. Only plain text tells: elsewhere a part of the tokens is not scored.
func (f *folder) bytesPerToken(vocab int) float64 {
	if f.data == nil || f.data.Task != data.TaskText {
		return 0
	}
	path := filepath.Join(f.dir, "data", "tokens", fmt.Sprintf("v%d", vocab), "train.bin")
	if _, err := os.Stat(path); err != nil {
		return 0
	}
	c, err := train.OpenCorpus(path)
	if err != nil {
		f.warnings = append(f.warnings, fmt.Sprintf("the length of tokens is not known: %v", err))
		return 0
	}
	defer c.Close()
	scored := c.Tokens() - int64(c.Docs()) // a beginning-of-text token starts each document
	if scored <= 0 {
		return 0
	}
	return float64(c.Bytes()) / float64(scored)
}
