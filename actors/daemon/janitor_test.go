package daemon

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/open-autoglm/autoglm/runtime/job"
)

// What no job needs any more is removed; what one needs stays.
func TestTidy(t *testing.T) {
	d, err := Start(t.Context(), Config{Listen: "127.0.0.1:0", Dir: t.TempDir(), Locks: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for late := time.Now().Add(20 * time.Second); d.chiefNow() == nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(late) {
			t.Fatal("nobody leads")
		}
	}
	needed, err := d.files.Put(strings.NewReader("needed"))
	if err != nil {
		t.Fatal(err)
	}
	stray, err := d.files.Put(strings.NewReader("stray"))
	if err != nil {
		t.Fatal(err)
	}
	spec := job.Default()
	spec.HardwareConstraint = "gpu-512" // waits for ever
	j, err := d.chiefNow().submit(Job{Spec: spec, Files: []Upload{{Name: "a.txt", Ref: needed}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{j.ID, "j99"} {
		if err := os.MkdirAll(filepath.Join(d.cfg.Dir, "jobs", id, "trials"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.tidyOnce(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if !d.files.Has(stray) {
		t.Error("a file whose job may be on its way is gone")
	}
	if err := d.tidyOnce(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if d.files.Has(stray) || !d.files.Has(needed) {
		t.Errorf("stray %v, needed %v", d.files.Has(stray), d.files.Has(needed))
	}
	if left, _ := os.ReadDir(filepath.Join(d.cfg.Dir, "jobs")); len(left) != 0 {
		t.Errorf("folders that nobody works in: %v", left)
	}
}
