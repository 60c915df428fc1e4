package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/actors"
	"github.com/open-autoglm/autoglm/gpu/device"
	"github.com/open-autoglm/autoglm/gpu/glm"
	"github.com/open-autoglm/autoglm/runtime/data"
	"github.com/open-autoglm/autoglm/runtime/durable"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/token"
	"github.com/open-autoglm/autoglm/runtime/train"
)

// site does a job's work in its folder: it is the actors' Work.
type site struct {
	dir   string
	spec  job.Spec
	crew  *crew
	start time.Time
	past  []search.Past // of earlier searches

	notice  func(text string)      // what the job outlived
	folder  Folder                 // dir, as other nodes have it
	guest   bool                   // the job's Supervisor is on another node
	feeding sync.Mutex             // guards fed
	fed     bool                   // a guest has the job's data
	unfit   func(error)            // told what keeps a guest from doing its part
	ranks   sync.WaitGroup         // ranks that are at work
	sources func() []device.Source // of the machine

	timing sync.Mutex // held while tokens are timed, one model at a time; guards costs
	costs  map[glm.Arch]*train.Cost

	mu struct {
		sync.Mutex
		corpora map[laid]*sync.Once
		failed  map[laid]error
		tok     *token.Tokenizer // the largest
		lens    map[int][]int
		bad     error
		last    device.Kind // where place went before
	}
}

func newSite(dir string, spec job.Spec, c *crew) *site {
	s := &site{dir: dir, spec: spec, crew: c, start: time.Now(), notice: func(string) {}, sources: Sources, folder: alone{}, costs: map[glm.Arch]*train.Cost{}}
	s.mu.last = device.Auto
	s.mu.corpora, s.mu.failed, s.mu.lens = map[laid]*sync.Once{}, map[laid]error{}, map[int][]int{}
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
	if err := s.folder.Pull(ctx); err != nil {
		return err
	}
	if err := s.stage(ctx, name, st); err != nil {
		return err
	}
	return s.folder.Keep(ctx)
}

func (s *site) stage(ctx context.Context, name string, st journal.State) error {
	switch name {
	case job.StageProbe:
		return s.probe(ctx)
	case job.StageClean:
		return s.clean(ctx)
	case job.StageTokenize:
		return s.tokenize(ctx)
	case job.StageTrain:
		return s.unfork(st) // what other nodes have trained is here
	case job.StageBundle:
		return s.bundle(ctx, st)
	case job.StageCompress:
		return s.compress(ctx)
	}
	if step, ok := s.spec.Step(name); ok {
		return s.step(ctx, step, st)
	}
	return actors.Final{Err: fmt.Errorf("no such stage: %s", name)}
}

// unfork drops the checkpoints that trials kept for forks: the search is over.
func (s *site) unfork(st journal.State) error {
	if st.Plan == nil || st.Plan.Scheduler != "pbt" {
		return nil
	}
	for _, d := range st.Decisions {
		if err := train.DropRungs(s.path("trials", d.Trial), d.Rung); err != nil {
			return err
		}
	}
	return nil
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
	p, err := data.Probe(ctx, s.dataConfig())
	if err != nil {
		return s.input(err)
	}
	return s.writeJSON(p, "data", "probe.json")
}

func (s *site) clean(ctx context.Context) error {
	_, err := data.Prepare(ctx, s.dataConfig(), s.path("data"), data.Events{})
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

func (s *site) writeJSON(v any, parts ...string) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	path := s.path(parts...)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(path, append(b, '\n'))
}
