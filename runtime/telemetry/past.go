package telemetry

import (
	"bytes"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/parquet-go/parquet-go"

	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/search"
	"github.com/open-autoglm/autoglm/runtime/space"
)

// Trials of earlier searches, for a new one to start warm from: what WriteCSV,
// WriteParquet and WriteOptuna have written, leaderboard.json, and journals.

// Bounds of a file of earlier trials: bytes, and rows of Parquet.
const (
	maxPastFile = 64 << 20
	maxPastRows = 100_000
)

// ReadPast reads the trials of earlier searches that have a score: each path is the
// folder of a build, or a file of trials (.csv, .parquet, .json). Of more than
// search.MaxPast the best of each stay. The error names the file, and the line and the
// field where there is one.
func ReadPast(paths []string) ([]search.Past, error) {
	var out []search.Past
	for _, path := range paths {
		past, err := readPast(path)
		if err != nil {
			return nil, err
		}
		slices.SortStableFunc(past, func(a, b search.Past) int {
			return cmp.Or(cmp.Compare(b.Rung, a.Rung), cmp.Compare(a.Score, b.Score))
		})
		out = append(out, past[:min(len(past), search.MaxPast/len(paths))]...)
	}
	return out, nil
}

func wrongPast(path string, line int, field, format string, a ...any) error {
	return &job.FieldError{File: path, Line: line, Path: field, Msg: fmt.Sprintf(format, a...)}
}

func readPast(path string) ([]search.Past, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, wrongPast(path, 0, "", "is not there; --warm-start takes the folder of a build, or its trials as CSV, Parquet or JSON")
	}
	if info.IsDir() {
		return folderPast(path)
	}
	if info.Size() > maxPastFile {
		return nil, wrongPast(path, 0, "", "is larger than %d MB; are these trials?", maxPastFile>>20)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".csv":
		return csvPast(path, b)
	case ".parquet":
		return parquetPast(path, b)
	case ".json":
		return jsonPast(path, b)
	}
	return nil, wrongPast(path, 0, "", "is no .csv, .parquet or .json, and no folder of a build")
}

// folderPast reads a build's journal, or its leaderboard where that was not fetched.
func folderPast(dir string) ([]search.Past, error) {
	jdir := filepath.Join(dir, "journal")
	if _, err := os.Stat(filepath.Join(jdir, journal.FileName)); errors.Is(err, fs.ErrNotExist) {
		board := filepath.Join(dir, "leaderboard.json")
		if _, err := os.Stat(board); err != nil {
			return nil, wrongPast(dir, 0, "", "holds no build: neither journal nor leaderboard.json is there")
		}
		return readPast(board)
	}
	log, err := journal.OpenFile(jdir)
	if errors.Is(err, journal.ErrInUse) {
		return nil, wrongPast(dir, 0, "", "is in use: wait until its build is over, or give a copy of its leaderboard.json")
	}
	if err != nil {
		return nil, err
	}
	st, err := journal.Replayed(log)
	if err = errors.Join(err, log.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return boardPast(dir, st.Leaderboard("")), nil
}

func boardPast(source string, b journal.Leaderboard) []search.Past {
	var out []search.Past
	for _, e := range b.Trials {
		if e.Score != nil && e.Status != "failed" && len(e.Config) > 0 {
			out = append(out, search.Past{Source: source, Trial: e.ID, Config: e.Config, Rung: max(e.Rung, 0), Score: *e.Score})
		}
	}
	return out
}

// jsonPast reads leaderboard.json, what WriteOptuna wrote, or what WritePast did.
func jsonPast(path string, b []byte) ([]search.Past, error) {
	var doc struct {
		Direction string            `json:"direction"`
		Trials    []json.RawMessage `json:"trials"`
		Past      []search.Past     `json:"past"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		return nil, jsonError(path, b, err)
	}
	if doc.Trials == nil && doc.Past == nil {
		return nil, wrongPast(path, 0, "trials", "is missing; take leaderboard.json, or what autoglm trials --optuna prints")
	}
	sign := 1.0
	switch doc.Direction {
	case "", "minimize":
	case "maximize":
		sign = -1
	default:
		return nil, wrongPast(path, 0, "direction", "%q is not minimize or maximize", doc.Direction)
	}
	out := doc.Past
	for i, raw := range doc.Trials {
		field := fmt.Sprintf("trials[%d]", i)
		var t struct {
			ID, Status string
			Score      *float64
			Rung       int
			Config     space.Config
			State      string
			Value      *float64
			Params     json.RawMessage
			Attributes struct {
				Trial string `json:"trial"`
			} `json:"user_attrs"`
			Intermediate map[string]float64 `json:"intermediate_values"`
		}
		if err := json.Unmarshal(raw, &t); err != nil {
			return nil, wrongPast(path, 0, field, "%v", err)
		}
		p := search.Past{Source: path, Trial: cmp.Or(t.ID, t.Attributes.Trial, strconv.Itoa(i)), Config: t.Config, Rung: max(t.Rung, 0)}
		value, ended := t.Score, t.Status != "failed"
		if t.Config == nil { // Optuna's; an entry of a leaderboard has a number of params
			if err := json.Unmarshal(t.Params, &p.Config); err != nil {
				return nil, wrongPast(path, 0, field+".params", "are neither there nor under config: %v", err)
			}
			// Who was pruned got less far than who was not.
			value, ended, p.Rung = t.Value, t.State == "COMPLETE" || t.State == "PRUNED", len(t.Intermediate)
		}
		if value == nil || !ended {
			continue
		}
		p.Score = sign * *value
		out = append(out, p)
	}
	for i, p := range out {
		if len(p.Config) == 0 {
			return nil, wrongPast(path, 0, fmt.Sprintf("trials[%d]", i), "has no parameters")
		}
	}
	return out, nil
}

// jsonError names the line of a file that is not JSON.
func jsonError(path string, b []byte, err error) error {
	var syntax *json.SyntaxError
	var typed *json.UnmarshalTypeError
	line, field := 0, ""
	switch {
	case errors.As(err, &syntax):
		line = 1 + bytes.Count(b[:min(int(syntax.Offset), len(b))], []byte("\n"))
	case errors.As(err, &typed):
		line, field = 1+bytes.Count(b[:min(int(typed.Offset), len(b))], []byte("\n")), typed.Field
	}
	return wrongPast(path, line, field, "%v", err)
}

// WritePast writes trials for ReadPast, in JSON.
func WritePast(w io.Writer, past []search.Past) error {
	return json.NewEncoder(w).Encode(map[string]any{"past": past})
}

// tablePast gathers trials from the rows of a table.
type tablePast struct {
	path               string
	score, rung, trial int // columns; −1 is none
	state              int
	params             map[int]string
	out                []search.Past
}

func newTablePast(path string, names []string) (*tablePast, error) {
	t := &tablePast{path: path, params: map[int]string{}}
	at := func(names []string, wanted ...string) int {
		for _, w := range wanted {
			if i := slices.Index(names, w); i >= 0 {
				return i
			}
		}
		return -1
	}
	t.score, t.rung, t.trial, t.state = at(names, "score", "value"), at(names, "rung"), at(names, "trial", "number"), at(names, "status", "state")
	for i, n := range names {
		if p, ok := strings.CutPrefix(n, "params_"); ok && p != "" {
			t.params[i] = p
		}
	}
	if t.score < 0 || len(t.params) == 0 {
		return nil, wrongPast(path, 1, "", "has no column score, or none params_NAME; its columns are %s", clip(strings.Join(names, ", "), 300))
	}
	return t, nil
}

// row takes one; an empty cell is no value.
func (t *tablePast) row(line int, cell func(i int) string) error {
	text := strings.TrimSpace(cell(t.score))
	if text == "" || t.state >= 0 && slices.Contains([]string{"failed", "FAIL", "RUNNING", "WAITING"}, cell(t.state)) {
		return nil
	}
	p := search.Past{Source: t.path, Trial: strconv.Itoa(line), Config: space.Config{}}
	var err error
	if p.Score, err = strconv.ParseFloat(text, 64); err != nil {
		return wrongPast(t.path, line, "score", "%q is not a number", clip(text, 80))
	}
	if math.IsNaN(p.Score) || math.IsInf(p.Score, 0) {
		return nil
	}
	if t.rung >= 0 && cell(t.rung) != "" {
		if p.Rung, err = strconv.Atoi(cell(t.rung)); err != nil {
			return wrongPast(t.path, line, "rung", "%q is not a whole number", clip(cell(t.rung), 80))
		}
		p.Rung = max(p.Rung, 0)
	}
	if t.trial >= 0 && cell(t.trial) != "" {
		p.Trial = cell(t.trial)
	}
	for i, name := range t.params {
		if cell(i) == "" {
			continue
		}
		v, err := space.ParseValue(cell(i))
		if err != nil {
			return wrongPast(t.path, line, "params_"+name, "%v", err)
		}
		if v == space.Word("True") || v == space.Word("False") { // as pandas writes them
			v = space.Word(strings.ToLower(v.Word))
		}
		p.Config[name] = v
	}
	if len(p.Config) > 0 {
		t.out = append(t.out, p)
	}
	return nil
}

func csvPast(path string, b []byte) ([]search.Past, error) {
	rows := csv.NewReader(bytes.NewReader(b))
	head, err := rows.Read()
	if err != nil {
		return nil, wrongPast(path, 1, "", "is no CSV with a line of names: %v", err)
	}
	t, err := newTablePast(path, head)
	if err != nil {
		return nil, err
	}
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return t.out, nil
		}
		if err != nil {
			var pe *csv.ParseError
			if errors.As(err, &pe) {
				return nil, wrongPast(path, pe.Line, "", "%v", pe.Err)
			}
			return nil, wrongPast(path, 0, "", "%v", err)
		}
		line, _ := rows.FieldPos(0)
		if err := t.row(line, func(i int) string { return row[i] }); err != nil {
			return nil, err
		}
	}
}

func parquetPast(path string, b []byte) (out []search.Past, err error) {
	defer func() { // the reader panics on some damaged files
		if p := recover(); p != nil {
			out, err = nil, wrongPast(path, 0, "", "is damaged: %v", p)
		}
	}()
	f, err := parquet.OpenFile(bytes.NewReader(b), int64(len(b)), parquet.SkipBloomFilters(true), parquet.SkipPageIndex(true))
	if err != nil {
		return nil, wrongPast(path, 0, "", "is no Parquet: %v", err)
	}
	if f.NumRows() > maxPastRows {
		return nil, wrongPast(path, 0, "", "has %d rows, at most %d are read; are these trials?", f.NumRows(), maxPastRows)
	}
	var names []string
	for _, c := range f.Schema().Columns() {
		names = append(names, strings.Join(c, "."))
	}
	t, err := newTablePast(path, names)
	if err != nil {
		return nil, err
	}
	r := parquet.NewReader(f)
	defer r.Close()
	for line := 1; ; line++ {
		rows := make([]parquet.Row, 1)
		n, err := r.ReadRows(rows)
		if n > 0 {
			cells := make([]string, len(names))
			for _, v := range rows[0] {
				if v.IsNull() || v.Column() < 0 || v.Column() >= len(cells) {
					continue
				}
				cells[v.Column()] = v.String()
				if v.Kind() == parquet.Double {
					cells[v.Column()] = strconv.FormatFloat(v.Double(), 'g', -1, 64)
				}
			}
			if err := t.row(line, func(i int) string { return cells[i] }); err != nil {
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) {
			return t.out, nil
		}
		if err != nil {
			return nil, wrongPast(path, line, "", "%v", err)
		}
	}
}
