package serve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/open-autoglm/autoglm/gpu/engine"
	"github.com/open-autoglm/autoglm/runtime/bundle"
	"github.com/open-autoglm/autoglm/runtime/serve/grammar"
)

// Model is one version of a model that is served.
type Model struct {
	Name, Version string
	Bundle        *bundle.Bundle
	Loaded        time.Time
	Vocabulary    func() *grammar.Vocabulary // made when it is first asked for
	Generator

	users sync.WaitGroup // requests that were given it
}

// Opener reads the bundle in a folder and makes a decoder of it for so many sequences, or
// a Pair of two.
type Opener func(dir string, seqs int) (*bundle.Bundle, engine.Decoder, error)

// Hub holds the models that are served, each in one version or, while a new one is
// tried, in two. All methods may be called from any goroutine.
type Hub struct {
	open   Opener
	cfg    SchedulerConfig
	events func(model string) Events

	closing sync.WaitGroup // models that are on their way out
	mu      struct {
		sync.Mutex
		names    []string // in the order of loading
		models   map[string]*served
		leaving  map[*Model]bool // replaced, while requests still have them
		draining bool
	}
}

// served is one name's versions.
type served struct {
	dir      string
	stable   *Model
	canary   *Model // nil is none
	percent  float64
	versions int // given out so far
}

// NewHub is a Hub without models; events, which may be nil, gives each model's.
func NewHub(open Opener, cfg SchedulerConfig, events func(model string) Events) *Hub {
	h := &Hub{open: open, cfg: cfg, events: events}
	h.mu.models, h.mu.leaving = map[string]*served{}, map[*Model]bool{}
	return h
}

// ErrNoModel is a name or a version that is not served.
var ErrNoModel = errors.New("there is no such model here")

// Load serves the bundle in dir under a name. A model that is served under it already
// is replaced: new requests go to the new version, and the old one ends when its last
// request is done. On an error all stays as it was.
func (h *Hub) Load(name, dir string) error {
	return h.add(name, dir, func(s *served, m *Model) (old []*Model) {
		old = []*Model{s.stable, s.canary}
		s.dir, s.stable, s.canary, s.percent = dir, m, nil, 0
		return old
	})
}

// Reload is Load from the folder that the model came from.
func (h *Hub) Reload(name string) error {
	h.mu.Lock()
	s := h.mu.models[name]
	h.mu.Unlock()
	if s == nil {
		return fmt.Errorf("%w: %q", ErrNoModel, name)
	}
	return h.Load(name, s.dir)
}

// Unload serves a name no more; requests that have one of its models go on.
func (h *Hub) Unload(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.mu.models[name]
	if s == nil {
		return fmt.Errorf("%w: %q", ErrNoModel, name)
	}
	delete(h.mu.models, name)
	h.mu.names = slices.DeleteFunc(h.mu.names, func(n string) bool { return n == name })
	for _, old := range []*Model{s.stable, s.canary} {
		if old != nil {
			h.retire(old)
		}
	}
	return nil
}

// Canary gives the bundle in dir that share of a model's requests, in percent, beside
// the version that is served.
func (h *Hub) Canary(name, dir string, percent float64) error {
	if !(percent > 0 && percent <= 100) {
		return fmt.Errorf("canary of %s: %g %%, must be above 0 and at most 100", name, percent)
	}
	h.mu.Lock()
	known := h.mu.models[name] != nil
	h.mu.Unlock()
	if !known {
		return fmt.Errorf("canary of %q: %w", name, ErrNoModel)
	}
	return h.add(name, dir, func(s *served, m *Model) []*Model {
		old := s.canary
		s.canary, s.percent = m, percent
		return []*Model{old}
	})
}

// add opens a bundle and lets place put it among a name's versions; place returns what
// is not served any more.
func (h *Hub) add(name, dir string, place func(*served, *Model) []*Model) error {
	b, dec, err := h.open(dir, h.cfg.Slots)
	if err != nil {
		return err
	}
	cfg := h.cfg
	if h.events != nil {
		cfg.Events = h.events(name)
	}
	gen, err := newGenerator(dec, b.Tokenizer, cfg)
	if err != nil {
		return errors.Join(err, dec.Close())
	}
	m := &Model{
		Name: name, Bundle: b, Loaded: time.Now(), Generator: gen,
		Vocabulary: sync.OnceValue(func() *grammar.Vocabulary { return grammar.NewVocabulary(b.Tokenizer) }),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.draining {
		h.retire(m)
		return ErrDraining
	}
	s := h.mu.models[name]
	if s == nil {
		s = &served{}
		h.mu.models[name] = s
		h.mu.names = append(h.mu.names, name)
	}
	s.versions++
	m.Version = strconv.Itoa(s.versions)
	for _, old := range place(s, m) {
		if old != nil {
			h.retire(old)
		}
	}
	return nil
}

// retire lets a model end once its requests are done; mu is held.
func (h *Hub) retire(m *Model) {
	h.mu.leaving[m] = true
	h.closing.Go(func() {
		m.users.Wait()
		m.Close()
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.mu.leaving, m)
	})
}

// Get finds a model; an empty name is the only one there is, an empty version the one
// that is served, or by chance the canary. release is to be called after the request.
func (h *Hub) Get(name, version string) (m *Model, release func(), err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if name == "" && len(h.mu.names) == 1 {
		name = h.mu.names[0]
	}
	s := h.mu.models[name]
	if s == nil {
		return nil, nil, fmt.Errorf("%w: %q", ErrNoModel, name)
	}
	switch {
	case version == "" && s.canary != nil && rand.Float64()*100 < s.percent:
		m = s.canary
	case version == "" || version == s.stable.Version:
		m = s.stable
	case s.canary != nil && version == s.canary.Version:
		m = s.canary
	default:
		return nil, nil, fmt.Errorf("%w: %q in version %s", ErrNoModel, name, version)
	}
	m.users.Add(1)
	return m, sync.OnceFunc(m.users.Done), nil
}

// Models are all versions that are served, by name in the order of loading, the stable
// version of each first.
func (h *Hub) Models() []*Model {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []*Model
	for _, n := range h.mu.names {
		s := h.mu.models[n]
		out = append(out, s.stable)
		if s.canary != nil {
			out = append(out, s.canary)
		}
	}
	return out
}

// Names are the models' names in the order of loading.
func (h *Hub) Names() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.mu.names)
}

// Refuse takes no more requests and no more models.
func (h *Hub) Refuse() {
	h.mu.Lock()
	h.mu.draining = true
	h.mu.Unlock()
	for _, m := range h.Models() {
		m.Refuse()
	}
}

// Draining tells whether the hub takes no more requests.
func (h *Hub) Draining() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.draining
}

// Drain is Refuse, and waits for all requests; when ctx ends before them they get
// ErrDrained.
func (h *Hub) Drain(ctx context.Context) {
	h.Refuse()
	all := h.Models()
	h.mu.Lock()
	all = slices.AppendSeq(all, maps.Keys(h.mu.leaving))
	h.mu.Unlock()
	var wg sync.WaitGroup
	for _, m := range all {
		wg.Go(func() { m.Drain(ctx) })
	}
	wg.Wait()
	h.closing.Wait()
}
