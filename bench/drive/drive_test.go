package drive

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/runtime/journal"
)

func TestLanes(t *testing.T) {
	whole, err := Lanes(1, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cpus := whole[0].CPUs
	lanes, err := Lanes(len(cpus), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, l := range lanes {
		if len(l.CPUs) != 1 {
			t.Errorf("a lane of %d is %v", len(cpus), l.CPUs)
		}
		all = append(all, l.CPUs...)
	}
	if !slices.Equal(all, cpus) {
		t.Errorf("lanes of %v have %v", cpus, all)
	}
	if _, err := Lanes(len(cpus)+1, t.TempDir()); err == nil {
		t.Error("more lanes than processors")
	}
}

func TestEvents(t *testing.T) {
	if _, err := exec.LookPath("taskset"); err != nil {
		t.Skip(err)
	}
	lanes, err := Lanes(1, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "program")
	write := func(script string) {
		t.Helper()
		if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run := func(until journal.Kind) (kinds []journal.Kind, err error) {
		err = lanes[0].Events(t.Context(), program, []string{"build"}, func(e journal.Event) bool {
			kinds = append(kinds, e.Kind)
			return e.Kind != until
		})
		return kinds, err
	}
	const events = `echo '{"event":"created","kind":"created"}'; echo '{"event":"progress","trial":"t001"}'; echo '{"event":"planned","kind":"planned"}'; `

	write(events + "exit 0")
	kinds, err := run("")
	if want := []journal.Kind{journal.Created, journal.Planned}; err != nil || !slices.Equal(kinds, want) {
		t.Errorf("%v, %v; want %v", kinds, err, want)
	}
	write(events + "exec sleep 600") // which an interrupt ends
	if kinds, err = run(journal.Planned); err != context.Canceled || len(kinds) != 2 {
		t.Errorf("stopped: %v, %v", kinds, err)
	}
	write("echo no space >&2; exit 1")
	if _, err = run(""); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("failed: %v", err)
	}
}
