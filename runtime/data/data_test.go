package data

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv("AUTOGLM_DATA_PLUGIN_MODE"); mode != "" {
		os.Exit(pluginMain(mode))
	}
	if dir := os.Getenv("AUTOGLM_DATA_SMALL_DISK"); dir != "" {
		os.Exit(smallDisk(dir, os.Getenv("AUTOGLM_DATA_LIMIT")))
	}
	goleak.VerifyTestMain(m)
}

// testdataFile gives a file of the large test data, or skips.
func testdataFile(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("AUTOGLM_TESTDATA")
	if dir == "" {
		if os.Getenv("AUTOGLM_REQUIRE") == "all" {
			t.Fatal("AUTOGLM_TESTDATA is not set and AUTOGLM_REQUIRE=all")
		}
		t.Skip("AUTOGLM_TESTDATA is not set")
	}
	return filepath.Join(dir, name)
}

// put writes a file of the test's own.
func put(t testing.TB, name, content string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return p
}

func config(files ...string) Config {
	c := DefaultConfig()
	c.Files = files
	return c
}

// wantInput asserts an InputError and gives it.
func wantInput(t *testing.T, err error) *InputError {
	t.Helper()
	var e *InputError
	if !errors.As(err, &e) {
		t.Fatalf("got %v, want an InputError", err)
	}
	return e
}

func prepare(t *testing.T, c Config) (*Report, string) {
	t.Helper()
	dir := t.TempDir()
	r, err := Prepare(context.Background(), c, dir, Events{})
	if err != nil {
		t.Fatal(err)
	}
	return r, dir
}

// examples reads a whole part.
func examples(t *testing.T, dir, part string) []Example {
	t.Helper()
	p, err := OpenPart(dir, part)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Close() }()
	var out []Example
	for {
		e, err := p.Next()
		if err != nil {
			if err.Error() != "EOF" {
				t.Fatal(err)
			}
			return out
		}
		out = append(out, e)
	}
}
