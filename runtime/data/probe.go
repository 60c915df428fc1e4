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

	"github.com/cespare/xxhash/v2"
)

// Guess is a task with the grounds for it.
type Guess struct {
	Task       Task              `json:"task"`
	Confidence float64           `json:"confidence"` // 0 to 1
	Reasons    []string          `json:"reasons"`
	Roles      map[string]string `json:"roles,omitempty"` // role to column
}

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

// column is what the sample shows of a column.
type column struct {
	name      string
	n         int // rows that have it
	kinds     [6]int
	bytes     int
	questions int
	spaces    int
	numbers   int
	chat      int // arrays of {role, content} or {from, value}
	distinct  map[uint64]struct{}
	order     int
}

func (c *column) mean() float64 {
	if s := c.kinds[String]; s > 0 {
		return float64(c.bytes) / float64(s)
	}
	return 0
}

func (c *column) mostly(k Kind) bool { return c.kinds[k]*2 > c.n && c.n > 0 }

func (c *column) words() bool { // running text rather than codes or numbers
	return c.mostly(String) && c.numbers*2 < c.kinds[String]
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

func (c *column) see(f *Field) {
	c.n++
	c.kinds[f.Kind]++
	if f.Kind == Array && isChat(f.Val) {
		c.chat++
	}
	if f.Kind != String {
		if f.Kind == Number || f.Kind == Bool {
			c.distinct[xxhash.Sum64(f.Val)] = struct{}{}
		}
		return
	}
	v := bytes.TrimSpace(f.Val)
	c.bytes += len(v)
	c.distinct[xxhash.Sum64(v)] = struct{}{}
	if len(v) > 0 {
		if v[len(v)-1] == '?' || bytes.HasSuffix(v, []byte("？")) {
			c.questions++
		}
		if bytes.IndexByte(v, ' ') > 0 || len(v) > 0 && v[0] >= 0x80 {
			c.spaces++
		}
	}
	if len(v) == 0 || isNumber(string(v)) || string(v) == "NA" {
		c.numbers++
	}
}

// isChat tells an array whose first element is a turn of a dialogue.
func isChat(raw []byte) bool {
	first, who, what := true, false, false
	elements(raw, func(v []byte, k Kind) {
		if !first || k != Object {
			first = false
			return
		}
		first = false
		members(v, func(key string, _ []byte, k Kind) {
			switch key {
			case "role", "from", "speaker":
				who = true
			case "content", "value", "text":
				what = true
			}
		})
	})
	return who && what
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

// pick gives the column of a role: one named for it, the most telling name among
// those that half of the rows have.
func pick(cols []*column, r role, rows int64, taken map[string]string, fits func(*column) bool) *column {
	var best *column
	bestRank := 0
	for _, c := range cols {
		k := rank(c.name, r)
		if k < 0 || int64(c.n)*2 <= rows || fits != nil && !fits(c) {
			continue
		}
		used := false
		for _, t := range taken {
			used = used || t == c.name
		}
		if !used && (best == nil || k < bestRank) {
			best, bestRank = c, k
		}
	}
	return best
}

// guess names the task of a table from its columns' names and contents.
func guess(cols []*column, rows int64) Guess {
	roles := map[string]string{}
	textual := func(c *column) bool { return c.mostly(String) }
	for _, c := range cols {
		if c.chat*2 > c.n && c.chat > 0 {
			roles["messages"] = c.name
			return Guess{TaskDialogue, 0.98, []string{fmt.Sprintf("column %q holds lists of turns, each with a speaker and a text", c.name)}, roles}
		}
	}
	q := pick(cols, roleQuestion, rows, nil, textual)
	a := pick(cols, roleAnswer, rows, nil, func(c *column) bool { return !c.mostly(Null) })
	if q != nil && a != nil {
		roles["question"], roles["answer"] = q.name, a.name
		g := Guess{TaskQA, 0.95, []string{fmt.Sprintf("columns %q and %q are named as a question and its answer", q.name, a.name)}, roles}
		if c := pick(cols, roleContext, rows, roles, func(c *column) bool { return textual(c) || c.kinds[String] > 0 }); c != nil {
			roles["context"] = c.name
			g.Reasons = append(g.Reasons, fmt.Sprintf("column %q is the text that the question is about", c.name))
			g.Confidence = 0.97
		}
		if q.questions*2 > q.n {
			g.Reasons = append(g.Reasons, fmt.Sprintf("%d %% of %q end in a question mark", 100*q.questions/q.n, q.name))
			g.Confidence = 0.98
		}
		return g
	}
	if s := pick(cols, roleSummary, rows, nil, textual); s != nil {
		t := map[string]string{"summary": s.name}
		if d := pick(cols, roleDocument, rows, t, textual); d != nil && d.mean() > 1.3*s.mean() {
			t["document"] = d.name
			return Guess{TaskSummary, 0.96, []string{
				fmt.Sprintf("columns %q and %q are named as a document and its summary", d.name, s.name),
				fmt.Sprintf("documents have %.0f bytes on average, summaries %.0f", d.mean(), s.mean()),
			}, t}
		}
	}
	text := pick(cols, roleText, rows, nil, (*column).words)
	if text != nil {
		t := map[string]string{"text": text.name}
		l := pick(cols, roleLabel, rows, t, func(c *column) bool {
			return (c.mostly(String) || c.mostly(Number) || c.mostly(Bool)) && c.mean() < 60
		})
		if l == nil {
			for _, c := range cols {
				if c != text && rolesOf(c.name)&roleMeta == 0 && len(c.distinct) >= 2 && len(c.distinct) <= 20 && int64(len(c.distinct))*10 <= rows && int64(c.n)*2 > rows && c.mean() < 40 && text.mean() < 500 {
					l = c
					break
				}
			}
		}
		if l != nil && len(l.distinct) >= 2 && int64(len(l.distinct)*2) <= max(rows, 4) {
			t["label"] = l.name
			conf := 0.95
			if r := rank(l.name, roleLabel); r < 0 || r > 8 {
				conf = 0.75
			}
			return Guess{TaskClassification, conf, []string{
				fmt.Sprintf("column %q is text", text.name),
				fmt.Sprintf("column %q has %d different values in %d rows", l.name, len(l.distinct), rows),
			}, t}
		}
		conf := 0.9
		if text.mean() > 60 {
			conf = 0.95
		}
		return Guess{TaskText, conf, []string{fmt.Sprintf("column %q is text, and no other column is an answer, a summary or a label", text.name)}, t}
	}
	return guessByContent(cols, rows)
}

// guessByContent looks at what nameless columns hold.
func guessByContent(cols []*column, rows int64) Guess {
	var texts []*column
	for _, c := range cols {
		if c.words() && int64(c.n)*2 > rows && c.spaces*3 > c.kinds[String] {
			texts = append(texts, c)
		}
	}
	var q *column
	for _, c := range texts {
		if c.questions*2 > c.n && c.mean() < 500 && (q == nil || c.questions > q.questions) {
			q = c
		}
	}
	if q != nil {
		var a, long *column
		for _, c := range cols {
			if c == q || !c.mostly(String) && !c.mostly(Number) || rolesOf(c.name)&roleMeta != 0 {
				continue
			}
			if c.mean() > 2*q.mean() && c.mean() > 150 {
				if long == nil || c.mean() > long.mean() {
					long = c
				}
			} else if a == nil || c.mean() > a.mean() {
				a = c
			}
		}
		if a == nil {
			a, long = long, nil
		}
		if a != nil {
			g := Guess{TaskQA, 0.8, []string{
				fmt.Sprintf("%d %% of column %q end in a question mark", 100*q.questions/q.n, q.name),
				fmt.Sprintf("column %q is taken as the answer", a.name),
			}, map[string]string{"question": q.name, "answer": a.name}}
			if long != nil {
				g.Roles["context"] = long.name
				g.Reasons = append(g.Reasons, fmt.Sprintf("column %q, %.0f bytes on average, is taken as the context", long.name, long.mean()))
			}
			return g
		}
	}
	if len(texts) >= 1 {
		sort.SliceStable(texts, func(i, j int) bool { return texts[i].mean() > texts[j].mean() })
		d := texts[0]
		for _, c := range cols {
			if c != d && c.mostly(String) && len(c.distinct) >= 2 && int64(len(c.distinct))*5 <= rows && c.mean() < 40 && d.mean() < 1000 && d.mean() > 2*c.mean() && rolesOf(c.name)&roleMeta == 0 {
				return Guess{TaskClassification, 0.6, []string{
					fmt.Sprintf("column %q is the longest text", d.name),
					fmt.Sprintf("column %q has %d different values in %d rows", c.name, len(c.distinct), rows),
				}, map[string]string{"text": d.name, "label": c.name}}
			}
		}
		if len(texts) == 2 && d.mean() > 4*texts[1].mean() && d.mean() > 200 {
			return Guess{TaskSummary, 0.5, []string{
				fmt.Sprintf("column %q has %.0f bytes on average and %q %.0f", d.name, d.mean(), texts[1].name, texts[1].mean()),
			}, map[string]string{"document": d.name, "summary": texts[1].name}}
		}
		if d.mean() >= 40 {
			return Guess{TaskText, 0.5, []string{fmt.Sprintf("column %q is the longest text", d.name)}, map[string]string{"text": d.name}}
		}
	}
	return Guess{"", 0, []string{"no column holds running text: numbers, codes and categories alone are not learnt from"}, nil}
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

// force applies the task and the columns that the user gave.
func (p *FileProbe) force(cfg *Config) error {
	if cfg.Task == "" || cfg.Task == TaskAuto {
		if len(cfg.Columns) == 0 {
			return nil
		}
		if t := taskOfRoles(cfg.Columns); t != "" {
			p.Guess = Guess{t, 1, []string{"columns given by the user"}, nil}
		}
	} else if p.Guess.Task != cfg.Task {
		p.Guess = Guess{cfg.Task, 1, []string{"task given by the user"}, nil}
	} else {
		p.Guess.Confidence = 1
		p.Guess.Reasons = append([]string{"task given by the user"}, p.Guess.Reasons...)
	}
	have := map[string]bool{}
	for _, c := range p.Columns {
		have[c] = true
	}
	roles := map[string]string{}
	for k, v := range p.Guess.Roles {
		roles[k] = v
	}
	names := make([]string, 0, len(cfg.Columns))
	for r := range cfg.Columns {
		names = append(names, r)
	}
	sort.Strings(names)
	for _, r := range names {
		c := cfg.Columns[r]
		if !have[c] {
			return &InputError{File: p.File, Field: c, Msg: "no such column for role " + r, Hint: "the columns are " + strings.Join(p.Columns, ", ")}
		}
		roles[r] = c
	}
	need := taskRoles[p.Guess.Task]
	for _, r := range need {
		if roles[r.String()] != "" {
			continue
		}
		for _, a := range aliasNames(r) {
			for _, c := range p.Columns {
				if plainName(c) == a && roles[r.String()] == "" {
					roles[r.String()] = c
				}
			}
		}
		if roles[r.String()] == "" {
			return &InputError{File: p.File, Field: r.String(), Msg: fmt.Sprintf("task %s needs a column for %s, and none has a name for it", p.Guess.Task, r), Hint: "map it; the columns are " + strings.Join(p.Columns, ", ")}
		}
	}
	p.Guess.Roles = roles
	return nil
}

// taskRoles are the roles without which a task has no examples.
var taskRoles = map[Task][]role{
	TaskText: {roleText}, TaskQA: {roleQuestion, roleAnswer}, TaskSummary: {roleDocument, roleSummary},
	TaskDialogue: {roleMessages}, TaskClassification: {roleText, roleLabel},
}

func taskOfRoles(cols map[string]string) Task {
	for _, t := range []Task{TaskDialogue, TaskQA, TaskSummary, TaskClassification, TaskText} {
		all := true
		for _, r := range taskRoles[t] {
			all = all && cols[r.String()] != ""
		}
		if all {
			return t
		}
	}
	return ""
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
