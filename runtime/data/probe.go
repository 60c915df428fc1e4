package data

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sort"
	"strings"
	"unicode/utf8"
)

// FileProbe is what the head of one file shows.
type FileProbe struct {
	FileInfo
	Rows      int64             `json:"rows"`             // estimate, exact where RowsExact
	RowsExact bool              `json:"rows_exact"`       // the whole file was seen, or it says so itself
	Sample    map[string]string `json:"sample,omitempty"` // a row, values cut to 200 bytes
	BadRows   int64             `json:"bad_rows"`         // rows of the sample that cannot be read
	Guess     Guess             `json:"guess"`
}

// ProbeResult is what build would understand of the data.
type ProbeResult struct {
	Files []FileProbe `json:"files"`
	Guess
}

const sampleRowLimit = 3000

// look reads the sample of one source.
func (o *openSource) look() (cols []*column, rows, bad int64, sample map[string]string, err error) {
	r, err := o.records(true, nil)
	if err != nil {
		return nil, 0, 0, nil, err
	}
	by := map[string]*column{}
	var rec Record
	for rows+bad < sampleRowLimit {
		err := r.Next(&rec)
		if err == io.EOF {
			break
		}
		if err != nil {
			if o.format == FormatJSON && !o.whole && rows > 0 {
				break // the head ends within a row
			}
			if o.format == FormatJSON && !o.whole {
				return nil, 0, 0, nil, &InputError{File: o.name, Msg: "has no row that ends within its first 4 MiB", Hint: "give one object a line (JSONL)"}
			}
			return nil, 0, 0, nil, err
		}
		if rec.Bad == RuleBlank {
			continue
		}
		if rec.Bad != "" {
			bad++
			continue
		}
		rows++
		if sample == nil {
			sample = map[string]string{}
			for i := range rec.Fields {
				sample[string(rec.Fields[i].Name)] = cutText(rec.Fields[i].Val, 200)
			}
		}
		for i := range rec.Fields {
			f := &rec.Fields[i]
			c := by[string(f.Name)]
			if c == nil {
				if len(by) >= 1000 {
					continue
				}
				c = &column{name: string(f.Name), distinct: map[uint64]struct{}{}, order: len(by)}
				by[c.name] = c
			}
			c.see(f)
		}
	}
	for _, c := range by {
		cols = append(cols, c)
	}
	sort.Slice(cols, func(i, j int) bool { return cols[i].order < cols[j].order })
	return cols, rows, bad, sample, nil
}

func cutText(b []byte, n int) string {
	if len(b) > n {
		b = b[:n]
		for len(b) > 0 && !utf8.Valid(b[max(0, len(b)-4):]) && !utf8.RuneStart(b[len(b)-1]) {
			b = b[:len(b)-1]
		}
		return strings.ToValidUTF8(string(b), "") + "…"
	}
	return strings.ToValidUTF8(string(b), "\uFFFD")
}

// probe tells everything of one opened source.
func (o *openSource) probe(cfg *Config) (FileProbe, error) {
	p := FileProbe{FileInfo: o.info()}
	if o.format == FormatText {
		p.Rows, p.RowsExact = 1, true
		p.Sample = map[string]string{"text": cutText(bytes.TrimSpace(o.head), 200)}
		p.Guess = Guess{TaskText, 0.97, []string{"the file is plain text"}, map[string]string{"text": "text"}}
		return p, nil
	}
	cols, rows, bad, sample, err := o.look()
	if err != nil {
		return p, err
	}
	if rows == 0 && bad == 0 {
		return p, &InputError{File: o.name, Msg: "has no rows", Hint: "give a file with at least some rows"}
	}
	if bad > rows {
		return p, o.tooBroken(rows, bad)
	}
	if o.format != FormatCSV {
		p.Columns = nil
		for _, c := range cols {
			p.Columns = append(p.Columns, c.name)
		}
	}
	p.Sample, p.BadRows, p.Rows = sample, bad, rows+bad
	p.RowsExact = o.whole && rows+bad < sampleRowLimit
	if o.rows >= 0 {
		p.Rows, p.RowsExact = o.rows, true
	} else if !p.RowsExact {
		p.Rows = o.estimateRows(rows + bad)
	}
	p.Guess = guess(cols, rows)
	if err := p.force(cfg); err != nil {
		return p, err
	}
	return p, nil
}

// estimateRows scales the sample's lines to the whole file.
func (o *openSource) estimateRows(seen int64) int64 {
	if o.format == FormatJSON {
		seen = max(seen, 1)
		if seen < sampleRowLimit {
			return seen * max(1, o.size/max(1, int64(len(o.head))))
		}
		return seen
	}
	lines := int64(bytes.Count(o.head, []byte{'\n'}))
	if lines == 0 {
		lines = int64(bytes.Count(o.head, []byte{'\r'}))
	}
	if o.whole {
		return max(lines, seen)
	}
	size := o.size
	if o.compression != "" {
		size *= 3 // text packs to about a third
	}
	return lines * size / int64(len(o.head))
}

// tooBroken names the first three rows that cannot be read.
func (o *openSource) tooBroken(rows, bad int64) error {
	r, err := o.records(true, nil)
	if err != nil {
		return err
	}
	var rec Record
	var at []string
	var first int64
	for len(at) < 3 {
		if err := r.Next(&rec); err != nil {
			break
		}
		if rec.Bad != "" && rec.Bad != RuleBlank {
			if first == 0 {
				first = rec.Line
			}
			at = append(at, fmt.Sprintf("line %d: %s", rec.Line, rec.Note))
		}
	}
	return brokenError(o.name, o.format, first, rows+bad, bad, at)
}

func brokenError(name, format string, first, rows, bad int64, at []string) error {
	return &InputError{File: name, Line: first, Msg: fmt.Sprintf("%d of %d rows cannot be read as %s (%s)", bad, rows, format, strings.Join(at, "; ")), Hint: "check the file's format; up to half of the rows may be broken"}
}

// combine gives the one task of several files.
func combine(files []FileProbe) (Guess, error) {
	g := files[0].Guess
	for _, f := range files {
		if f.Guess.Task == "" {
			return f.Guess, &InputError{File: f.File, Field: "task_type", Msg: "no task fits: " + strings.Join(f.Guess.Reasons, "; "), Hint: "name the task, and map its columns (they are " + strings.Join(f.Columns, ", ") + ")"}
		}
		if f.Guess.Task != g.Task {
			return g, &InputError{File: f.File, Field: "task_type", Msg: fmt.Sprintf("looks like %s, but %s looks like %s", f.Guess.Task, files[0].File, g.Task), Hint: "give files of one task, or name the task"}
		}
		g.Confidence = min(g.Confidence, f.Guess.Confidence)
	}
	return g, nil
}

// Probe samples the head of every source (4 MiB, at most 3,000 rows) and says what
// Prepare would make of it. URLs and plugins are fetched to a temporary folder.
// Where no task fits, the result is given along with an InputError.
func Probe(ctx context.Context, cfg Config) (*ProbeResult, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp("", "autoglm-probe-")
	if err != nil {
		return nil, fmt.Errorf("make a temporary folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	sources, _, err := cfg.gather(ctx, tmp, Events{})
	if err != nil {
		return nil, err
	}
	files, err := probeAll(sources, &cfg)
	if err != nil {
		return nil, err
	}
	g, err := combine(files)
	return &ProbeResult{Files: files, Guess: g}, err
}

func probeAll(sources []source, cfg *Config) ([]FileProbe, error) {
	var out []FileProbe
	for _, s := range sources {
		o, err := s.open()
		if err != nil {
			return nil, err
		}
		p, err := o.probe(cfg)
		o.Close()
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}
