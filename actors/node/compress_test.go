package node

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors/actorstest"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/compress"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
)

// A job that asks for it leaves a smaller bundle beside its own, scored on the held-out
// part; one whose model would lose too much fails, and has its own.
func TestCompressStage(t *testing.T) {
	file := actorstest.Corpus(t, t.TempDir())
	spec := tinySpec(file)
	loss := 0.05
	spec.Compress = &job.Compress{Weights: "int8", Search: true, MaxLoss: &loss}
	dir := filepath.Join(t.TempDir(), "run")
	o := Options{Dir: dir, Spec: spec}
	var st *journal.State
	o.Events.Journal = func(_ journal.Event, s *journal.State) { st = s }
	if err := build(t, o); err != nil {
		t.Fatal(err)
	}
	s := newSite(dir, spec, &crew{threads: 1, devices: make([]device.Device, 1)})
	if task, err := s.Task(*st, &st.Decisions[0]); err != nil || task.Weights != glm.Int8 {
		t.Errorf("trials are scored with weights %q, %v", task.Weights, err)
	}
	if task, err := s.Task(*st, nil); err != nil || task.Weights != "" {
		t.Errorf("the final training with %q, %v", task.Weights, err)
	}
	whole, err := bundle.Open(filepath.Join(dir, "bundle"))
	if err != nil {
		t.Fatal(err)
	}
	small, err := bundle.Open(filepath.Join(dir, "compressed"))
	if err != nil {
		t.Fatal(err)
	}
	var before, after Evaluation
	for b, e := range map[*bundle.Bundle]*Evaluation{whole: &before, small: &after} {
		if err := json.Unmarshal(b.Eval, e); err != nil {
			t.Fatal(err)
		}
	}
	if after.Part != "held-out" || after.SHA256 != before.SHA256 || after.Tokens != before.Tokens || after.BitsPerByte > (1+loss)*before.BitsPerByte || after.BitsPerByte == before.BitsPerByte {
		t.Errorf("after: %+v, before: %+v", after, before)
	}
	if c := small.Card; c.Job != whole.Card.Job || c.Job == "" || !strings.HasPrefix(c.Compression, "## Compression\n\nweights of 8 bits. Measured on held-out") {
		t.Errorf("the card is %+v", c)
	}

	loss = 0
	spec.Compress = &job.Compress{Prune: 0.9, RecoverSteps: 1, MaxLoss: &loss}
	dir = filepath.Join(t.TempDir(), "run")
	if err := build(t, Options{Dir: dir, Spec: spec}); err == nil || !strings.Contains(err.Error(), "worse than") {
		t.Errorf("a model that lost most of itself: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "compressed")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
	if _, err := bundle.Open(filepath.Join(dir, "bundle")); err != nil {
		t.Error(err)
	}

	// A bundle that no build lies beside is scored on a file.
	alone := filepath.Join(t.TempDir(), "model")
	if err := bundle.Write(alone, whole); err != nil {
		t.Fatal(err)
	}
	c := Compression{Bundle: alone, Out: filepath.Join(t.TempDir(), "out"), Options: compress.Options{Weights: glm.Int4, MaxLoss: 1}}
	var input *data.InputError
	if _, _, err := Compress(t.Context(), c); !errors.As(err, &input) || !strings.Contains(err.Error(), "--data") {
		t.Errorf("without data: %v", err)
	}
	c.Data = file
	if _, part, err := Compress(t.Context(), c); err != nil || part != file {
		t.Errorf("on a file: %q, %v", part, err)
	}
}
