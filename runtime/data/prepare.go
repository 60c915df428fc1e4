package data

import (
	"context"
	"os"
	"path/filepath"
)

// pipeline is one Prepare. It runs on one goroutine.
type pipeline struct {
	cfg     *Config
	ev      Events
	tmp     string
	rep     *Report
	steps   []*Command
	sources []source
	probes  []FileProbe
	held    int // how many of the sources are the user's held-out files; they come first

	b       rowBuilder
	q       qualityCheck
	exact   *exactIndex
	near    *nearIndex
	spool   *spool
	split   *splitter
	dropped *droppedWriter
	pieces  int64             // of long texts, but for each one's first
	plain   []int64           // bytes of text by file, for plain texts
	lines   []uint32          // line of each row by number, for the first ones
	starts  []uint64          // first row number of each file
	gone    bitmap            // rows dropped after they were spooled
	goneOf  map[uint64]uint64 // whose duplicates they are, for the first ones
	near1   bitmap            // which of them are near duplicates
	fold    []byte
	fold2   []byte
	payload []byte
	read    int64
	total   int64
	ticked  int64
}

const rememberedLines = 4 << 20

// Prepare reads, cleans and splits all data and writes train.part, valid.part,
// test.part, dropped.jsonl and report.json into dir, which is made if need be.
// report.json is written last: without it the folder is not prepared. Memory stays
// bounded by Config.Memory and a few buffers; while it runs, dir holds up to about
// twice the size of the cleaned text. On error dir is left as it was, but for an
// older report.json that no longer holds.
func Prepare(ctx context.Context, cfg Config, dir string, ev Events) (*Report, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.create == nil {
		cfg.create = createFile
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, writeError(dir, err)
	}
	tmp, err := os.MkdirTemp(dir, ".partial-")
	if err != nil {
		return nil, writeError(dir, err)
	}
	p := &pipeline{cfg: &cfg, ev: ev, tmp: tmp, goneOf: map[uint64]uint64{}}
	defer p.close()
	if err := p.run(ctx); err != nil {
		return nil, err
	}
	return p.rep, p.publish(dir)
}

func (p *pipeline) close() {
	for _, s := range p.steps {
		_ = s.Close()
	}
	if p.exact != nil {
		p.exact.Close()
	}
	if p.near != nil {
		p.near.Close()
	}
	if p.dropped != nil {
		_ = p.dropped.f.Close()
	}
	if p.spool != nil {
		_ = p.spool.f.Close()
	}
	_ = os.RemoveAll(p.tmp)
}

func (p *pipeline) run(ctx context.Context) (err error) {
	cfg := p.cfg
	p.ev.phase("probe")
	if p.sources, p.steps, err = cfg.gather(ctx, p.tmp, p.ev); err != nil {
		return err
	}
	if p.probes, err = probeAll(p.sources, cfg); err != nil {
		return err
	}
	g, err := combine(p.probes)
	if err != nil {
		return err
	}
	if len(cfg.Valid) > 0 {
		if err := p.addHeldOut(g.Task); err != nil {
			return err
		}
	}
	p.rep = &Report{Version: ReportVersion, Task: g.Task, Confidence: g.Confidence, Reasons: g.Reasons, Rules: map[Rule]*RuleCount{}, Parts: map[string]PartCount{}}
	test := cfg.TestFraction
	if p.held > 0 {
		test = 0
	}
	p.split = newSplitter(cfg.Seed, cfg.ValidFraction, test)
	// an eighth of the memory for exact hashes (24 bytes each with slack), an eighth
	// for their spill, a half for bands, a quarter for signatures
	m := int(cfg.Memory)
	if cfg.Exact {
		p.exact = newExactIndex(p.tmp, m/4/48, m/8/markBytes)
	}
	if cfg.Near && (g.Task == TaskText || g.Task == TaskSummary) {
		p.near = newNearIndex(p.tmp, cfg.NearThreshold, m/2/2/markBytes, m/4/hashes)
	}
	if p.spool, err = newSpool(cfg.create, filepath.Join(p.tmp, "rows")); err != nil {
		return err
	}
	if p.dropped, err = newDroppedWriter(cfg.create, filepath.Join(p.tmp, "dropped.jsonl")); err != nil {
		return err
	}
	for i := range p.sources {
		p.total += p.probes[i].Bytes
	}
	for i := range p.sources {
		p.starts = append(p.starts, p.spool.rows)
		if err := p.file(ctx, i); err != nil {
			return err
		}
	}
	if err := p.spool.close(); err != nil {
		return err
	}
	if err := p.duplicates(); err != nil {
		return err
	}
	return p.distribute(ctx)
}

// addHeldOut puts the user's own held-out files before all others, so that rows
// which also stand in them are dropped from the training data, not the other way.
func (p *pipeline) addHeldOut(task Task) error {
	files, err := expand(p.cfg.Valid)
	if err != nil {
		return err
	}
	forced := *p.cfg
	forced.Task = task
	var sources []source
	for _, f := range files {
		sources = append(sources, newSource(f))
	}
	probes, err := probeAll(sources, &forced)
	if err != nil {
		return err
	}
	p.held = len(files)
	p.sources = append(sources, p.sources...)
	p.probes = append(probes, p.probes...)
	return nil
}

// count notes what a rule did.
func (p *pipeline) count(r Rule, dropped bool) {
	c := p.rep.Rules[r]
	if c == nil {
		c = &RuleCount{}
		p.rep.Rules[r] = c
	}
	if dropped {
		c.Dropped++
	} else {
		c.Repaired++
	}
}

func (p *pipeline) warn(s string) {
	p.rep.Warnings = append(p.rep.Warnings, s)
	if p.ev.Warn != nil {
		p.ev.Warn(s)
	}
}

// duplicates finds what the first pass could not know.
func (p *pipeline) duplicates() error {
	p.ev.phase("duplicates")
	note := func(near bool) func(ord, of uint64) {
		return func(ord, of uint64) {
			if p.gone.has(ord) {
				return
			}
			p.gone.set(ord)
			if near {
				p.near1.set(ord)
			}
			if len(p.goneOf) < 1<<18 {
				p.goneOf[ord] = of
			}
		}
	}
	if p.exact != nil {
		if err := p.exact.resolve(note(false)); err != nil {
			return err
		}
	}
	if p.near != nil {
		return p.near.resolve(p.gone, note(true))
	}
	return nil
}
