package data

import (
	"context"
	"errors"
	"fmt"
	"io"
)

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
