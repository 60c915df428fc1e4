package job

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/open-autoglm/autoglm/runtime/fields"
)

const maxSpecBytes = 4 << 20

// Load reads a job file over the defaults: YAML, or JSON with comments and
// trailing commas. An error is a *FieldError with the file's name, the line and
// the field's path, or wraps the one from the file system.
func Load(path string) (Spec, error) {
	f, err := os.Open(path)
	if err != nil {
		return Spec{}, fmt.Errorf("job file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSpecBytes+1))
	if err != nil {
		return Spec{}, fmt.Errorf("job file: %w", err)
	}
	return Parse(b, path)
}

// Parse is Load for bytes; name stands in errors.
func Parse(b []byte, name string) (Spec, error) {
	s := Default()
	if len(b) > maxSpecBytes {
		return s, &FieldError{File: name, Msg: fmt.Sprintf("is larger than %d bytes; is this a job file?", maxSpecBytes)}
	}
	lines, err := fields.Decode(b, name, &s)
	var bad *fields.Error
	if errors.As(err, &bad) {
		return s, &FieldError{File: bad.File, Line: bad.Line, Path: bad.Path, Msg: bad.Msg}
	}
	if err != nil {
		return s, err
	}
	if err := s.Validate(); err != nil {
		var fe *FieldError
		if errors.As(err, &fe) {
			fe.File = name
			if fe.Line == 0 {
				fe.Line = lines.Of(fe.Path)
			}
		}
		return s, err
	}
	// Files of the job stand relative to its folder.
	for _, list := range [][]string{s.Data.Files, s.Data.Valid, s.Data.Plugin, s.WarmStart} {
		for i, p := range list {
			if _, made := s.StepFile(p); !made && !filepath.IsAbs(p) {
				list[i] = filepath.Join(filepath.Dir(name), p)
			}
		}
	}
	for i := range s.Steps {
		s.Steps[i].bring(filepath.Dir(name))
	}
	return s, nil
}

// ShortFor says that a budget may be written as its wall clock: budget: 15m.
func (*Budget) ShortFor() string { return "WallClock" }

// ShortFor says that a compression may be written as its weights: compress: int8.
func (*Compress) ShortFor() string { return "Weights" }

// SetRange takes a range, a value or a list.
func (e *Expr) SetRange(text string) { *e = Expr(text) }

// SetLine takes a command as one line.
func (c *Command) SetLine(text string) { *c = Line(text) }

func didYouMean(s string, names []string) string { return fields.DidYouMean(s, names) }
