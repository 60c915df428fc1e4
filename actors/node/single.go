package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// Single is one configuration that is trained outside of any search, on the text that a
// build has prepared.
type Single struct {
	Data       string        // folder of the build
	Dir        string        // of the trial: created, or left by an earlier run, with which it goes on
	Config     train.Config  // what to train; the zero value: as the folder says
	Until      int           // optimiser steps, from the beginning
	For        time.Duration // or this training time, from the beginning
	Decay      float64       // share of them in which the rate falls to zero before the last score
	EvalEvery  int           // steps between evaluations before the last; 0 is none, or of a final training as many as a build's has
	Final      bool          // train as a build's final training: on the validation part as well, and keep the best evaluation's parameters
	EvalTokens int64         // of an evaluation
	CPUs       int           // processors, which the lease holds
	Lease      Lease         // nil computes beside whoever else does
}

// Train trains up to a step, saving as it goes, and scores. A run that was cut off goes
// on as if it had not been, and one that goes on to a later step ends as one that went
// there at once. scored is called at each evaluation, from the run's goroutine.
func (o Single) Train(ctx context.Context, scored func(train.State, train.Score)) (train.Report, error) {
	var rep train.Report
	if _, err := os.Stat(filepath.Join(o.Data, "data", "tokenizer.json")); err != nil {
		return rep, fmt.Errorf("%s %w that has come to its search, with data that trials can be trained on; make one with: autoglm build FILE --out %s", o.Data, ErrNoJob, o.Data)
	}
	unlock, err := o.lock()
	if err != nil {
		return rep, err
	}
	defer unlock()
	if err := o.settle(); err != nil {
		return rep, err
	}
	spec := job.Default()
	spec.HardwareConstraint, spec.Engine, spec.Isolation = fmt.Sprintf("cpu-%d", max(o.CPUs, 1)), "native", "none"
	crew, held, err := hire(ctx, spec, Options{Lease: o.Lease}, device.CPU)
	if err != nil {
		return rep, err
	}
	defer held.Release()
	defer crew.close()
	s := newSite(o.Data, spec, crew)
	t := train.Task{
		Trial: filepath.Base(o.Dir), Dir: o.Dir, Config: o.Config,
		Segment:   train.Segment{Steps: o.Until, DecayFrom: math.Ceil(float64(o.Until) * (1 - o.Decay))},
		EvalEvery: float64(o.EvalEvery), EvalTokens: o.EvalTokens, Final: o.Final, Keep: true,
		Threads: len(crew.devices) * crew.threads, CheckpointEvery: 10 * time.Second,
	}
	if o.For > 0 {
		t.Segment = train.Segment{ByTime: true, Seconds: o.For.Seconds(), DecayFrom: o.For.Seconds() * (1 - o.Decay)}
	}
	if o.Final && o.EvalEvery == 0 {
		if t.EvalEvery = t.Segment.End() / finalEvals; t.Segment.ByTime {
			t.EvalEvery = max(2, t.EvalEvery)
		}
	}
	if err := s.corpora(&t); err != nil {
		return rep, &job.FieldError{Path: "vocab", Msg: err.Error()}
	}
	if err := s.ensure(ctx, t.Config.Arch.Vocab, o.Final); err != nil {
		return rep, err
	}
	env := train.Env{World: 1, NewModel: newNative(crew.cpus), Clock: func() time.Duration { return time.Since(s.start) }, Scored: scored}
	rep, err = train.Execute(ctx, t, env)
	if err != nil && ctx.Err() != nil {
		err = ErrInterrupted
	}
	return rep, err
}

// HeldOut scores the parameters in a folder of them (train.BestDir, or a copy) on the
// part of a build's text that none of its trainings sees.
func HeldOut(ctx context.Context, data string, a glm.Arch, params string, threads int) (train.Score, error) {
	s := newSite(data, job.Default(), &crew{threads: threads, devices: make([]device.Device, 1)})
	tensors, _, err := train.LoadCheckpoint(params)
	if err != nil {
		return train.Score{}, err
	}
	if err := s.ensure(ctx, a.Vocab, false); err != nil {
		return train.Score{}, err
	}
	return s.scoreHere(ctx, a, train.Parameters(tensors), s.corpus(a.Vocab, "test"))
}

// lock keeps other processes out of the trial's folder, which it makes.
func (o *Single) lock() (unlock func(), err error) {
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(o.Dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s is being trained by another process: wait for it, or name another folder", o.Dir)
	}
	return func() { f.Close() }, nil
}

// settle reads the folder's configuration where none is given, and otherwise holds the
// two against each other, or writes the given one down.
func (o *Single) settle() error {
	path := filepath.Join(o.Dir, "config.json")
	b, err := os.ReadFile(path)
	given := o.Config != train.Config{}
	switch {
	case errors.Is(err, fs.ErrNotExist) && !given:
		return &job.FieldError{File: path, Msg: "is not there, and no configuration is given"}
	case errors.Is(err, fs.ErrNotExist):
		if b, err = json.MarshalIndent(o.Config, "", "  "); err != nil {
			return err
		}
		return durable.WriteFile(path, append(b, '\n'))
	case err != nil:
		return err
	}
	kept, err := ReadConfig(path, b, 0)
	if err != nil {
		return err
	}
	if given && o.Config != kept {
		return &job.FieldError{File: path, Msg: "is of another configuration than the one given: name another folder, or leave the configuration out to go on with this one"}
	}
	o.Config = kept
	return nil
}

// ReadConfig reads what to train from a trial's config.json, or from a configuration of
// the decoder space (a JSON object of its dimensions), which goes with the seed. The
// error names the file and the field.
func ReadConfig(path string, b []byte, seed uint64) (train.Config, error) {
	var c train.Config
	wrong := func(field, format string, args ...any) (train.Config, error) {
		return c, &job.FieldError{File: path, Path: field, Msg: fmt.Sprintf(format, args...)}
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(b, &fields); err != nil {
		return wrong("", "%v", err)
	}
	if _, ours := fields["arch"]; ours {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&c); err != nil {
			return wrong("", "%v", err)
		}
	} else {
		var sc space.Config
		if err := json.Unmarshal(b, &sc); err != nil {
			return wrong("", "%v", err)
		}
		for _, n := range space.Names() {
			v, ok := sc[n]
			switch {
			case !ok && n == space.Schedule:
				sc[n] = space.Word("wsd")
			case !ok && n == space.MuonLR && sc.Word(space.Optimizer) != string(engine.Muon):
			case !ok:
				return wrong(n, "is missing; a configuration has %v", space.Names())
			default:
				if err := space.CheckOverride(n, v.String()); err != nil {
					return wrong(n, "%v", err)
				}
			}
			delete(fields, n)
		}
		for n := range fields {
			return wrong(n, "is no dimension; there are %v", space.Names())
		}
		c = train.FromSpace(sc, seed)
		c.Precision = engine.Auto
	}
	c.Arch = c.Arch.WithDefaults()
	if err := c.Arch.Validate(); err != nil {
		return wrong("arch", "%v", err)
	}
	if err := engine.CheckTraining(c.Dropout, c.ZLoss, engine.F32, c.Optimizer); err != nil {
		return wrong("", "%v", err)
	}
	switch {
	case c.BatchTokens < c.Arch.Context:
		return wrong("batch_tokens", "%d is less than a sequence of %d", c.BatchTokens, c.Arch.Context)
	case !(c.LR > 0) || c.Optimizer == engine.Muon && !(c.MuonLR > 0):
		return wrong("lr", "the rates %g and %g of muon are not positive", c.LR, c.MuonLR)
	case c.Schedule != "wsd" && c.Schedule != "cosine":
		return wrong("schedule", "%q is not wsd or cosine", c.Schedule)
	}
	return c, nil
}

// Defaults of Single: as trials of a search are scored.
const (
	SingleDecay      = 0.25
	SingleEvalTokens = trialEval
)
