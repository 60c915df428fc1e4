package data

import (
	"bytes"
	"fmt"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
)

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
