package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/gpu/engine/native"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// site does a job's work in its folder: it is the actors' Work.
type site struct {
	dir     string
	spec    job.Spec
	devices []device.Device
	threads int // of each device's worker
	memory  int64
	start   time.Time

	mu struct {
		sync.Mutex
		corpora map[int]*sync.Once // by vocabulary
		failed  map[int]error
		tok     *token.Tokenizer // the largest
		lens    map[int][]int
		bad     error
	}
}

func newSite(dir string, spec job.Spec, devices []device.Device, threads int, memory int64) *site {
	s := &site{dir: dir, spec: spec, devices: devices, threads: threads, memory: memory, start: time.Now()}
	s.mu.corpora, s.mu.failed, s.mu.lens = map[int]*sync.Once{}, map[int]error{}, map[int][]int{}
	return s
}

func (s *site) path(parts ...string) string {
	return filepath.Join(append([]string{s.dir}, parts...)...)
}

// DataConfig is what a spec says about its data, in the data room's words.
func DataConfig(spec job.Spec) data.Config {
	c := data.DefaultConfig()
	c.Files, c.URLs, c.Valid, c.Columns, c.MaxLength = spec.Data.Files, spec.Data.URLs, spec.Data.Valid, spec.Data.Columns, spec.Data.MaxLength
	c.Task, c.Seed = data.Task(spec.TaskType), int64(spec.Seed)
	for _, p := range spec.Data.Plugin {
		c.Plugins = append(c.Plugins, data.PluginConfig{Command: []string{p}, Config: spec.Data.Config})
	}
	if spec.Data.NearDuplicates != nil {
		c.Near = *spec.Data.NearDuplicates
	}
	// A held-out part of a megabyte says all that a score can; more only takes time.
	var total int64
	for _, f := range spec.Data.Files {
		if info, err := os.Stat(f); err == nil {
			total += info.Size()
		}
	}
	if total > 0 {
		c.ValidFraction = max(0.0005, min(0.05, 1e6/float64(total)))
		c.TestFraction = c.ValidFraction
	}
	return c
}

// Stage implements actors.Work.
func (s *site) Stage(ctx context.Context, name string, st journal.State) error {
	switch name {
	case job.StageProbe:
		return s.probe(ctx)
	case job.StageClean:
		return s.clean(ctx)
	case job.StageTokenize:
		return s.tokenize(ctx)
	case job.StageBundle:
		return s.bundle(ctx, st)
	}
	return actors.Final{Err: fmt.Errorf("no such stage: %s", name)}
}

// input marks errors of the user's data or job: another attempt reads the same.
// The error is kept, since the journal carries its text alone.
func (s *site) input(err error) error {
	var ie *data.InputError
	var fe *job.FieldError
	if errors.As(err, &ie) || errors.As(err, &fe) {
		s.mu.Lock()
		s.mu.bad = err
		s.mu.Unlock()
		return actors.Final{Err: err}
	}
	return err
}

// badInput is the error that input marked, nil when there was none.
func (s *site) badInput() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.bad
}

func (s *site) probe(ctx context.Context) error {
	p, err := data.Probe(ctx, DataConfig(s.spec))
	if err != nil {
		return s.input(err)
	}
	return s.writeJSON(p, "data", "probe.json")
}

func (s *site) clean(ctx context.Context) error {
	_, err := data.Prepare(ctx, DataConfig(s.spec), s.path("data"), data.Events{})
	return s.input(err)
}

func (s *site) report() (*data.Report, error) {
	var r data.Report
	b, err := os.ReadFile(s.path("data", "report.json"))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return nil, fmt.Errorf("data report: %w", err)
	}
	return &r, nil
}

// tokenize trains the largest vocabulary of the search; smaller ones are cut
// from it.
func (s *site) tokenize(ctx context.Context) error {
	rep, err := s.report()
	if err != nil {
		return err
	}
	want := maxVocabFor(rep.Parts["train"].Bytes)
	if e, ok := s.spec.Space[space.Vocab]; ok {
		d, err := space.Parse(space.Vocab, string(e))
		if err != nil {
			return s.input(&job.FieldError{Path: "space.vocab", Msg: err.Error()})
		}
		want = int(d.High)
		for _, c := range d.Choices {
			want = max(want, int(c.Num))
		}
	}
	tr, err := token.NewTrainer(token.TrainConfig{VocabSize: want, Threads: len(s.devices) * s.threads})
	if err != nil {
		return actors.Final{Err: err}
	}
	part, err := data.OpenPart(s.path("data"), "train")
	if err != nil {
		return err
	}
	defer part.Close()
	if err := eachText(ctx, part, func(text string) { tr.Add([]byte(text)) }); err != nil {
		return err
	}
	tok, err := tr.Train(ctx)
	if err != nil {
		return err
	}
	if _, fixed := s.spec.Space[space.Vocab]; fixed && tok.VocabSize() < want {
		return s.input(&job.FieldError{Path: "space.vocab", Msg: fmt.Sprintf("the data gives a vocabulary of %d, %d is asked for; ask for less or bring more text", tok.VocabSize(), want)})
	}
	b, err := tok.MarshalJSON()
	if err != nil {
		return err
	}
	return journal.WriteFile(s.path("data", "tokenizer.json"), b)
}

func (s *site) writeJSON(v any, parts ...string) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	path := s.path(parts...)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return journal.WriteFile(path, append(b, '\n'))
}

// tokenizer is the one of that vocabulary; 0 is the largest.
func (s *site) tokenizer(vocab int) (*token.Tokenizer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.tok == nil {
		b, err := os.ReadFile(s.path("data", "tokenizer.json"))
		if err != nil {
			return nil, err
		}
		if s.mu.tok, err = token.Parse(b); err != nil {
			return nil, err
		}
	}
	if vocab == 0 || vocab == s.mu.tok.VocabSize() {
		return s.mu.tok, nil
	}
	return s.mu.tok.Truncate(vocab)
}

func (s *site) corpus(vocab int, part string) string {
	return s.path("data", "tokens", fmt.Sprintf("v%d", vocab), part+".bin")
}

// ensure lays the token files of a vocabulary down, once.
func (s *site) ensure(ctx context.Context, vocab int) error {
	s.mu.Lock()
	once := s.mu.corpora[vocab]
	if once == nil {
		once = &sync.Once{}
		s.mu.corpora[vocab] = once
	}
	s.mu.Unlock()
	once.Do(func() {
		err := s.lay(ctx, vocab)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.mu.failed[vocab] = err
		if err != nil {
			delete(s.mu.corpora, vocab) // the next one tries again
		}
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.failed[vocab]
}

func (s *site) lay(ctx context.Context, vocab int) error {
	tok, err := s.tokenizer(vocab)
	if err != nil {
		return err
	}
	for _, part := range []string{"train", "valid", "test", fullCorpus} {
		path := s.corpus(vocab, part)
		if c, err := train.OpenCorpus(path); err == nil {
			c.Close()
			continue
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		parts := []string{part}
		if part == fullCorpus {
			parts = []string{"train", "valid"}
		}
		r := &chain{dir: s.path("data"), parts: parts}
		err := train.Tokenize(ctx, r, tok, path, part != "test")
		if err = errors.Join(err, r.close()); err != nil {
			return err
		}
	}
	return nil
}

// fullCorpus is train and valid together: once the search has chosen, the final
// training may learn from what it was chosen by. The held-out part stays out.
const fullCorpus = "full"

// refitEpochs is the number of passes over the data up to which the final
// training takes the validation part in. Beyond it that part stands guard
// against overfitting instead.
const refitEpochs = 12

// chain reads parts one after the other.
type chain struct {
	dir   string
	parts []string
	open  *data.PartReader
}

// Next implements train.Examples.
func (c *chain) Next() (data.Example, error) {
	for {
		if c.open == nil {
			if len(c.parts) == 0 {
				return data.Example{}, io.EOF
			}
			r, err := data.OpenPart(c.dir, c.parts[0])
			if err != nil {
				return data.Example{}, err
			}
			c.open, c.parts = r, c.parts[1:]
		}
		ex, err := c.open.Next()
		if !errors.Is(err, io.EOF) {
			return ex, err
		}
		if err := c.close(); err != nil {
			return ex, err
		}
	}
}

func (c *chain) close() error {
	if c.open == nil {
		return nil
	}
	r := c.open
	c.open = nil
	return r.Close()
}

func (s *site) byteLens(vocab int) ([]int, error) {
	tok, err := s.tokenizer(vocab)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.lens[vocab] == nil {
		s.mu.lens[vocab] = train.ByteLengths(tok)
	}
	return s.mu.lens[vocab], nil
}

// needs gathers what a plan is made from.
func (s *site) needs() (search.Needs, error) {
	rep, err := s.report()
	if err != nil {
		return search.Needs{}, err
	}
	return search.Needs{
		WallClock: s.spec.Budget.WallClock.D().Seconds(), Trials: s.spec.Budget.Trials, MaxTokens: s.spec.Budget.Tokens,
		Slots: len(s.devices), Corpus: rep.Parts["train"].Bytes, HeldOut: rep.HeldOut.Bytes,
	}, nil
}

// Plan implements actors.Work.
func (s *site) Plan(ctx context.Context, active float64) (search.Plan, error) {
	n, err := s.needs()
	if err != nil {
		return search.Plan{}, err
	}
	n.Spent = active
	if n.WallClock > 0 {
		begin := time.Now()
		if n.Rate, err = Rate(ctx, len(s.devices), s.threads, engine.Precision(s.spec.Precision), min(1, 0.01*n.WallClock)); err != nil {
			return search.Plan{}, err
		}
		n.Spent += time.Since(begin).Seconds()
	}
	p, err := search.MakePlan(n)
	if err != nil {
		return p, s.input(&job.FieldError{Path: "budget.wall_clock", Msg: err.Error()})
	}
	return p, nil
}

// space builds the space of a plan.
func (s *site) space(p search.Plan) (*space.Space, space.Config, error) {
	rep, err := s.report()
	if err != nil {
		return nil, nil, err
	}
	tok, err := s.tokenizer(0)
	if err != nil {
		return nil, nil, err
	}
	l := space.Limits{
		MinMatrix: p.MinParams, MaxMatrix: p.MaxParams, MaxVocab: tok.VocabSize(), Context: s.spec.MaxSeqLength, Epochs: p.Epochs,
		MaxContext: int(max(16, rep.Parts["valid"].Bytes/8)), MaxBytes: s.memory / int64(max(len(s.devices), 1)),
	}
	sp, first, err := Space(l, s.spec, p, rep.Parts["train"].Bytes)
	if err != nil {
		return nil, nil, s.input(&job.FieldError{Path: "space", Msg: err.Error()})
	}
	return sp, first, nil
}

// Space is the search space of a job and the configuration that a search of it
// starts from.
func Space(l space.Limits, spec job.Spec, p search.Plan, corpus int64) (*space.Space, space.Config, error) {
	if l.MaxParams = spec.Constraints.MaxParams; l.MaxParams > 0 {
		l.MinMatrix = min(l.MinMatrix, l.MaxParams/4)
	}
	if spec.Constraints.MaxMemoryMB > 0 {
		l.MaxBytes = spec.Constraints.MaxMemoryMB << 20
	}
	over := map[string]string{}
	for n, e := range spec.Space {
		over[n] = string(e)
		if n == space.Layers || n == space.Dim {
			l.MinMatrix, l.MaxMatrix = 0, 0 // what the user chose isn't narrowed
		}
	}
	sp, err := space.Decoder(l, over)
	if err != nil {
		return nil, nil, err
	}
	context := 128
	if p.FinalSeconds > 300 || p.Params > 3e6 {
		context = 256
	}
	return sp, defaults(p, sp, corpus, context), nil
}

// Search implements actors.Work.
func (s *site) Search(p search.Plan, slots int) (*search.Search, error) {
	sp, first, err := s.space(p)
	if err != nil {
		return nil, err
	}
	o := search.Options{Seed: s.spec.Seed, Architecture: space.IsArchitecture, Startup: min(10, max(3, p.SearchTrials/2))}
	if len(first) > 0 {
		o.Initial = []space.Config{first}
	}
	st, err := search.NewStrategy(s.spec.SearchStrategy, sp, o)
	if err != nil {
		return nil, err
	}
	return search.New(st, search.NewHyperband(p.Brackets), slots), nil
}

// segment turns a resource into a stretch of training.
func segment(p search.Plan, cfg train.Config, from train.State, resource, decay float64) train.Segment {
	switch p.Unit {
	case search.Seconds:
		return train.Segment{ByTime: true, Seconds: resource, DecayFrom: resource * (1 - decay)}
	case search.Tokens:
		steps := max(4, int(resource/float64(cfg.Sequences()*cfg.Arch.Context)))
		return train.Segment{Steps: steps, DecayFrom: math.Ceil(float64(steps) * (1 - decay))}
	}
	perStep := cfg.Arch.FLOPsPerToken(cfg.Arch.Context) * float64(cfg.Sequences()*cfg.Arch.Context)
	steps := max(4, int(resource*1e9/perStep))
	return train.Segment{Steps: steps, DecayFrom: math.Ceil(float64(steps) * (1 - decay))}
}

// config is a configuration of the space as this job trains it.
func (s *site) config(c space.Config) train.Config {
	cfg := train.FromSpace(c, s.spec.Seed)
	cfg.Precision = engine.Precision(s.spec.Precision)
	return cfg
}

// Task implements actors.Work.
func (s *site) Task(st journal.State, d *search.Decision) (train.Task, error) {
	p := *st.Plan
	t := train.Task{Threads: s.threads, CheckpointEvery: 10 * time.Second, MaxBytes: s.memory / int64(len(s.devices))}
	if d != nil {
		t.Trial, t.Config = d.Trial, s.config(d.Config)
		t.Dir = s.path("trials", d.Trial)
		t.Segment = segment(p, t.Config, train.State{}, d.Resource, p.Cool)
		t.EvalTokens = 20_000
		if p.Unit == search.Seconds {
			t.EvalTokens = min(100_000, int64(2000*d.Resource)+4000)
		}
	} else {
		if err := s.final(st, p, &t); err != nil {
			return t, err
		}
	}
	v := t.Config.Arch.Vocab
	lens, err := s.byteLens(v)
	if err != nil {
		return t, err
	}
	t.ByteLens, t.TrainPath, t.ValidPath = lens, s.corpus(v, "train"), s.corpus(v, "valid")
	if t.Final && p.Epochs <= refitEpochs {
		t.TrainPath, t.EvalEvery = s.corpus(v, fullCorpus), 0
	}
	if err := s.writeJSON(t.Config, "trials", t.Trial, "config.json"); err != nil {
		return t, err
	}
	return t, nil
}

// final fills the task of the final training: the winner's configuration and
// checkpoint, and what is left of the budget.
func (s *site) final(st journal.State, p search.Plan, t *train.Task) error {
	var winner *search.Decision
	for i := range st.Decisions {
		if st.Decisions[i].Trial == st.Winner {
			winner = &st.Decisions[i]
		}
	}
	if winner == nil {
		return fmt.Errorf("the journal names %q as winner and has no such trial", st.Winner)
	}
	t.Trial, t.Final, t.Config = "final", true, s.config(winner.Config)
	t.Dir, t.From = s.path("trials", "final"), s.path("trials", st.Winner, "checkpoint")
	from, err := train.CheckpointState(t.From)
	if err != nil {
		return err
	}
	t.EvalTokens = 100_000
	if p.Unit != search.Seconds {
		t.Segment = segment(p, t.Config, from, p.FinalResource, p.FinalDecay)
		t.Segment.Steps += from.Step
		t.Segment.DecayFrom += float64(from.Step)
		t.EvalEvery = math.Ceil(float64(t.Segment.Steps) / 12)
		return nil
	}
	left := s.spec.Budget.WallClock.D().Seconds() - st.Active - p.Reserve
	at := from.Seconds
	if own, err := train.CheckpointState(filepath.Join(t.Dir, "checkpoint")); err == nil {
		at = own.Seconds
	}
	end := at + max(left, 1)
	t.Segment = train.Segment{ByTime: true, Seconds: end, DecayFrom: max(from.Seconds, end-p.FinalDecay*(end-from.Seconds))}
	t.EvalEvery = max(2, (end-from.Seconds)/12)
	return nil
}

// execute runs one rank: it is the workers' Executor.
func (s *site) execute(ctx context.Context, a *actors.Assign, progress func(train.StepMetrics)) (train.Report, error) {
	if err := s.ensure(ctx, a.Task.Config.Arch.Vocab); err != nil {
		return train.Report{}, err
	}
	env := train.Env{Rank: a.Rank, World: a.World, NewModel: newModel, Clock: func() time.Duration { return time.Since(s.start) }, Metrics: progress}
	if a.World > 1 {
		env.Ring = a.Ring.Rank(a.Rank)
	}
	return train.Execute(ctx, a.Task, env)
}

func newModel(c train.Config, threads, world int) (engine.Model, error) {
	return native.New(c.Arch, native.Options{
		Threads: threads, MaxBatch: c.MicroBatch(world), MaxSeq: c.Arch.Context, Dropout: c.Dropout, ZLoss: c.ZLoss, Optimizer: c.Optimizer, Precision: c.Precision, Seed: c.Seed,
	})
}
