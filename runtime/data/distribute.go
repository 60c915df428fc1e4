package data

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"unicode/utf8"
)

// distribute is the second pass: every spooled row that stays goes to its part.
func (p *pipeline) distribute(ctx context.Context) error {
	p.ev.phase("split")
	if err := p.dropLate(ctx); err != nil {
		return err
	}
	p.rep.Kept -= p.pieces
	tails, err := p.planSplit()
	if err != nil {
		return err
	}
	var w [partCount]*partWriter
	for i, name := range partNames {
		if w[i], err = newPartWriter(p.cfg.create, PartFile(p.tmp, name)); err != nil {
			return err
		}
		defer func() { _ = w[i].f.Close() }()
	}
	d := distributor{p: p, w: w, tails: tails}
	if err := p.spool.each(func(ord uint64, r *spoolRow) error {
		if ord&0xfff == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if p.gone.has(ord) {
			return nil
		}
		return d.row(r)
	}); err != nil {
		return err
	}
	for i, name := range partNames {
		c, err := w[i].finish()
		if err != nil {
			return err
		}
		p.rep.Parts[name] = c
		if c.Bytes < minPart {
			return &InputError{Field: "data", Msg: fmt.Sprintf("part %s has %d bytes of text, at least %d are needed", name, c.Bytes, minPart), Hint: "give more data"}
		}
	}
	t := p.rep.Parts["test"]
	p.rep.HeldOut = HeldOut{Part: "test", Bytes: t.Bytes, SHA256: t.SHA256, Given: p.held > 0}
	return p.dropped.finish()
}

// dropLate lists the rows found to be duplicates after they were spooled, and
// counts the bytes and rows that stay.
func (p *pipeline) dropLate(ctx context.Context) error {
	if len(p.gone) == 0 {
		p.rep.Kept = int64(p.spool.rows)
		return nil
	}
	return p.spool.each(func(ord uint64, r *spoolRow) error {
		if ord&0xfff == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if !p.gone.has(ord) {
			p.rep.Kept++
			return nil
		}
		rule := RuleExact
		if p.near1.has(ord) {
			rule = RuleNear
		}
		p.count(rule, true)
		p.rep.Dropped++
		row := DroppedRow{File: p.sources[r.file].name, Line: r.line, Rule: rule}
		if of, ok := p.goneOf[ord]; ok {
			row.Of = p.place(of)
		}
		_, id, err := parsePayload(r.payload, func(_ byte, _ bool, text []byte) {
			if row.Excerpt == "" {
				row.Excerpt = cutText(text, 120)
			}
		})
		if err != nil {
			return err
		}
		row.ID = string(id)
		if p.split.sizes != nil && int(r.file) >= p.held {
			if p.split.sizes[r.group] -= int64(r.all); p.split.sizes[r.group] <= 0 {
				delete(p.split.sizes, r.group)
			}
		}
		p.split.total -= int64(r.all)
		return p.dropped.write(&row)
	})
}

// planSplit chooses how to split: every long text by its tail, many documents by
// the hash of their content. The tails are by file; one for all rows when there
// are too few groups of rows to choose from.
func (p *pipeline) planSplit() (map[int]*tail, error) {
	test := p.split.test
	var plain int64
	files := 0
	for f := p.held; f < len(p.plain); f++ {
		if p.plain[f] > 0 {
			plain += p.plain[f]
			files++
		}
	}
	total := plain + p.split.total
	if total < minTotal {
		return nil, tooSmall(p.sources[p.held].name, total)
	}
	tails := map[int]*tail{}
	hashed := p.split.total > 0
	for f := p.held; f < len(p.plain); f++ {
		if p.plain[f] == 0 {
			continue
		}
		switch {
		case files >= fewFiles:
			p.split.add(mix(uint64(f)+prime), p.plain[f])
			hashed = true
		case p.plain[f] >= minTotal:
			tails[f] = newTail(p.plain[f], p.split.valid, test)
		}
	}
	if hashed && p.split.few() {
		if p.rep.Task != TaskText {
			return nil, &InputError{Field: "data", Msg: fmt.Sprintf("only %d different questions or documents are left, %d are needed to hold some out", len(p.split.sizes), p.split.wanted()), Hint: "give more rows"}
		}
		if len(tails) == 0 {
			tails[-1] = newTail(p.split.total, p.split.valid, test)
		}
		hashed = false
	} else if hashed {
		p.split.decide()
	}
	switch {
	case hashed && len(tails) > 0:
		p.rep.Split = "tail of each long text, content hash of rows"
	case hashed:
		p.rep.Split = "content hash"
	default:
		p.rep.Split = "tail"
	}
	if p.held > 0 {
		p.rep.Split += "; held-out files given"
	}
	return tails, nil
}

// distributor writes rows to parts.
type distributor struct {
	p     *pipeline
	w     [partCount]*partWriter
	tails map[int]*tail
	begun [partCount]int // plain text: the file that each part's text came from last, plus 1
	buf   []byte
}

func (d *distributor) row(r *spoolRow) error {
	f := int(r.file)
	if f < d.p.held {
		return d.w[partTest].write(r.payload, int64(r.all), int64(r.scored))
	}
	t := d.tails[f]
	if t == nil && d.p.split.part == nil && d.p.split.sizes != nil {
		t = d.tails[-1]
		if t == nil { // a file too short for a tail beside others that have one
			return d.w[partTrain].write(r.payload, int64(r.all), int64(r.scored))
		}
	}
	if t == nil {
		return d.w[d.p.split.of(r.group)].write(r.payload, int64(r.all), int64(r.scored))
	}
	return d.tail(t, r)
}

// tail writes a piece of a text to the part it falls into, cut where it straddles.
func (d *distributor) tail(t *tail, r *spoolRow) error {
	var text []byte
	flags, id, err := parsePayload(r.payload, func(_ byte, _ bool, b []byte) { text = b })
	if err != nil {
		return err
	}
	last := flags&flagMore == 0
	fresh := flags&flagContinued == 0
	for {
		part := t.part()
		b := text
		if room := t.ends[part] - t.seen; part < t.last && int64(len(b)) > room {
			b = b[:niceCut(b, int(room))]
		}
		text = text[len(b):]
		t.seen += int64(len(b))
		if len(text) > 0 { // the rest is another part's, however the cut moved
			t.seen = max(t.seen, t.ends[part])
			t.ends[part] = min(t.ends[part], t.seen)
		}
		var fl byte
		if !fresh && d.begun[part] == int(r.file)+1 {
			fl |= flagContinued
		}
		if !last || len(text) > 0 {
			fl |= flagMore
		}
		d.begun[part] = int(r.file) + 1
		if len(b) > 0 || len(text) == 0 {
			d.buf = appendPayload(d.buf[:0], id, []rawSegment{{text: b, scored: true}}, fl)
			if err := d.w[part].write(d.buf, int64(len(b)), int64(len(b))); err != nil {
				return err
			}
		}
		if len(text) == 0 {
			return nil
		}
		fresh = false
	}
}

// niceCut moves a cut back to a line's end, or a space, or a character's start,
// by at most 512 bytes.
func niceCut(b []byte, at int) int {
	low := max(0, at-512)
	for _, sep := range []byte{'\n', ' '} {
		if i := bytes.LastIndexByte(b[low:at], sep); i >= 0 {
			return low + i + 1
		}
	}
	for at > 0 && at < len(b) && !utf8.RuneStart(b[at]) {
		at--
	}
	return at
}

// publish moves the parts into dir and writes the report last.
func (p *pipeline) publish(dir string) error {
	b, err := json.MarshalIndent(p.rep, "", "  ")
	if err != nil {
		return err
	}
	report := filepath.Join(p.tmp, "report.json")
	f, err := p.cfg.create(report)
	if err != nil {
		return writeError(report, err)
	}
	_, err = f.Write(append(b, '\n'))
	if s, ok := f.(interface{ Sync() error }); ok && err == nil {
		err = s.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return writeError(report, err)
	}
	if err := os.Remove(filepath.Join(dir, "report.json")); err != nil && !os.IsNotExist(err) {
		return writeError(dir, err)
	}
	for _, name := range []string{"train.part", "valid.part", "test.part", "dropped.jsonl", "report.json"} {
		if err := os.Rename(filepath.Join(p.tmp, name), filepath.Join(dir, name)); err != nil {
			return writeError(name, err)
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}
