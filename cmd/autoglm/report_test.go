package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/open-autoglm/autoglm/actors/node"
	"github.com/open-autoglm/autoglm/runtime/job"
	"github.com/open-autoglm/autoglm/runtime/journal"
	"github.com/open-autoglm/autoglm/runtime/telemetry"
)

func TestReportCommand(t *testing.T) {
	dir := t.TempDir()
	report := func() error {
		root := newRoot()
		root.SetArgs([]string{"report", dir})
		return root.ExecuteContext(t.Context())
	}
	if err := report(); !errors.Is(err, node.ErrNoJob) || exitCode(err) != exitUsage {
		t.Errorf("a folder without a job: %v", err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("the refused folder holds %v", entries)
	}

	log, err := journal.OpenFile(filepath.Join(dir, "journal"))
	if err != nil {
		t.Fatal(err)
	}
	spec := job.Default()
	spec.Name = "unfinished business"
	rec, err := journal.Event{Kind: journal.Created, Spec: &spec}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Append(rec, true); err != nil {
		t.Fatal(err)
	}
	if err := report(); !errors.Is(err, node.ErrInUse) {
		t.Errorf("while another holds the folder: %v", err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if err := report(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, telemetry.ReportFile))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), "unfinished business") || !strings.Contains(string(b), "not finished") {
		t.Error("the report does not tell of the job")
	}
}
