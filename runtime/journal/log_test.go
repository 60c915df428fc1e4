package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func records(t testing.TB, l Log) []string {
	t.Helper()
	var out []string
	if err := l.Replay(func(r []byte) error { out = append(out, string(r)); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := l.Append(fmt.Appendf(nil, "record %d", i), true); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := OpenFile(dir); !errors.Is(err, ErrInUse) {
		t.Fatalf("second open: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, FileName)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// Cut anywhere: whatever is whole stays, the rest is cut, and appending goes on.
	for cut := len(whole); cut >= 0; cut-- {
		if err := os.WriteFile(path, whole[:cut], 0o644); err != nil {
			t.Fatal(err)
		}
		l, err := OpenFile(dir)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		got := records(t, l)
		if want := max(0, cut-len(magic)) / (8 + len("record 0")); len(got) != want {
			t.Fatalf("cut at %d: %d records, want %d", cut, len(got), want)
		}
		if err := l.Append([]byte("more"), false); err != nil {
			t.Fatal(err)
		}
		if again := records(t, l); again[len(again)-1] != "more" || len(again) != len(got)+1 {
			t.Fatalf("cut at %d: after append %v", cut, again)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDamageInTheMiddleIsRefused(t *testing.T) {
	dir := t.TempDir()
	l, err := OpenFile(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if err := l.Append(fmt.Appendf(nil, "record %d", i), true); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	path := filepath.Join(dir, FileName)
	b, _ := os.ReadFile(path)
	b[len(magic)+10] ^= 1
	os.WriteFile(path, b, 0o644)
	if _, err := OpenFile(dir); err == nil {
		t.Fatal("a damaged record in the middle was accepted")
	}
}

func FuzzOpenFile(f *testing.F) {
	f.Add([]byte("AGLMJRN\x01\x01\x00\x00\x00abcdx"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, FileName), b, 0o644); err != nil {
			t.Fatal(err)
		}
		l, err := OpenFile(dir)
		if err != nil {
			return
		}
		defer l.Close()
		n := len(records(t, l))
		if err := l.Append([]byte("x"), false); err != nil {
			t.Fatal(err)
		}
		if got := records(t, l); len(got) != n+1 {
			t.Fatalf("%d records after appending to %d", len(got), n)
		}
	})
}
