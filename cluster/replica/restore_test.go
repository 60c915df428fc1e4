package replica

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// What a backup holds is there again in an empty folder, and is written on to and
// copied to others.
func TestRestore(t *testing.T) {
	h := newHouse(t)
	a := h.open("a", folder(t), "127.0.0.1:0", true)
	_, term := h.leader()
	for i := range 100 {
		if err := a.Log(fmt.Sprint("job-", i%3), term).Append(fmt.Appendf(nil, "%d", i), true); err != nil {
			t.Fatal(err)
		}
	}
	var backup bytes.Buffer
	if err := a.Backup(&backup); err != nil {
		t.Fatal(err)
	}
	want := records(t, a.Store, "job-1")
	h.drop(a)

	again := newHouse(t)
	dir := filepath.Join(t.TempDir(), "journal")
	if err := Restore(dir, bytes.NewReader(backup.Bytes())); err != nil {
		t.Fatal(err)
	}
	if err := Restore(dir, bytes.NewReader(backup.Bytes())); !errors.Is(err, ErrHasJournal) {
		t.Fatalf("restored over a journal: %v", err)
	}
	b := again.open("b", dir, "127.0.0.1:0", true)
	_, term = again.leader()
	if term <= restoredTerm {
		t.Fatalf("term %d", term)
	}
	if got := records(t, b.Store, "job-1"); !slices.Equal(got, want) {
		t.Fatalf("%v after a restoration, want %v", got, want)
	}
	if err := b.Log("job-1", term).Append([]byte("new"), true); err != nil {
		t.Fatal(err)
	}
	again.open("c", folder(t), "127.0.0.1:0", false)
	again.open("d", folder(t), "127.0.0.1:0", false)
	again.voters(3)
	again.mu.Lock()
	c := again.rooms["c"]
	again.mu.Unlock()
	want = append(want, "new")
	waitFor(t, func() bool { return slices.Equal(records(t, c.Store, "job-1"), want) })
	// Started again, it is the same.
	again.drop(b)
	l, _ := again.leader()
	if got := records(t, l.Store, "job-1"); !slices.Equal(got, want) {
		t.Fatalf("%v after the restored copy was lost, want %v", got, want)
	}
}

// A damaged or cut backup leaves nothing behind.
func TestRestoreDamaged(t *testing.T) {
	h := newHouse(t)
	a := h.open("a", folder(t), "127.0.0.1:0", true)
	_, term := h.leader()
	if err := a.Log("job", term).Append(bytes.Repeat([]byte("x"), 1000), true); err != nil {
		t.Fatal(err)
	}
	var backup bytes.Buffer
	if err := a.Backup(&backup); err != nil {
		t.Fatal(err)
	}
	flipped := bytes.Clone(backup.Bytes())
	flipped[500] ^= 1
	for name, b := range map[string][]byte{
		"empty": nil, "other": []byte("PAR1 and more"), "cut": backup.Bytes()[:backup.Len()-1], "flipped": flipped,
		"with an error at its end": append(bytes.Clone(backup.Bytes()), `{"error":"disk full"}`...),
	} {
		dir := filepath.Join(t.TempDir(), "journal")
		if err := Restore(dir, bytes.NewReader(b)); err == nil {
			t.Errorf("%s: taken", name)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: %s was left", name, dir)
		}
	}
	if n, err := Verify(bytes.NewReader(backup.Bytes())); err != nil || n != 1 {
		t.Errorf("%d streams, %v", n, err)
	}
}
