package data

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
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

// file reads one source.
func (p *pipeline) file(ctx context.Context, i int) error {
	src := p.sources[i]
	p.ev.phase("read " + src.name)
	o, err := src.open()
	if err != nil {
		return err
	}
	defer o.Close()
	if o.format == FormatText && p.rep.Task != TaskText {
		return &InputError{File: o.name, Msg: fmt.Sprintf("is plain text, but the task is %s", p.rep.Task), Hint: "give rows with the task's columns"}
	}
	fr := FileReport{FileInfo: o.info(), Roles: p.probes[i].Guess.Roles, HeldOut: i < p.held}
	fr.Columns = p.probes[i].Columns
	r, err := o.records(false, func(n int64) { p.read += n })
	if err != nil {
		return err
	}
	if len(p.steps) > 0 && i >= p.held {
		for k, s := range p.steps {
			if i > p.held { // a step serves one stream: start it again for the next file
				c := &Command{Args: s.Args, Timeout: s.Timeout, Log: s.Log}
				if err := c.Connect(s.config); err != nil {
					return err
				}
				_ = s.Close()
				p.steps[k] = c
			}
			r = &stepReader{inner: r, cmd: p.steps[k], ctx: ctx}
		}
	}
	p.b.task, p.b.roles = p.rep.Task, p.probes[i].Guess.Roles
	p.b.plain = o.format == FormatText
	p.b.cl.intact = p.b.plain
	var rec Record
	var bad int64
	var badAt []string
	var firstBad int64
	for {
		if p.read-p.ticked > 4<<20 || fr.Rows&0x3fff == 0x3fff {
			p.ticked = p.read
			if err := ctx.Err(); err != nil {
				return err
			}
			if p.ev.Progress != nil {
				p.ev.Progress(Progress{File: o.name, Bytes: p.read, Total: p.total, Rows: p.rep.Rows + fr.Rows, Kept: int64(p.spool.rows)})
			}
		}
		err := r.Next(&rec)
		if err == io.EOF {
			break
		}
		if err != nil {
			if w, cerr := o.unchanged(); cerr != nil && w == "" {
				return cerr
			}
			if errors.Is(err, errTooLong) {
				return &InputError{File: o.name, Line: rec.Line + 1, Msg: "has a row of more than 64 MiB", Hint: "cut it into rows"}
			}
			return err
		}
		if rec.Bad == RuleBlank {
			p.count(RuleBlank, true)
			continue
		}
		if !p.b.plain || len(p.plain) <= i {
			fr.Rows++
		}
		if rec.Bad != "" {
			switch rec.Bad {
			case RuleUnparsable, RuleRagged, RuleEncoding:
				bad++
				if firstBad == 0 {
					firstBad = rec.Line
				}
				if len(badAt) < 3 {
					badAt = append(badAt, fmt.Sprintf("line %d: %s", rec.Line, rec.Note))
				}
				if fr.Rows == 100_000 && bad*2 > fr.Rows {
					return brokenError(o.name, o.format, firstBad, fr.Rows, bad, badAt)
				}
			}
			if err := p.drop(i, &rec, rec.Bad, rec.Note, ""); err != nil {
				return err
			}
			continue
		}
		kept, err := p.row(i, &rec)
		if err != nil {
			return err
		}
		fr.Kept += kept
	}
	if bad*2 > fr.Rows {
		return brokenError(o.name, o.format, firstBad, fr.Rows, bad, badAt)
	}
	w, err := o.unchanged()
	if err != nil {
		return err
	}
	if w != "" {
		p.warn(w)
	}
	p.rep.Rows += fr.Rows
	p.rep.Files = append(p.rep.Files, fr)
	return nil
}

// row cleans one row and spools what is kept of it.
func (p *pipeline) row(file int, rec *Record) (kept int64, err error) {
	if p.b.plain {
		return p.plainText(file, rec)
	}
	b, rule := p.b.build(rec)
	if rule == "" && p.rep.Task == TaskText {
		if n := p.cfg.MinLength; n > 0 && textLength(p.b.segs[0].text, n) < n {
			rule, p.b.note = RuleTooShort, fmt.Sprintf("fewer than %d characters", n)
		}
	}
	if rule == "" && p.cfg.MaxLength > 0 {
		long := false
		for _, s := range p.b.segs {
			long = long || len(s.text) > p.cfg.MaxLength && utf8.RuneCount(s.text) > p.cfg.MaxLength
		}
		if long && p.rep.Task != TaskText {
			rule, p.b.note = RuleTooLong, fmt.Sprintf("more than %d characters", p.cfg.MaxLength)
		} else if long {
			return p.longText(file, rec, b)
		}
	}
	if rule != "" {
		return 0, p.drop(file, rec, rule, p.b.note, "")
	}
	return p.keep(file, rec, b, "")
}

// longText splits a row into several documents.
func (p *pipeline) longText(file int, rec *Record, b built) (kept int64, err error) {
	whole := append([]byte(nil), p.b.segs[0].text...)
	p.count(RuleTooLong, false)
	for k, t := range pieces(whole, p.cfg.MaxLength) {
		if k > 0 {
			p.b.fixed = p.b.fixed[:0]
			p.b.cl.seen.email, p.b.cl.seen.phone, p.b.cl.seen.card, p.b.cl.seen.ip = false, false, false, false
		}
		p.b.segs = append(p.b.segs[:0], rawSegment{text: t, scored: true})
		b.group, b.near = whole, t
		n, err := p.keep(file, rec, b, "#"+itoa(int64(k+1)))
		if err != nil {
			return kept, err
		}
		kept += n
	}
	return kept, nil
}

// keep runs a built row through the checks on its folded text and spools it.
func (p *pipeline) keep(file int, rec *Record, b built, suffix string) (int64, error) {
	p.fold = p.fold[:0]
	for _, s := range p.b.segs {
		p.fold = appendFolded(p.fold, s.text)
		p.fold = append(p.fold, 0)
	}
	h := xxhash.Sum64(p.fold)
	group := h
	single := len(p.b.segs) == 1
	if !single || suffix != "" {
		p.fold2 = appendFolded(p.fold2[:0], b.group)
		group = xxhash.Sum64(p.fold2)
	}
	near := p.fold
	if !single {
		near = p.fold2
	}
	if single {
		if rule := p.q.quality(p.fold); rule != "" {
			return 0, p.drop(file, rec, rule, "", "")
		}
	}
	ord := p.spool.rows
	if p.exact != nil {
		of, seen, err := p.exact.add(h, ord)
		if err != nil {
			return 0, err
		}
		if seen {
			return 0, p.drop(file, rec, RuleExact, "", p.place(of))
		}
	}
	if p.near != nil && b.near != nil {
		if err := p.near.add(near, ord); err != nil {
			return 0, err
		}
	}
	for _, r := range p.b.fixed {
		p.count(r, false)
	}
	p.countPII()
	return 1, p.put(file, rec, group, suffix, 0)
}

func (p *pipeline) countPII() {
	s, c := &p.b.cl.seen, &p.rep.PII
	for _, x := range []struct {
		seen bool
		n    *int64
	}{{s.email, &c.Email}, {s.phone, &c.Phone}, {s.card, &c.Card}, {s.ip, &c.IP}} {
		if x.seen {
			*x.n++
		}
	}
}

// put spools the built segments.
func (p *pipeline) put(file int, rec *Record, group uint64, suffix string, flags byte) error {
	id := p.b.id[:0]
	if f := rec.get("id"); f != nil && (f.Kind == String || f.Kind == Number) && len(f.Val) > 0 && len(f.Val) <= 200 {
		id = append(id, f.Val...)
	} else {
		id = append(append(append(id, p.sources[file].name...), ':'), itoa(rec.Line)...)
	}
	id = append(id, suffix...)
	p.b.id = id
	var all, scored int
	for _, s := range p.b.segs {
		all += len(s.text)
		if s.scored {
			scored += len(s.text)
		}
	}
	p.payload = appendPayload(p.payload[:0], id, p.b.segs, flags)
	if len(p.lines) < rememberedLines {
		p.lines = append(p.lines, uint32(min(rec.Line, 1<<32-1)))
	}
	if file >= p.held && !p.b.plain {
		p.split.add(group, int64(all))
	}
	return p.spool.write(&spoolRow{group: group, line: rec.Line, file: uint32(file), all: uint32(all), scored: uint32(scored), payload: p.payload})
}

// plainText spools a piece of a long text: only control characters and broken
// bytes are taken out of it.
func (p *pipeline) plainText(file int, rec *Record) (int64, error) {
	p.b.fixed = p.b.fixed[:0]
	first := len(p.plain) <= file
	for len(p.plain) <= file {
		p.plain = append(p.plain, 0)
	}
	f := rec.get("text")
	if f == nil {
		return 0, p.drop(file, rec, RuleMissing, "no text", "")
	}
	b := f.Val
	if !utf8.Valid(b) {
		p.b.fix(RuleEncoding)
		b = repairPieces(b)
	}
	b = p.b.clean(b)
	for _, r := range p.b.fixed {
		p.count(r, false)
	}
	if len(b) == 0 && !first && rec.More {
		return 0, nil
	}
	p.b.segs = append(p.b.segs[:0], rawSegment{text: b, scored: true})
	var flags byte
	if !first {
		flags |= flagContinued
	}
	if rec.More {
		flags |= flagMore
	}
	p.plain[file] += int64(len(b))
	if !first {
		p.pieces++
		return 0, p.put(file, rec, mix(uint64(file)+prime), "", flags)
	}
	return 1, p.put(file, rec, mix(uint64(file)+prime), "", flags)
}

// repairPieces repairs the lines of a text that are no valid UTF-8.
func repairPieces(b []byte) []byte {
	var out []byte
	for len(b) > 0 {
		l := b
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			l = b[:i+1]
		}
		b = b[len(l):]
		if !utf8.Valid(l) {
			if fixed, _ := repairLine(l); fixed != nil {
				l = fixed
			} else {
				l = bytes.ToValidUTF8(l, nil)
			}
		}
		out = append(out, l...)
	}
	return out
}

// place names a row kept earlier.
func (p *pipeline) place(ord uint64) string {
	if ord >= uint64(len(p.lines)) {
		return ""
	}
	f := sort.Search(len(p.starts), func(i int) bool { return p.starts[i] > ord }) - 1
	return p.sources[f].name + ":" + itoa(int64(p.lines[ord]))
}

// drop counts a row and lists it.
func (p *pipeline) drop(file int, rec *Record, rule Rule, note, of string) error {
	p.count(rule, true)
	p.rep.Dropped++
	d := DroppedRow{File: p.sources[file].name, Line: rec.Line, Rule: rule, Note: note, Of: of}
	if f := rec.get("id"); f != nil && (f.Kind == String || f.Kind == Number) {
		d.ID = cutText(f.Val, 80)
	}
	if rec.Raw != nil {
		d.Excerpt = cutText(rec.Raw, 120)
	} else if len(rec.Fields) > 0 {
		d.Excerpt = cutText(appendRecord(nil, rec), 120)
	}
	return p.dropped.write(&d)
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

// droppedWriter writes dropped.jsonl.
type droppedWriter struct {
	path string
	f    io.WriteCloser
	w    *bufio.Writer
}

func newDroppedWriter(create createFunc, path string) (*droppedWriter, error) {
	f, err := create(path)
	if err != nil {
		return nil, writeError(path, err)
	}
	return &droppedWriter{path: path, f: f, w: bufio.NewWriter(f)}, nil
}

func (d *droppedWriter) write(r *DroppedRow) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = d.w.Write(append(b, '\n'))
	return writeError(d.path, err)
}

func (d *droppedWriter) finish() error {
	err := d.w.Flush()
	if s, ok := d.f.(interface{ Sync() error }); ok && err == nil {
		err = s.Sync()
	}
	if cerr := d.f.Close(); err == nil {
		err = cerr
	}
	return writeError(d.path, err)
}
