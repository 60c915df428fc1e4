package data

import (
	"bufio"
	"encoding/json"
	"io"
	"sort"
)

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
