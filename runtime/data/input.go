package data

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
)

// InputError says that what the user gave cannot be used, where the fault is,
// and what to do. The command line turns it into exit code 2.
type InputError struct {
	File  string `json:"file,omitempty"`  // path, URL or plugin as the user named it
	Line  int64  `json:"line,omitempty"`  // physical line, first is 1; 0 when it does not apply
	Field string `json:"field,omitempty"` // column of the data or field of the configuration
	Msg   string `json:"msg"`
	Hint  string `json:"hint,omitempty"` // what to do next
	Err   error  `json:"-"`              // cause, may be nil
}

// Error is one line: place, fault, and what to do.
func (e *InputError) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File)
		if e.Line > 0 {
			fmt.Fprintf(&b, ":%d", e.Line)
		}
		b.WriteString(": ")
	}
	if e.Field != "" {
		fmt.Fprintf(&b, "field %q: ", e.Field)
	}
	b.WriteString(e.Msg)
	if e.Hint != "" {
		b.WriteString("; ")
		b.WriteString(e.Hint)
	}
	return b.String()
}

// Unwrap gives the cause.
func (e *InputError) Unwrap() error { return e.Err }

// checkFile opens a regular, readable, non-empty file and stats the open handle.
func checkFile(path string) (*os.File, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		e := &InputError{File: path, Msg: "cannot be opened: " + err.Error(), Err: err}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			e.Msg, e.Hint = "no such file", "check the path"
		case errors.Is(err, fs.ErrPermission):
			e.Msg, e.Hint = "permission denied", "make it readable for this user"
		}
		return nil, nil, e
	}
	st, err := f.Stat()
	if err == nil {
		switch {
		case st.IsDir():
			err = &InputError{File: path, Msg: "is a directory", Hint: "name the files in it, for example " + filepath.Join(path, "*.jsonl")}
		case !st.Mode().IsRegular():
			err = &InputError{File: path, Msg: "is not a regular file", Hint: "write the data to a file first"}
		case st.Size() == 0:
			err = &InputError{File: path, Msg: "is empty", Hint: "give a file with text or rows in it"}
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, err
	}
	return f, st, nil
}

// expand turns paths and globs into files, in the order given; a glob's matches
// are sorted. A path that exists is taken as it is, even with glob characters.
func expand(paths []string) ([]string, error) {
	var out []string
	seen := map[string]bool{}
	add := func(p string) {
		if c := filepath.Clean(p); !seen[c] {
			seen[c] = true
			out = append(out, p)
		}
	}
	for _, p := range paths {
		if _, err := os.Lstat(p); err == nil || !strings.ContainsAny(p, "*?[") {
			add(p)
			continue
		}
		m, err := filepath.Glob(p)
		if err != nil {
			return nil, &InputError{File: p, Msg: "is not a valid pattern: " + err.Error(), Err: err}
		}
		if len(m) == 0 {
			return nil, &InputError{File: p, Msg: "matches no file", Hint: "check the pattern"}
		}
		sort.Strings(m)
		for _, x := range m {
			if st, err := os.Stat(x); err == nil && st.IsDir() {
				continue
			}
			add(x)
		}
	}
	return out, nil
}

// writeError names the file and, where the disk is full, says what to do.
func writeError(path string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, syscall.EFBIG) {
		return fmt.Errorf("write %s: the file may not grow further: raise the limit of file sizes (ulimit -f) or choose another output folder; nothing half-written is left: %w", path, err)
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("write %s: the disk is full: free some space or choose another output folder; nothing half-written is left: %w", path, err)
	}
	return fmt.Errorf("write %s: %w", path, err)
}
