package durable

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func TestWriteIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.json")
	for _, text := range []string{"first", "", strings.Repeat("second", 1<<20)} {
		if err := WriteFile(path, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Fatalf("%d bytes of %d, %v", len(b), len(text), err)
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if err := WriteFile(path, []byte("kept")); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	err := Write(path, func(w io.Writer) error {
		fmt.Fprint(w, strings.Repeat("half", 1<<20)) // past the buffer
		return broken
	})
	if !errors.Is(err, broken) {
		t.Errorf("the writer's error became %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "kept" || names(t, dir) != "a.json" {
		t.Errorf("after a failed write: %q, %v; %s", b, err, names(t, dir))
	}
	if err := WriteFile(filepath.Join(dir, "gone", "a.json"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder that isn't there: %v", err)
	}
	// The place is taken by a folder: the rename fails, and nothing is left.
	if err := os.MkdirAll(filepath.Join(dir, "b", "c"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "b"), []byte("x")); err == nil || names(t, dir) != "a.json b" {
		t.Errorf("over a folder: %v; %s", err, names(t, dir))
	}
}

func TestWriteDir(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "d")
	put := func(name string) func(string) error {
		return func(tmp string) error {
			if err := os.Mkdir(filepath.Join(tmp, "in"), 0o755); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(tmp, "in", name), []byte(name), 0o600)
		}
	}
	for _, name := range []string{"first", "second"} {
		if err := WriteDir(dir, put(name)); err != nil {
			t.Fatal(err)
		}
		if names(t, filepath.Join(dir, "in")) != name || names(t, root) != "d" {
			t.Fatalf("after %s: %s, beside %s", name, names(t, filepath.Join(dir, "in")), names(t, root))
		}
	}
	broken := errors.New("broken")
	if err := WriteDir(dir, func(tmp string) error { return errors.Join(put("third")(tmp), broken) }); !errors.Is(err, broken) {
		t.Errorf("fill's error became %v", err)
	}
	if names(t, filepath.Join(dir, "in")) != "second" || names(t, root) != "d" {
		t.Errorf("after a failure: %s, beside %s", names(t, filepath.Join(dir, "in")), names(t, root))
	}
}
